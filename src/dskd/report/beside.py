"""Stage 1 of a report: reads the runs of other students, which are shown beside early exits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dskd.deploy.student import load_deployed
from dskd.engine.user_objects import UserObjects
from dskd.errors import InputError
from dskd.report.analysis import run_with_exits
from dskd.report.collect import CollectedRuns, collect
from dskd.storage.diff import differences
from dskd.storage.run_files import COMPARISON, LAST
from dskd.storage.weights import read_metadata


def read_beside(
    paths: Sequence[Path], collected: CollectedRuns, given: UserObjects
) -> tuple[CollectedRuns, ...]:
    """Reads the finished runs of other students.

    Args:
        paths: Their folders.
        collected: The reported runs.
        given: Whether code may run; its objects are those of the reported runs.

    Returns:
        One run each.

    Raises:
        InputError: No reported run kept early exits, or a folder holds no finished run on their
            images, or one that is there already.
    """
    if not paths:
        return ()
    own = run_with_exits(collected)
    if own is None:
        raise InputError(
            f"no reported run kept early exits to show {paths[0]} beside; report a run that was "
            "trained with train.exits=true"
        )
    runs, seed = own
    found = [collect([runs.folders[seed]])]
    for path in paths:
        one = _finished(path, given)
        for other in found:
            _check_another(other, one)
        _check_images(found[0], one)
        found.append(one)
    return tuple(found[1:])


def _finished(path: Path, given: UserObjects) -> CollectedRuns:
    """A finished run on images, whose student can be loaded.

    Raises:
        InputError: It is none.
    """
    if (path / COMPARISON).is_file():
        raise InputError(f"{path} is a comparison; give the folder of one of its runs")
    found = collect([path])
    if found.task.name:
        raise InputError(
            f"{path} is a run of `dskd {found.task.name}`; only a student of images can be shown "
            "beside early exits"
        )
    (runs,) = found.methods
    for reason in runs.variant.failed.values():
        raise InputError(f"{path} is no finished run: {reason}; give one that is")
    load_deployed(path, "last", allow_code=given.allow_code)  # fails now, not after long work
    return found


def _check_another(first: CollectedRuns, other: CollectedRuns) -> None:
    """Refuses a run that is there already, or a copy of it.

    Raises:
        InputError: It is.
    """
    same_recipe = not differences(first.recipe.plain(), other.recipe.plain())
    if same_recipe and _fingerprints(first) == _fingerprints(other):
        raise InputError(
            f"{first.finished[0]} and {other.finished[0]} are the same run; give it once"
        )


def _check_images(first: CollectedRuns, other: CollectedRuns) -> None:
    """Refuses a run on other images than those of the run with exits.

    Raises:
        InputError: The images, their size or their classes differ.
    """
    if _images(first) != _images(other):
        settings = ({"data": run.recipe.data.model_dump()} for run in (first, other))
        listed = differences(*settings)
        raise InputError(
            f"{first.finished[0]} and {other.finished[0]} used different images"
            f"{f': {listed}' if listed else ''}; give a student that was trained on those of "
            f"{first.finished[0]}"
        )


def _images(run: CollectedRuns) -> tuple[Any, ...]:
    """What tells the images of a run from others."""
    metadata = read_metadata(run.finished[0] / LAST)
    return (_fingerprints(run).get("data"), metadata.get("classes"), metadata.get("shape"))


def _fingerprints(run: CollectedRuns) -> Mapping[str, str | None]:
    """Of the images and of the teacher of a single finished run."""
    (result,) = run.methods[0].variant.results.values()
    found: Mapping[str, str | None] = result["fingerprints"]
    return found
