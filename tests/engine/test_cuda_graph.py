"""Recorded steps: the same as those that are not, to the byte, for every method."""

from __future__ import annotations

from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dskd import methods
from dskd.config import recipe
from dskd.data.epoch_plan import draw_plan
from dskd.data.loader import Batch, MemoryLoader
from dskd.engine import run
from dskd.engine.cuda_graph import WARM_UP, Recorded, buffers_in_place
from dskd.engine.trainer import Trainer
from dskd.errors import Stopped
from dskd.methods.base import Method
from dskd.models.output import ModelOutput
from dskd.settings import OptimizerName
from dskd.teacher.outputs import SharedOutputs
from tests.conftest import stop_at
from tests.recorders import Direct, Holding, Replaying, fused
from tests.trainers import CPU, DATA, assert_same_state, epochs, trainer

BY_EPOCH = {"dkd", "reviewkd"}


@pytest.mark.parametrize("kind", [Direct, Replaying])
@pytest.mark.parametrize("name", methods.names())
def test_every_method_is_the_same_to_the_byte(name: str, kind: Any) -> None:
    plain = trainer(name, Holding() if kind is Replaying else None)
    twin = trainer(name, recorder := kind())
    assert epochs(plain, 2) == epochs(twin, 2)
    assert_same_state(plain, twin)
    steps = 2 if name in BY_EPOCH else 1
    assert recorder.recorded == steps + (twin.teacher_outputs.teacher is not None)


@pytest.mark.parametrize("name", ["kd", "dskd"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_bfloat16_and_both_optimizers(name: str, optimizer: OptimizerName) -> None:
    plain, twin = trainer(name, None, optimizer), trainer(name, Replaying(), optimizer)
    for one in (plain, twin):
        one.precision = "bfloat16"
    assert epochs(plain, 2) == epochs(twin, 2)
    assert_same_state(plain, twin)


def test_an_odd_last_batch_runs_as_it_is_and_the_recording_goes_on_after_it() -> None:
    plain, twin = trainer("crd"), trainer("crd", recorder := Replaying())
    for one in (plain, twin):
        one.batch_size = 5
        one.steps = 6
    assert epochs(plain, 3) == epochs(twin, 3)  # batches of 5 and one of 3
    assert_same_state(plain, twin)
    assert recorder.recorded == 2


def test_a_bad_objective_changes_no_weight_in_a_recording_either() -> None:
    one = trainer("kd", Replaying())
    running = one.train_epoch()
    for _ in range(WARM_UP + 2):
        next(running)
    before = [p.detach().clone() for p in one.method.parameters()]
    assert one.teacher_outputs.teacher is not None
    with torch.no_grad():
        next(iter(one.teacher_outputs.teacher.parameters())).fill_(float("nan"))
    with pytest.raises(ArithmeticError, match="the teacher's logits are not finite"):
        list(running)
    assert all(map(torch.equal, before, one.method.parameters()))


def test_students_share_a_recorded_teacher() -> None:
    def together(recorder: Any) -> list[Trainer]:
        shared = SharedOutputs(trainer("kd").teacher_outputs)
        made = [
            trainer(name, recorder, teacher_forward=lambda _: shared.teacher_outputs())
            for name in ("kd", "dskd", "sskd")
        ]
        for _ in zip(*(one.train_epoch() for one in made), strict=True):
            pass
        return made

    for one, other in zip(together(None), together(Replaying()), strict=True):
        assert one.metrics.means() == other.metrics.means()
        assert_same_state(one, other)


def test_a_value_that_python_computes_anew_each_time_is_not_seen() -> None:
    """What the replaying twin is for: it finds what a GPU would miss."""

    def calls(recorder: Any) -> list[float]:
        counted = count()
        recorded = Recorded(lambda x: x + next(counted), 1, recorder)
        return [recorded(torch.zeros(1)).item() for _ in range(WARM_UP + 3)]

    assert calls(Direct()) == [0, 1, 2, 3, 4, 5]
    assert calls(Replaying()) == [0, 1, 2, 3, 3, 3]


def batch(epoch: int, step: int) -> Batch:
    plan = draw_plan(0, epoch, 28, 2, True)
    return next(MemoryLoader(DATA.train, CPU).batches(plan, 4, start=step))


@pytest.mark.parametrize("names", [(), ("epoch",), ("step",), ("epoch", "step")])
def test_it_is_recorded_anew_where_a_number_was_read_and_changed(names: tuple[str, ...]) -> None:
    def read(batch: Batch, teacher_output: ModelOutput) -> Tensor:
        total = batch.labels.sum() + teacher_output.stages[1].sum()
        for name in names:
            total = total + getattr(batch, name)
        return total

    def teacher_output(value: int) -> ModelOutput:
        return ModelOutput(torch.zeros(4), (torch.zeros(0), torch.tensor([value])), None)

    recorder = Replaying()
    recorded = Recorded(read, 4, recorder)
    places = [(epoch, step) for epoch in range(3) for step in range(3)]
    for epoch, step in places:
        one = batch(epoch, step)
        assert torch.equal(recorded(one, teacher_output(step)), read(one, teacher_output(step)))
    left = places[WARM_UP:]
    seen = [tuple(p[("epoch", "step").index(n)] for n in names) for p in left]
    assert recorder.recorded == 1 + sum(a != b for a, b in pairwise(seen))


def test_buffers_stay_where_they_are() -> None:
    class Remembers(nn.Module):
        memory: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("memory", torch.zeros(3))
            self.register_buffer("none", None)

    remembers = Remembers()
    place = remembers.memory
    with buffers_in_place(nn.Sequential(remembers)):
        remembers.memory = remembers.memory + 1
    assert remembers.memory is place
    assert place.tolist() == [1, 1, 1]


@pytest.mark.parametrize("name", ["ce", "kd", "dskd"])
def test_a_recorded_run_resumes_to_the_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def make_optimizer(method: Method, name: OptimizerName, **_: Any) -> torch.optim.Optimizer:
        return fused(method, name)

    make_trainer = run.make_trainer

    def recorded(*arguments: Any) -> Trainer:
        made = make_trainer(*arguments)
        made.recorder = Replaying()
        return made

    monkeypatch.setattr(run, "make_optimizer", make_optimizer)
    changes = [
        *("data.fraction=0.1", "teacher.name=resnet8", "teacher.epochs=1", "train.epochs=3"),
        *("train.batch_size=20", f"method={{name: {name}}}"),
    ]

    def train(folder: str, *more: str, resume: bool = False) -> Path:
        out = tmp_path / folder
        run.distill(recipe.load("digits", [*changes, f"out={out}", *more]), resume=resume)
        return out / "student.safetensors"

    plain = train("plain").read_bytes()
    teacher: tuple[str, ...] = ()
    if name != "ce":
        teacher = (f"teacher.checkpoint={tmp_path / 'plain/teacher/student.safetensors'}",)
    monkeypatch.setattr(run, "make_trainer", recorded)
    assert train("recorded", *teacher).read_bytes() == plain
    with monkeypatch.context() as patch:
        stop_at(patch, 1, 5)
        with pytest.raises(Stopped):
            train("parts", *teacher)
    assert train("parts", *teacher, resume=True).read_bytes() == plain
