"""Links in a stranger's run or comparison: whatever is done with it, nothing outside changes."""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

from dskd.compare import grid, runner
from dskd.compare.lockstep import LockstepRun
from dskd.config import recipe
from dskd.deploy.onnx import export_onnx
from dskd.deploy.student import load_deployed
from dskd.engine import run
from tests.faults.outcomes import inside, refusal, tree

FAMILY = "links in a stranger's run"
STRIDE = 8
"""The suite tries one in so many."""

Way = Literal["resume", "overwrite", "export", "compare"]
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
"""Names that a run writes, or removes, at other times."""


class Link(NamedTuple):
    """A link in the place of a file or folder, and what is done then."""

    way: Way
    place: str


def cases(whole: bool = True) -> Iterator[tuple[str, Link]]:
    """Every file and folder there is, and some that may be."""
    yield from islice(_all(), 0, None, 1 if whole else STRIDE)


def _all() -> Iterator[tuple[str, Link]]:
    for way in ("resume", "overwrite", "export", "compare"):
        for place in sorted({*_made(way), *EXTRA}):
            if way != "export" or place in EXTRA or "/" not in place:
                yield f"{way}, {place}", Link(way, place)


def check(case: Link, folder: Path) -> str:
    """Moves what lies there outside, puts a link in its place, and goes on with the run."""
    out, outside = folder / "run", folder / "outside"
    _copy(case.way, out)
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
    line = refusal(lambda: _go_on(case.way, out))
    assert _outside(outside) == before, f"it was changed through the link; {line}"
    return "done" if line is None else "refused"


def _outside(path: Path) -> dict[str, bytes]:
    return tree(path) if path.is_dir() else {"": path.read_bytes()}


def _go_on(way: Way, out: Path) -> object:
    with inside(out.parent):  # a comparison's runs name its teacher by its place
        own = Path(out.name)
        if way == "compare":
            plan = grid.load_plan("digits", SMALL, ["kd"], own, seeds=1)
            return runner.run_grid(plan, _Silent())
        if way == "export":
            return export_onnx(load_deployed(own), own / "student.onnx")
        plain = recipe.load("digits", [*SMALL, "method={name: kd}", f"out={own}"])
        return run.distill(plain, resume=way == "resume", overwrite=way == "overwrite")


class _Silent:
    """Does nothing."""

    def on_step(self, run: LockstepRun) -> None:
        """Nothing."""

    def on_end(self, run: LockstepRun, failure: str | None) -> None:
        """Nothing."""


@functools.cache
def _made(way: Way) -> tuple[str, ...]:
    """All that lies in the folder before the link."""
    with tempfile.TemporaryDirectory() as name:
        _copy(way, Path(name) / "run")
        return tuple(tree(Path(name) / "run"))


def _copy(way: Way, out: Path) -> None:
    """A run, or a comparison, that was stopped behind its last step, and so was its teacher."""
    shutil.copytree(Path(_whole(way == "compare").name) / "run", out)
    for path in out.rglob("result.json"):
        path.unlink()


@functools.cache
def _whole(compared: bool) -> tempfile.TemporaryDirectory[str]:
    """A finished one, in the folder ``run`` of this one."""
    folder = tempfile.TemporaryDirectory()
    _go_on("compare" if compared else "resume", Path(folder.name) / "run")
    return folder
