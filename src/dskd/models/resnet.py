"""Residual networks for small images: resnet8 to resnet110, their x4 wide forms, and ResNet-50.

He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", CVPR 2016,
arXiv 1512.03385. The stem is a 3x3 convolution of stride 1 without pooling.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from dskd.errors import InputError
from dskd.models.output import ModelOutput
from dskd.models.staged_net import StagedNet


def _projection(inner: int, outer: int, stride: int) -> nn.Module:
    """The shortcut: the identity if the shapes agree, else a 1x1 convolution and a norm."""
    if stride == 1 and inner == outer:
        return nn.Identity()
    return nn.Sequential(
        nn.Conv2d(inner, outer, 1, stride=stride, bias=False), nn.BatchNorm2d(outer)
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: ``[B, inner, H, W]`` to ``[B, width, H/s, W/s]``."""

    expansion = 1

    def __init__(self, inner: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _projection(inner, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block, up to its last ReLU."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        # The sum is a new tensor, so that its ReLU may work in place.
        return F.relu(out + self.downsample(x), inplace=True)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 and a shortcut: ``[B, inner, H, W]`` to ``[B, 4 * width, H/s, W/s]``."""

    expansion = 4

    def __init__(self, inner: int, width: int, stride: int) -> None:
        super().__init__()
        outer = width * self.expansion
        self.conv1 = nn.Conv2d(inner, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outer, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outer)
        self.shortcut = _projection(inner, outer, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block, up to its last ReLU."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        return F.relu(out + self.shortcut(x), inplace=True)


class _ResidualNet(StagedNet):
    """A stem and residual stages; every stage after the first halves the resolution."""

    def _build_trunk(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        stem: int,
        stages: Sequence[tuple[int, int]],
        in_channels: int,
    ) -> int:
        """Build the stem and the stages.

        Args:
            block: Class of the blocks.
            stem: Channels of the stem.
            stages: ``(width, blocks)`` of each stage.
            in_channels: Channels of the images.

        Returns:
            Channels of the last feature map.
        """
        self.conv1 = nn.Conv2d(in_channels, stem, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        inner = stem
        for name, (width, blocks) in zip(self.stage_names, stages, strict=True):
            stage = nn.Sequential()
            for index in range(blocks):
                stride = 2 if index == 0 and name != self.stage_names[0] else 1
                stage.append(block(inner, width, stride))
                inner = width * block.expansion
            self.add_module(name, stage)
        return inner

    def forward_stages(self, x: Tensor) -> ModelOutput:
        """See `StagedNet.forward_stages`; a stage is the map after the ReLU of its last block."""
        stages = self._run_stages(F.relu(self.bn1(self.conv1(x)), inplace=True))
        return self._classify(stages, stages[-1])


class ResNet(_ResidualNet):
    """Residual network of three stages of basic blocks, at resolutions 1, 1/2 and 1/4.

    Args:
        depth: Number of weighted layers, ``6n + 2`` for n blocks in each stage.
        widths: Channels of the stem and of the three stages.
        num_classes: Number of classes K.
        in_channels: Channels of the images.

    Shapes: ``[B, in_channels, H, W]`` to ``[B, K]``, for any H and W.

    Example:
        >>> import torch
        >>> net = ResNet(depth=8, num_classes=10)
        >>> out = net.forward_stages(torch.zeros(2, 3, 32, 32))
        >>> [tuple(stage.shape) for stage in out.stages]
        [(2, 16, 32, 32), (2, 32, 16, 16), (2, 64, 8, 8)]
    """

    stage_names = ("layer1", "layer2", "layer3")
    classifier_name = "fc"

    def __init__(
        self,
        depth: int,
        widths: tuple[int, int, int, int] = (16, 16, 32, 64),
        *,
        num_classes: int,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if blocks < 1 or rest:
            raise InputError(f"depth {depth} of a ResNet must be 6n + 2; give 8, 14, 20, ...")
        stem, *stages = widths
        features = self._build_trunk(
            BasicBlock, stem, [(width, blocks) for width in stages], in_channels
        )
        self.fc = nn.Linear(features, num_classes)
        self._init_convolutions()


class ResNet50(_ResidualNet):
    """ResNet-50 for small images: four stages of bottlenecks, at resolutions 1 to 1/8.

    Args:
        num_classes: Number of classes K.
        in_channels: Channels of the images.

    Shapes: ``[B, in_channels, H, W]`` to ``[B, K]``, for any H and W.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     out = ResNet50(num_classes=10).forward_stages(torch.zeros(2, 3, 32, 32))
        >>> [tuple(stage.shape) for stage in out.stages]
        [(2, 256, 32, 32), (2, 512, 16, 16), (2, 1024, 8, 8), (2, 2048, 4, 4)]
    """

    stage_names = ("layer1", "layer2", "layer3", "layer4")
    classifier_name = "linear"

    def __init__(self, *, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        stages = [(64, 3), (128, 4), (256, 6), (512, 3)]
        features = self._build_trunk(Bottleneck, 64, stages, in_channels)
        self.linear = nn.Linear(features, num_classes)
        self._init_convolutions()
