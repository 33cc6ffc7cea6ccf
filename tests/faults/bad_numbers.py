"""Numbers that are NaN or infinite, put into one step of a run, and what has to come of it.

So too of updates that overflow, though loss and gradient are finite: nobody puts these in.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import safetensors.torch
import torch
from torch import Tensor

from dskd.cli.commands import main
from dskd.data.epoch_plan import draw_plan
from dskd.data.loader import Batch
from dskd.engine import build
from dskd.engine.trainer import Trainer
from dskd.methods.contracts import StepOutput
from dskd.methods.kd import KD
from dskd.models.output import ModelOutput
from dskd.settings import OptimizerName
from dskd.storage import checkpoint
from dskd.storage.run_files import LAST, NONFINITE
from dskd.teacher.outputs import TeacherOutputs
from tests.trainers import fused

FAMILY = "NaN and infinities in losses, gradients, the teacher's logits and what is kept"
Place = Literal["loss", "gradients", "one gradient", "teacher"]
Way = Literal["sgd", "adamw", "fused sgd", "fused adamw"]
EPOCH, EPOCHS, BATCH, IMAGES = 1, 3, 32, 130
SMALL = [
    "data.fraction=0.1",
    "student.name=resnet8",
    "teacher.name=resnet8",
    "teacher.epochs=1",
    f"train.epochs={EPOCHS}",
    f"train.batch_size={BATCH}",
    "train.device=cpu",
    "method={name: kd}",
]
"""The digits on a diet: 130 images, 5 steps an epoch."""


@dataclass(frozen=True)
class Case:
    """A number, where it comes up, and how the run takes its steps.

    Attributes:
        place: What becomes bad; "one gradient" is a single number of one parameter's.
        bad: What it becomes.
        way: The optimizer, as a CPU or as a GPU has it.
        step: Of the second epoch, from 0.
        changes: Of the recipe.
    """

    place: Place
    bad: float
    way: Way
    step: int = 2
    changes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ", ".join([f"{self.bad} in {self.place}", self.way, *self.changes, f"{self.step}"])


@dataclass(frozen=True)
class Overflow:
    """A run whose numbers overflow between two steps, or only where it is evaluated.

    Attributes:
        found: The tensor that is said, or nothing where it is the logits.
        changes: Of the recipe. The whole epoch is one step.
    """

    found: str
    changes: tuple[str, ...]


LABELS = ("teacher=null", "train.epochs=1", "train.batch_size=2000")
OVERFLOWS = {
    "weights": Overflow(
        "student.module.conv1.weight", ("train.lr=1e6", "method={name: ce, ce: 1.0e+34}")
    ),
    "the optimizer's state": Overflow(
        "exp_avg_sq of student.module.conv1.weight",
        ("train.optimizer=adamw", "method={name: ce, ce: 1.0e+25}"),
    ),
    "statistics of BatchNorm": Overflow(
        "student.module.bn1.running_var", ("student.std=[1.0e-25]", "method={name: ce}")
    ),
    "logits": Overflow("", ("train.lr=1e6", "method={name: ce}")),
}
PLACES: tuple[Place, ...] = ("loss", "gradients", "one gradient", "teacher")
WAYS: tuple[Way, ...] = ("sgd", "adamw", "fused sgd", "fused adamw")
NAN, INF = float("nan"), float("inf")
SAMPLE = [
    Case("loss", NAN, "sgd"),
    Case("loss", INF, "fused sgd", step=0),
    Case("gradients", INF, "adamw"),
    Case("one gradient", NAN, "fused sgd"),
    Case("one gradient", NAN, "adamw", step=4),
    Case("teacher", INF, "sgd"),
    Case("teacher", -INF, "fused adamw"),
    Case("teacher", -INF, "fused sgd", changes=("train.precision=bfloat16",)),
    Case("loss", -INF, "fused adamw", changes=("train.precision=bfloat16",)),
]
OF_TWO = [
    Case("one gradient", NAN, "sgd"),
    Case("teacher", -INF, "fused sgd"),
    Case("loss", INF, "adamw"),
]
"""Those that two processes meet, of which one has the image."""
CHANGES = ((), ("train.precision=bfloat16",))


def cases(*, whole: bool) -> Iterator[tuple[str, Case | Overflow]]:
    """The cases by name: a sample, or all of them."""
    yield from ((f"overflow of {name}", case) for name, case in OVERFLOWS.items())
    every = itertools.product(PLACES, (NAN, INF, -INF), WAYS, (0, 2, 4), CHANGES)
    for case in itertools.starmap(Case, every) if whole else SAMPLE:
        yield str(case), case


def check(case: Case | Overflow, folder: Path) -> str:
    """Has a run meet the number; nothing of it may be kept."""
    return _spoil(case, folder) if isinstance(case, Case) else _overflow(case, folder / "run")


def _overflow(case: Overflow, out: Path) -> str:
    """Has a run overflow: what was saved before stays, and it does not end as a finished one."""
    assert _ends(*SMALL, *LABELS, *case.changes, f"out={out}") == 3
    facts = json.loads((out / NONFINITE).read_text())
    assert (facts["epoch"], facts["step"]) == (1, 1)
    assert facts["what"] == ["state" if case.found else "logits"]
    assert facts["state"][:1] == ([case.found] if case.found else [])
    for weights in out.glob("*.safetensors"):
        assert _all_finite(safetensors.torch.load_file(weights)), "bad weights were written"
    for path in (out / "checkpoints").iterdir():
        state = checkpoint.read(path)["trainer"]
        assert _all_finite(state["method"]), "bad weights were saved"
        for values in state["optimizer"]["state"].values():
            assert _all_finite(values), "a bad state was saved"
    assert not (out / "result.json").exists(), "it counts as finished"
    assert not (out / LAST).exists(), "it has a student"
    return "stopped"


def _all_finite(tensors: dict[str, Any]) -> bool:
    return all(bool(torch.as_tensor(value).isfinite().all()) for value in tensors.values())


def _spoil(case: Case, folder: Path) -> str:
    """Has a run meet the number, of one process or of several; nothing of it may be kept.

    The number comes up with one image, the second of its batch: of two processes, the second
    has it.
    """
    taught = _distilled(case, folder / "taught", "train.epochs=1")
    teacher = f"teacher.checkpoint={taught / 'teacher' / LAST}"
    out = folder / "run"
    with ExitStack() as stack:
        watched = stack.enter_context(_watched(out))
        stack.enter_context(_spoiled(case))
        code = _code(case, out, teacher)
    assert code == 3, f"exit code {code}"
    _check_said(case, out)
    trainer, before = watched
    assert _digest(trainer[0]) == before[case.step][0], (
        "weights or the optimizer's state were changed"
    )
    assert _files(out) == before[case.step][1], "the checkpoints were changed"
    assert _code(case, out, teacher, "--resume") == 0
    assert not (out / NONFINITE).exists(), "what is over is still told"
    whole = _distilled(case, folder / "whole", teacher)
    assert (out / LAST).read_bytes() == (whole / LAST).read_bytes(), "the run went on otherwise"
    return "stopped"


def _code(case: Case, out: Path, *changes: str) -> int:
    """How the command ends."""
    optimizer = "adamw" if "adamw" in case.way else "sgd"
    arguments = [*SMALL, f"train.optimizer={optimizer}", *case.changes, f"out={out}", *changes]
    with _taken(case.way):
        return _ends(*arguments)


def _ends(*arguments: str) -> int:
    """How the command ends."""
    try:
        main(["distill", "digits", *arguments])
    except SystemExit as ended:
        return int(str(ended.code))
    raise AssertionError("a command exits")


def _distilled(case: Case, out: Path, *changes: str) -> Path:
    """A run that nothing befalls."""
    assert _code(case, out, *changes) == 0
    return out


@contextmanager
def _taken(way: Way) -> Iterator[None]:
    """Has steps taken in a way."""
    if way in ("sgd", "adamw"):
        yield
        return
    name: OptimizerName = "adamw" if way == "fused adamw" else "sgd"
    with patch.object(build, "make_optimizer", lambda method, *_, **__: fused(method, name)):
        yield


@contextmanager
def _watched(out: Path) -> Iterator[tuple[list[Trainer], list[tuple[str, dict[str, bytes]]]]]:
    """The trainer of the run; what it and its checkpoints were before each step of the epoch."""
    train_epoch = Trainer.train_epoch
    trainers: list[Trainer] = []
    before: list[tuple[str, dict[str, bytes]]] = []

    def watched(self: Trainer) -> Iterator[None]:
        trainers[:] = [self]
        before[:] = [(_digest(self), _files(out))]
        for _ in train_epoch(self):
            before.append((_digest(self), _files(out)))
            yield

    with patch.object(Trainer, "train_epoch", watched):
        yield trainers, before


def _files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "checkpoints").glob("*.checkpoint")}


def _digest(trainer: Trainer) -> str:
    """Of the weights and the optimizer's state."""
    state = trainer.optimizer.state
    tensors = [*trainer.method.parameters(), *(v for one in state.values() for v in one.values())]
    content = hashlib.sha256()
    for tensor in tensors:
        content.update(torch.as_tensor(tensor).detach().numpy().tobytes())
    return content.hexdigest()


