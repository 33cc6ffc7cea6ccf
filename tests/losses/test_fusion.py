"""Losses between fused and projected maps: against published values and naive loops."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dskd.errors import InputError
from dskd.losses.fusion import layer_attention, reviewkd, semckd, similarities
from tests.published import check

PUBLISHED: dict[str, Callable[..., Tensor]] = {
    "hcl_last": lambda f3, g3: reviewkd([f3], [g3]),
    "hcl_torchdistill": lambda f3, g3: reviewkd([f3], [g3]),
    "hcl_multi": lambda *maps: reviewkd(maps[:5], maps[5:]),
    "semckd_loss_only": lambda h2, f3, g2, g3, att: semckd(
        [h2, h2, f3, f3],
        [g2, g3, g2, g3],
        att[:, :2, :2] / att[:, :2, :2].sum(2, keepdim=True),
    ),
}


@pytest.mark.parametrize("case", PUBLISHED)
def test_value_and_gradient_are_the_published_ones(case: str) -> None:
    check(case, PUBLISHED[case])


def pooled_naively(feature_map: Tensor, side: int) -> Tensor:
    """Of a map whose height and width the side divides, or is larger than."""
    batch, channels, height, width = feature_map.shape
    rows, columns = min(side, height), min(side, width)
    pooled = torch.zeros(batch, channels, rows, columns, dtype=feature_map.dtype)
    for i in range(rows):
        for j in range(columns):
            top, left = i * height // rows, j * width // columns
            window = feature_map[:, :, top : top + height // rows, left : left + width // columns]
            pooled[:, :, i, j] = window.mean((2, 3))
    return pooled


@pytest.mark.parametrize("size", [(8, 8), (4, 4), (2, 2), (1, 1), (8, 2), (1, 4), (16, 8)], ids=str)
def test_reviewkd_is_what_a_loop_gives(size: tuple[int, int]) -> None:
    student, teacher = (torch.randn(3, 5, *size).double() for _ in range(2))
    values, weights = [(student - teacher).square().mean()], [1.0]
    for side in (4, 2, 1):
        if side < max(size):
            s, t = pooled_naively(student, side), pooled_naively(teacher, side)
            values.append((s - t).square().mean())
            weights.append(weights[-1] / 2)
    expected = sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)
    torch.testing.assert_close(reviewkd([student], [teacher]), torch.as_tensor(expected))


def test_reviewkd_of_stages_is_their_sum_and_does_not_depend_on_their_order() -> None:
    students = [torch.randn(2, 3, 8, 8), torch.randn(2, 4, 1, 1)]
    teachers = [torch.randn(2, 3, 8, 8), torch.randn(2, 4, 1, 1)]
    both = reviewkd(students, teachers)
    alone = [reviewkd([s], [t]) for s, t in zip(students, teachers, strict=True)]
    torch.testing.assert_close(both, sum(alone[1:], start=alone[0]))
    torch.testing.assert_close(both, reviewkd(students[::-1], teachers[::-1]))


def test_semckd_is_what_a_loop_gives() -> None:
    stages, targets, batch = 2, 3, 4
    attention = torch.rand(batch, stages, targets).double()
    student = [[torch.randn(batch, 2 + j, 4, 4).double() for j in range(targets)] for _ in "ab"]
    teacher = [torch.randn(batch, 2 + j, 4, 4).double() for j in range(targets)]
    expected = 0.0
    for b in range(batch):
        for i in range(stages):
            for j in range(targets):
                distance = (student[i][j][b] - teacher[j][b]).square().mean()
                expected += attention[b, i, j].item() * distance.item() / (batch * stages)
    value = semckd([m for maps in student for m in maps], teacher * stages, attention)
    assert value.item() == pytest.approx(expected)


def test_similarities_are_inner_products() -> None:
    maps = torch.randn(3, 2, 4, 5)
    expected = [[(a * b).sum().item() for b in maps] for a in maps]
    torch.testing.assert_close(similarities(maps), torch.tensor(expected))


def test_attention_is_what_a_loop_gives_and_does_not_depend_on_lengths() -> None:
    queries, keys = torch.randn(2, 3, 5), torch.randn(2, 4, 5)
    attention = layer_attention(queries, keys, 0.5)
    for b in range(2):
        for i in range(3):
            energy = torch.stack(
                [torch.cosine_similarity(queries[b, i], key, dim=0) for key in keys[b]]
            )
            torch.testing.assert_close(attention[b, i], torch.softmax(energy / 0.5, 0))
    torch.testing.assert_close(layer_attention(3 * queries, 7 * keys, 0.5), attention)


def test_the_larger_of_two_maps_is_pooled() -> None:
    small, large = torch.randn(2, 3, 4, 6), torch.randn(2, 3, 8, 6)
    pooled = (large[:, :, ::2] + large[:, :, 1::2]) / 2
    for one, other in ((small, large), (large, small)):
        torch.testing.assert_close(reviewkd([one], [other]), reviewkd([small], [pooled]))
        torch.testing.assert_close(
            semckd([one], [other], torch.ones(2, 1, 1)), (small - pooled).square().mean()
        )


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0])
def test_values_and_gradients_are_finite_whatever_the_maps(batch: int, scale: float) -> None:
    student = (scale * torch.randn(batch, 3, 5, 7)).requires_grad_()
    teacher = scale * torch.randn(batch, 3, 5, 7)
    with torch.autocast("cpu", torch.bfloat16):
        half = student.bfloat16()
        rows = similarities(half)
        attention = layer_attention(rows[:, None], similarities(teacher)[:, None])
        loss = reviewkd([half], [teacher.bfloat16()])
        loss = loss + semckd([half], [teacher.bfloat16()], attention)
    assert rows.dtype == attention.dtype == loss.dtype == torch.float32
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (
            lambda: reviewkd([torch.zeros(2, 3, 4, 4)], [torch.zeros(3, 3, 4, 4)]),
            "of the same images are needed",
        ),
        (
            lambda: reviewkd([torch.zeros(2, 3, 4, 4)], [torch.zeros(2, 5, 4, 4)]),
            "the same channels are needed, got 3 of the student, 5 of the teacher",
        ),
        (
            lambda: semckd([torch.zeros(2, 3, 4, 4)], [torch.zeros(2, 3, 4)], torch.ones(2, 1, 1)),
            "of the same images are needed",
        ),
        (
            lambda: semckd(
                [torch.zeros(2, 3, 4, 4)], [torch.zeros(2, 3, 4, 4)], torch.ones(2, 2, 2)
            ),
            r"for 1 pairs of stages and 2 images is needed, got \[2, 2, 2\]",
        ),
        (
            lambda: layer_attention(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2), 0.0),
            "softness must be above 0, got 0.0",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call: Callable[[], Tensor], says: str) -> None:
    with pytest.raises(InputError, match=says):
        call()
