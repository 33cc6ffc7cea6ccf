"""The networks against a second implementation of their forward passes.

Here each family is a plain function of a state dict, written independently of the modules.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dskd.models.zoo import build


class State:
    """The layers of a network, applied by the names of their weights, in evaluation mode."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.weights = weights

    def __contains__(self, path: str) -> bool:
        return f"{path}.weight" in self.weights

    def conv(self, path: str, x: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
        weight, bias = self.weights[f"{path}.weight"], self.weights.get(f"{path}.bias")
        return F.conv2d(x, weight, bias, stride, weight.shape[-1] // 2, groups=groups)

    def norm(self, path: str, x: Tensor) -> Tensor:
        mean, var, weight, bias = (
            self.weights[f"{path}.{part}"]
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, var, weight, bias)

    def linear(self, path: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[f"{path}.weight"], self.weights[f"{path}.bias"])

    def blocks(self, path: str) -> list[str]:
        """The numbered children of ``path``, in order."""
        start = path.count(".") + 1
        found = {key.split(".")[start] for key in self.weights if key.startswith(f"{path}.")}
        return [f"{path}.{number}" for number in sorted(found, key=int)]


Reference = Callable[[State, Tensor], tuple[list[Tensor], Tensor]]


def resnet(s: State, x: Tensor) -> tuple[list[Tensor], Tensor]:
    x = F.relu(s.norm("bn1", s.conv("conv1", x)))
    maps = []
    for layer in ("layer1", "layer2", "layer3"):
        for path in s.blocks(layer):
            stride = 2 if layer != "layer1" and path.endswith(".0") else 1
            out = F.relu(s.norm(f"{path}.bn1", s.conv(f"{path}.conv1", x, stride)))
            out = s.norm(f"{path}.bn2", s.conv(f"{path}.conv2", out))
            if f"{path}.downsample.0" in s:
                x = s.norm(f"{path}.downsample.1", s.conv(f"{path}.downsample.0", x, stride))
            x = F.relu(out + x)
        maps.append(x)
    return maps, s.linear("fc", x.mean((2, 3)))


def resnet50(s: State, x: Tensor) -> tuple[list[Tensor], Tensor]:
    x = F.relu(s.norm("bn1", s.conv("conv1", x)))
    maps = []
    for layer in ("layer1", "layer2", "layer3", "layer4"):
        for path in s.blocks(layer):
            stride = 2 if layer != "layer1" and path.endswith(".0") else 1
            out = F.relu(s.norm(f"{path}.bn1", s.conv(f"{path}.conv1", x)))
            out = F.relu(s.norm(f"{path}.bn2", s.conv(f"{path}.conv2", out, stride)))
            out = s.norm(f"{path}.bn3", s.conv(f"{path}.conv3", out))
            if f"{path}.shortcut.0" in s:
                x = s.norm(f"{path}.shortcut.1", s.conv(f"{path}.shortcut.0", x, stride))
            x = F.relu(out + x)
        maps.append(x)
    return maps, s.linear("linear", x.mean((2, 3)))


def wrn(s: State, x: Tensor) -> tuple[list[Tensor], Tensor]:
    x = s.conv("conv1", x)
    maps = []
    for group in ("block1", "block2", "block3"):
        for path in s.blocks(f"{group}.layer"):
            stride = 2 if group != "block1" and path.endswith(".0") else 1
            active = F.relu(s.norm(f"{path}.bn1", x))
            out = F.relu(s.norm(f"{path}.bn2", s.conv(f"{path}.conv1", active, stride)))
            if f"{path}.convShortcut" in s:
                x = s.conv(f"{path}.convShortcut", active, stride)
            x = x + s.conv(f"{path}.conv2", out)
        maps.append(x)
    return maps, s.linear("fc", F.relu(s.norm("bn1", x)).mean((2, 3)))


def vgg(s: State, x: Tensor) -> tuple[list[Tensor], Tensor]:
    pooled_before = (1, 2, 3, 4) if x.shape[-1] == 64 else (1, 2, 3)
    maps = []
    for block in range(5):
        if block in pooled_before:
            x = F.max_pool2d(x, 2)
        for index in (0, 3):
            if f"block{block}.{index}" in s:
                x = s.conv(f"block{block}.{index}", x)
                x = F.relu(s.norm(f"block{block}.{index + 1}", x))
        maps.append(x)
    return maps, s.linear("classifier", x.mean((2, 3)))


def mobilenet(s: State, x: Tensor) -> tuple[list[Tensor], Tensor]:
    x = F.relu(s.norm("conv1.1", s.conv("conv1.0", x, 2)))
    maps = []
    for group, first in enumerate((1, 1, 2, 2, 1, 2, 1)):
        for path in s.blocks(f"blocks.{group}"):
            stride = first if path.endswith(".0") else 1
            out = F.relu(s.norm(f"{path}.conv.1", s.conv(f"{path}.conv.0", x)))
            out = s.conv(f"{path}.conv.3", out, stride, groups=out.shape[1])
            out = F.relu(s.norm(f"{path}.conv.4", out))
            out = s.norm(f"{path}.conv.7", s.conv(f"{path}.conv.6", out))
            x = x + out if x.shape == out.shape else out
        if group in (1, 2, 4, 6):
            maps.append(x)
    x = F.relu(s.norm("conv2.1", s.conv("conv2.0", x)))
    return maps, s.linear("classifier.0", x.mean((2, 3)))


def shuffled(x: Tensor, groups: int) -> Tensor:
    """Channel ``i`` of group ``g`` goes to place ``i * groups + g``."""
    return x[:, torch.arange(x.shape[1]).view(groups, -1).t().flatten()]


def shuffle_v1(s: State, x: Tensor) -> tuple[list[Tensor], Tensor]:
    x = F.relu(s.norm("bn1", s.conv("conv1", x)))
    maps = []
    for layer in ("layer1", "layer2", "layer3"):
        for path in s.blocks(layer):
            down, groups = path.endswith(".0"), 1 if path == "layer1.0" else 3
            out = F.relu(s.norm(f"{path}.bn1", s.conv(f"{path}.conv1", x, groups=groups)))
            out = shuffled(out, groups)
            out = s.conv(f"{path}.conv2", out, 2 if down else 1, groups=out.shape[1])
            out = F.relu(s.norm(f"{path}.bn2", out))
            out = s.norm(f"{path}.bn3", s.conv(f"{path}.conv3", out, groups=3))
            x = F.relu(torch.cat([out, F.avg_pool2d(x, 3, 2, 1)], 1) if down else out + x)
        maps.append(x)
    return maps, s.linear("linear", x.mean((2, 3)))


def shuffle_v2(s: State, x: Tensor) -> tuple[list[Tensor], Tensor]:
    x = F.relu(s.norm("bn1", s.conv("conv1", x)))
    maps = []
    for layer in ("layer1", "layer2", "layer3"):
        for path in s.blocks(layer):
            if path.endswith(".0"):
                left = depthwise_pointwise(s, path, 1, x, stride=2)
                right = F.relu(s.norm(f"{path}.bn3", s.conv(f"{path}.conv3", x)))
                right = depthwise_pointwise(s, path, 4, right, stride=2)
            else:
                left, right = x.chunk(2, 1)
                right = F.relu(s.norm(f"{path}.bn1", s.conv(f"{path}.conv1", right)))
                right = depthwise_pointwise(s, path, 2, right, stride=1)
            x = shuffled(torch.cat([left, right], 1), 2)
        maps.append(x)
    x = F.relu(s.norm("bn2", s.conv("conv2", x)))
    return maps, s.linear("linear", x.mean((2, 3)))


def depthwise_pointwise(s: State, path: str, first: int, x: Tensor, stride: int) -> Tensor:
    x = s.conv(f"{path}.conv{first}", x, stride, groups=x.shape[1])
    x = s.conv(f"{path}.conv{first + 1}", s.norm(f"{path}.bn{first}", x))
    return F.relu(s.norm(f"{path}.bn{first + 1}", x))


@pytest.mark.parametrize(
    ("name", "reference", "size"),
    [
        ("resnet20", resnet, 32),
        ("resnet8x4", resnet, 32),
        ("ResNet50", resnet50, 32),
        ("wrn_16_1", wrn, 32),
        ("wrn_16_2", wrn, 32),
        ("vgg8", vgg, 32),
        ("vgg13", vgg, 32),
        ("vgg8", vgg, 64),
        ("MobileNetV2", mobilenet, 32),
        ("ShuffleV1", shuffle_v1, 32),
        ("ShuffleV2", shuffle_v2, 32),
    ],
)
@torch.no_grad()
def test_a_network_computes_what_the_reference_does(
    name: str, reference: Reference, size: int
) -> None:
    torch.manual_seed(0)
    net = build(name, num_classes=10).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):  # so that no norm is the identity
            nn.init.normal_(module.weight, 1.0, 0.1)
            nn.init.normal_(module.bias, 0.0, 0.1)
            module.running_mean = torch.randn(module.num_features) * 0.1
            module.running_var = torch.rand(module.num_features) + 0.5
    images = torch.randn(2, 3, size, size)
    maps, logits = reference(State(net.state_dict()), images)
    out = net.forward_stages(images)
    assert len(maps) == len(out.stages)
    for ours, theirs in zip((*out.stages, out.logits), (*maps, logits), strict=True):
        scale = theirs.abs().max().item()
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * scale)
