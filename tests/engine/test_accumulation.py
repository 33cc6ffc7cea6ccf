"""A step in parts has the gradient of the whole batch."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from dskd import methods
from dskd.config import recipe
from dskd.config.schema import Recipe
from dskd.data.epoch_plan import draw_plan
from dskd.data.loader import Batch, MemoryLoader
from dskd.engine import run
from dskd.engine.accumulation import count_parts, joined, split
from dskd.engine.dot import DOT
from dskd.engine.step import train_step
from dskd.errors import Stopped
from dskd.methods.contracts import StepOutput
from dskd.teacher.outputs import SharedOutputs, TeacherOutputs
from tests.builders import make_dataset, make_pair, staged, stop_at
from tests.runtime.test_distributed import without_batchnorm

CPU = torch.device("cpu")
DATA = make_dataset(classes=4, per_class=8, size=16)


def a_batch(size: int) -> Batch:
    plan = draw_plan(0, 0, len(DATA.train), 2, True)
    return next(MemoryLoader(DATA.train, CPU).batches(plan, size))


def gradients(name: str, parts: int, size: int, is_dot: bool = False) -> list[torch.Tensor]:
    torch.manual_seed(0)
    teacher = staged("resnet14") if methods.find(name).needs_teacher else None
    pair, frozen = make_pair(staged(), teacher, DATA)
    method = methods.find(name)(pair)
    without_batchnorm(method)
    trained = [p for p in method.parameters() if p.requires_grad]
    optimizer = DOT(trained, 0.0) if is_dot else torch.optim.SGD(trained, 0.0)
    outputs = TeacherOutputs(frozen)
    train_step(method.train(), outputs, a_batch(size), optimizer, "float32", parts=parts)
    found = [p.grad for p in trained if p.grad is not None]
    return [*found, *getattr(optimizer, "distillation_gradients", {}).values()]


@pytest.mark.parametrize("name", ["ce", "kd", "at"])
@pytest.mark.parametrize(("parts", "size"), [(2, 16), (3, 16), (4, 13)])
def test_parts_have_the_gradient_of_the_whole_batch(name: str, parts: int, size: int) -> None:
    whole, added = gradients(name, 1, size), gradients(name, parts, size)
    assert len(whole) == len(added) > 10
    for one, other in zip(whole, added, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6)


def test_both_gradients_of_dot_are_those_of_the_whole_batch() -> None:
    whole, added = gradients("kd", 1, 13, True), gradients("kd", 4, 13, True)
    assert len(whole) == len(added) > 20
    for one, other in zip(whole, added, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6)


def test_parts_hold_every_sample_once_in_order() -> None:
    batch = a_batch(13)
    parts = split(batch, 4)
    assert [len(part.labels) for part in parts] == [3, 3, 3, 4]
    assert [part.part for part in parts] == [0, 1, 2, 3]
    for key in ("images", "labels", "indices", "views", "seeds", "cpu_keys"):
        values = torch.cat([getattr(part, key) for part in parts])
        assert torch.equal(values, getattr(batch, key))
    assert split(batch, 1) == [batch]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("accumulate", [1, 2, 5])
def test_every_part_fits_and_gives_each_process_two_samples(accumulate: int, world: int) -> None:
    for batch_size in range(2 * world, 40):
        for size in range(2 * world, accumulate * batch_size + 2 * world):
            parts = count_parts(size, batch_size, accumulate, world)
            assert 1 <= parts <= accumulate
            bounds = [size * number // parts for number in range(parts + 1)]
            sizes = [stop - start for start, stop in pairwise(bounds)]
            assert min(sizes) >= 2 * world
            assert max(sizes) <= batch_size + 2 * world - 1


def test_the_output_of_a_step_is_the_mean_over_its_samples() -> None:
    def output(value: float, size: int) -> StepOutput:
        loss = {"ce": torch.tensor(value)}
        return StepOutput(loss, torch.full((size, 2), value), {"weight": torch.tensor(-value)})

    found = joined([output(1.0, 3), output(5.0, 1)], [3, 1])
    assert found.losses["ce"].item() == pytest.approx(2.0)
    assert found.metrics["weight"].item() == pytest.approx(-2.0)
    assert found.logits[:, 0].tolist() == [1, 1, 1, 5]


def test_students_in_lockstep_share_the_outputs_of_every_part() -> None:
    _, frozen = make_pair(staged(), staged("resnet14"), DATA)
    shared = SharedOutputs(TeacherOutputs(frozen))
    needs = methods.find("kd").needs
    parts = split(a_batch(8), 2)
    found = [[students(part, needs) for part in parts] for students in (shared.for_student(),) * 2]
    assert shared.computed == 2
    for one, other, part in zip(*found, parts, strict=True):
        assert one is not None
        assert one is other
        assert frozen is not None
        torch.testing.assert_close(one.logits, frozen(part.images).logits)


RUN = ["data.fraction=0.1", "train.epochs=3", "train.batch_size=16", "train.accumulate=3"]


@pytest.mark.slow
def test_a_run_that_accumulates_has_fewer_steps_and_resumes_to_the_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = [*RUN, "method={name: ce}", "teacher=null", "train.clip_norm=1"]

    def made(name: str) -> Recipe:
        return recipe.load("digits", [*changes, f"out={tmp_path / name}"])

    run.distill(made("whole"))
    with monkeypatch.context() as patch:
        stop_at(patch, 1, 1)
        with pytest.raises(Stopped):
            run.distill(made("parts"))
    assert (tmp_path / "parts/checkpoints/epoch00001-step0000002.checkpoint").is_file()
    run.distill(made("parts"), resume=True)
    whole, parts = (tmp_path / part / "student.safetensors" for part in ("whole", "parts"))
    assert whole.read_bytes() == parts.read_bytes()
