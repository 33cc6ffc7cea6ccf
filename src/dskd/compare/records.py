"""The files of a comparison: ``comparison.json`` says what it is, ``results.jsonl`` lists results.

``results.jsonl`` has a line for every run that has ended, in the order in which they ended: the
method's label, the seed, and either the content of ``result.json`` or, under ``failed``, the
reason. It is a convenience for other programs: the runs' own folders are what dskd reads.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from dskd.compare.grid import Grid
from dskd.compare.lockstep import Callback, RunProgress
from dskd.compare.parts import ComparedData
from dskd.compare.reader import read_facts, read_failure, read_result
from dskd.config.base_recipe import method_differences
from dskd.errors import InputError, option
from dskd.runtime import device as devices
from dskd.storage.atomic import explain_disk_errors, is_part, replace_file
from dskd.storage.diff import differences
from dskd.storage.json_file import MAX_LOG_BYTES, read_json
from dskd.storage.lock import LOCK, LOCK_PID
from dskd.storage.metric_names import to_file
from dskd.storage.run_files import COMPARISON, ENVIRONMENT, FAILED
from dskd.teacher.frozen import FrozenTeacher

RESULTS = "results.jsonl"
_NOT_SHARED = ("method", "seed", "out")
"""What the runs of a comparison do not share of the recipe."""
OWN_FILES = (COMPARISON, RESULTS, ENVIRONMENT, LOCK_PID)
"""The files of the comparison itself, which a kill may leave half written."""


def has_ended(folder: Path) -> bool:
    """Whether a run is finished or has failed."""
    return (folder / "result.json").is_file() or (folder / FAILED).is_file()


class ResultRecorder:
    """Records every run that ends, and passes all calls on to another callback.

    Args:
        grid: The comparison.
        callback: The other callback.
    """

    def __init__(self, grid: Grid, callback: Callback) -> None:
        self.grid, self.callback = grid, callback

    def on_step(self, run: RunProgress) -> None:
        """Passes the call on."""
        self.callback.on_step(run)

    def on_end(self, run: RunProgress, failure: str | None) -> None:
        """Records the run, then passes the call on."""
        if failure is not None:
            replace_file(run.folder / FAILED, f"{failure}\n".encode())
        path, line = self.grid.path / RESULTS, _line(run.label, run.seed, run.folder).encode()
        with explain_disk_errors(path, lambda: len(line)), path.open("ab", buffering=0) as file:
            file.write(line)
        self.callback.on_end(run, failure)


def _line(label: str, seed: int, folder: Path) -> str:
    """The line of ``results.jsonl`` for a run that has ended."""
    row: dict[str, Any] = {"label": label, "seed": seed}
    if (folder / FAILED).is_file():
        row["failed"] = read_failure(folder)
    else:
        result = read_result(folder)
        row |= to_file(result, result.get("metric", "accuracy"))
    return json.dumps(row) + "\n"


def repair_rows(grid: Grid) -> None:
    """Repairs ``results.jsonl`` after a kill.

    Damaged lines are dropped, and so are those of runs that are trained again. The lines of runs
    that have ended are added if they are missing.
    """
    path = grid.path / RESULTS
    text = ""
    if path.is_file():
        with path.open("rb") as file:  # lines beyond the limit are written again from the runs
            text = file.read(MAX_LOG_BYTES).decode(errors="replace")
    lines: dict[tuple[str, int], str] = {}
    for line in text.splitlines():
        with suppress(ValueError, TypeError, KeyError, RecursionError):
            row = json.loads(line)
            lines[row["label"], row["seed"]] = f"{line}\n"
    for seed in grid.seeds:
        for variant in grid.variants:
            folder = grid.folder(variant, seed)
            if not has_ended(folder):  # it was removed, to be trained again
                lines.pop((variant.label, seed), None)
            elif (variant.label, seed) not in lines:
                lines[variant.label, seed] = _line(variant.label, seed, folder)
    replace_file(path, "".join(lines.values()).encode())


def merged_facts(
    grid: Grid, data_of: Callable[[int], ComparedData] | None = None
) -> dict[str, Any]:
    """The new content of ``comparison.json``: the grid, merged into what is there.

    Args:
        grid: The comparison.
        data_of: Its images, by seed; None before they are loaded.

    Returns:
        See `dskd.compare.reader.ComparisonFacts`.

    Raises:
        InputError: The folder holds another comparison, one on other images, or other files.
    """
    recipe = {k: v for k, v in grid.recipe.plain().items() if k not in _NOT_SHARED}
    own: dict[str, Any] = {
        "recipe": recipe,
        "weights": grid.weights,
        "seeds": list(grid.seeds),
        "variants": [variant.plain() for variant in grid.variants],
        "teacher": None,
    }
    there = read_facts(grid.path) if (grid.path / COMPARISON).is_file() else None
    if data_of is not None:
        # Where each seed has its own split, the images of one seed stand for all.
        seed = there.get("data_seed", there["seeds"][0]) if there is not None else grid.seeds[0]
        data = data_of(seed)
        own |= {"test_images": len(data.test), "data": data.fingerprint()}
        if grid.splits_by_seed:
            own["data_seed"] = seed
    if there is None:
        if grid.path.is_dir() and any(map(_is_foreign, grid.path.iterdir())):
            raise InputError(
                f"{grid.path} holds other files; choose another folder with {_other_folder()}"
            )
        return own
    _check_same(grid, there, own)
    return own | {
        "teacher": there["teacher"],
        "seeds": sorted({*there["seeds"], *own["seeds"]}),
        "variants": _merged_variants(grid.path, there["variants"], own["variants"]),
    }


def _check_same(grid: Grid, there: dict[str, Any], own: dict[str, Any]) -> None:
    """Checks that a comparison that is there has the same recipe and the same images.

    Raises:
        InputError: It has others.
    """
    path = grid.path
    found = [
        grid.recipe.differences(there["recipe"], ignored=_NOT_SHARED),
        differences({"weights": there["weights"]}, {"weights": own["weights"]}),
    ]
    if listed := "; ".join(filter(None, found)):
        raise InputError(
            f"{path} holds a comparison of another recipe: {listed}; choose another folder with "
            f"{_other_folder()}"
        )
    if "data" in own and there["data"] not in (None, own["data"]):
        raise InputError(
            f"{path} holds a comparison on other images or with another data.loading (memory or "
            f"stream); give the same, or choose another folder with {_other_folder()}"
        )


def _merged_variants(
    path: Path, there: Sequence[dict[str, Any]], own: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The methods that are there and the new ones.

    Raises:
        InputError: A method has other settings than the one of the same label that is there.
    """
    merged = {variant["label"]: variant for variant in there}
    for variant in own:
        before = merged.setdefault(variant["label"], variant)
        if listed := method_differences(before["method"], variant["method"]):
            raise InputError(
                f"{variant['label']} has other settings in {path}: {listed}; choose another folder "
                f"with {_other_folder()}"
            )
    return list(merged.values())