class _Scaled(torch.autograd.Function):
    """A number as it is, whose gradient is multiplied."""

    @staticmethod
    def forward(context: Any, value: Tensor, factor: Tensor) -> Tensor:
        context.factor = factor
        return value.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * context.factor, None


@contextmanager
def _spoiled(case: Case) -> Iterator[None]:
    """Puts the number into the run."""
    image = _images(case)[1]
    forward, compute = KD.forward, TeacherOutputs.compute

    def factor(batch: Batch) -> Tensor:
        here = (batch.indices == image).any() & (batch.epoch == EPOCH)
        return torch.where(here, case.bad, 1.0)

    def taught(self: KD, batch: Batch, teacher: ModelOutput | None) -> StepOutput:
        output = forward(self, batch, teacher)
        losses = dict(output.losses)
        if case.place == "loss":
            losses["kd"] = losses["kd"] * factor(batch)
        elif case.place == "gradients":
            losses["kd"] = _Scaled.apply(losses["kd"], factor(batch))
        elif case.place == "one gradient":
            last = list(self.parameters())[-1].flatten()[0]
            losses["kd"] = losses["kd"] + _Scaled.apply(0 * last, factor(batch))
        return StepOutput(losses, output.logits, output.metrics)

    def computed(
        self: TeacherOutputs, teacher_forward: Any, batch: Batch, needs: Any
    ) -> tuple[ModelOutput, int]:
        teacher_output, hits = compute(self, teacher_forward, batch, needs)
        if batch.epoch == EPOCH and case.place == "teacher":
            logits = teacher_output.logits.clone()
            logits[(batch.indices == image).nonzero().flatten(), 0] = case.bad
            teacher_output = teacher_output._replace(logits=logits)
        return teacher_output, hits

    with patch.object(KD, "forward", taught), patch.object(TeacherOutputs, "compute", computed):
        yield


def _images(case: Case) -> list[int]:
    """Those of the step, in the plan's order."""
    order = draw_plan(0, EPOCH, IMAGES, 0, False).order.tolist()
    steps = IMAGES // BATCH
    end = IMAGES if case.step == steps - 1 else BATCH * (case.step + 1)
    return order[BATCH * case.step : end]


def _check_said(case: Case, out: Path) -> None:
    """The run's folder says which step it was, what was bad, and which images there were."""
    facts = json.loads((out / NONFINITE).read_text())
    assert (facts["epoch"], facts["step"]) == (EPOCH + 1, case.step + 1)
    assert sorted(facts["indices"]) == sorted(_images(case))
    assert ("gradient" if "gradient" in case.place else case.place) in facts["what"]
    bad = [loss for loss in facts["losses"].values() if not math.isfinite(float(loss))]
    assert ("loss" in facts["what"]) is bool(bad)
    if "gradient" in case.place:
        assert facts["what"] == ["gradient"]
    if case.place == "one gradient":
        assert len(facts["gradients"]) == 1
