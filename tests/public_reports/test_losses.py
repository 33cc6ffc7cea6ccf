"""Losses say what does not fit, and stay exact where users found others that are not."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from decimal import Decimal, localcontext
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dskd import losses
from dskd.errors import InputError
from dskd.losses import allocate, dist, dkd, feature_loss, kd
from dskd.losses.allocation import ALLOCATIONS, Allocation
from dskd.losses.precision import in_full_precision

SOFT = [25.0, 1e3, 1e4, 1e6, 1e9]


def exact_kd(student: Tensor, teacher: Tensor, temperature: float) -> float:
    """KD with 60 digits."""
    with localcontext() as context:
        context.prec = 60
        t, total = Decimal(temperature), Decimal(0)
        for rows in zip(student.tolist(), teacher.tolist(), strict=True):
            powers = [[(Decimal(value) / t).exp() for value in row] for row in rows]
            q, p = ([value / sum(row) for value in row] for row in powers)
            total += sum(a * (a / b).ln() for a, b in zip(p, q, strict=True))
        return float(t * t * total / len(student))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0, *SOFT])
def test_kd_in_float32_is_exact_at_every_temperature(temperature: float) -> None:
    student, teacher = 3 * torch.randn(2, 4, 10)
    expected = exact_kd(student, teacher, temperature)
    assert kd(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 1.5, 4.0, 10.0, 20.0])
def test_kd_at_usual_temperatures_is_the_plain_formula_to_the_bit(temperature: float) -> None:
    student, teacher = 3 * torch.randn(2, 64, 100)
    results = []
    for formula in (kd, _plain_kd):
        leaf = student.clone().requires_grad_()
        value = formula(leaf, teacher, temperature)
        results += [value, *torch.autograd.grad(value, leaf)]
    assert torch.equal(results[0], results[2])
    assert torch.equal(results[1], results[3])


def _plain_kd(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    q, p = (F.log_softmax(logits / temperature, dim=1) for logits in (student, teacher))
    divergence = F.kl_div(q, p, log_target=True, reduction="none").sum(1)
    return (temperature**2 * divergence).mean()


@pytest.mark.parametrize(
    ("size", "temperature"), [*product([1.0], SOFT), *product([1e4], SOFT[1:])]
)
def test_a_high_temperature_gives_the_squares_of_centred_logits(
    size: float, temperature: float
) -> None:
    """Hinton et al., section 2.1: the limit of KD, and of both parts of DKD."""
    student, teacher = size * torch.randn(2, 8, 50).double()
    difference = student - teacher
    limit = (difference - difference.mean(1, keepdim=True)).square().mean() / 2
    near = max(1e-4, 20 * size / temperature)
    given = student.float(), teacher.float()
    assert kd(*given, temperature).item() == pytest.approx(limit.item(), rel=near)
    labels = torch.arange(8)
    parts = [dkd(*given, labels, a, b, temperature) for a, b in ((1, 0), (0, 1))]
    exact = [dkd(student, teacher, labels, a, b, temperature).item() for a, b in ((1, 0), (0, 1))]
    assert [part.item() for part in parts] == pytest.approx(exact, rel=1e-4)
    assert sum(exact[1:]) == pytest.approx(limit.item(), rel=max(0.2, near))


@pytest.mark.parametrize("temperature", SOFT)
def test_dist_keeps_its_correlations_at_every_temperature(temperature: float) -> None:
    """At a high temperature they are those of the logits, less the mean of each image."""
    student, teacher = torch.randn(2, 8, 50)
    value = dist(student, teacher, gamma=0.0, temperature=temperature) / temperature**2
    rows = torch.stack([student, teacher], 1).double()
    expected = 1 - torch.stack([torch.corrcoef(pair)[0, 1] for pair in rows]).mean()
    assert value.item() == pytest.approx(expected.item(), rel=max(1e-4, 1 / temperature))


@pytest.mark.parametrize("temperature", SOFT)
@pytest.mark.parametrize("loss", [kd, lambda s, t, T: dkd(s, t, torch.arange(8), temperature=T)])
def test_gradients_at_high_temperatures_are_exact_and_finite(
    loss: Callable[[Tensor, Tensor, float], Tensor], temperature: float
) -> None:
    student, teacher = 3 * torch.randn(2, 8, 10)
    student[0], teacher[0] = 1e6, -1e6  # far from uniform at T = 25, and equal to uniform
    student[1, 0] = 1e5
    gradients: list[Tensor] = []
    for dtype in (torch.float32, torch.float64):
        leaf = student.to(dtype).requires_grad_()
        gradients += torch.autograd.grad(loss(leaf, teacher.to(dtype), temperature), leaf)
    assert gradients[0].isfinite().all()
    torch.testing.assert_close(gradients[0].double(), gradients[1], rtol=1e-4, atol=1e-7)


def test_equal_logits_cost_nothing_at_any_temperature() -> None:
    logits = 3 * torch.randn(8, 10)
    for temperature in SOFT:
        assert kd(logits, logits, temperature).item() == 0
        assert kd(logits + 1, logits, temperature).item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("temperature", [1e-40, 1e-300, 1e10, 1e200])
def test_a_temperature_that_leaves_no_number_is_refused(temperature: float) -> None:
    with pytest.raises(InputError, match="take one from 1e-06 to 1e\\+09"):
        kd(torch.ones(1, 2), torch.ones(1, 2), temperature)


def test_dskd_refuses_three_branches_with_one_map_and_maps_of_another_batch() -> None:
    logits, labels, maps = torch.randn(4, 3), torch.tensor([0, 1, 2, 0]), torch.rand(4, 2, 3, 3)
    with pytest.raises(InputError, match="3 branch_logits, 1 branch_maps, 1 teacher_maps"):
        losses.dskd(logits, logits, labels, [logits] * 3, [maps], [maps])
    with pytest.raises(InputError, match=r"branch_maps .* of 4 images .* got \[2, 2, 3, 3\]"):
        losses.dskd(logits, logits, labels, [logits], [maps[:2]], [maps[:2]])
    for wrong in (logits[:1], logits[:, :2], logits[None], labels):
        with pytest.raises(InputError):
            losses.dskd(logits, logits, labels, [wrong], [maps], [maps])
    with pytest.raises(InputError, match="unknown setting 'temprature'"):
        losses.dskd(logits, logits, labels, [logits], [maps], [maps], temprature=2.0)
    with pytest.raises(InputError, match="unknown setting 'temprature'"):
        losses.byot(logits, labels, [logits], [maps], maps, temprature=2.0)


@pytest.mark.parametrize("size", [0.0, 1e-12, 1e-25])
def test_a_teacher_map_of_zeros_is_compared_without_a_scale(size: float) -> None:
    adapted = (100 * torch.randn(2, 3, 4, 4)).requires_grad_()
    value = feature_loss(adapted, torch.full((2, 3, 4, 4), size))
    assert value.item() == pytest.approx(adapted.square().mean().item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(value, adapted)
    assert gradient.abs().max() < 100
    none = feature_loss(adapted, torch.zeros(2, 3, 4, 4), reduction="none")
    assert none.shape == (2,)
    assert none.isfinite().all()


def test_one_image_of_zeros_does_not_change_the_scale_of_the_others() -> None:
    target = torch.stack([torch.zeros(3, 4, 4), torch.ones(3, 4, 4)])
    assert feature_loss(torch.zeros_like(target), target).item() == pytest.approx(1.0)


def test_options_of_feature_loss_that_do_not_exist_are_refused() -> None:
    maps = torch.ones(1, 2, 2, 2)
    with pytest.raises(InputError, match="unknown scale 'relativ'; did you mean 'relative'"):
        feature_loss(maps, maps, scale="relativ")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="unknown reduction 'sum'"):
        feature_loss(maps, maps, reduction="sum")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="unknown reduction 'sum'"):
        losses.ce(torch.ones(1, 2), torch.tensor([0]), reduction="sum")  # type: ignore[arg-type]


def test_the_device_is_that_of_arguments_by_name_and_in_lists(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[str] = []

    def autocast(device: str, **_: object) -> nullcontext[None]:
        seen.append(device)
        return nullcontext()

    monkeypatch.setattr(torch, "autocast", autocast)

    @in_full_precision
    def overlap(student: Tensor, teacher: object = None) -> Tensor:
        return student.sum()

    other = torch.ones(2, device="meta")
    overlap(student=other)
    overlap(other)
    overlap(student=torch.ones(2), teacher=[None, torch.ones(2)])
    losses.at(student_maps=[torch.ones(1, 2, 2, 2)], teacher_maps=[torch.ones(1, 2, 2, 2)])
    assert seen == ["meta", "meta", "cpu", "cpu"]
    with pytest.raises(InputError, match="must be on one device, got cpu and meta"):
        overlap(torch.ones(2), teacher=(None, other))


def test_one_input_in_float64_is_enough() -> None:
    a, b = torch.rand(2, 3, 4, 4), torch.rand(2, 5, 4, 4).double()
    assert losses.nst([a], [b]).dtype == torch.float64
    assert losses.nst([a], [b.half()]).dtype == torch.float32


@pytest.mark.parametrize("rule", ALLOCATIONS)
def test_an_infinite_loss_gives_finite_weights(rule: Allocation) -> None:
    weights = allocate(torch.tensor([1.0, math.inf, 2.0]), rule)
    assert weights.isfinite().all()
    assert weights.sum().item() == pytest.approx(3)
    expected = {"proportional": [0, 3, 0], "uniform": [1, 1, 1]}
    assert weights.tolist() == pytest.approx(expected.get(rule, weights.tolist()))
    one_image = allocate(torch.tensor([[1.0, 1.0], [3.0, math.inf]]), rule)
    torch.testing.assert_close(one_image[:, 0], allocate(torch.tensor([1.0, 3.0]), rule))
    both = allocate(torch.tensor([math.inf, math.inf]), rule)
    assert both.tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize("rule", ALLOCATIONS)
def test_a_loss_that_is_not_a_number_gives_equal_weights(rule: Allocation) -> None:
    """The objective is then not a number either, and the run stops at it."""
    weights = allocate(torch.tensor([1.0, math.nan, 2.0]), rule)
    assert weights.tolist() == pytest.approx([1, 1, 1])
    logits, maps = torch.zeros(2, 3), torch.ones(2, 4, 2, 2)
    bad = torch.full((2, 4, 2, 2), math.nan)
    y = torch.tensor([0, 1])
    assert losses.dskd(logits, logits, y, [logits, logits], [maps, bad], [maps, maps]).isnan()


@pytest.mark.parametrize("tau", [1e-40, 1e-300, 5e-324])
def test_the_smallest_tau_gives_all_to_one(tau: float) -> None:
    losses_ = torch.tensor([1.0, 3.0, 2.0])
    assert allocate(losses_, "hard-first", tau).tolist() == [0, 3, 0]
    assert allocate(losses_, "easy-first", tau).tolist() == [3, 0, 0]
    assert allocate(losses_, "ca-mkd", tau).tolist() == [1.5, 0, 1.5]
    assert allocate(torch.tensor([2.0, 2.0]), "hard-first", tau).tolist() == [1, 1]
    assert allocate(losses_, "hard-first", 1e300).tolist() == pytest.approx([1, 1, 1])


@pytest.mark.parametrize("rule", ALLOCATIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_losses_in_half_precision_are_computed_in_float32(
    rule: Allocation, dtype: torch.dtype
) -> None:
    half = torch.tensor([0.1, 1.3, 2.7]).to(dtype)
    weights = allocate(half, rule)
    assert weights.dtype == torch.float32
    assert torch.equal(weights, allocate(half.float(), rule))


@pytest.mark.parametrize("label", [-100, -1, 3, 255])
def test_a_label_that_is_no_class_is_refused_and_not_skipped(label: int) -> None:
    logits, labels = torch.randn(2, 3), torch.tensor([0, label])
    refusals: list[Callable[[], Tensor]] = [
        lambda: losses.ce(logits, labels),
        lambda: losses.dkd(logits, logits, labels),
        lambda: losses.dsn([logits], labels),
    ]
    for refused in refusals:
        with pytest.raises(InputError, match=rf"must be from 0 to 2, got {label} among them"):
            refused()


def test_the_kernels_of_cc_refuse_an_order_beyond_their_range() -> None:
    with pytest.raises(InputError, match=r"order must be .* at most 100, got 500"):
        losses.cc(torch.randn(3, 2), torch.randn(3, 2), "gaussian", order=500)
    assert losses.cc(torch.randn(3, 2), torch.randn(3, 2), "gaussian", 100.0, 100).isfinite()
