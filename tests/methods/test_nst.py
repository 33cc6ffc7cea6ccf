"""Neuron selectivity transfer: the distance between sets of channels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dskd.errors import InputError
from dskd.losses.feature_maps import pool_to
from dskd.methods.nst import NST, nst_loss
from dskd.models.output import ModelOutput
from tests.builders import make_dataset, make_pair, staged
from tests.losses.misfits import Arguments
from tests.methods.edge_cases import MAPS, check_finite, check_full_precision
from tests.methods.inputs import batch_of
from tests.reference_values import CASES, cases, check, given

ARGUMENTS = Arguments({"student_maps": "[B C* H* W*]", "teacher_maps": "[B E* I* J*]"})
PRESETS = {"literature": {"ce": 1.0, "kd": 0.0, "weight": 50.0}}

REFERENCE = ["nst_mdistiller", "nst_repdistiller"]


def _of_one(student: Tensor, teacher: Tensor) -> Tensor:
    return nst_loss([student], [teacher])


@pytest.mark.parametrize("case", REFERENCE)
def test_value_and_gradient_are_those_of_the_reference(case: str) -> None:
    check(case, lambda *maps: nst_loss(maps[:3], maps[3:]))


@pytest.mark.parametrize(
    "case", [c for c in REFERENCE if "per_stage" in CASES[c].get("further", {})]
)
def test_the_value_of_each_stage_is_that_of_the_reference(case: str) -> None:
    inputs = CASES[case]["inputs"]
    pairs = zip(inputs["student"], inputs["teacher"], strict=True)
    stages = [nst_loss([given(s)], [given(t)]).item() for s, t in pairs]
    assert stages == pytest.approx(CASES[case]["further"]["per_stage"], rel=1e-5)


def test_no_reference_value_is_left_out() -> None:
    assert cases("nst") == set(REFERENCE)


@pytest.mark.parametrize(("size", "few", "more"), [(2, 5, 6), (4, 2, 3)])
def test_the_loss_is_the_naive_mean_over_pairs_of_channels(size: int, few: int, more: int) -> None:
    """Few and many positions: both ways to compute the sum are used."""
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
    assert nst_loss([s], [t]).item() == pytest.approx(expected, rel=1e-4)


def test_scale_order_and_repetition_of_the_channels_do_not_matter() -> None:
    maps = torch.rand(2, 3, 4, 4)
    others = 3 * maps[:, [2, 0, 1, 2, 0, 1]]
    assert nst_loss([maps], [others]).item() == pytest.approx(0, abs=1e-6)


def test_of_two_sizes_the_larger_map_is_pooled() -> None:
    wide, tall = torch.rand(2, 3, 4, 7), torch.rand(2, 5, 6, 3)
    expected = nst_loss([pool_to(wide, 4, 3)], [pool_to(tall, 4, 3)])
    assert nst_loss([wide], [tall]).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("kind", MAPS)
def test_values_and_gradients_are_finite(kind: str) -> None:
    check_finite(_of_one, MAPS[kind], largest_gradient=1e4)


def test_half_precision_is_computed_in_full() -> None:
    check_full_precision(_of_one, torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4))


def test_maps_of_other_images_are_refused() -> None:
    with pytest.raises(InputError, match="of the same images are needed"):
        nst_loss([torch.zeros(2, 3, 4, 4)], [torch.zeros(3, 3, 4, 4)])


def test_the_method_compares_stages_at_the_same_relative_depth() -> None:
    data = make_dataset(size=32)
    pair, teacher = make_pair(staged("vgg8"), staged("resnet14"), data)
    assert teacher is not None
    method = NST(pair, weight=3.0).eval()
    images = data.train.images[:4]
    student: ModelOutput = method.student(images)
    maps = teacher(images).stages
    assert method.targets == [0, 1, 1, 2, 2]
    expected = 3 * nst_loss(student.stages, [maps[0], maps[1], maps[1], maps[2], maps[2]])
    found = method(batch_of(images), teacher(images)).losses["nst"]
    torch.testing.assert_close(found, expected)
