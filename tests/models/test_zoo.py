"""The zoo has the keys, shapes and costs of the public CIFAR zoo and runs on all image sizes."""

from __future__ import annotations

import copy
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dskd.errors import InputError
from dskd.models.catalog import ZOO
from dskd.models.cost import ModelCost, model_cost
from dskd.models.mobilenet import MobileNetV2
from dskd.models.resnet import ResNet
from dskd.models.staged_net import StagedNet
from dskd.models.vgg import VGG
from dskd.models.wrn import WideResNet
from dskd.models.zoo import build

FACTS: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "facts" / "zoo.json").read_text()
)
every_network = pytest.mark.parametrize("name", FACTS)


@cache
def on_meta(name: str, num_classes: int = 100, in_channels: int = 3) -> StagedNet:
    """A network without weights; tests must not change it."""
    with torch.device("meta"):
        return build(name, num_classes=num_classes, in_channels=in_channels).eval()


@cache
def grey(name: str) -> StagedNet:
    """A network for gray images of seven classes; tests must not change it."""
    torch.manual_seed(0)
    return build(name, num_classes=7, in_channels=1).eval()


def stage_facts(name: str) -> list[list[int]]:
    """The stages' shapes: no stem (VGG has none), no pooled vector."""
    maps: list[list[int]] = FACTS[name]["feature_maps_32"]
    return maps[0 if name.startswith("vgg") else 1 : -1]


def test_the_zoo_is_that_of_the_reference() -> None:
    assert list(ZOO) == list(FACTS)


@every_network
def test_state_has_the_keys_shapes_and_order_of_the_reference(name: str) -> None:
    net = on_meta(name)
    state = [[key, list(value.shape)] for key, value in net.state_dict().items()]
    assert state == FACTS[name]["state_dict"]
    assert sum(p.numel() for p in net.parameters()) == FACTS[name]["parameters"]


@every_network
def test_a_checkpoint_of_the_reference_loads(name: str) -> None:
    counter = "num_batches_tracked"
    checkpoint = {
        key: torch.tensor(7) if key.endswith(counter) else torch.rand(shape)
        for key, shape in FACTS[name]["state_dict"]
    }
    net = copy.deepcopy(on_meta(name)).to_empty(device="cpu")
    net.load_state_dict(checkpoint, strict=True)
    assert all(torch.equal(value, checkpoint[key]) for key, value in net.state_dict().items())


@every_network
def test_stages_at_32_are_those_of_the_reference(name: str) -> None:
    out = on_meta(name).forward_stages(torch.empty(4, 3, 32, 32, device="meta"))
    assert [list(stage.shape) for stage in out.stages] == stage_facts(name)
    assert out.pooled is not None
    assert list(out.pooled.shape) == FACTS[name]["feature_maps_32"][-1]
    assert tuple(out.logits.shape) == (4, 100)


@pytest.mark.slow
@every_network
@pytest.mark.parametrize("size", [33, 64])
def test_runs_on_other_sizes_channels_and_classes(name: str, size: int) -> None:
    check_forward(grey(name), torch.rand(2, 1, size, size), stages=len(stage_facts(name)))


@pytest.mark.parametrize("name", ["resnet8", "vgg8", "ShuffleV2"])
def test_runs_at_96(name: str) -> None:
    check_forward(grey(name), torch.rand(1, 1, 96, 96), stages=len(stage_facts(name)))


