"""ShuffleNet (3 groups) and ShuffleNetV2 (1x), for small images.

Zhang, Zhou, Lin and Sun, "ShuffleNet: An Extremely Efficient Convolutional Neural Network for
Mobile Devices", CVPR 2018, arXiv 1707.01083. Ma, Zhang, Zheng and Sun, "ShuffleNet V2: Practical
Guidelines for Efficient CNN Architecture Design", ECCV 2018, arXiv 1807.11164. Both have a 1x1
stem of stride 1 and no pooling in place of the papers' stem, and PyTorch's own initialisation.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dskd.models.output import ModelOutput
from dskd.models.staged_net import StagedNet

_STEM = 24


def _pointwise(inner: int, outer: int, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inner, outer, 1, groups=groups, bias=False)


def _depthwise(channels: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, stride=stride, padding=1, groups=channels, bias=False)


class GroupedUnit(nn.Module):
    """The unit of ShuffleNet: grouped 1x1, shuffle, depthwise 3x3, grouped 1x1.

    At stride 1 the input is added. At stride 2 the average-pooled input is concatenated, so that
    the branch has only ``outer - inner`` channels.
    """

    def __init__(self, inner: int, outer: int, stride: int, groups: int) -> None:
        super().__init__()
        branch = outer - inner if stride == 2 else outer
        middle = branch // 4
        self.downsamples = stride == 2
        # The stem has too few channels for groups.
        self.groups = 1 if inner == _STEM else groups
        self.conv1 = _pointwise(inner, middle, self.groups)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = _depthwise(middle, stride)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = _pointwise(middle, branch, groups)
        self.bn3 = nn.BatchNorm2d(branch)

    def forward(self, x: Tensor) -> Tensor:
        """Run the unit, up to its last ReLU."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = torch.channel_shuffle(out, self.groups)
        # The paper has no ReLU here; the implementation of the public CIFAR zoo has.
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        if self.downsamples:
            out = torch.cat([out, F.avg_pool2d(x, 3, stride=2, padding=1)], dim=1)
        else:
            out = out + x
        return F.relu(out, inplace=True)


class ShuffleV1(StagedNet):
    """ShuffleNet 1x with 3 groups: three stages, at resolutions 1/2, 1/4 and 1/8.

    Args:
        num_classes: Number of classes K.
        in_channels: Channels of the images.

    Shapes: ``[B, in_channels, H, W]`` to ``[B, K]``, for any H and W.

    Example:
        >>> import torch
        >>> out = ShuffleV1(num_classes=10).eval().forward_stages(torch.zeros(2, 3, 32, 32))
        >>> [tuple(stage.shape) for stage in out.stages]
        [(2, 240, 16, 16), (2, 480, 8, 8), (2, 960, 4, 4)]
    """

    stage_names = ("layer1", "layer2", "layer3")
    classifier_name = "linear"

    def __init__(self, *, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = _pointwise(in_channels, _STEM)
        self.bn1 = nn.BatchNorm2d(_STEM)
        self.layer1 = self._stage(_STEM, 240, units=4)
        self.layer2 = self._stage(240, 480, units=8)
        self.layer3 = self._stage(480, 960, units=4)
        self.linear = nn.Linear(960, num_classes)

    @staticmethod
    def _stage(inner: int, outer: int, units: int) -> nn.Sequential:
        down = GroupedUnit(inner, outer, stride=2, groups=3)
        rest = [GroupedUnit(outer, outer, stride=1, groups=3) for _ in range(units - 1)]
        return nn.Sequential(down, *rest)

    def forward_stages(self, x: Tensor) -> ModelOutput:
        """See `StagedNet.forward_stages`; a stage is the map after the ReLU of its last unit."""
        stages = self._run_stages(F.relu(self.bn1(self.conv1(x)), inplace=True))
        return self._classify(stages, stages[-1])


class SplitUnit(nn.Module):
    """The unit of ShuffleNetV2: half of the channels are transformed, then all are shuffled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = _pointwise(half, half)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = _depthwise(half, stride=1)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = _pointwise(half, half)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        """The shuffled map, ``[B, channels, H, W]``."""
        identity, out = x.chunk(2, dim=1)
        out = F.relu(self.bn1(self.conv1(out)), inplace=True)
        out = self.bn2(self.conv2(out))
        out = F.relu(self.bn3(self.conv3(out)), inplace=True)
        return torch.channel_shuffle(torch.cat([identity, out], dim=1), 2)


class DownUnit(nn.Module):
    """The unit of ShuffleNetV2 that halves the resolution: two branches on all channels."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        half = outer // 2
        self.conv1 = _depthwise(inner, stride=2)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = _pointwise(inner, half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = _pointwise(inner, half)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = _depthwise(half, stride=2)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = _pointwise(half, half)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        """The shuffled map, ``[B, outer, H/2, W/2]``."""
        left = self.bn1(self.conv1(x))
        left = F.relu(self.bn2(self.conv2(left)), inplace=True)
        right = F.relu(self.bn3(self.conv3(x)), inplace=True)
        right = self.bn4(self.conv4(right))
        right = F.relu(self.bn5(self.conv5(right)), inplace=True)
        return torch.channel_shuffle(torch.cat([left, right], dim=1), 2)


class ShuffleV2(StagedNet):
    """ShuffleNetV2 1x: three stages, at resolutions 1/2, 1/4 and 1/8, then 1x1 to 1024 channels.

    Args:
        num_classes: Number of classes K.
        in_channels: Channels of the images.

    Shapes: ``[B, in_channels, H, W]`` to ``[B, K]``, for any H and W.

    Example:
        >>> import torch
        >>> out = ShuffleV2(num_classes=10).eval().forward_stages(torch.zeros(2, 3, 32, 32))
        >>> [tuple(stage.shape) for stage in out.stages]
        [(2, 116, 16, 16), (2, 232, 8, 8), (2, 464, 4, 4)]
    """

    stage_names = ("layer1", "layer2", "layer3")
    classifier_name = "linear"

    def __init__(self, *, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = _pointwise(in_channels, _STEM)
        self.bn1 = nn.BatchNorm2d(_STEM)
        self.layer1 = self._stage(_STEM, 116, splits=3)
        self.layer2 = self._stage(116, 232, splits=7)
        self.layer3 = self._stage(232, 464, splits=3)
        self.conv2 = _pointwise(464, 1024)
        self.bn2 = nn.BatchNorm2d(1024)
        self.linear = nn.Linear(1024, num_classes)

    @staticmethod
    def _stage(inner: int, outer: int, splits: int) -> nn.Sequential:
        return nn.Sequential(DownUnit(inner, outer), *(SplitUnit(outer) for _ in range(splits)))

    def forward_stages(self, x: Tensor) -> ModelOutput:
        """See `StagedNet.forward_stages`; a stage is the shuffled map of its last unit."""
        stages = self._run_stages(F.relu(self.bn1(self.conv1(x)), inplace=True))
        return self._classify(stages, F.relu(self.bn2(self.conv2(stages[-1])), inplace=True))
