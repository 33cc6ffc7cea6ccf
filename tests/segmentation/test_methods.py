"""The methods: losses against their equations, gradients, and what is deployed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dskd.engine.tasks.segmentation.base import SegmentationMethod
from dskd.engine.tasks.segmentation.dense import DenseDSKD, PixelKD
from dskd.engine.tasks.segmentation.loader import MaskedBatch
from dskd.engine.tasks.segmentation.losses import (
    decoder_kl,
    partial_cross_entropy,
    pixel_cross_entropy,
    pixel_kd,
    prediction_entropy,
)
from dskd.engine.tasks.segmentation.methods import METHODS
from dskd.engine.tasks.segmentation.supervision import Masks, Mixed, Seeds
from dskd.engine.tasks.segmentation.unet import SegmentationModel, UNet
from dskd.errors import InputError
from dskd.losses.feature_maps import feature_loss
from dskd.methods import find, names, resolve
from dskd.methods.contracts import Pair
from dskd.models.output import ModelOutput
from dskd.models.spec import describe

SIDE, MASKED, ALL = 16, 2, 5


def model(width: int = 2, seed: int = 0) -> SegmentationModel:
    torch.manual_seed(seed)
    return SegmentationModel(UNet(2, 1, width, dropout=0.0), mean=(0.5,), std=(0.25,))


def pair(teacher: SegmentationModel | None = None) -> Pair:
    student, images = model(), torch.randint(0, 256, (2, 1, SIDE, SIDE), dtype=torch.uint8)
    theirs = describe(teacher, images) if teacher is not None else None
    return Pair(student, describe(student, images), theirs)


def batch(images: int = ALL, masked: int = MASKED) -> MaskedBatch:
    torch.manual_seed(1)
    numbers = torch.arange(images)
    labels = torch.randint(0, 2, (images, SIDE, SIDE))
    labels[masked:] = -1
    return MaskedBatch(
        torch.randint(0, 256, (images, 1, SIDE, SIDE), dtype=torch.uint8),
        labels=labels,
        indices=numbers,
        views=numbers,
        seeds=numbers,
        epoch=0,
        step=0,
        seeds_of=torch.randint(0, 2, (images, SIDE, SIDE)),
        masked=masked,
    )


def build(
    kind: type[SegmentationMethod], teacher: SegmentationModel | None = None, **s: Any
) -> Any:
    torch.manual_seed(2)
    return kind(pair(teacher), **s)


def gradients(method: SegmentationMethod, loss: Tensor) -> dict[str, Tensor | None]:
    method.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return {name: p.grad for name, p in method.named_parameters()}


def test_every_method_is_found_by_its_name() -> None:
    assert names("segment") == [f"segment/{name}" for name in METHODS]
    assert find("segment/mixed") is Mixed
    assert resolve("segment/mixed", {"preset": "public-code"})["double_softmax"] is True


def test_masks_and_seeds_alone() -> None:
    own = batch(MASKED)
    for kind, loss, target in (
        (Masks, pixel_cross_entropy, own.labels),
        (Seeds, partial_cross_entropy, own.seeds_of),
    ):
        method = build(kind)
        output = method(own, None)
        expected = loss(method.student(own.images).logits, target)
        torch.testing.assert_close(output.objective, expected)
    assert build(Masks).supervision == "masks"
    assert build(Masks, all_images=True).supervision == "all masks"
    assert build(Seeds).supervision == "seeds"


def mixed_outputs(method: Mixed, own: MaskedBatch) -> tuple[Tensor, Tensor]:
    """The logits of A for the images with masks, and of B for all."""
    maps = method.net.encoder(method.student.normalize(own.images))
    return method.decoder_a([m[:MASKED] for m in maps])[0], method.net.decoder(maps)[0]


def test_mixed_supervision_is_the_sum_of_four_terms() -> None:
    method, own = build(Mixed), batch()
    a, b = mixed_outputs(method, own)
    expected = {
        "ce": pixel_cross_entropy(a, own.labels[:MASKED]),
        "seeds": 0.1
        * (
            partial_cross_entropy(b[:MASKED], own.seeds_of[:MASKED])
            + partial_cross_entropy(b[MASKED:], own.seeds_of[MASKED:])
        ),
        "kl": 50 * decoder_kl(b[:MASKED], a, 2.0),
        "entropy": prediction_entropy(b),
    }
    output = method(own, None)
    assert output.losses.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(output.losses[name], value)


def test_b_learns_nothing_from_masks_directly() -> None:
    """The masks reach B by A alone, and seeds, divergence and entropy do not reach A."""
    method, own = build(Mixed), batch()
    by_masks = gradients(method, method(own, None).losses["ce"])
    assert all(by_masks[name] is None for name in by_masks if ".decoder." in name)
    assert all(by_masks[name] is not None for name in by_masks if "decoder_a" in name)
    rest = method(own, None).losses
    others = gradients(method, rest["seeds"] + rest["kl"] + rest["entropy"])
    assert all(others[name] is None for name in others if "decoder_a" in name)
    assert all(others[name] is not None for name in others if "student" in name)


def test_terms_without_weight_are_left_out() -> None:
    method = build(Mixed, kl=0, entropy=0)
    assert set(method(batch(), None).losses) == {"ce", "seeds"}
    assert set(build(Mixed)(batch(MASKED), None).losses) == {"ce", "seeds", "kl", "entropy"}


def test_the_encoder_and_b_are_deployed() -> None:
    method = build(Mixed)
    assert list(method.deployed().state_dict()) == list(UNet(2, 1, 2).state_dict())
    extra = method.auxiliary_state_dict()
    assert extra
    assert all(name.startswith("decoder_a.") for name in extra)
    method.eval()
    images = batch().images
    logits = method.classifier_logits(images)
    normalized = method.student.normalize(images)
    torch.testing.assert_close(logits["student"], method.deployed()(normalized))
    assert not torch.allclose(logits["student"], logits["masks"])


def test_the_two_decoders_start_apart() -> None:
    method = build(Mixed)
    a, b = method.decoder_a.state_dict(), method.net.decoder.state_dict()
    assert a.keys() == b.keys()
    assert not torch.equal(a["classifier.weight"], b["classifier.weight"])


@pytest.fixture(scope="module")
def teacher() -> SegmentationModel:
    return model(width=4, seed=5).eval()


def outputs_of(teacher: SegmentationModel, own: MaskedBatch) -> ModelOutput:
    with torch.no_grad():
        found: ModelOutput = teacher(own.images)
    return found


def test_pixel_kd(teacher: SegmentationModel) -> None:
    method, own = build(PixelKD, teacher, kd=2.0), batch(MASKED)
    theirs = outputs_of(teacher, own)
    output = method(own, theirs)
    logits = method.student(own.images).logits
    torch.testing.assert_close(output.losses["ce"], pixel_cross_entropy(logits, own.labels))
    torch.testing.assert_close(output.losses["kd"], 2 * pixel_kd(logits, theirs.logits))


def test_dskd_is_the_sum_over_stages(teacher: SegmentationModel) -> None:
    method = build(DenseDSKD, teacher, alpha=0.5, beta=2.0, allocation="uniform").eval()
    own = batch(MASKED)
    theirs = outputs_of(teacher, own)
    stages = method.student(own.images).stages
    expected = torch.zeros(())
    for stage, branch in enumerate(method.branches):
        found = branch(stages[stage], (SIDE, SIDE))
        assert found.logits.shape == (MASKED, 2, SIDE, SIDE)
        expected = expected + 0.5 * pixel_kd(found.logits, theirs.logits)
        expected = expected + 2 * feature_loss(found.map, theirs.stages[stage])
    assert len(method.branches) == 4
    torch.testing.assert_close(method(own, theirs).losses["shallow"], expected)


def test_dskd_weights_follow_the_losses(teacher: SegmentationModel) -> None:
    own = batch(MASKED)
    metrics = build(DenseDSKD, teacher)(own, outputs_of(teacher, own)).metrics
    joint = [
        float(metrics[f"stage{n}/prediction"] + metrics[f"stage{n}/feature"]) for n in range(1, 5)
    ]
    for number, value in enumerate(joint, 1):
        expected = value / (sum(joint) / 4)
        assert float(metrics[f"stage{number}/weight"]) == pytest.approx(expected, rel=1e-5)


def test_dskd_supervises_the_stages_that_are_named(teacher: SegmentationModel) -> None:
    method = build(DenseDSKD, teacher, supervise=[2])
    assert method.targets == [1]
    assert method.needs.stages == (1,)
    assert set(method.classifier_logits(batch().images)) == {"student", "stage2"}
    for none in (5, 0, -1):
        with pytest.raises(InputError):
            build(DenseDSKD, teacher, supervise=[none])


def test_methods_with_a_teacher_need_one() -> None:
    for kind in (PixelKD, DenseDSKD):
        with pytest.raises(InputError, match="needs a teacher"):
            build(kind)