@torch.no_grad()
def check_forward(net: StagedNet, images: Tensor, stages: int) -> None:
    out = net.forward_stages(images)
    classifier = net.get_submodule(net.classifier_name)
    assert isinstance(classifier, nn.Linear)
    assert len(out.stages) == len(net.stage_names) == stages
    assert out.pooled is not None
    assert out.pooled.shape == (len(images), classifier.in_features)
    assert out.logits.shape == (len(images), 7)
    assert out.logits.isfinite().all()
    torch.testing.assert_close(net(images), out.logits)
    torch.testing.assert_close(classifier(out.pooled), out.logits)


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(
    name=st.sampled_from(["resnet8", "resnet8x4", "wrn_16_1"]),
    height=st.integers(8, 80),
    width=st.integers(8, 80),
    classes=st.integers(2, 9),
    channels=st.integers(1, 4),
)
def test_residual_networks_halve_any_size_from_8(
    name: str, height: int, width: int, classes: int, channels: int
) -> None:
    net = on_meta(name, classes, channels)
    out = net.forward_stages(torch.empty(1, channels, height, width, device="meta"))
    assert out.logits.shape == (1, classes)
    halved = [(-(-height // by), -(-width // by)) for by in (1, 2, 4)]
    assert [tuple(stage.shape[-2:]) for stage in out.stages] == halved


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(
    name=st.sampled_from(["vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2", "ResNet50"]),
    height=st.integers(32, 130),
    width=st.integers(32, 130),
)
def test_the_other_networks_take_any_size_from_32(name: str, height: int, width: int) -> None:
    out = on_meta(name).forward_stages(torch.empty(1, 3, height, width, device="meta"))
    assert out.logits.shape == (1, 100)
    sides = [stage.shape[-2] for stage in out.stages]
    assert sides == sorted(sides, reverse=True)
    assert sides[-1] >= 2


@pytest.mark.parametrize(("size", "last"), [(32, 4), (63, 7), (64, 4), (96, 6)])
def test_vgg_pools_a_fourth_time_from_64(size: int, last: int) -> None:
    out = on_meta("vgg8").forward_stages(torch.empty(1, 3, size, size, device="meta"))
    assert out.stages[-1].shape[-1] == last


@pytest.mark.slow
@every_network
def test_gradient_reaches_the_stem_from_every_stage(name: str) -> None:
    torch.manual_seed(0)
    net = build(name, num_classes=3)
    out = net.forward_stages(torch.rand(2, 3, 32, 32))
    stem = next(net.parameters())
    for target in (*out.stages, out.logits):
        (gradient,) = torch.autograd.grad(target.square().sum(), stem, retain_graph=True)
        assert gradient.isfinite().all()
        assert gradient.abs().sum() > 0


@pytest.mark.parametrize("name", ["resnet8", "vgg8", "ShuffleV1", "ShuffleV2", "ResNet50"])
def test_stages_of_relu_networks_are_nonnegative(name: str) -> None:
    with torch.no_grad():
        stages = grey(name).forward_stages(torch.randn(1, 1, 32, 32)).stages
    assert all(stage.min() >= 0 for stage in stages)


@pytest.mark.parametrize("name", ["wrn_16_1", "MobileNetV2"])
def test_linear_stages_keep_their_sign(name: str) -> None:
    with torch.no_grad():
        stages = grey(name).forward_stages(torch.randn(1, 1, 32, 32)).stages
    assert all(stage.min() < 0 for stage in stages)


@pytest.mark.parametrize("name", ["resnet20", "wrn_16_2", "vgg8", "MobileNetV2"])
def test_convolutions_start_from_he_s_normal(name: str) -> None:
    torch.manual_seed(0)
    for module in build(name, num_classes=10).modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 2000:
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)
            assert module.bias is None or not module.bias.any()


@pytest.mark.parametrize("name", ["vgg8", "MobileNetV2"])
def test_some_classifiers_start_small(name: str) -> None:
    net = build(name, num_classes=100)
    classifier = net.get_submodule(net.classifier_name)
    assert isinstance(classifier, nn.Linear)
    assert classifier.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not classifier.bias.any()


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match="unknown model 'Resnet20'; did you mean 'resnet20'"):
        build("Resnet20", num_classes=10)


def test_numbers_that_are_too_small_are_refused_in_one_line() -> None:
    with pytest.raises(InputError, match=r"num_classes is 1 for model 'vgg8'.*>= 2") as classes:
        build("vgg8", num_classes=1)
    with pytest.raises(InputError, match=r"in_channels is 0 for model 'vgg8'.*>= 1") as channels:
        build("vgg8", num_classes=2, in_channels=0)
    assert "\n" not in str(classes.value) + str(channels.value)


def test_depths_between_the_networks_are_refused() -> None:
    with pytest.raises(InputError, match="depth 21 of a ResNet"):
        ResNet(21, num_classes=10)
    with pytest.raises(InputError, match="depth 4 of a WideResNet"):
        WideResNet(4, 1, num_classes=10)


def test_families_default_to_colour() -> None:
    with torch.device("meta"):
        for net in (ResNet(8, num_classes=2), VGG(1, num_classes=2), MobileNetV2(num_classes=2)):
            assert net(torch.empty(2, 3, 32, 32)).shape == (2, 2)


@every_network
def test_the_catalog_agrees_with_the_network(name: str) -> None:
    entry, net = ZOO[name], on_meta(name)
    assert model_cost(net, (3, 32, 32)) == ModelCost(entry.parameters, entry.multiply_adds)
    assert entry.parameters == FACTS[name]["parameters"]
    assert entry.stages == net.stage_names
