"""Variational information: the likelihood of the teacher's maps, and variances that learn."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dskd.errors import InputError
from dskd.methods.vid import VID, ConditionalGaussian, vid_loss
from dskd.models.output import ModelOutput
from dskd.teacher.frozen import FrozenTeacher
from tests.builders import make_dataset, make_pair, staged
from tests.losses.misfits import Arguments
from tests.methods.edge_cases import MAPS, check_finite, check_full_precision
from tests.reference_values import cases, check, given, parameters

ARGUMENTS = Arguments(
    {"means": "[B C* H* W*]", "teacher_maps": "[B C* H* W*]", "variances": "[C*]"}
)
PRESETS = {"literature": {"ce": 1.0, "kd": 0.0, "weight": 1.0}}

REFERENCE = ["vid_mdistiller", "vid_repdistiller", "vid_simkd"]


def _with_functions(f1: Tensor, f2: Tensor, f3: Tensor, *maps: Tensor) -> Tensor:
    """The loss with the regressors of the facts, called as functions."""
    means, variances = [], []
    for stage, feature_map in enumerate((f1, f2, f3), start=1):
        weights = parameters(f"vid_stage{stage}")
        for layer in (0, 2, 4):
            feature_map = feature_map.relu() if layer else feature_map
            feature_map = nn.functional.conv2d(feature_map, weights[f"regressor.{layer}.weight"])
        means.append(feature_map)
        variances.append(nn.functional.softplus(weights["log_scale"]) + 1e-5)
    return vid_loss(means, maps, variances)


def _with_gaussians() -> Any:
    """The loss with our modules, which load the weights of the facts."""
    gaussians = []
    for stage in (1, 2, 3):
        gaussian = ConditionalGaussian(
            given(f"f{stage}").shape[1], given(f"g{stage}").shape[1], variance=5.0
        ).double()
        state = parameters(f"vid_stage{stage}")
        scale = state.pop("log_scale")
        torch.testing.assert_close(gaussian.scale, scale, rtol=1e-6, atol=0, check_dtype=False)
        gaussian.load_state_dict(state | {"scale": scale})
        gaussians.append(gaussian)

    def loss(*maps: Tensor) -> Tensor:
        outputs = [gaussian(x) for gaussian, x in zip(gaussians, maps[:3], strict=True)]
        return vid_loss([mean for mean, _ in outputs], maps[3:], [spread for _, spread in outputs])

    return loss


@pytest.mark.parametrize("case", REFERENCE)
def test_value_and_gradient_are_those_of_the_reference(case: str) -> None:
    check(case, _with_functions)
    check(case, _with_gaussians())


def test_no_reference_value_is_left_out() -> None:
    assert cases("vid") == set(REFERENCE)


def test_the_loss_is_the_naive_likelihood_of_a_gaussian() -> None:
    mean, target, variance = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5), torch.rand(3) + 0.1
    total = 0.0
    for channel in range(3):
        gaussian = torch.distributions.Normal(mean[:, channel], variance[channel].sqrt())
        total -= gaussian.log_prob(target[:, channel]).sum().item()  # type: ignore[no-untyped-call]
    expected = total / mean.numel() - math.log(2 * math.pi) / 2
    assert vid_loss([mean], [target], [variance]).item() == pytest.approx(expected, rel=1e-5)


def _of_unit_variance(student: Tensor, teacher: Tensor) -> Tensor:
    return vid_loss([student], [teacher], [torch.ones(student.shape[1])])


@pytest.mark.parametrize("kind", MAPS)
def test_values_and_gradients_are_finite(kind: str) -> None:
    check_finite(_of_unit_variance, MAPS[kind], largest_gradient=1e4)


def test_half_precision_is_computed_in_full() -> None:
    check_full_precision(_of_unit_variance, torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4))


def test_shapes_that_do_not_fit_are_refused() -> None:
    maps, other = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 5)
    with pytest.raises(InputError, match="of one shape are needed"):
        vid_loss([maps], [other], [torch.ones(3)])
    with pytest.raises(InputError, match="a variance for each channel"):
        vid_loss([maps], [maps], [torch.ones(4)])


def made(student: str = "resnet8", teacher: str = "resnet14", **settings: Any) -> Any:
    size = 32 if student == "vgg8" else 16
    pair, frozen = make_pair(staged(student), staged(teacher), make_dataset(size=size))
    assert frozen is not None
    return VID(pair, **settings), frozen, make_dataset(size=size).train.images[:4]


def own(method: VID, teacher: FrozenTeacher, images: Tensor) -> Tensor:
    student: ModelOutput = method.student(images)
    return method.extra_losses(None, student, teacher(images))["vid"]  # type: ignore[arg-type]


def test_the_variances_learn() -> None:
    method, teacher, images = made()
    own(method, teacher, images).backward()  # type: ignore[no-untyped-call]
    for gaussian in method.gaussians:
        assert gaussian.scale.grad.abs().min() > 0


@pytest.mark.parametrize("variance", [1e-4, 0.5, 5.0, 1000.0])
def test_the_initial_variance_is_that_of_the_setting(variance: float) -> None:
    _, spread = ConditionalGaussian(3, 2, variance)(torch.zeros(1, 3, 1, 1))
    assert spread.tolist() == pytest.approx([variance] * 2, rel=1e-4)


def test_numbers_of_stages_and_sizes_may_differ() -> None:
    method, teacher, images = made("vgg8", "wrn_16_2")
    assert method.targets == [0, 1, 1, 2, 2]
    assert own(method, teacher, images).isfinite()


def test_a_variance_too_small_is_refused() -> None:
    with pytest.raises(InputError, match=r"variance must be above 0.000010, got 1e-06"):
        made(variance=1e-6)