def with_teacher(
    path: Path, facts: dict[str, Any], teacher: FrozenTeacher | None
) -> dict[str, Any]:
    """The content of ``comparison.json`` with the fingerprint of the teacher.

    Args:
        path: The folder of the comparison.
        facts: The content so far.
        teacher: The teacher; None if no method needs one.

    Raises:
        InputError: The runs that are there had another teacher.
    """
    if teacher is None:
        return facts
    fingerprint = teacher.fingerprint()
    if facts["teacher"] not in (None, fingerprint):
        raise InputError(
            f"{path} holds a comparison with another teacher; give the same, or choose another "
            f"folder with {_other_folder()}"
        )
    return facts | {"teacher": fingerprint}


def _other_folder() -> str:
    return option("out", "FOLDER")


def _is_foreign(path: Path) -> bool:
    """Whether a file is neither a lock nor left by a comparison that was killed."""
    return path.name not in (LOCK, LOCK_PID) and not is_part(path.name, OWN_FILES)


def write_facts(grid: Grid, facts: dict[str, Any], device: torch.device) -> None:
    """Writes ``comparison.json`` and ``environment.json``.

    ``comparison.json`` comes first, because it marks the folder as a comparison. The environment
    is that of the last command that had runs to train; ``commands`` are all of these commands.

    Args:
        grid: The comparison.
        facts: See `merged_facts`.
        device: The device of the process.
    """
    replace_file(grid.path / COMPARISON, (json.dumps(facts, indent=2) + "\n").encode())
    folders = (grid.folder(variant, seed) for variant in grid.variants for seed in grid.seeds)
    known = grid.path / ENVIRONMENT
    if known.is_file() and all(map(has_ended, folders)):
        return
    values = devices.environment(device)
    before = read_json(known, _Commands, f"remove {known}") if known.is_file() else _Commands()
    commands = [*(before.commands or [before.command]), values["command"]]
    values["commands"] = [list(one) for one in dict.fromkeys(map(tuple, commands)) if one]
    replace_file(known, (json.dumps(values, indent=2) + "\n").encode())


class _Commands(BaseModel):
    """The part of ``environment.json`` that the next command keeps."""

    command: list[str] = []
    commands: list[list[str]] = []
