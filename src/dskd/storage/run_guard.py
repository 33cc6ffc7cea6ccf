"""Protect a run's folder: refuse unsafe use, and remove only what belongs to the run."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from dskd.errors import InputError, call, option
from dskd.storage.atomic import check_writable, is_part, refuse_links, remove_folder
from dskd.storage.diff import StorableRecipe
from dskd.storage.json_file import read_json
from dskd.storage.lock import LOCK, LOCK_PID
from dskd.storage.run_files import (
    ENVIRONMENT,
    FILES,
    FOLDERS,
    RECIPE,
    RESULT,
    TEACHER,
    WRITTEN,
    ResultFile,
)
from dskd.storage.yaml_file import read_yaml_file

TRAINS_TEACHER = "trains_teacher"
"""Key in ``environment.json``: whether the folder ``teacher`` belongs to the run."""
EARLIER = "earlier"
"""Key in ``environment.json``: the same facts of earlier parts of the run."""
_IDENTIFYING = {ENVIRONMENT: ("python", "packages"), RECIPE: ("data", "student")}
"""The files by which a run's folder is recognised, and keys that each of them must have."""


def check_folder(
    folder: Path, recipe: StorableRecipe, trains_teacher: bool, *, resume: bool, overwrite: bool
) -> None:
    """Refuses a folder that a run would damage or cannot write to. Changes nothing.

    Args:
        folder: The run's folder; it need not exist.
        recipe: The recipe of the run that is about to start or resume.
        trains_teacher: Whether the run trains a teacher in the subfolder ``teacher``.
        resume: Whether the run continues the one in the folder.
        overwrite: Whether the run replaces the one in the folder.

    Raises:
        InputError: The folder cannot be written to. Or it holds other files, a run that may not
            be replaced, a run of another recipe, a finished run, or links.
    """
    if resume and overwrite:
        raise InputError(
            f"{option('resume')} and {option('overwrite')} exclude each other; give one"
        )
    check_writable(folder, option("out", "FOLDER"))
    if not folder.is_dir() or not any(map(_is_in_use, folder.iterdir())):
        return
    if not _holds_run(folder):
        raise InputError(f"{folder} holds other files; {_another_folder()}")
    if not resume and not overwrite:
        raise InputError(
            f"{folder} already holds a run; continue it ({option('resume')}), replace it "
            f"({option('overwrite')}) or choose another folder ({option('out', 'FOLDER')})"
        )
    if overwrite:
        _check_nothing_needed(folder, recipe.plain(), trains_teacher)
    if resume:
        check_same_recipe(folder, recipe, more_epochs=True)
        if (folder / RESULT).is_file():
            evaluating = _evaluating(folder, recipe.plain())
            raise InputError(
                f"{folder} holds a finished run; look at it with {evaluating}, "
                f"go on with a larger train.epochs, or replace it with {option('overwrite')}"
            )


def _evaluating(folder: Path, recipe: Mapping[str, Any]) -> str:
    """How the user evaluates a run; other tasks than images have commands of their own."""
    task = recipe.get("task")
    return f"`dskd {task} evaluate {folder}`" if task else call("evaluate", folder)


def check_run(folder: Path) -> None:
    """Refuses a folder that holds no run, cannot be written to, or has links.

    Raises:
        InputError: It does.
    """
    check_writable(folder, option("out", "FOLDER"))
    if not _holds_run(folder):
        raise InputError(f"{folder} holds other files; {_another_folder()}")
    refuse_links(*(folder / name for name in FOLDERS))


def check_same_recipe(folder: Path, recipe: StorableRecipe, *, more_epochs: bool = False) -> None:
    """Refuses to continue a run with another recipe, or through links.

    Args:
        folder: The folder of the run.
        recipe: The present recipe.
        more_epochs: Whether it may have more epochs.

    Raises:
        InputError: A setting differs, or a subfolder of the run is a link.
    """
    refuse_links(*(folder / name for name in FOLDERS))
    path = folder / RECIPE
    if not path.is_file():
        return
    if listed := recipe.differences(read_yaml_file(path, "recipe"), more_epochs=more_epochs):
        raise InputError(
            f"{folder} was started with another recipe: {listed}; resume with that recipe or "
            "choose another folder"
        )


