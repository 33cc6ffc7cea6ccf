"""Similarity preserving: the similarities of a batch, in the maps of the last stage."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dskd.errors import InputError
from dskd.methods.sp import SP, sp_loss
from dskd.models.output import ModelOutput
from tests.builders import make_pair, staged
from tests.losses.misfits import Arguments
from tests.methods.edge_cases import (
    VECTORS,
    check_finite,
    check_full_precision,
    check_lone_image,
    check_relations,
)
from tests.methods.inputs import DATA, batch_of
from tests.reference_values import CASES, cases, check, given

ARGUMENTS = Arguments({"student_map": "B C H W", "teacher_map": "B E I J"})
PRESETS = {"literature": {"ce": 1.0, "kd": 0.0, "weight": 3000.0}}

REFERENCE = ["sp_mdistiller", "sp_repdistiller", "sp_simkd", "sp_stage1"]
OTHER = {"sp_torchdistill": "rows divided by their absolute sum, see below"}


def of_vectors(student: Tensor, teacher: Tensor) -> Tensor:
    return sp_loss(student[:, :, None, None], teacher[:, :, None, None])


@pytest.mark.parametrize("case", REFERENCE)
def test_value_and_gradient_are_those_of_the_reference(case: str) -> None:
    check(case, sp_loss)


def test_no_reference_value_is_left_out() -> None:
    assert cases("sp") == {*REFERENCE, *OTHER}


def test_torchdistill_divides_similarities_by_their_sum() -> None:
    """The one value that differs, and why."""
    s, t = given("f3").flatten(1), given("g3").flatten(1)
    rows = F.normalize(s @ s.T, p=1, dim=1) - F.normalize(t @ t.T, p=1, dim=1)
    expected = CASES["sp_torchdistill"]["value"]
    assert rows.square().mean().item() == pytest.approx(expected, rel=1e-5)


def test_the_loss_is_the_naive_loop() -> None:
    s, t = torch.randn(4, 3).double(), torch.randn(4, 5).double()
    total = 0.0
    for i in range(len(s)):
        rows = [torch.stack([(x[i] * x[j]).sum() for j in range(len(x))]) for x in (s, t)]
        total += float(((rows[0] / rows[0].norm() - rows[1] / rows[1].norm()) ** 2).sum())
    assert of_vectors(s, t).item() == pytest.approx(total / len(s) ** 2, rel=1e-6)


@pytest.mark.parametrize("kind", VECTORS)
def test_values_and_gradients_are_finite(kind: str) -> None:
    check_finite(of_vectors, VECTORS[kind], largest_gradient=1e6)


def test_a_lone_image_has_no_relations() -> None:
    check_lone_image(of_vectors)


def test_scale_rotation_and_order_do_not_matter() -> None:
    check_relations(of_vectors)


def test_half_precision_is_computed_in_full() -> None:
    check_full_precision(of_vectors, torch.randn(4, 3), torch.randn(4, 3))


def test_other_images_are_refused() -> None:
    with pytest.raises(InputError, match="of the same images are needed"):
        of_vectors(torch.zeros(4, 3), torch.zeros(5, 3))


def test_the_method_compares_the_last_stages() -> None:
    pair, teacher = make_pair(staged("resnet8"), staged("resnet8x4"), DATA)
    assert teacher is not None
    method = SP(pair, weight=3.0).eval()
    assert method.needs.stages == (2,)
    images = DATA.train.images[:4]
    student: ModelOutput = method.student(images)
    expected = 3 * sp_loss(student.stages[-1], teacher(images).stages[-1])
    torch.testing.assert_close(method(batch_of(images), teacher(images)).losses["sp"], expected)
