"""VGG with BatchNorm and one linear layer, for small images: vgg8 and vgg13.

Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition",
ICLR 2015, arXiv 1409.1556.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from dskd.models.output import ModelOutput
from dskd.models.staged_net import StagedNet

_WIDTHS = (64, 128, 256, 512, 512)


def _block(inner: int, outer: int, convolutions: int) -> nn.Sequential:
    """3x3 convolutions, each with its norm and a ReLU."""
    block = nn.Sequential()
    for index in range(convolutions):
        block.append(nn.Conv2d(outer if index else inner, outer, 3, padding=1))
        block.append(nn.BatchNorm2d(outer))
        block.append(nn.ReLU(inplace=True))
    return block


class VGG(StagedNet):
    """Five blocks of 3x3 convolutions with max pooling between them, then one linear layer.

    A stage is the map of a block, before the pooling. The fourth pooling is applied only if both
    sides of the image have at least 64 pixels; otherwise the last two stages have the same
    resolution.

    Args:
        convolutions: Convolutions in each block: 1 for vgg8, 2 for vgg13.
        num_classes: Number of classes K.
        in_channels: Channels of the images.

    Shapes: ``[B, in_channels, H, W]`` to ``[B, K]``, for H and W of 8 or more.

    Example:
        >>> import torch
        >>> net = VGG(convolutions=1, num_classes=10)
        >>> out = net.forward_stages(torch.zeros(2, 3, 32, 32))
        >>> [stage.shape[-1] for stage in out.stages], tuple(out.pooled.shape)
        ([32, 16, 8, 4, 4], (2, 512))
    """

    stage_names = ("block0", "block1", "block2", "block3", "block4")
    classifier_name = "classifier"

    def __init__(self, convolutions: int, *, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        inner = in_channels
        for name, width in zip(self.stage_names, _WIDTHS, strict=True):
            self.add_module(name, _block(inner, width, convolutions))
            inner = width
        self.classifier = nn.Linear(inner, num_classes)
        self._init_convolutions()
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward_stages(self, x: Tensor) -> ModelOutput:
        """See `StagedNet.forward_stages`; a stage is the map of a block."""
        poolings = 4 if min(x.shape[-2:]) >= 64 else 3
        stages: list[Tensor] = []
        for index, name in enumerate(self.stage_names):
            if 0 < index <= poolings:
                x = F.max_pool2d(x, 2)
            x = self.get_submodule(name)(x)
            stages.append(x)
        return self._classify(stages, x)
