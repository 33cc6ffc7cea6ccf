"""MobileNetV2 at half width, for small images.

Sandler, Howard, Zhu, Zhmoginov and Chen, "MobileNetV2: Inverted Residuals and Linear Bottlenecks",
CVPR 2018, arXiv 1801.04381.
"""

from __future__ import annotations

from torch import Tensor, nn

from dskd.models.output import ModelOutput
from dskd.models.staged_net import StagedNet

# Of each group of blocks: expansion, channels at full width, number of blocks, stride of the first.
# The second group has stride 1 (the paper has 2), for 32x32 images.
_GROUPS = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """Expand with 1x1, filter with depthwise 3x3, project linearly with 1x1.

    The input is added if the output has its shape. The expansion exists even at a ratio of 1, where
    the paper leaves it out, because published CIFAR checkpoints have it.
    """

    def __init__(self, inner: int, outer: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inner * expansion
        self.residual = stride == 1 and inner == outer
        self.conv = nn.Sequential(
            nn.Conv2d(inner, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(inplace=True),
            nn.Conv2d(wide, wide, 3, stride=stride, padding=1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(inplace=True),
            nn.Conv2d(wide, outer, 1, bias=False),
            nn.BatchNorm2d(outer),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Run the block; there is no activation after the projection."""
        out: Tensor = self.conv(x)
        return x + out if self.residual else out


def _conv_norm_relu(inner: int, outer: int, kernel: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inner, outer, kernel, stride=stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outer),
        nn.ReLU(inplace=True),
    )


class MobileNetV2(StagedNet):
    """Seven groups of inverted residuals after a stem of stride 2; four stages.

    A stage is the linear output of the last group at a resolution: 1/2, 1/4, 1/8 and 1/16.

    Args:
        width: Factor on all channels except the 1280 before the classifier.
        num_classes: Number of classes K.
        in_channels: Channels of the images.

    Shapes: ``[B, in_channels, H, W]`` to ``[B, K]``, for any H and W.

    Example:
        >>> import torch
        >>> net = MobileNetV2(num_classes=10).eval()
        >>> out = net.forward_stages(torch.zeros(2, 3, 32, 32))
        >>> [tuple(stage.shape) for stage in out.stages]
        [(2, 12, 16, 16), (2, 16, 8, 8), (2, 48, 4, 4), (2, 160, 2, 2)]
    """

    stage_names = ("blocks.1", "blocks.2", "blocks.4", "blocks.6")
    classifier_name = "classifier.0"

    def __init__(self, width: float = 0.5, *, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        inner = int(32 * width)
        self.conv1 = _conv_norm_relu(in_channels, inner, kernel=3, stride=2)
        self.blocks = nn.ModuleList()
        for expansion, channels, blocks, stride in _GROUPS:
            group, outer = nn.Sequential(), int(channels * width)
            for index in range(blocks):
                group.append(InvertedResidual(inner, outer, 1 if index else stride, expansion))
                inner = outer
            self.blocks.append(group)
        self.conv2 = _conv_norm_relu(inner, 1280, kernel=1, stride=1)
        # A Sequential of one, because published checkpoints call it "classifier.0".
        head = nn.Linear(1280, num_classes)
        self.classifier = nn.Sequential(head)
        self._init_convolutions()
        nn.init.normal_(head.weight, std=0.01)
        nn.init.zeros_(head.bias)

    def forward_stages(self, x: Tensor) -> ModelOutput:
        """See `StagedNet.forward_stages`; a stage is the linear output of its last group."""
        x = self.conv1(x)
        stages: list[Tensor] = []
        for index, group in enumerate(self.blocks):
            x = group(x)
            if f"blocks.{index}" in self.stage_names:
                stages.append(x)
        return self._classify(stages, self.conv2(x))
