"""SIGKILL, a full disk and an I/O error at every disk operation of a save and of a run."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import torch

from dskd.storage import checkpoint
from tests.faults import runs
from tests.faults.disk_operations import FAULTS, DiskOperations, Fault
from tests.processes import SERVER, wait

FAMILY = "SIGKILL, ENOSPC and EIO at every disk operation"
Scene = Literal["save", "run", "overwrite", "comparison"]
_DISPENSABLE = ("mkdir .", "open .", "mkdir checkpoints")
FAILED = 7
"""Exit code of a save that raised the expected error."""


@dataclass(frozen=True)
class Case:
    """An operation that fails.

    Attributes:
        scene: Writing a checkpoint, a run with method ``ce``, a run that replaces another one, or
            the files of a comparison.
        at: The number of the operation.
        operation: The operation and its file.
        fault: How the operation fails.
    """

    scene: Scene
    at: int
    operation: str
    fault: Fault


def cases(whole: bool = True) -> Iterator[tuple[str, Case]]:
    """Every recorded operation with every fault. Without ``whole``, those of a save only."""
    scenes: tuple[Scene, ...] = ("save", "run", "overwrite", "comparison")
    for scene in scenes if whole else scenes[:1]:
        recorded = _recorded(scene)
        cleared = _cleared(recorded) if scene == "overwrite" else len(recorded)
        for at, operation in enumerate(recorded):
            if at >= cleared or (scene == "comparison" and "ce/seed0" in operation):
                continue  # covered by the scene "run"
            for fault in FAULTS:
                yield f"{scene}, {at}: {operation}, {fault}", Case(scene, at, operation, fault)


def check(case: Case, folder: Path) -> str:
    """Makes an operation fail, and resumes.

    Raises:
        AssertionError: An earlier file was damaged, or the resumed run ends differently.
    """
    return _check_save(case, folder) if case.scene == "save" else _check_run(case, folder)


@cache
def _recorded(scene: Scene) -> tuple[str, ...]:
    """The disk operations of a scene without faults."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "own"
        folder.mkdir()
        log = folder / "operations.txt"
        if scene == "save":
            before = _two_checkpoints(folder / "under")
            assert wait(_saving(folder / "under", before, None, "kill", log)) == 0
        else:
            code, errors = runs.call(_arguments(scene, folder)[0], folder, _record(folder, log=log))
            assert code == 0, errors
        return tuple(log.read_text().splitlines())


def _cleared(operations: tuple[str, ...]) -> int:
    """The number of operations after which the old run is removed and the new one has begun."""
    return operations.index("rename .recipe.yaml")


def _record(folder: Path, **options: Any) -> Any:
    return partial(_start_recording, folder / "under", **options)


def _start_recording(under: Path, **options: Any) -> None:
    DiskOperations(under, **options)


def _state(step: int) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(step)
    parts = {name: kind() for name, kind in checkpoint.PARTS.items()}
    return parts | {"step": step, "trainer": {"weights": torch.randn(600_000, generator=draw)}}


def _two_checkpoints(folder: Path) -> Path:
    """Writes two checkpoints and returns the path of the last one."""
    return checkpoint.write(folder, _state(1), checkpoint.write(folder, _state(0)))


def _saving(folder: Path, before: Path, at: int | None, fault: Fault, log: Path) -> Any:
    process = SERVER.Process(target=_save, args=(folder, before, at, fault, log))
    process.start()
    return process


def _save(folder: Path, before: Path, at: int | None, fault: Fault, log: Path) -> None:
    DiskOperations(folder, at, fault, log)
    try:
        checkpoint.write(folder, _state(2), before)
    except OSError as error:
        sys.exit(FAILED if os.strerror(error.errno or 0) in str(error) else 1)


def _check_save(case: Case, folder: Path) -> str:
    under, log = folder / "under", folder / "operations.txt"
    before = _two_checkpoints(under)
    earlier = {path: path.read_bytes() for path in checkpoint.in_order(under)}
    code = wait(_saving(under, before, case.at, case.fault, log))
    done = log.read_text().splitlines()
    assert done[case.at] == case.operation
    assert code == (-9 if case.fault == "kill" else FAILED), code
    assert before.read_bytes() == earlier[before]
    renamed = any(line.startswith("rename") for line in done[: case.at])
    if not renamed:
        assert {path: path.read_bytes() for path in checkpoint.in_order(under)} == earlier
    for path in checkpoint.in_order(under):
        checkpoint.read(path)
    parts = [path for path in under.iterdir() if path.suffix == ".part"]
    assert case.fault == "kill" or not parts
    newest = checkpoint.write(under, _state(2), before)
    assert checkpoint.in_order(under) == [before, newest]
    weights = [state["trainer"]["weights"] for state in (checkpoint.read(newest), _state(2))]
    assert torch.equal(*weights)
    return "intact"


def _arguments(scene: Scene, folder: Path) -> tuple[list[str], list[str]]:
    """The commands that start a scene and resume it."""
    out, images = folder / "under", runs.images(folder / "images")
    if scene == "overwrite":
        if not out.exists():
            shutil.copytree(_old(folder.parent) / "under", out)
        return ([*runs.command(out, images, "ce"), "--overwrite"],) * 2
    if scene == "comparison":
        return (runs.comparison(out, images, "ce"),) * 2
    started = runs.command(out, images, "ce")
    return started, [*started, "--resume"]


@cache
def _old(folder: Path) -> Path:
    """The folder of a run to be replaced: one of another seed, with a teacher."""
    own = folder / "old"
    own.mkdir(exist_ok=True)
    runs.whole(runs.command(own / "under", runs.images(own / "images"), "kd", "seed=1"), own)
    return own


@cache
def _expected(scene: Scene, folder: Path) -> dict[str, Any]:
    own = folder / f"whole-{scene}"
    own.mkdir(exist_ok=True)
    runs.whole(_arguments(scene, own)[0], own)
    return runs.left(own / "under")


def _check_run(case: Case, folder: Path) -> str:
    expected = _expected(case.scene, folder.parent)
    start, resume = _arguments(case.scene, folder)
    log = folder / "operations.txt"
    fault = _record(folder, at=case.at, fault=case.fault, log=log)
    code, errors = runs.call(start, folder, fault)
    assert log.read_text().splitlines()[case.at] == case.operation
    # An existing folder need not be created, and tempfile can do without a nameless file.
    dispensable = code == 0 and case.fault != "kill" and case.operation in _DISPENSABLE
    if not dispensable:
        assert code == (-9 if case.fault == "kill" else 2), (code, errors)
        if case.fault != "kill":
            assert os.strerror(getattr(errno, case.fault)) in errors, errors
            assert "Traceback" not in errors, errors
        code, errors = runs.call(resume, folder)
        # After the last rename the run is complete, even if flushing its folder failed.
        assert code == 0 or "holds a finished run" in errors, errors
    different = runs.differing(expected, runs.left(folder / "under"))
    assert not different, different
    assert not list((folder / "under").rglob(".*.part"))
    return "identical, operation not needed" if dispensable else "identical"
