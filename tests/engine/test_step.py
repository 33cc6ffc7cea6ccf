"""The training step: what it reads from the device, and that a bad number changes nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dskd import methods
from dskd.config import recipe
from dskd.config.schema import Recipe
from dskd.data.epoch_plan import draw_plan
from dskd.data.loader import Batch, MemoryLoader
from dskd.engine import build, run, step
from dskd.engine.metrics import EpochMetrics
from dskd.engine.optimizer import load_state, make_optimizer, set_rate
from dskd.engine.step import train_step
from dskd.engine.trainer import Trainer
from dskd.errors import NonFiniteError, Stopped
from dskd.methods.base import Method
from dskd.methods.contracts import StepOutput
from dskd.settings import OwnOptimizer
from dskd.teacher.outputs import TeacherOutputs
from tests.builders import make_dataset, make_pair, staged, stop_at
from tests.trainers import fused

DATA = make_dataset(classes=4, per_class=8, size=16)
CPU, META = torch.device("cpu"), torch.device("meta")
"""The second stands for a GPU: nothing is read from it, and nothing of the CPU meets it unmoved."""
SMALL: dict[str, dict[str, Any]] = {"crd": {"negatives": 16}, "sskd": {"head_epochs": 1}}


def made(name: str, device: torch.device) -> tuple[Method, TeacherOutputs]:
    kind = methods.find(name)
    teacher = staged("resnet8") if kind.needs_teacher else None
    pair, frozen = make_pair(staged("resnet8"), teacher, DATA)
    method = kind(pair, **SMALL.get(name, {})).to(device)
    if frozen is not None:
        frozen.to(device)
    return method.train(), TeacherOutputs(frozen)


def plain_optimizer(method: Method, name: OwnOptimizer = "sgd") -> torch.optim.Optimizer:
    return make_optimizer(method, name, lr=0.1, momentum=0.9, nesterov=False, weight_decay=1e-3)


def batches(count: int, device: torch.device = CPU) -> list[Batch]:
    plan = draw_plan(0, 0, len(DATA.train), 2, True)
    return list(MemoryLoader(DATA.train, device).batches(plan, len(DATA.train) // count))


class Copies(TorchDispatchMode):
    """Counts what is brought from one device to another, and tensors made of Python's numbers."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [t for t in (*args, result) if isinstance(t, Tensor)]
        self.count += len({t.device for t in tensors}) > 1 or "lift_fresh" in func.__name__
        return result


