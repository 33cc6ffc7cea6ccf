"""Losses of the branches without a teacher: against naive loops, and at the edges."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dskd.errors import InputError
from dskd.losses.branched import byot, byot_terms, dsn


def softmax(row: list[float], t: float = 1.0) -> list[float]:
    return [math.exp(v / t) / sum(math.exp(w / t) for w in row) for v in row]


def naive_ce(logits: Tensor, labels: Tensor) -> float:
    rows = zip(logits.tolist(), labels.tolist(), strict=True)
    return sum(-math.log(softmax(row)[label]) for row, label in rows) / len(labels)


def naive_kl(branch: Tensor, deepest: Tensor, t: float) -> float:
    total = 0.0
    for ours, theirs in zip(branch.tolist(), deepest.tolist(), strict=True):
        p, q = softmax(theirs, t), softmax(ours, t)
        total += t**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return total / len(branch)


def naive_square(a: Tensor, b: Tensor) -> float:
    pairs = zip(a.flatten().tolist(), b.flatten().tolist(), strict=True)
    return math.fsum((x - y) ** 2 for x, y in pairs) / a.numel()


def made(batch: int = 3, classes: int = 4) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    """Labels, the deepest logits, the branches' logits and maps."""
    labels = torch.randint(classes, (batch,))
    logits = [torch.randn(batch, classes).double() for _ in range(2)]
    maps = [torch.rand(batch, 2, 3, 3).double() for _ in range(2)]
    return labels, torch.randn(batch, classes).double(), logits, maps


def test_dsn_is_the_naive_sum() -> None:
    labels, _, logits, _ = made()
    expected = sum(naive_ce(z, labels) for z in logits)
    assert dsn(logits, labels).item() == pytest.approx(expected)


def test_byot_is_the_naive_sum() -> None:
    labels, deepest, logits, maps = made()
    last = torch.rand(3, 2, 3, 3).double()
    terms = byot_terms(deepest, labels, logits, maps, last, 0.5, 0.7, 0.3, 0.2, 2.0)
    expected = {
        "ce": 0.5 * naive_ce(deepest, labels),
        "shallow": 0.7 * sum(naive_ce(z, labels) for z in logits),
        "kd": 0.3 * sum(naive_kl(z, deepest, 2.0) for z in logits),
        "features": 0.2 * sum(naive_square(m, last) for m in maps),
    }
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected)
    value = byot(deepest, labels, logits, maps, last, 0.5, 0.7, 0.3, 0.2, 2.0)
    assert value.item() == pytest.approx(sum(expected.values()))


def test_the_end_learns_from_labels_alone() -> None:
    labels, deepest, logits, maps = made()
    deepest.requires_grad_()
    last = torch.rand(3, 2, 3, 3).double().requires_grad_()
    terms = byot_terms(deepest, labels, logits, maps, last)
    assert not terms["kd"].requires_grad
    assert not terms["features"].requires_grad
    assert terms["ce"].requires_grad


def test_a_larger_last_map_is_pooled_to_the_branchs() -> None:
    labels, deepest, logits, maps = made()
    large = maps[0].repeat_interleave(2, 2).repeat_interleave(2, 3)
    terms = byot_terms(deepest, labels, logits[:1], maps[:1], large)
    assert terms["features"].item() == pytest.approx(0, abs=1e-12)


def test_maps_of_other_channels_are_refused() -> None:
    labels, deepest, logits, maps = made()
    with pytest.raises(InputError, match="feature maps differ in shape"):
        byot(deepest, labels, logits, maps, torch.zeros(3, 5, 3, 3))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("fill", [0.0, 100.0])
def test_they_are_finite_at_the_edges(batch: int, fill: float) -> None:
    wide = torch.tensor([[fill, -fill]]).repeat(batch, 1).requires_grad_()
    flat = torch.full((batch, 2, 1, 1), fill, requires_grad=True)
    labels = torch.ones(batch, dtype=torch.long)
    value = byot(-wide.detach(), labels, [wide], [flat], torch.zeros(batch, 2, 1, 1))
    assert value.isfinite()
    assert all(g.isfinite().all() for g in torch.autograd.grad(value, [wide, flat]))


def test_autocast_does_not_reach_the_losses() -> None:
    half, labels = torch.randn(3, 4).bfloat16(), torch.tensor([0, 1, 3])
    maps = torch.rand(3, 2, 2, 2).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        value = byot(half, labels, [half.flip(0)], [maps], maps.flip(0))
    wide = byot(half.float(), labels, [half.float().flip(0)], [maps.float()], maps.float().flip(0))
    assert value.dtype == torch.float32
    assert torch.equal(value, wide)
