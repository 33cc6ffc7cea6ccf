"""Stage 1 of a report: collects run folders by method, and the recipe that they share."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from dskd import methods
from dskd.compare.reader import read_comparison
from dskd.compare.summary import VariantResults
from dskd.compare.variants import weights_of
from dskd.errors import InputError
from dskd.methods import outside
from dskd.report.environments import read_environment
from dskd.report.read_run import Run, check_task, needs_teacher, progress, read_run, resolved
from dskd.report.task import ReportTask, task_of
from dskd.storage.diff import differences
from dskd.storage.run_directory import RunDirectory
from dskd.storage.run_files import COMPARISON

Columns = Mapping[str, Sequence[float | None]]
"""Metrics by name, with one value per epoch; None where an epoch has none."""


@dataclass(frozen=True)
class MethodRuns:
    """A method with its settings, and its runs.

    Attributes:
        variant: Its results, and the reasons why seeds have none.
        settings: All settings of the method.
        folders: The folders of the finished runs by seed.
    """

    variant: VariantResults
    settings: Mapping[str, Any]
    folders: Mapping[int, Path]

    @property
    def label(self) -> str:
        """The method's name, with the settings that distinguish it."""
        return self.variant.label

    def teacher_fingerprint(self, seed: int) -> str | None:
        """The fingerprint of the teacher of a finished run; None without a teacher."""
        known: str | None = self.variant.results[seed]["fingerprints"].get("teacher")
        return known

    @cached_property
    def metrics(self) -> Mapping[int, Columns]:
        """The metrics of the finished runs by seed."""
        return {seed: _columns(folder) for seed, folder in self.folders.items()}


@dataclass(frozen=True)
class CollectedRuns:
    """All runs of a report.

    Attributes:
        task: Their task.
        methods: The methods, in the order in which they were given.
        recipe: What all runs share, a `Recipe` or that of another task; its method and seed are
            those of one run. It has a teacher if a method needs one.
        commands: The commands that made the runs.
        environments: Those of the runs. Before any is finished, that of the comparison.
        beside: Finished runs of other students, one each, to show beside early exits.
    """

    task: ReportTask
    methods: tuple[MethodRuns, ...]
    recipe: Any
    commands: tuple[tuple[str, ...], ...]
    environments: tuple[Mapping[str, Any], ...]
    beside: tuple[CollectedRuns, ...] = ()

    @property
    def names(self) -> list[str]:
        """What users named: their commands, paths, methods and data."""
        words = [shlex.join(command) for command in self.commands]
        words += [word for command in self.commands for word in command]
        words += [method.label for method in self.methods]
        words += [str(folder) for folder in self.finished]
        words += [str(root) for root in (getattr(self.recipe.data, "root", None),) if root]
        return list(dict.fromkeys([*words, self.recipe.data.title]))

    @property
    def finished(self) -> list[Path]:
        """The folders of all finished runs."""
        return [folder for runs in self.methods for folder in runs.folders.values()]

    def find(self, method: str) -> MethodRuns | None:
        """The first variant of a method that has a finished run."""
        return next((m for m in self.methods if m.variant.method == method and m.folders), None)

    def best_first(self) -> list[MethodRuns]:
        """The methods by the mean of their test accuracy, those without a result last."""
        means = {
            m.label: sum(r["test_accuracy"] for r in results) / len(results)
            for m in self.methods
            if (results := m.variant.results.values())
        }
        return sorted(self.methods, key=lambda m: -means.get(m.label, -1.0))


def collect(paths: Sequence[Path], task: str | None = None) -> CollectedRuns:
    """Collects the runs in some folders.

    Args:
        paths: The folders of runs, or the folder of one comparison.
        task: The task that they must have, as in ``graphs``; None for any.

    Raises:
        InputError: A folder holds neither, or a run of another task, or the runs do not share one
            recipe.
    """
    if not paths:
        raise InputError("no run is given; give the folder of a comparison, or of one or more runs")
    comparisons = [path for path in paths if (path / COMPARISON).is_file()]
    if not comparisons:
        return _from_runs([read_run(path, task) for path in paths])
    if len(paths) > 1:
        raise InputError(
            f"{comparisons[0]} is a comparison and cannot be combined with others; give it alone"
        )
    return _from_comparison(paths[0], task)


def _from_comparison(path: Path, wanted: str | None) -> CollectedRuns:
    comparison = read_comparison(path)
    facts = comparison.facts
    check_task(path, facts["recipe"], wanted)
    task = task_of(facts["recipe"])
    plain = facts["recipe"] | {"method": facts["variants"][0]["method"], "seed": facts["seeds"][0]}
    if not any(needs_teacher(variant.method) for variant in comparison.variants):
        plain["teacher"] = None
    recipe = resolved(task, plain, path)
    found = [
        _compared(variant, path / one["folder"], one["method"], facts["seeds"], recipe)
        for variant, one in zip(comparison.variants, facts["variants"], strict=True)
    ]
    whole = read_environment(path)
    commands = whole["commands"] or [whole["command"]]
    # Another machine may have continued the comparison, or only have started its jobs.
    own = [read_environment(folder) for method in found for folder in method.folders.values()]
    return CollectedRuns(
        task, tuple(found), recipe, tuple(map(tuple, commands)), tuple(own or [whole])
    )


