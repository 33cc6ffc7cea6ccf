"""The hint: its loss, its regressor for maps of any two sizes, and the stages that it pairs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dskd.errors import InputError
from dskd.methods.contracts import Pair
from dskd.methods.fitnet import FitNet, Regressor, fitnet_loss
from dskd.models.output import ModelOutput
from dskd.models.spec import ModelSpec, StageSpec
from tests.builders import make_dataset, make_pair, staged
from tests.losses.misfits import Arguments
from tests.methods.edge_cases import MAPS, check_finite, check_full_precision
from tests.reference_values import CASES, cases, check, given, parameters

ARGUMENTS = Arguments({"student_map": "B C H W", "teacher_map": "B C H W"})
PRESETS = {"literature": {"ce": 1.0, "kd": 0.0, "weight": 100.0}}

GENTLE = {"weight": 1.0}
REFERENCE = ["hint_mdistiller_mse", "hint_repdistiller", "hint_simkd"]
SIZES = ["same", "down", "up"]


@pytest.mark.parametrize("case", REFERENCE)
def test_value_and_gradient_are_those_of_the_reference(case: str) -> None:
    check(case, fitnet_loss)


def test_no_reference_value_is_left_out() -> None:
    assert cases("hint") == {*REFERENCE, *(f"hint_convreg_{size}" for size in SIZES)}


@pytest.mark.parametrize("kind", MAPS)
def test_values_and_gradients_are_finite(kind: str) -> None:
    check_finite(fitnet_loss, MAPS[kind], largest_gradient=1e4)


def test_half_precision_is_computed_in_full() -> None:
    check_full_precision(fitnet_loss, torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4))


def test_maps_of_different_shapes_are_refused() -> None:
    with pytest.raises(InputError, match="of one shape are needed"):
        fitnet_loss(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 5))


def spec_of(name: str) -> StageSpec:
    channels, height, width = given(name).shape[1:]
    return StageSpec(channels, height, width, True)


@pytest.mark.parametrize("case", SIZES)
def test_value_and_gradient_with_the_regressor_are_those_of_the_reference(case: str) -> None:
    inputs = CASES[f"hint_convreg_{case}"]["inputs"]
    regressor = Regressor(spec_of(inputs["student"][0]), spec_of(inputs["teacher"][0])).double()
    weights = parameters(f"hint_convreg_{case}")
    # The facts' convolution has a bias, which BatchNorm removes: ours has none.
    names = {"conv.": "0.", "bn.": "1."}
    state = {
        f"layers.{names[part + '.']}{key}": value
        for name, value in weights.items()
        for part, _, key in [name.partition(".")]
        if name != "conv.bias"
    }
    regressor.load_state_dict(state, strict=False)

    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        return fitnet_loss(regressor.train()(student), teacher)

    check(f"hint_convreg_{case}", loss)


@pytest.mark.parametrize(
    ("student", "teacher", "conv", "gives"),
    [
        ((8, 8), (8, 8), nn.Conv2d, (8, 8)),
        ((7, 8), (4, 4), nn.Conv2d, (4, 4)),  # a stride of 2
        ((4, 3), (8, 6), nn.ConvTranspose2d, (8, 6)),
        ((32, 32), (8, 8), nn.Conv2d, (8, 8)),
        ((14, 14), (4, 6), nn.Conv2d, (4, 6)),
        ((4, 4), (7, 7), nn.Conv2d, (4, 4)),  # and the teacher is pooled
        ((4, 9), (6, 3), nn.Conv2d, (4, 3)),
        ((1, 1), (1, 1), nn.Conv2d, (1, 1)),
    ],
    ids=str,
)
def test_maps_of_any_two_sizes_are_compared(
    student: tuple[int, int], teacher: tuple[int, int], conv: type, gives: tuple[int, int]
) -> None:
    stages = StageSpec(3, *student, True), StageSpec(5, *teacher, True)
    pair = Pair(staged(), ModelSpec(4, stages[:1], 8), ModelSpec(4, stages[1:], 8))
    method = FitNet(pair)
    assert type(method.regressor.layers[0]) is conv
    maps = torch.rand(2, 3, *student), torch.rand(2, 5, *teacher)
    assert method.regressor(maps[0]).shape == (2, 5, *gives)
    outputs = [ModelOutput(torch.zeros(2, 4), (feature_map,), None) for feature_map in maps]
    loss = method.extra_losses(None, *outputs)["fitnet"]  # type: ignore[arg-type]
    assert loss.isfinite()


def test_the_regressor_is_negative_only_if_the_teacher_can_be() -> None:
    x = torch.randn(4, 3, 8, 8)
    stage = StageSpec(3, 8, 8, True)
    assert (Regressor(stage, StageSpec(5, 8, 8, True))(x) >= 0).all()
    assert (Regressor(stage, StageSpec(5, 8, 8, False))(x) < 0).any()


def test_the_hint_is_in_the_middle_by_default() -> None:
    def spec(depth: int) -> ModelSpec:
        return ModelSpec(4, tuple(StageSpec(8, 8, 8, True) for _ in range(depth)), 8)

    def paired(depth: int, teacher: int, stage: int | None = None) -> tuple[int, int]:
        method = FitNet(Pair(staged(), spec(depth), spec(teacher)), stage=stage)
        assert method.needs.stages == (method.target,)
        return method.stage + 1, method.target + 1

    assert paired(3, 3) == (2, 2)  # layer 2 of stem, 1, 2, 3, as in CRD's repository
    assert paired(5, 5) == (3, 3)
    assert paired(1, 4) == (1, 4)
    assert paired(4, 3) == (2, 2)
    assert paired(3, 5, stage=1) == (1, 2)
    assert paired(3, 5, stage=3) == (3, 5)


def test_a_stage_that_is_not_there_is_refused() -> None:
    pair, _ = make_pair(staged(), staged("resnet14"), make_dataset())
    with pytest.raises(InputError, match="stage must be from 1 to 3, got 4"):
        FitNet(pair, stage=4)
    with pytest.raises(InputError, match="stage: input should be greater than or equal to 1"):
        FitNet(pair, stage=0)
