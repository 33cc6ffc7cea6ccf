"""The Gaussians of VID: published values through them, and variances that learn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dskd.errors import InputError
from dskd.losses.feature_maps import vid
from dskd.methods.vid import VID, ConditionalGaussian
from dskd.models.output import ModelOutput
from dskd.teacher.frozen import FrozenTeacher
from tests.conftest import make_dataset, make_pair, staged
from tests.published import check, given, parameters


@pytest.mark.parametrize("case", ["vid_mdistiller", "vid_repdistiller", "vid_simkd"])
def test_value_and_gradient_are_the_published_ones(case: str) -> None:
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
        return vid([mean for mean, _ in outputs], maps[3:], [spread for _, spread in outputs])

    check(case, loss)


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
def test_the_variance_begins_where_it_is_set(variance: float) -> None:
    _, spread = ConditionalGaussian(3, 2, variance)(torch.zeros(1, 3, 1, 1))
    assert spread.tolist() == pytest.approx([variance] * 2, rel=1e-4)


def test_stages_of_other_numbers_and_sizes_are_joined() -> None:
    method, teacher, images = made("vgg8", "wrn_16_2")
    assert method.targets == [0, 1, 1, 2, 2]
    assert own(method, teacher, images).isfinite()


def test_a_variance_too_small_is_refused() -> None:
    with pytest.raises(InputError, match=r"variance must be above 0.000010, got 1e-06"):
        made(variance=1e-6)
