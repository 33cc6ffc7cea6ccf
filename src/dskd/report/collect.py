"""What a report is made of: run folders, put together by method, and the recipe they share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict

from dskd import methods
from dskd.compare.reader import COMPARISON, read_comparison, read_failure, read_result
from dskd.compare.summary import Entry
from dskd.compare.variants import weights_of
from dskd.config.recipe import resolve
from dskd.config.schema import Recipe
from dskd.errors import InputError, printable
from dskd.storage.diff import differences
from dskd.storage.json_file import read_json
from dskd.storage.run_directory import RunDirectory
from dskd.storage.run_files import FAILED
from dskd.storage.yaml_file import read_yaml_file

_Line = Annotated[str, AfterValidator(printable)]


class _Environment(BaseModel):
    """What is read of ``environment.json``."""

    model_config = ConfigDict(extra="allow")  # a later version may say more

    command: list[_Line]
    packages: dict[_Line, _Line]
    python: _Line = ""
    platform: _Line = ""
    processor: _Line = ""
    device: _Line = ""
    cores: int | None = None
    threads: int | None = None


@dataclass(frozen=True)
class MethodRuns:
    """A method with its settings, and its runs.

    Attributes:
        entry: Its results, and why seeds have none.
        settings: All settings of the method.
        folders: Of the finished runs, by seed.
    """

    entry: Entry
    settings: Mapping[str, Any]
    folders: Mapping[int, Path]

    @property
    def label(self) -> str:
        """The method's name, with the settings that set it apart."""
        return self.entry.label

    def rows(self) -> dict[int, list[dict[str, Any]]]:
        """The metrics of the finished runs, a row an epoch, by seed."""
        return {seed: RunDirectory(folder).rows() for seed, folder in self.folders.items()}


@dataclass(frozen=True)
class CollectedRuns:
    """All runs of a report.

    Attributes:
        methods: In the order in which they were given.
        recipe: What all runs share; its method and seed are one run's. It has a teacher where a
            method needs one.
        commands: That made the runs.
        environment: Of the first run, or of the comparison.
    """

    methods: tuple[MethodRuns, ...]
    recipe: Recipe
    commands: tuple[tuple[str, ...], ...]
    environment: Mapping[str, Any]

    def find(self, method: str) -> MethodRuns | None:
        """The first finished entry of a method."""
        return next((m for m in self.methods if m.entry.method == method and m.folders), None)


@dataclass(frozen=True)
class _Run:
    """A run's folder as it was read."""

    folder: Path
    recipe: dict[str, Any]
    result: dict[str, Any] | None
    failed: str | None

    @property
    def method(self) -> tuple[str, dict[str, Any]]:
        settings = dict(self.recipe["method"])
        return settings.pop("name"), settings


def collect(paths: Sequence[Path]) -> CollectedRuns:
    """The runs of some folders.

    Args:
        paths: The folders of runs, or the folder of one comparison.

    Raises:
        InputError: A folder holds neither, or the runs are not of one recipe.
    """
    if not paths:
        raise InputError("no run is given; give the folder of a comparison, or of one or more runs")
    compared = [path for path in paths if (path / COMPARISON).is_file()]
    if not compared:
        return _from_runs([_read_run(path) for path in paths])
    if len(paths) > 1:
        raise InputError(f"{compared[0]} is a comparison and is reported on alone; give it alone")
    return _from_comparison(paths[0])


def _from_comparison(path: Path) -> CollectedRuns:
    comparison = read_comparison(path)
    facts = comparison.facts
    plain = facts["recipe"] | {"method": facts["entries"][0]["method"], "seed": facts["seeds"][0]}
    if not any(_is_taught(entry.method) for entry in comparison.entries):
        plain["teacher"] = None
    recipe = resolve(plain, path)
    found = [
        _compared(entry, path / one["folder"], one["method"], facts["seeds"], recipe)
        for entry, one in zip(comparison.entries, facts["entries"], strict=True)
    ]
    environment = _read_environment(path)
    return CollectedRuns(tuple(found), recipe, (tuple(environment["command"]),), environment)


def _compared(
    entry: Entry, folder: Path, method: Mapping[str, Any], seeds: Sequence[int], recipe: Recipe
) -> MethodRuns:
    """A method of a comparison; seeds that have not ended are said to be so."""
    folders = {seed: folder / f"seed{seed}" for seed in seeds}
    left = {
        seed: _how_far(folders[seed], recipe.train.epochs)
        for seed in folders
        if seed not in entry.results and seed not in entry.failed
    }
    return MethodRuns(
        replace(entry, failed={**entry.failed, **left}),
        {key: value for key, value in method.items() if key != "name"},
        {seed: folders[seed] for seed in entry.results},
    )