@pytest.mark.slow
@pytest.mark.parametrize("name", methods.names())
def test_a_step_reads_nothing_but_the_finite_check_from_the_device(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Autocast does not know this device.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    method, teacher_outputs = made(name, META)
    optimizer, metrics = plain_optimizer(method), EpochMetrics()
    some = batches(2, META)
    monkeypatch.setattr(
        step, "require_finite", lambda *_, **__: True
    )  # the one value a step reads back
    with Copies() as copies:
        for batch in some:
            output = train_step(method, teacher_outputs, batch, optimizer, "float32")
            metrics.add(batch, output)
            set_rate(optimizer, 0.2)
    assert not copies.count


def test_a_step_reads_whether_its_numbers_are_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check is that of the step, for all methods."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    method, teacher_outputs = made("dskd", META)
    with pytest.raises(RuntimeError, match="meta"):  # this device has no values to read
        train_step(method, teacher_outputs, batches(2, META)[0], plain_optimizer(method), "float32")


@pytest.mark.parametrize("images", [4, 8, 16])
def test_an_epoch_s_plan_is_brought_to_the_device_once(images: int) -> None:
    split = MemoryLoader(DATA.train, META)
    plan = draw_plan(0, 0, len(split), 2, True)
    with Copies() as copies:
        found = list(split.batches(plan, images))
    assert len(found) == len(split) // images
    assert copies.count == 5


@pytest.mark.parametrize("batch_size", [4, 5, 31])
@pytest.mark.parametrize("start", [0, 3])
def test_images_augmented_together_are_those_augmented_alone(
    monkeypatch: pytest.MonkeyPatch, batch_size: int, start: int
) -> None:
    split = MemoryLoader(DATA.train, CPU)
    plan = draw_plan(0, 3, len(split), 2, True)
    alone = list(split.batches(plan, batch_size, start))
    for together in (2, 3, 100):
        monkeypatch.setattr(MemoryLoader, "_steps_per_call", lambda *_, count=together: count)
        found = list(split.batches(plan, batch_size, start))
        assert len(found) == len(alone)
        for one, other in zip(found, alone, strict=True):
            for key, value in vars(one).items():
                expected = vars(other)[key]
                same = torch.equal(value, expected) if isinstance(value, Tensor) else None
                assert value == expected if same is None else same, key
            assert one.images.stride() == other.images.stride()


def weights(module: torch.nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def state_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [
        copy.deepcopy(value) for values in optimizer.state.values() for value in values.values()
    ]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("is_fused", [False, True])
def test_a_bad_objective_changes_no_weight(name: OwnOptimizer, bad: float, is_fused: bool) -> None:
    method, teacher_outputs = made("kd", CPU)
    optimizer = fused(method, name) if is_fused else plain_optimizer(method, name)
    forward, factor = method.forward, 1.0

    def spoiled(batch: Batch, teacher: Any) -> StepOutput:
        output = forward(batch, teacher)
        return StepOutput({k: factor * v for k, v in output.losses.items()}, output.logits)

    method.forward = spoiled  # type: ignore[method-assign]
    good, *_, last = batches(4)
    first = weights(method)
    train_step(method, teacher_outputs, good, optimizer, "float32")
    before, state = weights(method), state_of(optimizer)
    assert not all(map(torch.equal, first, before))
    factor = bad
    with pytest.raises(NonFiniteError, match=rf"ce {bad:g}.* first of them"):
        train_step(method, teacher_outputs, last, optimizer, "float32")
    assert all(map(torch.equal, weights(method), before))
    assert all(map(torch.equal, state_of(optimizer), state))


SMALL_RUN = ["data.fraction=0.1", "train.epochs=3", "train.batch_size=32", "method={name: ce}"]
"""Five steps an epoch."""


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's optimizer is a fused one."""
    monkeypatch.setattr(build, "make_optimizer", lambda method, name, **_: fused(method, name))


def plan(out: Path, *changes: str) -> Recipe:
    return recipe.load("digits", [*SMALL_RUN, "teacher=null", f"out={out}", *changes])


def spoil(monkeypatch: pytest.MonkeyPatch, at: Callable[[Batch], bool]) -> None:
    """Makes the objective of some batches infinite."""
    ce = methods.find("ce")
    forward = ce.forward

    def spoiled(self: Method, batch: Batch, teacher: Any = None) -> StepOutput:
        output = forward(self, batch, teacher)
        factor = float("inf") if at(batch) else 1.0
        return StepOutput({k: factor * v for k, v in output.losses.items()}, output.logits)

    monkeypatch.setattr(ce, "forward", spoiled)


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("step", [0, 2, 4])
def test_a_bad_step_names_its_images_and_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    spoil(monkeypatch, lambda batch: batch.epoch == 1 and batch.step >= step)
    expected = draw_plan(0, 1, 130, 0, False).order[32 * step :][:5].tolist()
    rows = len(draw_plan(0, 1, 130, 0, False).order[32 * step :][: 32 if step < 3 else 34])
    with pytest.raises(NonFiniteError) as stopped:
        run.distill(plan(tmp_path / "run"))
    assert f"on {min(rows, 34)} images, the first of them {expected}" in str(stopped.value)
    assert "(ce inf)" in str(stopped.value)
    checkpoints = {p.name for p in (tmp_path / "run/checkpoints").iterdir()}
    assert checkpoints
    assert checkpoints <= {f"epoch0000{epoch}-step0000000.checkpoint" for epoch in (0, 1)}
    assert not (tmp_path / "run/student.safetensors").exists()


@pytest.mark.usefixtures("as_on_a_gpu")
def test_nothing_bad_is_saved_when_a_run_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, lambda batch: batch.step == 1)
    train_epoch = Trainer.train_epoch

    def asked(self: Trainer) -> Iterator[None]:
        for _ in train_epoch(self):
            if self.step == 3:
                self.state()
            yield

    monkeypatch.setattr(Trainer, "train_epoch", asked)
    with pytest.raises(NonFiniteError, match="ce inf"):
        run.distill(plan(tmp_path / "run"))


@pytest.mark.slow
@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_fused_run_resumes_to_the_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    change = f"train.optimizer={name}"
    run.distill(plan(tmp_path / "whole", change))
    with monkeypatch.context() as patch:
        stop_at(patch, 1, 2)
        with pytest.raises(Stopped):
            run.distill(plan(tmp_path / "parts", change))
    run.distill(plan(tmp_path / "parts", change), resume=True)
    whole, parts = (tmp_path / part / "student.safetensors" for part in ("whole", "parts"))
    assert whole.read_bytes() == parts.read_bytes()


def test_a_state_goes_on_as_the_optimizer_that_takes_it_over_computes() -> None:
    method, teacher_outputs = made("ce", CPU)
    one, other = plain_optimizer(method), fused(method)
    for each in (one, other):
        set_rate(each, 0.5)
        train_step(method, teacher_outputs, batches(2)[0], each, "float32")
    saved = copy.deepcopy(one.state_dict()), copy.deepcopy(other.state_dict())
    load_state(other, saved[0])
    load_state(one, saved[1])
    assert one.param_groups[0]["fused"] is None
    assert other.param_groups[0]["fused"] is True
    assert one.param_groups[0]["lr"] == 0.5
    assert other.param_groups[0]["lr"] == 0.5
    assert one.param_groups[0]["momentum"] == 0.9


def test_the_optimizer_of_a_cpu_is_a_plain_one() -> None:
    made_here = plain_optimizer(made("ce", CPU)[0])
    assert made_here.defaults["fused"] is None
