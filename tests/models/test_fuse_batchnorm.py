"""Fusing BatchNorm gives the same outputs for any module and does not change the module."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from dskd.models.catalog import ZOO
from dskd.models.fuse_batchnorm import fuse_batchnorm, in_bfloat16
from dskd.models.output import ModelOutput
from dskd.models.staged_model import StagedModel
from dskd.models.zoo import build
from dskd.teacher.frozen import FrozenTeacher

Norm = nn.modules.batchnorm._BatchNorm

# How many norms stay: those of a wide residual network stand before the convolution of their block,
# behind a sum of two branches.
UNFOLDED = {"wrn_16_1": 7, "wrn_16_2": 6, "wrn_40_1": 19, "wrn_40_2": 18}


def random_images(size: int = 32, count: int = 3, channels: int = 3) -> Tensor:
    return torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8)


def trained(net: nn.Module) -> nn.Module:
    """The network in eval mode, with statistics, scales and shifts as training leaves them."""
    with torch.no_grad():
        for norm in net.modules():
            if isinstance(norm, Norm) and norm.running_mean is not None:
                assert norm.running_var is not None
                norm.running_mean.normal_(0, 0.5)
                norm.running_var.uniform_(0.5, 2)
                norm.weight.uniform_(0.5, 1.5)
                norm.bias.normal_(0, 0.3)
    return net.eval().requires_grad_(False)


def staged(net: nn.Module, stages: list[str] | None = None, channels: int = 3) -> StagedModel:
    return StagedModel(net, stages, mean=(0.5,) * channels, std=(0.25,) * channels).eval()


def norms(module: nn.Module) -> int:
    return sum(isinstance(part, Norm) for part in module.modules())


def assert_same(found: ModelOutput, expected: ModelOutput) -> None:
    """Equal up to rounding, relative to each output."""
    assert len(found.stages) == len(expected.stages)
    for a, b in zip(
        (found.logits, *found.stages, found.pooled, found.last),
        (expected.logits, *expected.stages, expected.pooled, expected.last),
        strict=True,
    ):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert (a - b).abs().max() <= 1e-4 * b.abs().max()


@torch.no_grad()
def check(model: StagedModel, images: Tensor) -> StagedModel:
    """Fuse on a few images, compare on others, and check that the model is unchanged."""
    before = copy.deepcopy(model.state_dict())
    parts = [(name, type(part)) for name, part in model.named_modules()]
    fast = fuse_batchnorm(model, images[:1])
    assert_same(fast(images), model(images))
    assert [(name, type(part)) for name, part in model.named_modules()] == parts
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(part._forward_hooks for part in (*model.modules(), *fast.modules()))
    shared = {id(p) for p in model.parameters()} & {id(p) for p in fast.parameters()}
    assert not shared
    return fast


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_the_whole_zoo(name: str) -> None:
    fast = check(staged(trained(build(name, num_classes=7))), random_images())
    assert norms(fast) == UNFOLDED.get(name, 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "stages", "left"),
    [
        ("resnet18", ["layer1", "layer4"], 0),
        ("mobilenetv3_small_100", ["blocks.1", "blocks.5"], 0),
        ("efficientnet_b0", ["blocks.1", "blocks.6"], 0),
        ("vit_tiny_patch16_224", ["blocks.3", "blocks.11"], 0),
        ("convnext_atto", ["stages.0", "stages.3"], 0),
        ("mobilenetv2_100", ["conv_stem", "bn1"], 1),  # a stage between the two keeps its norm
    ],
)
def test_models_of_timm(name: str, stages: list[str], left: int) -> None:
    net = trained(timm.create_model(name, pretrained=False, num_classes=5))
    model = staged(net, stages)
    fast = check(model, random_images(224 if name.startswith("vit") else 64, count=2))
    assert norms(fast) == left
    assert norms(model) or name in ("vit_tiny_patch16_224", "convnext_atto")


def end(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5)]


class Twice(nn.Module):
    """The same convolution and norm run twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.end = nn.Sequential(*end(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for _ in range(2):
            x = torch.relu(self.norm(self.conv(x)))
        logits: Tensor = self.end(x)
        return logits


class OneConvTwoNorms(nn.Module):
    """A convolution whose output goes to the norm and to another layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.other = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.end = nn.Sequential(*end(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        logits: Tensor = self.end(self.norm(x) * self.other(x) + x)
        return logits


class TwoNames(nn.Module):
    """One convolution under two names, run under the second."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = self.alias = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.end = nn.Sequential(*end(4))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.end(self.norm(self.alias(x)))
        return logits


class InPlaceBetween(nn.Module):
    """The norm takes the tensor of the convolution, changed in place in between."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.end = nn.Sequential(*end(4))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.end(self.norm(torch.relu_(self.conv(x))))
        return logits


def without_statistics() -> nn.Module:
    conv = nn.Conv2d(3, 4, 3)
    return nn.Sequential(conv, nn.BatchNorm2d(4, track_running_stats=False), *end(4))


def without_scale() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), *end(4))


def grouped() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.BatchNorm2d(6), *end(6))


def other_norms() -> nn.Module:
    norm = [nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 3), nn.InstanceNorm2d(4)]
    return nn.Sequential(nn.Conv2d(3, 4, 3), *norm, *end(4))


@pytest.mark.parametrize(
    ("make", "left"),
    [
        (Twice, 1),
        (OneConvTwoNorms, 2),
        (TwoNames, 1),
        (InPlaceBetween, 1),
        (without_statistics, 1),
        (without_scale, 0),
        (grouped, 0),
        (other_norms, 0),
    ],
)
def test_odd_modules(make: Callable[[], nn.Module], left: int) -> None:
    fast = check(staged(trained(make())), random_images(16))
    assert norms(fast) == left
    kinds = (nn.GroupNorm, nn.InstanceNorm2d)
    assert sum(isinstance(p, kinds) for p in fast.modules()) == (2 if make is other_norms else 0)


def test_a_stage_between_convolution_and_norm_is_left_and_the_rest_is_folded() -> None:
    parts = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()]
    more = [nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()]
    net = trained(nn.Sequential(*parts, *more, *end(4)))
    model = staged(net, ["0", "4"])
    fast = check(model, random_images(16))
    assert isinstance(fast.module.get_submodule("1"), nn.BatchNorm2d)
    assert norms(fast) == 1
    images = random_images(16)
    assert torch.equal(fast(images).stages[0], model(images).stages[0])


def test_weights_stay_as_they_lie_in_memory() -> None:
    model = staged(trained(build("resnet8x4", num_classes=5))).to_device(torch.device("cpu"))
    fast = fuse_batchnorm(model, random_images())
    for part in fast.modules():
        if isinstance(part, nn.Conv2d):
            assert part.weight.is_contiguous(memory_format=torch.channels_last)


def test_the_teacher_s_state_and_fingerprint_are_those_of_its_model() -> None:
    net = trained(build("resnet8", num_classes=5))
    images = random_images()
    plain, fast = (
        FrozenTeacher(staged(copy.deepcopy(net))),
        FrozenTeacher(staged(net), images, bfloat16=True),
    )
    assert fast.fingerprint() == plain.fingerprint()
    assert fast.model.module is net
    assert norms(net) == norms(plain.model.module) > 0
    assert_same(fast(images), plain(images))
    assert not any(p.requires_grad for p in fast.parameters())
    assert not any(part.training for part in fast.train().modules())


@pytest.mark.parametrize("name", ["resnet8x4", "wrn_16_2", "vgg8", "MobileNetV2", "ShuffleV2"])
def test_bfloat16_weights_give_the_outputs_of_autocast(name: str) -> None:
    net = trained(build(name, num_classes=7))
    images = random_images()
    model = fuse_batchnorm(staged(net).to_device(torch.device("cpu")), images)
    fast = in_bfloat16(model, images)
    kinds = (nn.Conv2d, nn.Linear)
    assert {p.weight.dtype for p in fast.modules() if isinstance(p, kinds)} == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    images = random_images(count=5)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found, expected = fast(images), model(images)
    assert torch.equal(found.logits, expected.logits)
    assert all(map(torch.equal, found.stages, expected.stages))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {"layers": (1, 1, 1, 1)}),
        ("mobilenetv3_small_050", {}),
        ("vit_tiny_patch16_224", {"img_size": 64, "depth": 3}),
    ],
)
def test_bfloat16_weights_of_timm_s_models(name: str, options: dict[str, Any]) -> None:
    images = random_images(64, count=2)
    module = timm.create_model(name, num_classes=5, **options)
    teacher = FrozenTeacher(staged(trained(module)), images)
    fast = FrozenTeacher(teacher.model, images, bfloat16=True)
    assert torch.equal(fast(images).logits, teacher(images).logits)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fast(images).logits, teacher(images).logits)


class Normalized(nn.Linear):
    """Uses its own weights before autocast casts them; a subclass of a linear layer."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight / self.weight.norm(dim=1, keepdim=True))


class Reads(nn.Module):
    """Computes with the weights of another layer."""

    def __init__(self) -> None:
        super().__init__()
        self.flat, self.linear = nn.Flatten(), nn.Linear(3 * 8 * 8, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.flat(x)) / self.linear.weight.norm()
        return logits


def test_modules_that_read_their_weights_in_their_own_way_are_left() -> None:
    images = random_images(8)
    own = staged(trained(nn.Sequential(nn.Flatten(), Normalized(3 * 8 * 8, 5))))
    fast = in_bfloat16(own, images)
    assert {p.dtype for p in fast.parameters()} == {torch.float32}
    model = staged(trained(Reads()))
    assert in_bfloat16(model, images) is model


def test_float32_outputs_stay_float32_at_any_precision_of_training() -> None:
    net = trained(build("resnet8", num_classes=5))
    images = random_images()
    plain = FrozenTeacher(staged(copy.deepcopy(net)), images)
    fast = FrozenTeacher(staged(net), images, bfloat16=True)
    assert torch.equal(fast(images).logits, plain(images).logits)
    with torch.autocast("cpu", torch.bfloat16):
        assert fast(images).logits.dtype == torch.bfloat16
