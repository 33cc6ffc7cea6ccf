"""Wide residual networks: wrn_16_1, wrn_16_2, wrn_40_1, wrn_40_2.

Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016, arXiv 1605.07146.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dskd.errors import InputError
from dskd.models.output import ModelOutput
from dskd.models.staged_net import StagedNet


class PreActBlock(nn.Module):
    """Two 3x3 convolutions, each after a norm and a ReLU, with a shortcut.

    If the channels change, the shortcut is a 1x1 convolution of the *activated* input; otherwise it
    is the input.
    """

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv1 = nn.Conv2d(inner, outer, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1, bias=False)
        # Published checkpoints have the weight under this name.
        self.convShortcut = (
            None if inner == outer else nn.Conv2d(inner, outer, 1, stride=stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Run the block; there is no activation after the sum."""
        active = F.relu(self.bn1(x), inplace=True)
        out = F.relu(self.bn2(self.conv1(active)), inplace=True)
        shortcut = x if self.convShortcut is None else self.convShortcut(active)
        return torch.add(shortcut, self.conv2(out))


def _group(inner: int, outer: int, blocks: int, stride: int) -> nn.Sequential:
    """One stage, nested under ``layer`` as in published checkpoints."""
    layer = nn.Sequential(PreActBlock(inner, outer, stride))
    for _ in range(blocks - 1):
        layer.append(PreActBlock(outer, outer, 1))
    return nn.Sequential(OrderedDict(layer=layer))


class WideResNet(StagedNet):
    """WRN-depth-widen without dropout: three stages, at resolutions 1, 1/2 and 1/4.

    A stage is the output of its last block, before the next norm and ReLU.

    Args:
        depth: Number of weighted layers, ``6n + 4`` for n blocks in each stage.
        widen: Factor on the widths 16, 32, 64 of the stages.
        num_classes: Number of classes K.
        in_channels: Channels of the images.

    Shapes: ``[B, in_channels, H, W]`` to ``[B, K]``, for any H and W.

    Example:
        >>> import torch
        >>> net = WideResNet(depth=16, widen=2, num_classes=10)
        >>> out = net.forward_stages(torch.zeros(2, 3, 32, 32))
        >>> [tuple(stage.shape) for stage in out.stages]
        [(2, 32, 32, 32), (2, 64, 16, 16), (2, 128, 8, 8)]
    """

    stage_names = ("block1", "block2", "block3")
    classifier_name = "fc"

    def __init__(self, depth: int, widen: int, *, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        if blocks < 1 or rest:
            raise InputError(f"depth {depth} of a WideResNet must be 6n + 4; give 10, 16, 22, ...")
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.block1 = _group(16, 16 * widen, blocks, stride=1)
        self.block2 = _group(16 * widen, 32 * widen, blocks, stride=2)
        self.block3 = _group(32 * widen, 64 * widen, blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(64 * widen)
        self.fc = nn.Linear(64 * widen, num_classes)
        self._init_convolutions()
        nn.init.zeros_(self.fc.bias)

    def forward_stages(self, x: Tensor) -> ModelOutput:
        """See `StagedNet.forward_stages`; a stage is the output of its last block."""
        stages = self._run_stages(self.conv1(x))
        return self._classify(stages, F.relu(self.bn1(stages[-1]), inplace=True))