def _is_taught(method: str) -> bool:
    return methods.find(method).needs_teacher


def _from_runs(runs: Sequence[_Run]) -> CollectedRuns:
    # A student that learns by labels alone has no teacher; another run of the same may.
    first = next((run for run in runs if run.recipe["teacher"]), runs[0])
    for run in runs:
        _check_same(first, run)
    _check_images(runs)
    grouped: dict[str, list[_Run]] = {}
    for run in runs:
        grouped.setdefault(json.dumps(run.recipe["method"], sort_keys=True), []).append(run)
    firsts = [group[0] for group in grouped.values()]
    found = [_method_runs(_label(group[0], firsts), group) for group in grouped.values()]
    environments = [_read_environment(run.folder) for run in runs]
    commands = dict.fromkeys(tuple(environment["command"]) for environment in environments)
    recipe = resolve(first.recipe, first.folder)
    return CollectedRuns(tuple(found), recipe, tuple(commands), environments[0])


def _read_run(folder: Path) -> _Run:
    if not (folder / "recipe.yaml").is_file():
        raise InputError(
            f"{folder} holds neither a run nor a comparison; give folders that `dskd train`, "
            "`distill` or `compare` wrote"
        )
    recipe = read_yaml_file(folder / "recipe.yaml", "recipe")
    # Whole and typed, so that nothing below has to ask what is there.
    recipe = resolve(recipe, folder).plain()
    if not _is_taught(recipe["method"]["name"]):
        recipe["teacher"] = None
    if (folder / "result.json").is_file():
        return _Run(folder, recipe, read_result(folder), None)
    if (folder / FAILED).is_file():
        return _Run(folder, recipe, None, read_failure(folder))
    return _Run(folder, recipe, None, _how_far(folder, recipe["train"]["epochs"]))


def _read_environment(folder: Path) -> dict[str, Any]:
    fix = f"remove {folder} and make the run again"
    return read_json(folder / "environment.json", _Environment, fix).model_dump()


def _how_far(folder: Path, epochs: int) -> str:
    """What is said of a run that has not ended."""
    done = len(RunDirectory(folder).rows())
    return f"not finished, {done} of {epochs} epochs are done" if done else "not begun"


def _check_same(first: _Run, other: _Run) -> None:
    """Runs stand side by side only where all but method and seed is the same."""
    listed = differences(_shared(first.recipe, other), _shared(other.recipe, first))
    if listed:
        raise InputError(
            f"{first.folder} and {other.folder} are not of one recipe: {listed}; make a report of "
            "each"
        )


def _check_images(runs: Sequence[_Run]) -> None:
    """Nor where they were evaluated on other images, as far as they tell."""
    told = {run.result["given"].get("data"): run for run in runs if run.result is not None}
    folders = [run.folder for fingerprint, run in told.items() if fingerprint is not None]
    if len(folders) > 1:
        raise InputError(
            f"{folders[0]} and {folders[1]} are not of the same images; make a report of each"
        )


def _shared(recipe: Mapping[str, Any], other: _Run) -> dict[str, Any]:
    """What runs have in common that differ in method and seed, or in where they were made."""
    train = {key: value for key, value in recipe["train"].items() if key != "device"}
    shared = {"data": recipe["data"], "student": recipe["student"], "train": train}
    if recipe["teacher"] and other.recipe["teacher"]:
        shared["teacher"] = {"name": recipe["teacher"]["name"]}
    return shared


def _label(run: _Run, firsts: Sequence[_Run]) -> str:
    """The method's name; with what is not its default where the name alone would not do."""
    name, settings = run.method
    if sum(other.method[0] == name for other in firsts) == 1:
        return name
    default = methods.resolve(name, {})
    changes = [f"{key}={value}" for key, value in settings.items() if value != default[key]]
    return ":".join([name, *changes])


def _method_runs(label: str, runs: Sequence[_Run]) -> MethodRuns:
    name, settings = runs[0].method
    by_seed: dict[int, _Run] = {}
    for run in runs:
        seed = run.recipe["seed"]
        if seed in by_seed:
            raise InputError(
                f"{by_seed[seed].folder} and {run.folder} are the same run, {label} at seed "
                f"{seed}; give one of them"
            )
        by_seed[seed] = run
    results = {seed: run.result for seed, run in by_seed.items() if run.result is not None}
    failed = {seed: run.failed for seed, run in by_seed.items() if run.failed is not None}
    entry = Entry(label, name, weights_of(name, settings), results, failed)
    return MethodRuns(entry, settings, {seed: by_seed[seed].folder for seed in results})
