"""U-Net: an encoder, and decoders that label every pixel.

Ronneberger, Fischer and Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation",
MICCAI 2015, arXiv 1505.04597.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dskd.errors import InputError
from dskd.models.output import ModelOutput
from dskd.models.staged_model import StagedModel
from dskd.models.staged_net import StagedNet

DEPTH = 4
"""How often the encoder halves the image."""
SMALLEST = 2**DEPTH
"""Smallest side of an image, in pixels."""
SMALLEST_STD = 1e-3
"""Smallest standard deviation by which an image is divided."""


class DoubleConv(nn.Sequential):
    """Two 3x3 convolutions, each with BatchNorm and ReLU; height and width stay the same."""

    def __init__(self, inner: int, outer: int) -> None:
        layers: list[nn.Module] = []
        for channels in (inner, outer):
            layers += [
                nn.Conv2d(channels, outer, 3, padding=1, bias=False),
                nn.BatchNorm2d(outer),
                nn.ReLU(),
            ]
        super().__init__(*layers)


class UNetEncoder(nn.Module):
    """Four stages and a centre: the channels double whenever height and width are halved.

    With ``width=64`` the stages have 64, 128, 256 and 512 channels, and the centre has 1024.

    Args:
        in_channels: Channels of an image.
        width: Channels of the first stage.
        dropout: Share of the fourth stage's values that are set to 0 in training.
    """

    def __init__(self, in_channels: int, width: int, dropout: float) -> None:
        super().__init__()
        widths = [in_channels, *(width * 2**stage for stage in range(DEPTH + 1))]
        self.stages = nn.ModuleList(itertools.starmap(DoubleConv, itertools.pairwise(widths)))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> list[Tensor]:
        """The five feature maps, ``[B, width * 2^l, H / 2^l, W / 2^l]`` for l = 0 .. 4."""
        maps: list[Tensor] = []
        for number, stage in enumerate(self.stages):
            x = stage(F.max_pool2d(maps[-1], 2) if maps else x)
            maps.append(self.dropout(x) if number == DEPTH - 1 else x)
        return maps


class UNetDecoder(nn.Module):
    """From the encoder's feature maps to logits of every pixel.

    A transposed convolution doubles height and width, the encoder's map of that size joins, and
    a `DoubleConv` follows; four times. A 1x1 convolution gives the logits.

    Args:
        num_classes: Number of classes K, with the background.
        width: Of the encoder.
    """

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        widths = [width * 2**stage for stage in reversed(range(DEPTH + 1))]
        pairs = list(itertools.pairwise(widths))
        self.ups = nn.ModuleList(nn.ConvTranspose2d(*pair, 2, stride=2) for pair in pairs)
        self.blocks = nn.ModuleList(DoubleConv(2 * outer, outer) for _, outer in pairs)
        self.classifier = nn.Conv2d(width, num_classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The logits ``[B, K, H, W]`` and the last feature map ``[B, width, H, W]``.

        Args:
            maps: Of `UNetEncoder`.
        """
        *skips, x = maps
        for up, block, skip in zip(self.ups, self.blocks, reversed(skips), strict=True):
            x = up(x)
            if x.shape[2:] != skip.shape[2:]:  # the skipped map had an odd side
                x = F.pad(x, (0, skip.shape[3] - x.shape[3], 0, skip.shape[2] - x.shape[2]))
            x = block(torch.cat([skip, x], 1))
        return self.classifier(x), x


class UNet(StagedNet):
    """An encoder and one decoder.

    The stages are the four of the encoder and its centre, shallow to deep.

    Source: widths and dropout are those of the public training code of Dolz et al. (arXiv
    2012.08051). That code has unpadded convolutions and resizes maps to fit. Padded convolutions,
    whose maps fit by themselves, are *our choice*, as are He's initial weights.

    Args:
        num_classes: Number of classes K, with the background.
        in_channels: Channels of an image.
        width: Channels of the first stage.
        dropout: Share of the fourth stage's values that are set to 0 in training.

    Example:
        >>> net = UNet(num_classes=2, in_channels=1, width=4)
        >>> net(torch.zeros(1, 1, 32, 48)).shape
        torch.Size([1, 2, 32, 48])
    """

    stage_names = tuple(f"encoder.stages.{stage}" for stage in range(DEPTH + 1))
    classifier_name = "decoder.classifier"

    def __init__(
        self, num_classes: int, in_channels: int = 1, width: int = 64, dropout: float = 0.5
    ) -> None:
        super().__init__()
        self.encoder = UNetEncoder(in_channels, width, dropout)
        self.decoder = UNetDecoder(num_classes, width)
        self.width = width
        self.apply(init_convolution)

    def forward_stages(self, x: Tensor) -> ModelOutput:
        """Logits ``[B, K, H, W]``, the encoder's maps, and the last map of the decoder.

        Args:
            x: ``[B, C, H, W]``, with H and W of 16 or more.

        Raises:
            InputError: The images are smaller.
        """
        if min(x.shape[2:]) < SMALLEST:
            raise InputError(
                f"a U-Net needs images of {SMALLEST}x{SMALLEST} pixels or more, got "
                f"{x.shape[3]}x{x.shape[2]}; set data.size"
            )
        maps = self.encoder(x)
        logits, last = self.decoder(maps)
        return ModelOutput(logits, tuple(maps), None, last)


class SegmentationModel(StagedModel):
    """A segmentation network with its own normalisation: logits ``[B, K, H, W]``.

    Args:
        module: Returns its stages itself, as `UNet` does.
        mean: Mean of each channel, on the scale from 0 to 1.
        std: Standard deviation of each channel, on the scale from 0 to 1.
        by_image: Whether each channel of an image is normalised by its own mean and standard
            deviation, in place of ``mean`` and ``std``. A constant channel becomes 0.

    Example:
        >>> model = SegmentationModel(UNet(2, width=4), mean=(0.5,), std=(0.5,)).eval()
        >>> model(torch.zeros(1, 1, 16, 16, dtype=torch.uint8)).logits.shape
        torch.Size([1, 2, 16, 16])
    """

    module: StagedNet

    def __init__(
        self,
        module: StagedNet,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        by_image: bool = False,
    ) -> None:
        super().__init__(module, mean=mean, std=std)
        self.by_image = by_image

    def normalize(self, images: Tensor) -> Tensor:
        """Normalise images, see `StagedModel.normalize`."""
        images = super().normalize(images)
        if not self.by_image:
            return images
        std, mean = torch.std_mean(images, (2, 3), correction=0, keepdim=True)
        return (images - mean) / std.clamp(min=SMALLEST_STD)

    def forward_normalized(self, images: Tensor) -> ModelOutput:
        """Run the model on images that are already normalised."""
        return self.module.forward_stages(images)


def init_convolution(module: nn.Module) -> None:
    """Gives a convolution initial weights from He's normal (fan-in) and a bias of 0.

    Called as ``network.apply(init_convolution)``.
    """
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