def _compared(
    variant: VariantResults,
    folder: Path,
    method: Mapping[str, Any],
    seeds: Sequence[int],
    recipe: Any,
) -> MethodRuns:
    """A method of a comparison. Seeds that have not ended count as failed, with their progress."""
    folders = {seed: folder / f"seed{seed}" for seed in seeds}
    unfinished = {
        seed: progress(folders[seed], recipe.train.epochs)
        for seed in folders
        if seed not in variant.results and seed not in variant.failed
    }
    return MethodRuns(
        replace(variant, failed={**variant.failed, **unfinished}),
        {key: value for key, value in method.items() if key != "name"},
        {seed: folders[seed] for seed in variant.results},
    )


def _from_runs(runs: Sequence[Run]) -> CollectedRuns:
    # A run without a teacher says nothing about the teacher of the others.
    first = next((run for run in runs if run.recipe["teacher"]), runs[0])
    for run in runs:
        _check_same(first, run)
    _check_images(runs)
    grouped: dict[str, list[Run]] = {}
    for run in runs:
        grouped.setdefault(json.dumps(run.recipe["method"], sort_keys=True), []).append(run)
    firsts = [group[0] for group in grouped.values()]
    found = [_method_runs(_label(group[0], firsts), group) for group in grouped.values()]
    environments = [read_environment(run.folder) for run in runs]
    commands = dict.fromkeys(tuple(environment["command"]) for environment in environments)
    task = task_of(first.recipe)
    recipe = resolved(task, first.recipe, first.folder)
    return CollectedRuns(task, tuple(found), recipe, tuple(commands), tuple(environments))


def _columns(folder: Path) -> Columns:
    """The metrics of a run. Rows would need five times the memory."""
    rows = RunDirectory(folder).rows()
    keys = dict.fromkeys(key for row in rows for key in row)
    return {key: [row.get(key) for row in rows] for key in keys}


def _check_same(first: Run, other: Run) -> None:
    """Checks that two runs have the same recipe except for method and seed.

    Raises:
        InputError: Other settings differ.
    """
    if listed := differences(_shared(first.recipe, other), _shared(other.recipe, first)):
        raise InputError(
            f"{first.folder} and {other.folder} have different recipes: {listed}; make a report of "
            "each"
        )


def _check_images(runs: Sequence[Run]) -> None:
    """Checks that runs had the same images, as far as their results tell.

    Raises:
        InputError: Two runs had different images.
    """
    data = runs[0].recipe["data"]
    what = "graphs" if task_of(runs[0].recipe).samples == "nodes" else "images"
    own_splits = data.get("split_seed", 0) is None  # of each seed
    seen: dict[tuple[str, int], tuple[str, Path]] = {}
    for run in runs:
        facts = run.result["fingerprints"] if run.result is not None else {}
        seed = run.recipe["seed"] if own_splits else 0
        compared = {"data": what}
        if data.get("labels") == "none":  # its outputs take the place of labels
            compared["teacher"] = "teachers"
        for name, words in compared.items():
            if (found := facts.get(name)) is None:
                continue
            before, folder = seen.setdefault((name, seed), (found, run.folder))
            if before != found:
                raise InputError(
                    f"{folder} and {run.folder} used different {words}; make a report of each"
                )


def _shared(recipe: Mapping[str, Any], other: Run) -> dict[str, Any]:
    """The part of a recipe that must be the same as in another run."""
    train = {key: value for key, value in recipe["train"].items() if key != "device"}
    shared = {"data": recipe["data"], "student": recipe["student"], "train": train}
    if "task" in recipe:
        shared["task"] = recipe["task"]
    if recipe["teacher"] and other.recipe["teacher"]:
        shared["teacher"] = {"name": recipe["teacher"]["name"]}
    return shared


def _label(run: Run, firsts: Sequence[Run]) -> str:
    """The method's name; if another group has the same, also the settings that are not defaults."""
    name, settings = run.method
    short = methods.short_name(name)
    if sum(other.method[0] == name for other in firsts) == 1:
        return short
    default = {} if outside.is_missing(name) else methods.resolve(name, {})
    changes = [f"{k}={value}" for k, value in settings.items() if value != default.get(k)]
    return ":".join([short, *changes])


def _method_runs(label: str, runs: Sequence[Run]) -> MethodRuns:
    name, settings = runs[0].method
    by_seed: dict[int, Run] = {}
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
    weights = weights_of(name, settings, results.values())
    folders = {seed: by_seed[seed].folder for seed in results}
    variant = VariantResults(label, name, weights, results, failed, runs=folders)
    return MethodRuns(variant, settings, folders)
