"""Attention transfer: the loss of the attention maps, and the stages that it compares."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from dskd.errors import InputError
from dskd.losses.feature_maps import pool_to
from dskd.methods.at import AT, at_loss, attention_map
from dskd.models.output import ModelOutput
from tests.builders import make_dataset, make_pair, staged
from tests.losses.misfits import Arguments
from tests.methods.edge_cases import MAPS, PairLoss, check_finite, check_full_precision
from tests.methods.inputs import batch_of
from tests.reference_values import CASES, cases, check, given

ARGUMENTS = Arguments(
    {"student_maps": "[B C* H* W*]", "teacher_maps": "[B E* I* J*]"}, numbers={"power": 0.0}
)
DEFAULTS = {"power": 2.0}
PRESETS = {"literature": {"ce": 1.0, "kd": 0.0, "weight": 1000.0}}


def _of_three(*maps: Tensor) -> Tensor:
    return at_loss(maps[:3], maps[3:])


REFERENCE: dict[str, Callable[..., Tensor]] = {
    "at_mdistiller": _of_three,
    "at_repdistiller": _of_three,
    "at_simkd": _of_three,
    "at_pool_student": lambda f1, g2: at_loss([f1], [g2]),
    "at_pool_teacher": lambda f2, g1: at_loss([f2], [g1]),
    "at_torchdistill_code": lambda f3, g3: at_loss([f3], [g3]),
}
OTHER = {"at_torchdistill_paper": "the paper's norm, to which no published weight belongs"}

LOSSES: dict[str, PairLoss] = {
    "square": lambda s, t: at_loss([s], [t]),
    "root": lambda s, t: at_loss([s], [t], power=0.5),
}


@pytest.mark.parametrize("case", REFERENCE)
def test_value_and_gradient_are_those_of_the_reference(case: str) -> None:
    check(case, REFERENCE[case])


@pytest.mark.parametrize(
    "case", [c for c in REFERENCE if "per_stage" in CASES[c].get("further", {})]
)
def test_the_value_of_each_stage_is_that_of_the_reference(case: str) -> None:
    inputs = CASES[case]["inputs"]
    pairs = zip(inputs["student"], inputs["teacher"], strict=True)
    stages = [at_loss([given(s)], [given(t)]).item() for s, t in pairs]
    assert stages == pytest.approx(CASES[case]["further"]["per_stage"], rel=1e-5)


def test_no_reference_value_is_left_out() -> None:
    assert cases("at") == REFERENCE.keys() | OTHER.keys()


def test_the_norm_in_the_paper_is_of_the_same_attention_maps() -> None:
    """Where torchdistill follows the equation, its attention maps are ours."""
    maps = attention_map(given("f3")) - attention_map(given("g3"))
    norm = torch.linalg.vector_norm(maps, dim=1).mean()
    assert norm.item() == pytest.approx(CASES["at_torchdistill_paper"]["value"], rel=1e-5)


def test_scale_and_the_order_of_channels_do_not_matter() -> None:
    maps = torch.rand(2, 3, 4, 4)
    assert at_loss([maps], [3 * maps[:, [2, 0, 1]]]).item() == pytest.approx(0, abs=1e-12)


def test_of_two_sizes_the_larger_map_is_pooled() -> None:
    wide, tall = torch.rand(2, 3, 4, 7), torch.rand(2, 5, 6, 3)
    expected = at_loss([pool_to(wide, 4, 3)], [pool_to(tall, 4, 3)])
    assert at_loss([wide], [tall]).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("kind", MAPS)
@pytest.mark.parametrize("name", LOSSES)
def test_values_and_gradients_are_finite(name: str, kind: str) -> None:
    check_finite(LOSSES[name], MAPS[kind], largest_gradient=1e4)


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_is_computed_in_full(name: str) -> None:
    check_full_precision(LOSSES[name], torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4))


def test_maps_of_other_images_are_refused() -> None:
    with pytest.raises(InputError, match="of the same images are needed"):
        at_loss([torch.zeros(2, 3, 4, 4)], [torch.zeros(3, 3, 4, 4)])


def test_the_attention_map_has_the_mean_of_squares_and_the_layout_of_its_map() -> None:
    feature_map = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last).requires_grad_()
    expected = nn.functional.normalize(feature_map.abs().pow(2.0).mean(1).flatten(1))
    weights = torch.randn(2, 16)
    gradients = [
        torch.autograd.grad(values, feature_map, weights)[0]
        for values in (attention_map(feature_map), expected)
    ]
    assert torch.equal(attention_map(feature_map), expected)
    assert torch.equal(*gradients)
    assert gradients[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("power", [2.0, 1.0])
def test_the_method_compares_stages_at_the_same_relative_depth(power: float) -> None:
    data = make_dataset(size=32)
    pair, teacher = make_pair(staged("vgg8"), staged("resnet14"), data)
    assert teacher is not None
    method = AT(pair, weight=3.0, power=power).eval()
    images = data.train.images[:4]
    student: ModelOutput = method.student(images)
    maps = teacher(images).stages
    assert method.targets == [0, 1, 1, 2, 2]
    assert method.needs.stages == (0, 1, 2)
    expected = 3 * at_loss(student.stages, [maps[0], maps[1], maps[1], maps[2], maps[2]], power)
    found = method(batch_of(images), teacher(images)).losses["at"]
    torch.testing.assert_close(found, expected)


def test_the_power_changes_the_loss() -> None:
    maps = [torch.rand(2, 3, 4, 4)], [torch.rand(2, 3, 4, 4)]
    values = {partial(at_loss, power=power)(*maps).item() for power in (0.5, 1.0, 2.0, 3.0)}
    assert len(values) == 4
