"""Fusion of a stage with the deeper stages, as in ReviewKD."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dskd.models.spec import StageSpec


class Fusion(nn.Module):
    """Attention based fusion (ABF) of a stage with the fused map of the deeper stage.

    A 1x1 convolution with BatchNorm transforms the stage's map. Two attention maps, computed from
    it and the deeper map, weight the two at each position. The weighted sum, at the size of the
    teacher's map, goes to the next shallower stage. A 3x3 convolution with BatchNorm brings it to
    the teacher's channels. Sizes are changed by nearest-neighbour interpolation.

    Source: Chen, Liu, Zhao, Jia, Distilling Knowledge via Knowledge Review, CVPR 2021,
    arXiv 2104.09044, in the form of the authors' code.

    Args:
        stage: The student's stage.
        target: The teacher's map that the result is compared with.
        width: Channels of the fused map.
        fuses: Whether there is a deeper map.

    Example:
        >>> fusion = Fusion(StageSpec(16, 8, 8, True), StageSpec(32, 4, 4, True), 24, fuses=True)
        >>> adapted, fused = fusion(torch.zeros(2, 16, 8, 8), torch.zeros(2, 24, 1, 1))
        >>> adapted.shape, fused.shape
        (torch.Size([2, 32, 4, 4]), torch.Size([2, 24, 4, 4]))
    """

    def __init__(self, stage: StageSpec, target: StageSpec, width: int, fuses: bool) -> None:
        super().__init__()
        self.size = (target.height, target.width)
        self.enter = _conv_bn(stage.channels, width, 1)
        self.leave = _conv_bn(width, target.channels, 3)
        self.attention = nn.Conv2d(2 * width, 2, 1) if fuses else None
        self.to(memory_format=torch.channels_last)

    def forward(self, feature_map: Tensor, deeper: Tensor | None) -> tuple[Tensor, Tensor]:
        """The map to compare, ``[B, C_t, H_t, W_t]``, and the one for the shallower stage.

        Args:
            feature_map: The stage's map, ``[B, C_s, H_s, W_s]``.
            deeper: The deeper stage's fused map, ``[B, width, H, W]``; None for the deepest stage.
        """
        fused = self.enter(feature_map)
        if self.attention is not None and deeper is not None:
            deeper = _resized(deeper, *fused.shape[2:])
            shares = torch.sigmoid(self.attention(torch.cat([fused, deeper], dim=1)))
            fused = fused * shares[:, :1] + deeper * shares[:, 1:]
        fused = _resized(fused, *self.size)
        return self.leave(fused), fused


def _conv_bn(channels_in: int, channels_out: int, kernel: int) -> nn.Sequential:
    conv = nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    return nn.Sequential(conv, nn.BatchNorm2d(channels_out))


def _resized(feature_map: Tensor, height: int, width: int) -> Tensor:
    if feature_map.shape[2:] == (height, width):
        return feature_map
    return F.interpolate(feature_map, (height, width), mode="nearest")
