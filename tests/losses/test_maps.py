"""Losses between feature maps: against published values and naive loops."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from dskd.errors import InputError
from dskd.losses.feature_maps import at, attention, fitnet, nst, pool_to, vid
from tests.published import CASES, check, given, parameters

MapLoss = Callable[[list[Tensor], list[Tensor]], Tensor]


def _over_three(loss: MapLoss) -> Callable[..., Tensor]:
    return lambda f1, f2, f3, g1, g2, g3: loss([f1, f2, f3], [g1, g2, g3])


def _published_vid(f1: Tensor, f2: Tensor, f3: Tensor, *maps: Tensor) -> Tensor:
    """With the regressors and scales of the facts, called as functions."""
    means, variances = [], []
    for stage, feature_map in enumerate((f1, f2, f3), start=1):
        weights = parameters(f"vid_stage{stage}")
        for layer in (0, 2, 4):
            feature_map = feature_map.relu() if layer else feature_map
            feature_map = nn.functional.conv2d(feature_map, weights[f"regressor.{layer}.weight"])
        means.append(feature_map)
        variances.append(nn.functional.softplus(weights["log_scale"]) + 1e-5)
    return vid(means, maps, variances)


PUBLISHED: dict[str, Callable[..., Tensor]] = {
    "at_mdistiller": _over_three(at),
    "at_repdistiller": _over_three(at),
    "at_simkd": _over_three(at),
    "at_pool_student": lambda f1, g2: at([f1], [g2]),
    "at_pool_teacher": lambda f2, g1: at([f2], [g1]),
    "at_torchdistill_code": lambda f3, g3: at([f3], [g3]),
    "hint_mdistiller_mse": fitnet,
    "hint_repdistiller": fitnet,
    "hint_simkd": fitnet,
    "nst_mdistiller": _over_three(nst),
    "nst_repdistiller": _over_three(nst),
    "vid_mdistiller": _published_vid,
    "vid_repdistiller": _published_vid,
    "vid_simkd": _published_vid,
}

ELSEWHERE = {
    "at_torchdistill_paper": "the paper's norm, which no published weight belongs to: see below",
    "hint_convreg_same": "through the regressor: tests/methods/test_fitnet.py",
    "hint_convreg_down": "through the regressor: tests/methods/test_fitnet.py",
    "hint_convreg_up": "through the regressor: tests/methods/test_fitnet.py",
}


@pytest.mark.parametrize("case", PUBLISHED)
def test_value_and_gradient_are_the_published_ones(case: str) -> None:
    check(case, PUBLISHED[case])


def test_every_published_case_is_accounted_for() -> None:
    cases = {case for case in CASES if case.split("_")[0] in ("at", "hint", "nst", "vid")}
    assert cases == PUBLISHED.keys() | ELSEWHERE.keys()


def test_the_norm_in_the_paper_on_attention_is_of_the_same_maps() -> None:
    """Where torchdistill follows the equation, its maps are ours."""
    maps = attention(given("f3")) - attention(given("g3"))
    norm = torch.linalg.vector_norm(maps, dim=1).mean()
    assert norm.item() == pytest.approx(CASES["at_torchdistill_paper"]["value"], rel=1e-5)


def test_transfer_is_the_naive_mean_over_pairs_of_channels() -> None:
    # 2x2 positions and 5, 6 channels, then 4x4 positions and 2, 3: both ways to sum are taken.
    for size, few, more in ((2, 5, 6), (4, 2, 3)):
        s, t = torch.rand(2, few, size, size) - 0.2, torch.rand(2, more, size, size) - 0.2

        def kernel(a: Tensor, b: Tensor) -> float:
            total = 0.0
            for image in range(2):
                for c in a[image]:
                    for d in b[image]:
                        cosine = (c * d).sum() / (c.norm() * d.norm())
                        total += float(cosine**2) / (2 * a.shape[1] * b.shape[1])
            return total

        expected = kernel(s, s) + kernel(t, t) - 2 * kernel(s, t)
        assert nst([s], [t]).item() == pytest.approx(expected, rel=1e-4)


def test_likelihood_is_the_naive_one_of_a_gaussian() -> None:
    mean, target, variance = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5), torch.rand(3) + 0.1
    total = 0.0
    for channel in range(3):
        gaussian = torch.distributions.Normal(mean[:, channel], variance[channel].sqrt())
        total -= gaussian.log_prob(target[:, channel]).sum().item()  # type: ignore[no-untyped-call]
    expected = total / mean.numel() - math.log(2 * math.pi) / 2
    assert vid([mean], [target], [variance]).item() == pytest.approx(expected, rel=1e-5)


def test_attention_does_not_depend_on_scale_or_the_order_of_channels() -> None:
    maps = torch.rand(2, 3, 4, 4)
    assert at([maps], [3 * maps[:, [2, 0, 1]]]).item() == pytest.approx(0, abs=1e-12)


def test_transfer_does_not_depend_on_scale_the_order_of_channels_or_their_repetition() -> None:
    maps = torch.rand(2, 3, 4, 4)
    assert nst([maps], [3 * maps[:, [2, 0, 1, 2, 0, 1]]]).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("loss", [at, nst])
def test_of_two_sizes_the_larger_map_is_pooled(loss: MapLoss) -> None:
    wide, tall = torch.rand(2, 3, 4, 7), torch.rand(2, 5, 6, 3)
    expected = loss([pool_to(wide, 4, 3)], [pool_to(tall, 4, 3)])
    assert loss([wide], [tall]).item() == pytest.approx(expected.item())


def _unit_vid(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    return vid(student, teacher, [torch.ones(m.shape[1]) for m in student])


LOSSES: dict[str, MapLoss] = {
    "at": at,
    "at_root": lambda s, t: at(s, t, power=0.5),
    "fitnet": lambda s, t: fitnet(s[0], t[0]),
    "nst": nst,
    "vid": _unit_vid,
}

MAPS = {
    "zeros": torch.zeros(2, 3, 4, 4),
    "equal": torch.ones(2, 3, 4, 4),
    "one": torch.rand(1, 3, 4, 4),
    "position": torch.rand(2, 3, 1, 1),
    "large": 100 * torch.randn(2, 3, 4, 4).sign(),
    "sparse": torch.rand(2, 3, 4, 4) * torch.eye(4),
}


@pytest.mark.parametrize("kind", MAPS)
@pytest.mark.parametrize("name", LOSSES)
def test_values_and_gradients_are_finite(name: str, kind: str) -> None:
    for student, teacher in (
        (MAPS[kind], torch.rand_like(MAPS[kind])),
        (torch.rand_like(MAPS[kind]), MAPS[kind]),
        (MAPS[kind], MAPS[kind]),
    ):
        student = student.clone().requires_grad_()
        value = LOSSES[name]([student], [teacher])
        (gradient,) = torch.autograd.grad(value, student)
        assert value.isfinite()
        assert gradient.isfinite().all()
        assert gradient.abs().max() < 1e4


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_is_computed_in_full(name: str) -> None:
    s, t = torch.rand(2, 3, 4, 4).bfloat16(), torch.rand(2, 3, 4, 4).bfloat16()
    expected = LOSSES[name]([s.float()], [t.float()])
    with torch.autocast("cpu", torch.bfloat16):
        value = LOSSES[name]([s], [t])
    assert value.dtype == torch.float32
    assert torch.equal(value, expected)


@pytest.mark.parametrize("loss", [at, nst])
def test_maps_of_other_images_are_refused(loss: MapLoss) -> None:
    with pytest.raises(InputError, match="of the same images are needed"):
        loss([torch.zeros(2, 3, 4, 4)], [torch.zeros(3, 3, 4, 4)])


def test_shapes_that_do_not_fit_are_refused() -> None:
    maps, other = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 5)
    with pytest.raises(InputError, match="of one shape are needed"):
        fitnet(maps, other)
    with pytest.raises(InputError, match="of one shape are needed"):
        vid([maps], [other], [torch.ones(3)])
    with pytest.raises(InputError, match="a variance for each channel"):
        vid([maps], [maps], [torch.ones(4)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(4, 4), (2, 12), (8, 4)])
def test_pooling_to_a_size_that_divides_gives_avg_pool2d_s_numbers(
    dtype: torch.dtype, layout: torch.memory_format, size: tuple[int, int]
) -> None:
    feature_map = torch.randn(2, 3, 8, 12).to(dtype).to(memory_format=layout).requires_grad_()
    pooled = pool_to(feature_map, *size)
    expected = nn.functional.avg_pool2d(feature_map, (8 // size[0], 12 // size[1]))
    weights = torch.randn(pooled.shape).to(dtype)
    gradients = [torch.autograd.grad(given, feature_map, weights) for given in (pooled, expected)]
    assert torch.equal(pooled, expected)
    assert torch.equal(gradients[0][0], gradients[1][0])


def test_the_gradient_of_a_pooled_map_has_its_layout() -> None:
    feature_map = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last).requires_grad_()
    pooled = pool_to(feature_map, 2, 4)
    (gradient,) = torch.autograd.grad(pooled, feature_map, torch.randn_like(pooled))
    assert gradient.is_contiguous(memory_format=torch.channels_last)


def test_pooling_can_be_differentiated_twice() -> None:
    feature_map = torch.randn(1, 2, 4, 4, dtype=torch.double, requires_grad=True)
    pool = partial(pool_to, height=2, width=2)
    assert torch.autograd.gradcheck(pool, (feature_map,))
    assert torch.autograd.gradgradcheck(pool, (feature_map,))


def test_attention_is_the_mean_of_squares_and_leaves_maps_in_their_layout() -> None:
    feature_map = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last).requires_grad_()
    expected = nn.functional.normalize(feature_map.abs().pow(2.0).mean(1).flatten(1))
    weights = torch.randn(2, 16)
    gradients = [
        torch.autograd.grad(given, feature_map, weights)[0]
        for given in (attention(feature_map), expected)
    ]
    assert torch.equal(attention(feature_map), expected)
    assert torch.equal(*gradients)
    assert gradients[0].is_contiguous(memory_format=torch.channels_last)
