"""NaN and Inf in one step of a run, and updates that overflow: the run must end and save nothing.

The numbers of `Case` are injected. Those of `Overflow` arise by themselves: an update overflows,
although loss and gradients are finite.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
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
from dskd.settings import OwnOptimizer
from dskd.storage import checkpoint
from dskd.storage.run_files import LAST, NONFINITE
from dskd.teacher.outputs import TeacherOutputs
from tests.trainers import fused

FAMILY = "NaN and Inf in losses, gradients, teacher logits and saved state"
Place = Literal["loss", "gradients", "one gradient", "teacher"]
Mode = Literal["sgd", "adamw", "fused sgd", "fused adamw"]
EPOCH, EPOCHS, BATCH, IMAGES = 1, 3, 32, 130
SMALL = [
    "data.fraction=0.1",
    "data.test_fraction=0.1",
    "student.name=resnet8",
    "teacher.name=resnet8",
    "teacher.epochs=1",
    f"train.epochs={EPOCHS}",
    f"train.batch_size={BATCH}",
    "train.device=cpu",
    "method={name: kd}",
]
"""130 images of the digits, 5 steps per epoch."""


@dataclass(frozen=True)
class Case:
    """A number that is injected into one step.

    Attributes:
        place: Where it is injected; "one gradient" is one element of one parameter's gradient.
        value: The number.
        mode: The optimizer: as on a CPU, or fused as on a GPU.
        step: The step of the second epoch, from 0.
        changes: Settings that differ from `SMALL`.
    """

    place: Place
    value: float
    mode: Mode
    step: int = 2
    changes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ", ".join(
            [f"{self.value} in {self.place}", self.mode, *self.changes, f"{self.step}"]
        )


@dataclass(frozen=True)
class Overflow:
    """A run whose numbers overflow between two steps, or when the student is evaluated.

    Attributes:
        tensor: The tensor that the error names; empty for the logits.
        changes: Settings that differ from `SMALL`. Each epoch is one step.
    """

    tensor: str
    changes: tuple[str, ...]


LABELS = ("teacher=null", "train.epochs=1", "train.batch_size=2000")
OVERFLOWS = {
    "weights": Overflow(
        "student.module.conv1.weight", ("train.lr=1e6", "method={name: ce, ce: 1.0e+34}")
    ),
    "optimizer state": Overflow(
        "exp_avg_sq of student.module.conv1.weight",
        ("train.optimizer=adamw", "method={name: ce, ce: 1.0e+25}"),
    ),
    "BatchNorm statistics": Overflow(
        "student.module.bn1.running_var", ("student.std=[1.0e-25]", "method={name: ce}")
    ),
    "logits": Overflow("", ("train.lr=1e6", "method={name: ce}")),
}
PLACES: tuple[Place, ...] = ("loss", "gradients", "one gradient", "teacher")
MODES: tuple[Mode, ...] = ("sgd", "adamw", "fused sgd", "fused adamw")
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
FOR_TWO_PROCESSES = [
    Case("one gradient", NAN, "sgd"),
    Case("teacher", -INF, "fused sgd"),
    Case("loss", INF, "adamw"),
]
"""Cases for two processes, of which one has the image."""
CHANGES = ((), ("train.precision=bfloat16",))


def cases(*, whole: bool) -> Iterator[tuple[str, Case | Overflow]]:
    """All cases, or a sample of them."""
    yield from ((f"overflow of {name}", case) for name, case in OVERFLOWS.items())
    every = itertools.product(PLACES, (NAN, INF, -INF), MODES, (0, 2, 4), CHANGES)
    for case in itertools.starmap(Case, every) if whole else SAMPLE:
        yield str(case), case


def check(case: Case | Overflow, folder: Path) -> str:
    """Checks, in an empty folder, that the run ends and that the number is not saved.

    Raises:
        AssertionError: The run goes on, or the number was saved.
    """
    if isinstance(case, Overflow):
        return _check_overflow(case, folder / "run")
    return _check_injected(case, folder)


def _check_overflow(case: Overflow, out: Path) -> str:
    """Checks that no file holds the number and that the run does not count as finished."""
    assert _exit_code(*SMALL, *LABELS, *case.changes, f"out={out}") == 3
    facts = json.loads((out / NONFINITE).read_text())
    assert (facts["epoch"], facts["step"]) == (1, 1)
    assert facts["what"] == ["state" if case.tensor else "logits"]
    assert facts["state"][:1] == ([case.tensor] if case.tensor else [])
    for weights in out.glob("*.safetensors"):
        assert _all_finite(safetensors.torch.load_file(weights)), "bad weights were written"
    for path in (out / "checkpoints").iterdir():
        state = checkpoint.read(path)["trainer"]
        assert _all_finite(state["method"]), "bad weights were saved"
        for values in state["optimizer"]["state"].values():
            assert _all_finite(values), "a bad optimizer state was saved"
    assert not (out / "result.json").exists(), "it counts as finished"
    assert not (out / LAST).exists(), "it has a student"
    return "stopped"


def _all_finite(tensors: dict[str, Any]) -> bool:
    return all(bool(torch.as_tensor(value).isfinite().all()) for value in tensors.values())


def _check_injected(case: Case, folder: Path) -> str:
    """Checks a run of one process or of several.

    The number comes with one image, the second of its batch: of two processes, the second has it.
    """
    out = folder / "run"
    teacher = _teacher(folder.parent)
    with ExitStack() as stack:
        trainers, before = stack.enter_context(_recorded_states(out))
        stack.enter_context(_injected(case))
        code = _run(case.mode, out, *case.changes, *teacher)
    assert code == 3, f"exit code {code}"
    _check_facts(case, out)
    digest, files = before[case.step]
    assert _digest(trainers[0]) == digest, "weights or the optimizer's state were changed"
    assert _checkpoints(out) == files, "the checkpoints were changed"
    assert _run(case.mode, out, *case.changes, *teacher, "--resume") == 0
    assert not (out / NONFINITE).exists(), "the file of the failed step is still there"
    whole = _undisturbed(case.mode, case.changes, folder.parent)
    assert (out / LAST).read_bytes() == (whole / LAST).read_bytes(), (
        "the resumed run ends differently"
    )
    return "stopped"


def _run(mode: Mode, out: Path, *changes: str) -> int:
    """The exit code of a run."""
    optimizer = "adamw" if "adamw" in mode else "sgd"
    arguments = [*SMALL, f"train.optimizer={optimizer}", f"out={out}", *changes]
    with _stepping(mode):
        return _exit_code(*arguments)


def _exit_code(*arguments: str) -> int:
    try:
        main(["distill", "digits", *arguments])
    except SystemExit as ended:
        return int(str(ended.code))
    raise AssertionError("a command exits")


@cache
def _teacher(folder: Path) -> tuple[str, str]:
    """The settings that name a trained teacher, one for all cases."""
    out = folder / "teacher-of-all"
    alone = ("teacher=null", "method={name: ce}", "train.epochs=1")
    assert _run("sgd", out, *alone) == 0
    return f"teacher.checkpoint={out / LAST}", "teacher.trust=true"


@cache
def _undisturbed(mode: Mode, changes: tuple[str, ...], folder: Path) -> Path:
    """The folder of a run without the number, which is the same for many cases."""
    out = folder / "-".join(["whole", mode, *changes]).replace(" ", "-")
    assert _run(mode, out, *changes, *_teacher(folder)) == 0
    return out


@contextmanager
def _stepping(mode: Mode) -> Iterator[None]:
    """Makes runs use the optimizer of a mode."""
    if mode in ("sgd", "adamw"):
        yield
        return
    name: OwnOptimizer = "adamw" if mode == "fused adamw" else "sgd"
    with patch.object(build, "make_optimizer", lambda method, *_, **__: fused(method, name)):
        yield


@contextmanager
def _recorded_states(
    out: Path,
) -> Iterator[tuple[list[Trainer], list[tuple[str, dict[str, bytes]]]]]:
    """Records the trainer, and the digest and the checkpoints before each step of the epoch."""
    train_epoch = Trainer.train_epoch
    trainers: list[Trainer] = []
    before: list[tuple[str, dict[str, bytes]]] = []

    def watched(self: Trainer) -> Iterator[None]:
        trainers[:] = [self]
        before[:] = [(_digest(self), _checkpoints(out))]
        for _ in train_epoch(self):
            before.append((_digest(self), _checkpoints(out)))
            yield

    with patch.object(Trainer, "train_epoch", watched):
        yield trainers, before


def _checkpoints(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "checkpoints").glob("*.checkpoint")}


def _digest(trainer: Trainer) -> str:
    """The SHA-256 of the weights and of the optimizer's state."""
    state = trainer.optimizer.state
    tensors = [*trainer.method.parameters(), *(v for one in state.values() for v in one.values())]
    content = hashlib.sha256()
    for tensor in tensors:
        content.update(torch.as_tensor(tensor).detach().numpy().tobytes())
    return content.hexdigest()


