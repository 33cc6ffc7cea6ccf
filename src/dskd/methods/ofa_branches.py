"""The branches of ofa: from a stage of a CNN or of a transformer to logits."""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dskd.models.feature_maps import spatial_mean
from dskd.models.spec import StageSpec

GRID = 7
"""Side of the grid that patch tokens are merged down to, at least."""
HEADS = 4
"""Attention heads in a branch."""


class ConvolutionBranch(nn.Module):
    """Separable convolutions that each halve the map, then its average and a linear layer.

    A block is a depthwise 3x3 convolution with stride 2, a pointwise one, BatchNorm, ReLU, a
    depthwise 3x3 convolution, a pointwise one, BatchNorm and ReLU. Its last convolution doubles the
    channels; that of the last block has ``width`` of them. A branch without blocks has a 1x1
    convolution with a bias instead. *Our choice*: doubling ends at ``width``, so that the branches
    of a student with many stages stay small.

    Source: Hao et al., NeurIPS 2023 (see `dskd.methods.ofa.OFA`), in the form of the authors' code.

    Args:
        stage: The student's stage.
        width: Channels before the linear layer.
        blocks: Number of blocks, one for each stage that follows.
        classes: Length of the logits.

    Example:
        >>> branch = ConvolutionBranch(StageSpec(16, 8, 8, True), 64, 2, 10)
        >>> branch(torch.zeros(2, 16, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(self, stage: StageSpec, width: int, blocks: int, classes: int) -> None:
        super().__init__()
        most = max(stage.channels, width)
        widths = [min(stage.channels * 2**block, most) for block in range(blocks)] + [width]
        layers: list[nn.Module] = [_separable(*pair) for pair in itertools.pairwise(widths)]
        self.layers = nn.Sequential(*(layers or [nn.Conv2d(stage.channels, width, 1)]))
        self.classifier = nn.Linear(width, classes)
        self.apply(_initialize)
        self.to(memory_format=torch.channels_last)

    def forward(self, feature_map: Tensor) -> Tensor:
        """The logits ``[B, K]`` from the stage's map ``[B, C, H, W]``."""
        logits: Tensor = self.classifier(spatial_mean(self.layers(feature_map)))
        return logits


class TokenBranch(nn.Module):
    """Merges the patch tokens of a stage, then transformer blocks, their average, a linear layer.

    Four neighbours become one token until the next merge would leave less than 7x7. The blocks have
    their norm first, four heads and an MLP of four times the width.

    Source: Hao et al., NeurIPS 2023 (see `dskd.methods.ofa.OFA`), in the form of the authors' code.
    *Our choice*: a grid of odd sides gets a row or column of zeros before it is merged; a linear
    layer changes the width if no merge does; a width that four does not divide has fewer heads.

    Args:
        stage: The student's stage; its grid of tokens is given as a map.
        width: Length of a token in the blocks.
        blocks: Number of blocks.
        classes: Length of the logits.

    Example:
        >>> branch = TokenBranch(StageSpec(24, 14, 14, False), 24, 2, 10)
        >>> branch(torch.zeros(2, 24, 14, 14)).shape
        torch.Size([2, 10])
    """

    def __init__(self, stage: StageSpec, width: int, blocks: int, classes: int) -> None:
        super().__init__()
        merges = max(0, int(math.log2(min(stage.height, stage.width) / GRID)))
        lengths = [stage.channels, *[width] * merges]
        self.merges = nn.ModuleList(Merge(length, width) for length in lengths[:-1])
        changes = not merges and stage.channels != width
        self.enter = nn.Linear(stage.channels, width) if changes else nn.Identity()
        self.blocks = nn.Sequential(*(_block(width) for _ in range(blocks)))
        self.classifier = nn.Linear(width, classes)
        self.apply(_initialize)

    def forward(self, feature_map: Tensor) -> Tensor:
        """The logits ``[B, K]`` from the stage's tokens as a map, ``[B, D, h, w]``."""
        tokens = feature_map.permute(0, 2, 3, 1)
        for merge in self.merges:
            tokens = merge(tokens)
        tokens = self.blocks(self.enter(tokens.flatten(1, 2)))
        logits: Tensor = self.classifier(tokens.mean(1))
        return logits


class Merge(nn.Module):
    """Four neighbouring tokens become one: LayerNorm, a linear layer without bias, GELU.

    Args:
        length: Of the tokens.
        width: Of the merged tokens.

    Example:
        >>> Merge(8, 16)(torch.zeros(2, 5, 6, 8)).shape
        torch.Size([2, 3, 3, 16])
    """

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * length)
        self.linear = nn.Linear(4 * length, width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """``[B, ceil(h / 2), ceil(w / 2), D']`` from ``[B, h, w, D]``."""
        height, width = tokens.shape[1:3]
        tokens = F.pad(tokens, (0, 0, 0, width % 2, 0, height % 2))
        corners = [tokens[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return F.gelu(self.linear(self.norm(torch.cat(corners, dim=3))))


def _separable(channels_in: int, channels_out: int) -> nn.Sequential:
    def half(stride: int, out: int) -> list[nn.Module]:
        return [
            nn.Conv2d(channels_in, channels_in, 3, stride, 1, groups=channels_in, bias=False),
            nn.Conv2d(channels_in, out, 1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(),
        ]

    return nn.Sequential(*half(2, channels_in), *half(1, channels_out))


def _block(width: int) -> nn.TransformerEncoderLayer:
    heads = math.gcd(HEADS, width)
    return nn.TransformerEncoderLayer(
        width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )


def _initialize(module: nn.Module) -> None:
    """Convolutions by He's normal (fan-out), linear layers by a normal of deviation 0.02."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.MultiheadAttention):
        nn.init.trunc_normal_(module.in_proj_weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
