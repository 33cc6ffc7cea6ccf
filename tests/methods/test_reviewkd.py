"""Knowledge review: the trained fusion, and models whose stages do not match."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dskd.data.loader import Batch
from dskd.methods.base import Pair, StepOutput
from dskd.methods.reviewkd import Fusion, ReviewKD
from dskd.models.output import ModelOutput
from dskd.models.spec import ModelSpec, StageSpec
from dskd.models.staged_model import StagedModel
from tests.conftest import make_dataset, make_pair, staged
from tests.published import check, parameters

PARTS = {"conv1": "enter", "conv2": "leave", "att_conv.0": "attention"}


def batch_of(images: Tensor, epoch: int = 0) -> Batch:
    count = torch.arange(len(images))
    return Batch(images, count % 4, count, count, count, epoch, step=0)


def spec(*stages: tuple[int, int], pooled: int | None = None) -> ModelSpec:
    maps = tuple(StageSpec(channels, side, side, True) for channels, side in stages)
    return ModelSpec(4, maps, pooled)


def test_value_and_gradient_are_the_published_ones() -> None:
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


def test_a_model_without_a_pooled_vector_does_without_that_stage() -> None:
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


def test_a_gradient_goes_up_from_deep_to_shallow_and_reaches_every_stage() -> None:
    pair, teacher = make_pair(staged("resnet8"), staged("resnet14"), make_dataset())
    assert teacher is not None
    method = ReviewKD(pair, ce=0.0, kd=0.0)
    batch = batch_of(make_dataset().train.images[:4])
    method(batch, teacher(batch.images)).objective.backward()
    for part in ("layer1", "layer2", "layer3"):
        gradients = [p.grad for p in method.student.module.get_submodule(part).parameters()]
        assert all(g is not None and g.abs().sum() > 0 for g in gradients), part
    assert all(p.grad is not None for p in method.fusions.parameters())


def test_fusion_takes_both_sides_as_its_attention_says() -> None:
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
