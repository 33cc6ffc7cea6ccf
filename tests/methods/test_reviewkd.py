"""Knowledge review: the loss at several resolutions, the trained fusion, and unequal stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dskd.errors import InputError
from dskd.methods.contracts import Pair, StepOutput
from dskd.methods.reviewkd import ReviewKD, reviewkd_loss
from dskd.methods.stage_fusion import Fusion
from dskd.models.output import ModelOutput
from dskd.models.spec import ModelSpec, StageSpec
from dskd.models.staged_model import StagedModel
from tests.builders import make_dataset, make_pair, staged
from tests.losses.misfits import Arguments
from tests.methods.edge_cases import MAPS, check_finite, check_full_precision
from tests.methods.inputs import batch_of
from tests.reference_values import CASES, cases, check, given, parameters

ARGUMENTS = Arguments({"student_maps": "[B C* H* W*]", "teacher_maps": "[B C* I* J*]"})
PRESETS = {"literature": {"ce": 1.0, "kd": 0.0, "weight": 5.0, "warmup": 20.0}}

REFERENCE: dict[str, Callable[..., Tensor]] = {
    "hcl_last": lambda f3, g3: reviewkd_loss([f3], [g3]),
    "hcl_torchdistill": lambda f3, g3: reviewkd_loss([f3], [g3]),
    "hcl_multi": lambda *maps: reviewkd_loss(maps[:5], maps[5:]),
}
OTHER = {"reviewkd_full": "with the fusion, see below"}
PARTS = {"conv1": "enter", "conv2": "leave", "att_conv.0": "attention"}
"""The modules of a fusion by their names in the facts."""


@pytest.mark.parametrize("case", REFERENCE)
def test_value_and_gradient_are_those_of_the_reference(case: str) -> None:
    check(case, REFERENCE[case])


def test_the_value_of_each_stage_is_that_of_the_reference() -> None:
    case = CASES["hcl_multi"]
    pairs = zip(case["inputs"]["student"], case["inputs"]["teacher"], strict=True)
    stages = [reviewkd_loss([given(s)], [given(t)]).item() for s, t in pairs]
    assert stages == pytest.approx(case["further"]["per_stage"], rel=1e-5)


def test_no_reference_value_is_left_out() -> None:
    assert cases("hcl") | cases("reviewkd") == REFERENCE.keys() | OTHER.keys()


def pooled_naively(feature_map: Tensor, side: int) -> Tensor:
    """For a side that divides the height and width of the map, or is larger."""
    batch, channels, height, width = feature_map.shape
    rows, columns = min(side, height), min(side, width)
    pooled = torch.zeros(batch, channels, rows, columns, dtype=feature_map.dtype)
    for i in range(rows):
        for j in range(columns):
            top, left = i * height // rows, j * width // columns
            window = feature_map[:, :, top : top + height // rows, left : left + width // columns]
            pooled[:, :, i, j] = window.mean((2, 3))
    return pooled


@pytest.mark.parametrize("size", [(8, 8), (4, 4), (2, 2), (1, 1), (8, 2), (1, 4), (16, 8)], ids=str)
def test_the_loss_is_the_naive_loop(size: tuple[int, int]) -> None:
    student, teacher = (torch.randn(3, 5, *size).double() for _ in range(2))
    values, weights = [(student - teacher).square().mean()], [1.0]
    for side in (4, 2, 1):
        if side < max(size):
            s, t = pooled_naively(student, side), pooled_naively(teacher, side)
            values.append((s - t).square().mean())
            weights.append(weights[-1] / 2)
    expected = sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)
    torch.testing.assert_close(reviewkd_loss([student], [teacher]), torch.as_tensor(expected))


def test_the_loss_is_a_sum_over_stages_in_any_order() -> None:
    students = [torch.randn(2, 3, 8, 8), torch.randn(2, 4, 1, 1)]
    teachers = [torch.randn(2, 3, 8, 8), torch.randn(2, 4, 1, 1)]
    both = reviewkd_loss(students, teachers)
    alone = [reviewkd_loss([s], [t]) for s, t in zip(students, teachers, strict=True)]
    torch.testing.assert_close(both, sum(alone[1:], start=alone[0]))
    torch.testing.assert_close(both, reviewkd_loss(students[::-1], teachers[::-1]))


def test_of_two_sizes_the_larger_map_is_pooled() -> None:
    small, large = torch.randn(2, 3, 4, 6), torch.randn(2, 3, 8, 6)
    pooled = (large[:, :, ::2] + large[:, :, 1::2]) / 2
    for one, other in ((small, large), (large, small)):
        torch.testing.assert_close(reviewkd_loss([one], [other]), reviewkd_loss([small], [pooled]))


def _of_one(student: Tensor, teacher: Tensor) -> Tensor:
    return reviewkd_loss([student], [teacher])


@pytest.mark.parametrize("kind", MAPS)
def test_values_and_gradients_are_finite(kind: str) -> None:
    check_finite(_of_one, MAPS[kind], largest_gradient=1e4)


def test_half_precision_is_computed_in_full() -> None:
    check_full_precision(_of_one, torch.randn(2, 3, 5, 7), torch.randn(2, 3, 5, 7))


def test_maps_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="of the same images are needed"):
        _of_one(torch.zeros(2, 3, 4, 4), torch.zeros(3, 3, 4, 4))
    with pytest.raises(InputError, match="same channels are needed, got 3 of the student, 5 of"):
        _of_one(torch.zeros(2, 3, 4, 4), torch.zeros(2, 5, 4, 4))


def spec(*stages: tuple[int, int], pooled: int | None = None) -> ModelSpec:
    maps = tuple(StageSpec(channels, side, side, True) for channels, side in stages)
    return ModelSpec(4, maps, pooled)


def test_value_and_gradient_with_the_fusion_are_those_of_the_reference() -> None:
    student = spec((16, 16), (32, 8), (64, 8), pooled=64)
    teacher = spec((32, 16), (64, 8), (64, 8), pooled=128)
    method = ReviewKD(Pair(staged(), student, teacher), weight=1.0, warmup=20.0)
    weights = parameters("reviewkd_full")
    for theirs, ours in PARTS.items():
        weights = {key.replace(theirs, ours): value for key, value in weights.items()}
    counts = {k: v for k, v in method.fusions.state_dict().items() if k.endswith("_tracked")}
    method.fusions.double().load_state_dict(weights | counts)

    def loss(*inputs: Tensor) -> Tensor:
        maps, vector, targets, target = inputs[:3], inputs[3], inputs[4:7], inputs[7]
        batch = batch_of(torch.zeros(32, 3, 2, 2), epoch=19)
        teacher_outputs = ModelOutput(maps[0], maps, vector), ModelOutput(maps[0], targets, target)
        return method.extra_losses(batch, *teacher_outputs)["reviewkd"]

    names = ["f1", "f2", "f3", "s", "g1_pre", "g2_pre", "g3_pre", "t"]
    check("reviewkd_full", loss, names)


def losses(pair_of: tuple[StagedModel, StagedModel], epoch: int = 0, **settings: Any) -> Tensor:
    data = make_dataset(size=32)
    pair, teacher = make_pair(*pair_of, data)
    assert teacher is not None
    batch = batch_of(data.train.images[:4], epoch)
    output: StepOutput = ReviewKD(pair, **settings)(batch, teacher(batch.images))
    return output.losses["reviewkd"]


@pytest.mark.parametrize(
    ("student", "teacher"), [("vgg8", "resnet8"), ("resnet8", "vgg8"), ("ShuffleV1", "wrn_16_1")]
)
def test_numbers_of_stages_and_sizes_may_differ(student: str, teacher: str) -> None:
    assert losses((staged(student), staged(teacher))).isfinite()


def test_a_model_without_a_pooled_vector_has_one_stage_less() -> None:
    pair, teacher = make_pair(staged("resnet8"), staged("resnet14"), make_dataset())
    assert teacher is not None
    assert pair.teacher_spec is not None
    pair = replace(pair, teacher_spec=replace(pair.teacher_spec, pooled=None))
    method = ReviewKD(pair)
    assert len(method.fusions) == 3
    assert not method.needs.pooled
    batch = batch_of(torch.zeros(4, 3, 16, 16, dtype=torch.uint8))
    teacher_output = teacher(batch.images)._replace(pooled=None)
    assert method(batch, teacher_output).objective.isfinite()


def test_the_weight_rises_over_the_warmup() -> None:
    def value(epoch: int, warmup: float) -> float:
        torch.manual_seed(0)
        return losses((staged("resnet8"), staged("resnet14")), epoch, warmup=warmup).item()

    whole = value(0, 0.0)
    assert [value(epoch, 4.0) for epoch in (0, 2, 3, 9)] == pytest.approx(
        [whole / 4, 3 * whole / 4, whole, whole]
    )


def test_the_gradient_reaches_every_stage() -> None:
    pair, teacher = make_pair(staged("resnet8"), staged("resnet14"), make_dataset())
    assert teacher is not None
    method = ReviewKD(pair, ce=0.0, kd=0.0)
    batch = batch_of(make_dataset().train.images[:4])
    method(batch, teacher(batch.images)).objective.backward()
    for part in ("layer1", "layer2", "layer3"):
        gradients = [p.grad for p in method.student.module.get_submodule(part).parameters()]
        assert all(g is not None and g.abs().sum() > 0 for g in gradients), part
    assert all(p.grad is not None for p in method.fusions.parameters())


def test_the_attention_weights_the_two_maps() -> None:
    stage = StageSpec(2, 4, 4, True)
    fusion = Fusion(stage, stage, 3, fuses=True).eval()
    assert fusion.attention is not None
    assert fusion.attention.bias is not None
    torch.nn.init.zeros_(fusion.attention.weight)
    own, deeper = torch.randn(2, 2, 4, 4), torch.randn(2, 3, 2, 2)
    fusion.attention.bias.data = torch.tensor([50.0, -50.0])
    torch.testing.assert_close(fusion(own, deeper)[1], fusion.enter(own))
    fusion.attention.bias.data = torch.tensor([-50.0, 50.0])
    nearest = deeper.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(fusion(own, deeper)[1], nearest)