def check_same_data(folder: Path, fingerprint: str) -> None:
    """Refuses a finished run that was trained on other images.

    Args:
        folder: The folder of the finished run.
        fingerprint: The fingerprint of the images that are in use now.

    Raises:
        InputError: The fingerprints differ, or ``result.json`` is damaged.
    """
    fix = f"remove {folder} to have it trained again"
    known = read_json(folder / RESULT, ResultFile, fix).fingerprints
    if known.get("data", fingerprint) != fingerprint:
        raise InputError(
            f"{folder} was trained on other images than these, or with another data.loading "
            f"(memory or stream); give the same, or {fix}"
        )


def remove_run(folder: Path) -> None:
    """Removes the run in a folder and nothing else.

    The result goes first and the identifying files last, so that a removal that is killed leaves
    neither a run that could be resumed nor files that ``--overwrite`` would refuse.
    """
    (folder / RESULT).unlink(missing_ok=True)
    for name in FOLDERS:
        if name != TEACHER or _trained_teacher(folder):
            remove_folder(folder / name)
    for name in (*FILES, *_IDENTIFYING):
        (folder / name).unlink(missing_ok=True)


def with_earlier(folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The content of ``environment.json``, with what it said in earlier parts of the run.

    Args:
        folder: The folder of the run.
        facts: Of the part that begins.

    Returns:
        The facts; under ``earlier`` the different ones of earlier parts, if there are any.
    """
    before: dict[str, Any] = {}
    if (folder / RECIPE).is_file():  # the run has begun
        with suppress(InputError):
            before = read_json(folder / ENVIRONMENT, dict[str, Any], "")
    earlier = before.pop(EARLIER, [])
    parts = [*(earlier if isinstance(earlier, list) else ()), *([before] if before else ())]
    kept = [part for at, part in enumerate(parts) if part != facts and part not in parts[:at]]
    return {**facts, EARLIER: kept} if kept else dict(facts)


def _holds_run(folder: Path) -> bool:
    left = {path.name for path in folder.iterdir() if _is_in_use(path)}
    found = left & _IDENTIFYING.keys()
    if not all(_identifies_run(folder / name) for name in found):
        return False
    # Both files are required, because a user may keep a recipe in a folder of their own. A run
    # that was killed while it began or while it was removed may have left only one of them.
    return found == _IDENTIFYING.keys() or (left == found and (folder / LOCK).is_file())


def _identifies_run(path: Path) -> bool:
    """Whether a file has the content that a run gives to a file of its name."""
    is_json = path.suffix == ".json"
    found = _read_environment(path) if is_json else read_yaml_file(path, path.name)
    return all(isinstance(found.get(key), (dict, str)) for key in _IDENTIFYING[path.name])


def _read_environment(path: Path) -> dict[str, Any]:
    fix = f"remove it if it belongs to a run, or {_another_folder()}"
    return read_json(path, dict[str, Any], fix)


def _trained_teacher(folder: Path) -> bool:
    """Whether the subfolder ``teacher`` belongs to the run in ``folder``."""
    path = folder / ENVIRONMENT
    return path.is_file() and _read_environment(path).get(TRAINS_TEACHER) is True


def _check_nothing_needed(folder: Path, recipe: Mapping[str, Any], trains_teacher: bool) -> None:
    """Refuses to overwrite files that the new run reads, or a teacher of another run."""
    teacher = folder / TEACHER
    in_the_way = teacher.exists() or teacher.is_symlink()
    if trains_teacher and in_the_way and not _trained_teacher(folder):
        raise InputError(
            f"{teacher} is no part of the run in {folder}, and the new run would train its "
            f"teacher there; move it out first, or {_another_folder()}"
        )
    models = (recipe["teacher"] or {}, recipe["student"])
    files = [model.get(key) for model in models for key in ("checkpoint", "pretrained")]
    for needed in (*files, recipe["data"]["root"]):
        if not isinstance(needed, str):
            continue
        if Path(needed).resolve().is_relative_to(folder.resolve()):
            raise InputError(
                f"{needed} lies in {folder}, which {option('overwrite')} would empty; move it out "
                f"first, or {_another_folder()}"
            )


def _is_in_use(path: Path) -> bool:
    """Whether a file means that its folder is in use; locks and temporary files do not."""
    return path.name not in (LOCK, LOCK_PID) and not is_part(path.name, WRITTEN)


def _another_folder() -> str:
    return f"choose another folder with {option('out', 'FOLDER')}"
