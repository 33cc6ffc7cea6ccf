"""SSKD: its three losses, the head that is trained first, and which images each loss uses."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from dskd.data.epoch_plan import draw_plan
from dskd.data.loader import Batch, MemoryLoader
from dskd.data.transforms import rotations
from dskd.engine.lr_schedule import learning_rate
from dskd.errors import InputError
from dskd.losses.logits import ce, kd
from dskd.methods import sskd
from dskd.methods.contracts import Pair
from dskd.methods.sskd import (
    SSKD,
    rotated_similarities,
    sskd_head,
    sskd_loss,
    sskd_predictions,
    trusted,
)
from dskd.models.output import ModelOutput
from dskd.models.spec import ModelSpec, StageSpec
from dskd.teacher.frozen import FrozenTeacher
from dskd.teacher.outputs import TeacherOutputs
from tests.builders import make_pair, staged
from tests.losses.misfits import Arguments
from tests.methods.edge_cases import check_finite_with_gradient, check_full_precision
from tests.methods.inputs import DATA

ARGUMENTS = Arguments(
    {"student": "R D", "teacher": "R E"}, numbers={"share": 1.5, "temperature": 0.0}
)
DEFAULTS = {"share": 0.75, "temperature": 0.5}
PRESETS = {"literature": {"ce": 0.1, "kd": 0.9, "ss": 10.0, "tf": 2.7, "head_epochs": 60}}

SMALL = {"head_epochs": 1}


def naive_errors(scores: list[list[float]], truth: list[int]) -> list[int]:
    return [
        sum(score > row[true] for score in row) for row, true in zip(scores, truth, strict=True)
    ]


def naive_trusted(errors: list[int], share: float) -> list[int]:
    """Rows in the order of their errors: all right ones, then a share of the wrong ones."""
    order = sorted(range(len(errors)), key=lambda row: errors[row])
    wrong = sum(error > 0 for error in errors)
    return sorted(order[: len(errors) - wrong + int(share * wrong)])


def naive_kl(student: list[float], teacher: list[float], t: float) -> float:
    p, q = (
        [math.exp(v / t) / sum(math.exp(w / t) for w in row) for v in row]
        for row in (teacher, student)
    )
    return t**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def naive_cosines(vectors: Tensor) -> list[list[float]]:
    rows = vectors.tolist()
    images = len(rows) // 4

    def cosine(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))

    return [[cosine(rotated, plain) for plain in rows[:images]] for rotated in rows[images:]]


@pytest.mark.parametrize("share", [0.01, 0.5, 0.75, 1.0])
def test_the_loss_is_the_naive_loop(share: float) -> None:
    student, teacher = torch.randn(20, 6).double(), torch.randn(20, 4).double()
    ours, theirs = naive_cosines(student), naive_cosines(teacher)
    rows = naive_trusted(naive_errors(theirs, [*range(5)] * 3), share)
    assert 0 < len(rows) <= 15
    expected = sum(naive_kl(ours[row], theirs[row], 0.5) for row in rows) / len(rows)
    assert sskd_loss(student, teacher, share).item() == pytest.approx(expected)


@pytest.mark.parametrize("share", [0.25, 0.7, 1.0])
def test_the_loss_of_predictions_is_the_naive_loop(share: float) -> None:
    student, teacher = torch.randn(15, 4).double(), torch.randn(15, 4).double()
    labels = torch.randint(4, (15,))
    rows = naive_trusted(naive_errors(teacher.tolist(), labels.tolist()), share)
    expected = [naive_kl(student[row].tolist(), teacher[row].tolist(), 2.0) for row in rows]
    value = sskd_predictions(student, teacher, labels, share, 2.0).item()
    assert value == pytest.approx(sum(expected) / len(rows))


def test_the_loss_of_the_head_is_the_naive_loop() -> None:
    vectors = torch.randn(12, 4).double()
    expected = 0.0
    for row, cosines in enumerate(naive_cosines(vectors)):
        total = sum(math.exp(c / 0.2) for c in cosines)
        expected -= math.log(math.exp(cosines[row % 3] / 0.2) / total) / 9
    assert sskd_head(vectors, 0.2).item() == pytest.approx(expected)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 1.0])
def test_the_least_wrong_are_trusted_first(share: float) -> None:
    scores, truth = torch.randn(40, 7), torch.randint(7, (40,))
    rows = trusted(scores, truth, share)
    expected = naive_trusted(naive_errors(scores.tolist(), truth.tolist()), share)
    assert rows.nonzero()[:, 0].tolist() == expected


def test_a_rotated_image_is_compared_with_its_own_image() -> None:
    """The losses expect the rotations in this order."""
    images = torch.randint(256, (3, 3, 4, 4)).double()
    of_any_rotation = rotations(images).mean((2, 3))  # the mean does not see a rotation
    similarities = rotated_similarities(of_any_rotation)
    own = similarities.gather(1, torch.arange(3).repeat(3)[:, None])
    torch.testing.assert_close(own, torch.ones(9, 1).double())


def test_nothing_is_learned_where_nothing_is_trusted() -> None:
    student = torch.randn(2, 3, requires_grad=True)
    teacher = torch.tensor([[2.0, 1.0, 0.0]]).expand(2, -1)
    value = sskd_predictions(student, teacher, torch.tensor([2, 1]), share=0.4)
    assert value.item() == 0
    assert torch.autograd.grad(value, student)[0].abs().sum() == 0


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("fill", [0.0, 1.0, -100.0, 100.0])
def test_extreme_vectors_give_finite_losses(size: int, fill: float) -> None:
    flat = torch.full((4 * size, 3), fill)
    labels = torch.zeros(3 * size, dtype=torch.long)
    wide = torch.tensor([[fill, -fill]]).expand(3 * size, -1)
    check_finite_with_gradient(sskd_head, flat)
    check_finite_with_gradient(sskd_loss, flat, torch.randn(4 * size, 2))
    check_finite_with_gradient(sskd_loss, torch.randn(4 * size, 2), flat)
    check_finite_with_gradient(lambda z: sskd_predictions(z, -z.detach(), labels, 0.5), wide)


def test_half_precision_is_computed_in_full() -> None:
    vectors, labels = torch.randn(8, 6), torch.zeros(8, dtype=torch.long)
    check_full_precision(lambda x: sskd_loss(x, x.flip(1)), vectors)
    check_full_precision(sskd_head, vectors)
    check_full_precision(lambda x: sskd_predictions(x, x.flip(1), labels, 0.5), vectors)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="every image and its rotations"):
        sskd_head(torch.zeros(6, 3))
    with pytest.raises(InputError, match="of the same images are needed"):
        sskd_loss(torch.zeros(8, 3), torch.zeros(4, 3))
    with pytest.raises(InputError, match="logits \\[B, K\\] of one shape"):
        sskd_predictions(torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(2).long())


@pytest.mark.parametrize("epochs", [1, 3, 10, 60])
def test_the_learning_rate_of_the_head_is_that_of_a_step_schedule(epochs: int) -> None:
    for epoch in range(epochs):
        expected = learning_rate(epoch, epochs, sskd.HEAD_LR, milestones=sskd.HEAD_MILESTONES)
        assert sskd._head_lr(epoch, epochs) == expected


def batches(epochs: int, size: int = 8) -> Iterator[Batch]:
    split = MemoryLoader(DATA.train, torch.device("cpu"))
    for epoch in range(7, 7 + epochs):  # after the run's own
        yield from split.batches(draw_plan(0, epoch, len(split), 2, True), size)


def made(**settings: Any) -> tuple[SSKD, FrozenTeacher]:
    pair, teacher = make_pair(staged("resnet8"), staged("resnet8x4"), DATA)
    assert teacher is not None
    return SSKD(pair, **settings), teacher


def teacher_outputs(method: SSKD, teacher: FrozenTeacher) -> Any:
    teacher_output = TeacherOutputs(teacher)
    return lambda epochs: ((b, teacher_output(b, method.needs)) for b in batches(epochs))


@pytest.mark.slow
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


def test_each_loss_uses_its_own_images() -> None:
    method, teacher = made(ce=0.5, kd=2.0, ss=3.0, tf=4.0, share_ss=0.5, share_tf=0.6)
    method.eval()
    batch = next(batches(1))
    rotated = [torch.rot90(batch.images, times, (2, 3)) for times in range(4)]
    with torch.no_grad():
        ours = [method.student(images) for images in rotated]
        theirs = [teacher(images) for images in rotated]
        vectors = torch.cat([method.student_head(output.pooled) for output in ours])
        taught = torch.cat([method.teacher_head(output.pooled) for output in theirs])
        rest = [torch.cat([output.logits for output in side[1:]]) for side in (ours, theirs)]
        labels = torch.cat([batch.labels] * 3)
        expected = {
            "ce": 0.5 * ce(ours[0].logits, batch.labels),
            "kd": 2.0 * kd(ours[0].logits, theirs[0].logits, 4.0),
            "ss": 3.0 * sskd_loss(vectors, taught, 0.5, 0.5),
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


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_the_loss_of_the_head_refuses_a_temperature_out_of_range(temperature: float) -> None:
    with pytest.raises(InputError, match="temperature"):
        sskd_head(torch.rand(4, 3), temperature)
