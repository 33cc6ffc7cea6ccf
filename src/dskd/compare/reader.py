"""Reads the folder of a comparison. Files may be anybody's: sizes and types are checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model, model_validator

from dskd import methods
from dskd.compare.summary import VariantResults, baseline_of
from dskd.compare.variants import Weights, check_label, folder_of, split_label, weights_of
from dskd.config.schema import MethodSettings
from dskd.engine.result import Result
from dskd.errors import printable
from dskd.methods import outside
from dskd.settings import Count, Seed
from dskd.storage.json_file import read_json, read_text
from dskd.storage.run_files import COMPARISON, FAILED, LOST, RESULT, ResultFile


class _Facts(BaseModel):
    """Facts in a file. Unknown keys are allowed, since a later version may add some."""

    model_config = ConfigDict(extra="allow")


_FIELDS: dict[str, Any] = {
    key: (kind, ...)
    for key, kind in get_type_hints(Result, include_extras=True).items()
    if key not in ("path", "student", "ema_test_accuracy", "ema_student", "metric")
}
_ResultFacts = create_model("_ResultFacts", __base__=ResultFile, **_FIELDS)
"""``result.json``."""


def _resolved(method: MethodSettings) -> MethodSettings:
    """The settings of a method, completed by its defaults, if it can be found here."""
    if outside.is_missing(method.name):
        return method
    return MethodSettings(name=method.name, **methods.resolve(method.name, method.options))


class VariantFacts(_Facts):
    """A method in ``comparison.json``, as `dskd.compare.variants.MethodVariant.plain` gives it.

    Attributes:
        label: The method's name, with the settings that distinguish it: ``dskd:beta=0.1``.
        folder: The subfolder with its runs, ``seed0`` and so on.
        method: Its name and all its settings.
    """

    label: Annotated[str, AfterValidator(check_label)]
    folder: str
    method: Annotated[MethodSettings, AfterValidator(_resolved)]

    @model_validator(mode="after")
    def _names_agree(self) -> VariantFacts:
        name = methods.short_name(self.method.name)
        if split_label(self.label)[0] != name or self.folder != folder_of(self.label):
            raise ValueError("label, folder and method name different methods")
        return self


class ComparisonFacts(_Facts):
    """``comparison.json``: what a comparison is. Its results are in the folders of the runs.

    Attributes:
        recipe: What all runs share: the recipe without method, seed and folder.
        weights: How the loss weights were chosen.
        seeds: Every method is trained at every seed.
        variants: The methods.
        test_images: Size of the test split.
        data: Fingerprint of the images.
        teacher: Fingerprint of the teacher; None until a method needs one.
    """

    recipe: dict[str, Any]
    weights: Weights
    seeds: Annotated[list[Seed], Field(min_length=1)]
    variants: Annotated[list[VariantFacts], Field(min_length=1)]
    test_images: Count
    data: str | None = None
    teacher: str | None = None

    @model_validator(mode="after")
    def _no_duplicates(self) -> ComparisonFacts:
        if len({variant.label for variant in self.variants}) < len(self.variants):
            raise ValueError("a method is listed twice")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("a seed is listed twice")
        return self


@dataclass(frozen=True)
class Comparison:
    """A comparison as it is on disk.

    Attributes:
        path: Its folder.
        facts: The content of ``comparison.json``, see `ComparisonFacts`.
        variants: The methods with their results so far.
    """

    path: Path
    facts: Mapping[str, Any]
    variants: tuple[VariantResults, ...]

    @property
    def test_images(self) -> int:
        """Size of the test split."""
        return int(self.facts["test_images"])

    @property
    def task(self) -> str:
        """The task of the recipe; empty for images."""
        return str(self.facts["recipe"].get("task", ""))

    @property
    def baseline(self) -> str:
        """Label of the method that the table compares the others with."""
        return baseline_of(self.task)


def read_comparison(path: Path) -> Comparison:
    """Reads a comparison, finished or not.

    Raises:
        InputError: There is none, or one of its files is damaged.
    """
    facts = read_facts(path)
    variants = tuple(_variant_results(path, one, facts["seeds"]) for one in facts["variants"])
    return Comparison(path, facts, variants)


def read_facts(path: Path) -> dict[str, Any]:
    """Reads ``comparison.json``, see `ComparisonFacts`.

    Raises:
        InputError: It is missing or damaged.
    """
    fix = "check the path, or compare anew in another folder"
    return read_json(path / COMPARISON, ComparisonFacts, fix).model_dump(mode="json")


def read_result(folder: Path) -> dict[str, Any]:
    """Reads ``result.json`` of a finished run.

    Raises:
        InputError: It is missing or damaged, or an older version wrote it.
    """
    fix = f"remove {folder} and make the run again"
    return read_json(folder / RESULT, _ResultFacts, fix).model_dump()


def read_failure(folder: Path, name: str = FAILED) -> str:
    """Reads why a run of a comparison failed, as one line.

    Args:
        folder: The run's folder.
        name: The file: ``failed.txt``, or ``lost.txt`` for a run that is tried again.

    Raises:
        InputError: The file is missing, too long or not text.
    """
    text = read_text(folder / name, f"remove {folder} and make the run again")
    return printable(" ".join(text.split()))


def is_lost(folder: Path) -> bool:
    """Whether a process was lost with a run of a comparison. Such a run is tried again.

    Args:
        folder: The run's folder.
    """
    return (folder / LOST).is_file() and not (folder / RESULT).is_file()


def _variant_results(path: Path, facts: Mapping[str, Any], seeds: list[int]) -> VariantResults:
    results, failed, runs = {}, {}, {}
    for seed in seeds:
        folder = path / facts["folder"] / f"seed{seed}"
        if (folder / RESULT).is_file():
            results[seed], runs[seed] = read_result(folder), folder
        elif (folder / FAILED).is_file():
            failed[seed] = read_failure(folder)
        elif is_lost(folder):
            failed[seed] = read_failure(folder, LOST)
    method = dict(facts["method"])
    name = method.pop("name")
    weights = weights_of(name, method, results.values())
    return VariantResults(facts["label"], name, weights, results, failed, path, runs)