class _Scaled(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(context: Any, value: Tensor, factor: Tensor) -> Tensor:
        context.factor = factor
        return value.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * context.factor, None


@contextmanager
def _injected(case: Case) -> Iterator[None]:
    """Injects the number into runs."""
    image = _images(case)[1]
    forward, compute = KD.forward, TeacherOutputs.compute

    def factor(batch: Batch) -> Tensor:
        here = (batch.indices == image).any() & (batch.epoch == EPOCH)
        return torch.where(here, case.value, 1.0)

    def forward_with_number(self: KD, batch: Batch, teacher: ModelOutput | None) -> StepOutput:
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

    def compute_with_number(
        self: TeacherOutputs, teacher_forward: Any, batch: Batch, needs: Any
    ) -> tuple[ModelOutput, int]:
        teacher_output, hits = compute(self, teacher_forward, batch, needs)
        if batch.epoch == EPOCH and case.place == "teacher":
            logits = teacher_output.logits.clone()
            logits[(batch.indices == image).nonzero().flatten(), 0] = case.value
            teacher_output = teacher_output._replace(logits=logits)
        return teacher_output, hits

    with (
        patch.object(KD, "forward", forward_with_number),
        patch.object(TeacherOutputs, "compute", compute_with_number),
    ):
        yield


def _images(case: Case) -> list[int]:
    """The images of the step, in the order of the epoch plan."""
    order = draw_plan(0, EPOCH, IMAGES, 0, False).order.tolist()
    steps = IMAGES // BATCH
    end = IMAGES if case.step == steps - 1 else BATCH * (case.step + 1)
    return order[BATCH * case.step : end]


def _check_facts(case: Case, out: Path) -> None:
    """Checks the step, the reason and the images in ``nonfinite.json``."""
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
