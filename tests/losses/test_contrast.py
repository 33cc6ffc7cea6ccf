"""Losses that tell images apart: against published values, naive loops, and at the edges."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dskd.data.transforms import rotations
from dskd.errors import InputError
from dskd.losses.contrast import (
    crd,
    crd_terms,
    found_again,
    remembered,
    sskd,
    sskd_head,
    sskd_predictions,
    trusted,
)
from tests.published import check, parameters

WEIGHTS = parameters("crd")


def embedded(pooled: Tensor, side: str) -> Tensor:
    weights = [WEIGHTS[f"embed_{side}/linear.{part}"] for part in ("weight", "bias")]
    return F.normalize(F.linear(pooled, *weights))


@pytest.mark.parametrize("case", ["crd_repdistiller", "crd_mdistiller", "crd_simkd"])
def test_crd_has_the_published_value_and_gradient(case: str) -> None:
    def loss(student: Tensor, teacher: Tensor, _: Tensor, contrasted: Tensor) -> Tensor:
        memories = WEIGHTS["memory_v1"], WEIGHTS["memory_v2"]
        return crd(embedded(student, "s"), embedded(teacher, "t"), *memories, contrasted)

    check(case, loss)


def units(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


def contrast(
    images: int = 6, batch: int = 3, others: int = 4
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Vectors of both sides, memories of both sides, and what is contrasted."""
    contrasted = torch.randint(images, (batch, 1 + others))
    return units(batch, 5), units(batch, 5), units(images, 5), units(images, 5), contrasted


def naive_crd(
    student: Tensor, teacher: Tensor, own: Tensor, other: Tensor, rows: Tensor, t: float
) -> float:
    total, noise = 0.0, (rows.shape[1] - 1) / len(own)
    for vectors, memory in ((student, other), (teacher, own)):
        scores = [
            [
                math.exp(sum(a * b for a, b in zip(v, memory[k].tolist(), strict=True)) / t)
                for k in row
            ]
            for v, row in zip(vectors.tolist(), rows.tolist(), strict=True)
        ]
        z = len(memory) * sum(map(sum, scores)) / rows.numel()
        for first, *rest in scores:
            total -= math.log(first / z / (first / z + noise))
            total -= sum(math.log(noise / (p / z + noise)) for p in rest)
    return total / len(student)


def test_crd_is_the_naive_loop() -> None:
    given = contrast()
    assert crd(*given, temperature=0.2).item() == pytest.approx(naive_crd(*given, 0.2))


def test_crd_does_not_depend_on_the_order_of_the_others() -> None:
    student, teacher, own, other, contrasted = contrast()
    turned = torch.cat([contrasted[:, :1], contrasted[:, 1:].flip(1)], 1)
    torch.testing.assert_close(
        crd(student, teacher, own, other, contrasted), crd(student, teacher, own, other, turned)
    )


def test_crd_is_the_same_from_either_side() -> None:
    student, teacher, own, other, contrasted = contrast()
    torch.testing.assert_close(
        crd(student, teacher, own, other, contrasted), crd(teacher, student, other, own, contrasted)
    )


def test_a_constant_that_is_set_stays() -> None:
    given = contrast()
    log_z = torch.tensor([1.0, math.inf], dtype=torch.float64)
    terms = crd_terms(*given, log_z)
    free = crd_terms(*given, torch.full_like(log_z, math.inf))
    assert terms.log_z.tolist() == [1.0, free.log_z[1].item()]
    assert free.log_z[0] != 1.0
    assert not free.log_z.requires_grad


def finite_with_gradient(loss: Any, *leaves: Tensor) -> Tensor:
    inputs = [leaf.clone().requires_grad_() for leaf in leaves]
    value: Tensor = loss(*inputs)
    assert value.isfinite()
    assert value.dtype == torch.float32
    for gradient in torch.autograd.grad(value, inputs, allow_unused=True):
        assert gradient is None or gradient.isfinite().all()
    return value


@pytest.mark.parametrize("temperature", [0.001, 0.07, 100.0])
@pytest.mark.parametrize("vectors", [torch.zeros(1, 2), torch.ones(2, 2), torch.eye(2) * 100])
def test_crd_is_finite_at_any_temperature(vectors: Tensor, temperature: float) -> None:
    memory = torch.eye(2)
    contrasted = torch.tensor([[0, 1], [1, 0]])[: len(vectors)]
    finite_with_gradient(
        lambda s, t: crd(s, t, memory, memory, contrasted, temperature=temperature),
        vectors,
        vectors,
    )


def test_what_does_not_fit_is_refused() -> None:
    student, teacher, own, other, contrasted = contrast()
    with pytest.raises(InputError, match="vectors \\[B, D\\] of the same images"):
        crd(student[:1], teacher, own, other, contrasted)
    with pytest.raises(InputError, match="memories \\[N, D\\] of the same images"):
        crd(student, teacher, own[:1], other, contrasted)
    with pytest.raises(InputError, match="of one length are needed, got lengths \\[4, 5\\]"):
        crd(student[:, 1:], teacher, own, other, contrasted)
    with pytest.raises(InputError, match="one other at least"):
        crd(student, teacher, own, other, contrasted[:, :1])
    with pytest.raises(InputError, match="temperature must be above 0"):
        crd(student, teacher, own, other, contrasted, temperature=0)
    with pytest.raises(InputError, match="every image and its rotations"):
        sskd_head(torch.zeros(6, 3))
    with pytest.raises(InputError, match="of the same images are needed"):
        sskd(torch.zeros(8, 3), torch.zeros(4, 3))
    with pytest.raises(InputError, match="logits \\[B, K\\] of one shape"):
        sskd_predictions(torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(2).long())


