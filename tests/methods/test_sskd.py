"""SSKD as a method: the head that is trained first, and what is computed on which images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from dskd.data.epoch_plan import draw_plan
from dskd.data.loader import Batch, MemoryLoader
from dskd.data.transforms import rotations
from dskd.errors import InputError
from dskd.losses.contrast import sskd, sskd_head, sskd_predictions
from dskd.losses.logits import ce, kd
from dskd.methods.base import Pair
from dskd.methods.sskd import SSKD
from dskd.models.output import ModelOutput
from dskd.models.spec import ModelSpec, StageSpec
from dskd.teacher.frozen import FrozenTeacher
from dskd.teacher.outputs import TeacherOutputs
from tests.conftest import make_dataset, make_pair, staged

DATA = make_dataset()


def batches(epochs: int, size: int = 8) -> Iterator[Batch]:
    split = MemoryLoader(DATA.train, torch.device("cpu"))
    for epoch in range(7, 7 + epochs):  # behind the run's own
        yield from split.batches(draw_plan(0, epoch, len(split), 2, True), size)


def made(**settings: Any) -> tuple[SSKD, FrozenTeacher]:
    pair, teacher = make_pair(staged("resnet8"), staged("resnet8x4"), DATA)
    assert teacher is not None
    return SSKD(pair, **settings), teacher


def teacher_outputs(method: SSKD, teacher: FrozenTeacher) -> Any:
    teacher_output = TeacherOutputs(teacher)
    return lambda epochs: ((b, teacher_output(b, method.needs)) for b in batches(epochs))


def test_the_teachers_head_learns_to_find_images_and_nothing_else_does() -> None:
    method, teacher = made(head_epochs=6)
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    batch = next(batches(1))

    def loss() -> float:
        pooled = teacher(rotations(batch.images)).pooled
        assert pooled is not None
        return sskd_head(method.teacher_head(pooled)).item()

    untrained = loss()
    method.prepare(teacher_outputs(method, teacher))
    assert loss() < 0.9 * untrained
    changed = {name for name, t in method.state_dict().items() if not torch.equal(t, before[name])}
    assert changed == {name for name in before if name.startswith("teacher_head.")}
    assert all(not p.requires_grad and p.grad is None for p in method.teacher_head.parameters())


def test_the_run_trains_the_students_head_and_never_the_teachers() -> None:
    method, teacher = made()
    trained = {name for name, p in method.named_parameters() if p.requires_grad}
    assert not any(name.startswith("teacher_head.") for name in trained)
    batch = next(batches(1))
    method.train()
    method(batch, teacher(rotations(batch.images))).objective.backward()
    for name, parameter in method.named_parameters():
        assert (parameter.grad is not None) == (name in trained), name


def test_each_loss_is_of_its_own_images() -> None:
    method, teacher = made(ce=0.5, kd=2.0, ss=3.0, tf=4.0, share_ss=0.5, share_tf=0.6)
    method.eval()
    batch = next(batches(1))
    turned = [torch.rot90(batch.images, turns, (2, 3)) for turns in range(4)]
    with torch.no_grad():
        ours = [method.student(images) for images in turned]
        theirs = [teacher(images) for images in turned]
        vectors = torch.cat([method.student_head(output.pooled) for output in ours])
        taught = torch.cat([method.teacher_head(output.pooled) for output in theirs])
        rest = [torch.cat([output.logits for output in side[1:]]) for side in (ours, theirs)]
        labels = torch.cat([batch.labels] * 3)
        expected = {
            "ce": 0.5 * ce(ours[0].logits, batch.labels),
            "kd": 2.0 * kd(ours[0].logits, theirs[0].logits, 4.0),
            "ss": 3.0 * sskd(vectors, taught, 0.5, 0.5),
            "tf": 4.0 * sskd_predictions(rest[0], rest[1], labels, 0.6, 4.0),
        }
        output = method(batch, teacher(rotations(batch.images)))
    torch.testing.assert_close(output.losses, expected)
    torch.testing.assert_close(output.logits, ours[0].logits)


def test_images_that_are_not_square_are_refused() -> None:
    stages = (StageSpec(8, 8, 12, True), StageSpec(8, 4, 6, True))
    spec = ModelSpec(4, stages, 8)
    with pytest.raises(InputError, match=r"must be square, and the student's maps are 8x12"):
        SSKD(Pair(staged(), spec, spec))
    method, teacher = made()
    batch = next(batches(1))
    wide = Batch(**{**vars(batch), "images": batch.images[:, :, :8]})
    teacher_output: ModelOutput = teacher(batch.images)
    with pytest.raises(InputError, match=r"must be square, and these are 8x16"):
        method(wide, teacher_output)
