"""Symbolic links in an untrusted run or comparison: no file outside its folder is changed."""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

from dskd.compare import grid, runner
from dskd.compare.lockstep import RunProgress
from dskd.config import recipe
from dskd.deploy.export import export_file
from dskd.deploy.student import load_deployed
from dskd.engine import run
from tests.faults.outcomes import inside, refusal, tree

FAMILY = "symbolic links in an untrusted run"
STRIDE = 8
"""The test suite takes every 8th case."""

Use = Literal["resume", "overwrite", "export", "compare"]
SMALL = (
    *("data.fraction=0.02", "train.epochs=1", "teacher.epochs=1", "train.device=cpu"),
    *("student.name=resnet8", "teacher.name=resnet8"),
)
EXTRA = (
    *("student.onnx", ".student.onnx.part", "nonfinite.json", ".teacher.part", ".checkpoints.part"),
    *(".recipe.yaml.x0_abcde.part", "tensorboard/events.out.tfevents.00001"),
    *("checkpoints/.b.part", "checkpoints/.epoch00000-step0000000.checkpoint.x0_abcde.part"),
    *("failed.txt", "kd/seed0/failed.txt", "kd/seed0/tensorboard/events.out.tfevents.00001"),
)
"""More files and folders that a run may write or remove."""


class Link(NamedTuple):
    """A link in place of a file or folder.

    Attributes:
        use: What is done with the run.
        place: Path of the link in the run's folder.
    """

    use: Use
    place: str


def cases(whole: bool = True) -> Iterator[tuple[str, Link]]:
    """Every file and folder of a run, and those in `EXTRA`."""
    yield from islice(_all(), 0, None, 1 if whole else STRIDE)


def _all() -> Iterator[tuple[str, Link]]:
    for use in ("resume", "overwrite", "export", "compare"):
        for place in sorted({*_paths(use), *EXTRA}):
            if use != "export" or place in EXTRA or "/" not in place:
                yield f"{use}, {place}", Link(use, place)


def check(case: Link, folder: Path) -> str:
    """Moves the file or folder outside, puts a link in its place, and uses the run."""
    out, outside = folder / "run", folder / "outside"
    _copy(case.use, out)
    link = out / case.place
    if link.exists():
        link.rename(outside)
    elif link.name.endswith("x0_abcde.part"):
        outside.mkdir()
        (outside / ".b.part").write_text("mine")
    else:
        outside.write_text("mine")
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(outside)
    before = _outside(outside)
    line = refusal(lambda: _use(case.use, out))
    assert _outside(outside) == before, f"a file was changed through the link; {line}"
    return "done" if line is None else "refused"


def _outside(path: Path) -> dict[str, bytes]:
    return tree(path) if path.is_dir() else {"": path.read_bytes()}


def _use(use: Use, out: Path) -> object:
    with inside(out.parent):  # the runs of a comparison name their teacher by its path
        own = Path(out.name)
        if use == "compare":
            plan = grid.load_plan("digits", SMALL, ["kd"], own, seeds=1)
            return runner.run_grid(plan, _Silent())
        if use == "export":
            return export_file(load_deployed(own), own / "student.onnx")
        plain = recipe.load("digits", [*SMALL, "method={name: kd}", f"out={own}"])
        return run.distill(plain, resume=use == "resume", overwrite=use == "overwrite")


class _Silent:
    """Ignores all events."""

    def on_step(self, run: RunProgress) -> None:
        """Does nothing."""

    def on_end(self, run: RunProgress, failure: str | None) -> None:
        """Does nothing."""


@functools.cache
def _paths(use: Use) -> tuple[str, ...]:
    """All paths in the folder of a run."""
    with tempfile.TemporaryDirectory() as name:
        _copy(use, Path(name) / "run")
        return tuple(tree(Path(name) / "run"))


def _copy(use: Use, out: Path) -> None:
    """Copies a run or a comparison that was stopped after its last step, as was its teacher."""
    shutil.copytree(Path(_finished(use == "compare").name) / "run", out)
    for path in out.rglob("result.json"):
        path.unlink()


@functools.cache
def _finished(comparison: bool) -> tempfile.TemporaryDirectory[str]:
    """A folder with a finished run or comparison in its subfolder ``run``."""
    folder = tempfile.TemporaryDirectory()
    _use("compare" if comparison else "resume", Path(folder.name) / "run")
    return folder