def test_a_memory_moves_its_rows_and_leaves_the_old_tensor() -> None:
    memory = units(4, 3)
    before = memory.clone()
    vectors = units(2, 3).requires_grad_()
    after = remembered(memory, torch.tensor([3, 1]), vectors, 0.9)
    assert torch.equal(memory, before)
    assert not after.requires_grad
    assert torch.equal(after[[0, 2]], memory[[0, 2]])
    for row, vector in ((3, vectors[0]), (1, vectors[1])):
        moved = 0.9 * memory[row] + 0.1 * vector
        torch.testing.assert_close(after[row], (moved / moved.norm()).detach())


# Self-supervision.


def naive_errors(scores: list[list[float]], truth: list[int]) -> list[int]:
    return [
        sum(score > row[true] for score in row) for row, true in zip(scores, truth, strict=True)
    ]


def naive_kept(errors: list[int], share: float) -> list[int]:
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

    return [[cosine(turned, plain) for plain in rows[:images]] for turned in rows[images:]]


@pytest.mark.parametrize("fraction", [0.01, 0.5, 0.75, 1.0])
def test_sskd_is_the_naive_loop(share: float) -> None:
    student, teacher = torch.randn(20, 6).double(), torch.randn(20, 4).double()
    ours, theirs = naive_cosines(student), naive_cosines(teacher)
    kept = naive_kept(naive_errors(theirs, [*range(5)] * 3), share)
    assert 0 < len(kept) <= 15
    expected = sum(naive_kl(ours[row], theirs[row], 0.5) for row in kept) / len(kept)
    assert sskd(student, teacher, share).item() == pytest.approx(expected)


@pytest.mark.parametrize("fraction", [0.25, 0.7, 1.0])
def test_predictions_for_turned_images_are_the_naive_loop(share: float) -> None:
    student, teacher = torch.randn(15, 4).double(), torch.randn(15, 4).double()
    labels = torch.randint(4, (15,))
    kept = naive_kept(naive_errors(teacher.tolist(), labels.tolist()), share)
    expected = [naive_kl(student[row].tolist(), teacher[row].tolist(), 2.0) for row in kept]
    value = sskd_predictions(student, teacher, labels, share, 2.0).item()
    assert value == pytest.approx(sum(expected) / len(kept))


def test_the_head_learns_by_the_naive_loop() -> None:
    vectors = torch.randn(12, 4).double()
    expected = 0.0
    for row, cosines in enumerate(naive_cosines(vectors)):
        total = sum(math.exp(c / 0.2) for c in cosines)
        expected -= math.log(math.exp(cosines[row % 3] / 0.2) / total) / 9
    assert sskd_head(vectors, 0.2).item() == pytest.approx(expected)


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.5, 0.7, 1.0])
def test_the_least_wrong_are_trusted_first(share: float) -> None:
    scores, truth = torch.randn(40, 7), torch.randint(7, (40,))
    kept = trusted(scores, truth, share)
    expected = naive_kept(naive_errors(scores.tolist(), truth.tolist()), share)
    assert kept.nonzero()[:, 0].tolist() == expected


def test_a_turned_image_is_compared_with_its_own() -> None:
    """The order of the rotations is the one that the losses count on."""
    images = torch.randint(256, (3, 3, 4, 4)).double()
    of_any_turn = rotations(images).mean((2, 3))  # the mean does not see a rotation
    similarities = found_again(of_any_turn)
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
def test_self_supervision_is_finite_at_the_edges(size: int, fill: float) -> None:
    flat = torch.full((4 * size, 3), fill)
    labels = torch.zeros(3 * size, dtype=torch.long)
    wide = torch.tensor([[fill, -fill]]).expand(3 * size, -1)
    finite_with_gradient(sskd_head, flat)
    finite_with_gradient(sskd, flat, torch.randn(4 * size, 2))
    finite_with_gradient(sskd, torch.randn(4 * size, 2), flat)
    finite_with_gradient(lambda z: sskd_predictions(z, -z.detach(), labels, 0.5), wide)


def test_autocast_does_not_reach_the_losses() -> None:
    half = torch.randn(8, 6).bfloat16()
    memory, contrasted = torch.randn(9, 6), torch.arange(9).expand(8, -1)
    labels = torch.zeros(8, dtype=torch.long)

    def losses(x: Tensor) -> list[Tensor]:
        return [
            crd(x, x.flip(0), memory, memory, contrasted),
            sskd(x, x.flip(1)),
            sskd_head(x),
            sskd_predictions(x, x.flip(1), labels, 0.5),
        ]

    with torch.autocast("cpu", torch.bfloat16):
        under = losses(half)
    for value, expected in zip(under, losses(half.float()), strict=True):
        assert value.dtype == torch.float32
        assert torch.equal(value, expected)
