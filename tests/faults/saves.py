"""A kill, a full disk and a broken one at every operation on the disk of a save, and of a run."""

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
from tests.faults.operations import FAULTS, Disk, Fault

FAMILY = "kill, ENOSPC and EIO at every operation on the disk"
Scene = Literal["save", "run", "overwrite", "comparison"]
_NEEDLESS = ("mkdir .", "open .", "mkdir checkpoints")
FAILED = 7
"""The exit code of a save that raised the error it should."""


@dataclass(frozen=True)
class Case:
    """An operation that fails.

    Attributes:
        scene: Of a checkpoint's writing, of a run by labels, of one that takes another one's place,
            or of a comparison's own files.
        at: The operation's number.
        operation: What it is, and on which file.
        fault: How it fails.
    """

    scene: Scene
    at: int
    operation: str
    fault: Fault


def cases(whole: bool = True) -> Iterator[tuple[str, Case]]:
    """As many as the operations that are recorded; the sample has those of a save."""
    scenes: tuple[Scene, ...] = ("save", "run", "overwrite", "comparison")
    for scene in scenes if whole else scenes[:1]:
        recorded = _recorded(scene)
        cleared = _cleared(recorded) if scene == "overwrite" else len(recorded)
        for at, operation in enumerate(recorded):
            if at >= cleared or (scene == "comparison" and "ce/seed0" in operation):
                continue  # those of a run
            for fault in FAULTS:
                yield f"{scene}, {at}: {operation}, {fault}", Case(scene, at, operation, fault)


def check(case: Case, folder: Path) -> str:
    """Makes an operation fail, and goes on.

    Raises:
        AssertionError: What was written before is not intact, or it does not go on as if nothing
            had been.
    """
    return _check_save(case, folder) if case.scene == "save" else _check_run(case, folder)


@cache
def _recorded(scene: Scene) -> tuple[str, ...]:
    """What an undisturbed scene does on the disk."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "own"
        folder.mkdir()
        log = folder / "operations.txt"
        if scene == "save":
            before = _two(folder / "under")
            assert runs.wait(_saving(folder / "under", before, None, "kill", log)) == 0
        else:
            code, said = runs.call(_arguments(scene, folder)[0], folder, _watch(folder, log=log))
            assert code == 0, said
        return tuple(log.read_text().splitlines())


def _cleared(operations: tuple[str, ...]) -> int:
    """Behind how many operations the old run is gone, and the new one has begun."""
    return operations.index("rename .recipe.yaml")


def _watch(folder: Path, **others: Any) -> Any:
    under = folder / "under"
    return partial(_begin, under, **others)


def _begin(under: Path, **others: Any) -> None:
    Disk(under, **others)


def _state(step: int) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(step)
    parts = {name: kind() for name, kind in checkpoint.PARTS.items()}
    return parts | {"step": step, "trainer": {"weights": torch.randn(600_000, generator=draw)}}


def _two(folder: Path) -> Path:
    """Two checkpoints; the last one."""
    return checkpoint.write(folder, _state(1), checkpoint.write(folder, _state(0)))


def _saving(folder: Path, before: Path, at: int | None, fault: Fault, log: Path) -> Any:
    process = runs.SERVER.Process(target=_save, args=(folder, before, at, fault, log))
    process.start()
    return process


def _save(folder: Path, before: Path, at: int | None, fault: Fault, log: Path) -> None:
    Disk(folder, at, fault, log)
    try:
        checkpoint.write(folder, _state(2), before)
    except OSError as error:
        sys.exit(FAILED if os.strerror(error.errno or 0) in str(error) else 1)


def _check_save(case: Case, folder: Path) -> str:
    under, log = folder / "under", folder / "operations.txt"
    before = _two(under)
    kept = {path: path.read_bytes() for path in checkpoint.in_order(under)}
    code = runs.wait(_saving(under, before, case.at, case.fault, log))
    done = log.read_text().splitlines()
    assert done[case.at] == case.operation
    assert code == (-9 if case.fault == "kill" else FAILED), code
    assert before.read_bytes() == kept[before]
    renamed = any(line.startswith("rename") for line in done[: case.at])
    if not renamed:
        assert {path: path.read_bytes() for path in checkpoint.in_order(under)} == kept
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
    """What starts a scene, and what has it go on."""
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
    """Where a run lies that is to be replaced: another seed's, which has a teacher."""
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
    started, going_on = _arguments(case.scene, folder)
    log = folder / "operations.txt"
    watch = _watch(folder, at=case.at, fault=case.fault, log=log)
    code, said = runs.call(started, folder, watch)
    assert log.read_text().splitlines()[case.at] == case.operation
    # A folder that is there needs no making, and a nameless file has another way.
    done_without = code == 0 and case.fault != "kill" and case.operation in _NEEDLESS
    if not done_without:
        assert code == (-9 if case.fault == "kill" else 2), (code, said)
        if case.fault != "kill":
            assert os.strerror(getattr(errno, case.fault)) in said, said
            assert "Traceback" not in said, said
        code, said = runs.call(going_on, folder)
        # Behind the last rename the run is whole, though the flush of its folder failed.
        assert code == 0 or "holds a finished run" in said, said
    different = runs.differing(expected, runs.left(folder / "under"))
    assert not different, different
    assert not list((folder / "under").rglob(".*.part"))
    return "identical, done without" if done_without else "identical"
