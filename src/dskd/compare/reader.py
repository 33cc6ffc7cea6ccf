"""What a comparison's folder tells: all of it is bounded and typed before it is used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model, model_validator

from dskd import methods
from dskd.compare.summary import Entry
from dskd.compare.variants import Weights, check_label, folder_of, weights_of
from dskd.config.schema import MethodSettings
from dskd.engine.training_run import Result
from dskd.errors import printable
from dskd.settings import Count, Seed
from dskd.storage.json_file import read_json, read_text
from dskd.storage.run_files import FAILED, ResultFile

COMPARISON = "comparison.json"


class _Told(BaseModel):
    """Facts of a file; a later version may say more."""

    model_config = ConfigDict(extra="allow")


_KINDS: dict[str, Any] = {
    key: (kind, ...)
    for key, kind in get_type_hints(Result, include_extras=True).items()
    if key not in ("path", "student")
}
_Numbers = create_model("_Numbers", __base__=ResultFile, **_KINDS)


def _whole(method: MethodSettings) -> MethodSettings:
    """With all settings that the method has."""
    return MethodSettings(name=method.name, **methods.resolve(method.name, method.options))


class _Entry(_Told):
    """A method, as `dskd.compare.variants.MethodVariant.plain` tells it."""

    label: Annotated[str, AfterValidator(check_label)]
    folder: str
    method: Annotated[MethodSettings, AfterValidator(_whole)]

    @model_validator(mode="after")
    def _named_alike(self) -> _Entry:
        if self.label.partition(":")[0] != self.method.name or self.folder != folder_of(self.label):
            raise ValueError("label, folder and method are not of one name")
        return self


class _Facts(_Told):
    """``comparison.json``.

    Attributes:
        recipe: What all runs share; without method, seed and folder.
        weights: How the methods' weights were chosen.
        seeds: Of the runs.
        entries: The methods.
        images: Of the test split.
        data: The fingerprint of the images.
        teacher: That of the teacher; None as long as no method needed it.
    """

    recipe: dict[str, Any]
    weights: Weights
    seeds: Annotated[list[Seed], Field(min_length=1)]
    entries: Annotated[list[_Entry], Field(min_length=1)]
    test_images: Count
    data: str | None = None
    teacher: str | None = None

    @model_validator(mode="after")
    def _named_once(self) -> _Facts:
        if len({entry.label for entry in self.entries}) < len(self.entries):
            raise ValueError("a method is named twice")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("a seed is named twice")
        return self


@dataclass(frozen=True)
class Comparison:
    """A comparison as it lies on the disk.

    Attributes:
        path: Its folder.
        facts: ``comparison.json``.
        entries: Each method with the results that are there.
    """

    path: Path
    facts: Mapping[str, Any]
    entries: tuple[Entry, ...]

    @property
    def test_images(self) -> int:
        """Of the test split."""
        return int(self.facts["images"])


def read_comparison(path: Path) -> Comparison:
    """A comparison, finished or not.

    Raises:
        InputError: There is none, or a file of it is damaged.
    """
    facts = read_facts(path)
    entries = tuple(_entry(path, one, facts["seeds"]) for one in facts["entries"])
    return Comparison(path, facts, entries)


def read_facts(path: Path) -> dict[str, Any]:
    """What ``comparison.json`` says.

    Raises:
        InputError: It is missing or damaged.
    """
    fix = "check the path, or compare anew in another folder"
    return read_json(path / COMPARISON, _Facts, fix).model_dump(mode="json")


def read_result(folder: Path) -> dict[str, Any]:
    """The numbers of a finished run.

    Raises:
        InputError: They are missing or damaged, or an older version wrote them.
    """
    fix = f"remove {folder} and make the run again"
    return read_json(folder / "result.json", _Numbers, fix).model_dump()


def read_failure(folder: Path) -> str:
    """Why a run of a comparison has no result, in a line.

    Raises:
        InputError: It does not say so.
    """
    text = read_text(folder / FAILED, f"remove {folder} and make the run again")
    return printable(" ".join(text.split()))


def _entry(path: Path, facts: Mapping[str, Any], seeds: list[int]) -> Entry:
    results, failed = {}, {}
    for seed in seeds:
        folder = path / facts["folder"] / f"seed{seed}"
        if (folder / "result.json").is_file():
            results[seed] = read_result(folder)
        elif (folder / FAILED).is_file():
            failed[seed] = read_failure(folder)
    method = dict(facts["method"])
    name = method.pop("name")
    return Entry(facts["label"], name, weights_of(name, method), results, failed)
