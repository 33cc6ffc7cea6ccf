"""Auxiliary branches on the stages, used in training only."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from dskd.losses.feature_maps import pool_to
from dskd.methods.stage_fusion import Fusion
from dskd.models.feature_maps import spatial_mean
from dskd.models.spec import StageSpec

Adapter = Literal["pool", "stride", "linear"]


@dataclass(frozen=True)
class AdapterForm:
    """The form of a `MapAdapter`.

    Attributes:
        width: Channels inside the adapter; None for ``max(32, C_t / 2)``.
        kind: How the map is brought to the target's size and channels.
        depth: Number of 3x3 convolutions; with ``stride``, the least number.
    """

    width: int | None = None
    kind: Adapter = "pool"
    depth: int = 1


BuildClassifier = Callable[[int], nn.Module]
"""From the number of channels to a classifier."""


class BranchOutput(NamedTuple):
    """The output of a branch.

    Attributes:
        logits: z_l, ``[B, K]``.
        map: A_l(F_l), ``[B, C_t, H, W]``.
    """

    logits: Tensor
    map: Tensor


class MapAdapter(nn.Sequential):
    """Brings a stage's map to the size and channels of a target: ``F_l -> A_l(F_l)``.

    With ``pool``, the stage's map is first average-pooled to the target's size if it is larger,
    which saves computation. Then it goes through a bottleneck of 1x1, 3x3 and 1x1 convolutions with
    BatchNorm and ReLU between them. With ``stride``, a 3x3 convolution with stride 2 halves the map
    as often as needed instead, so that the branch is about as deep as the stages it replaces; a map
    that is still too large is pooled at the end. Both adapters end in BatchNorm and ReLU only if
    the target is never negative; otherwise they end in a convolution. ``linear`` pools and then has
    a single 1x1 convolution.

    Source: *our choice*. The same research group uses bottlenecks like the first in SemCKD
    (AAAI 2021, arXiv 2012.03236) and SimKD (CVPR 2022, arXiv 2203.14001). The branches of BYOT
    (ICCV 2019, arXiv 1905.08094) have a strided convolution for every halving.

    Args:
        stage: The student's stage.
        target: The map that supervises it.
        form: The adapter's form.

    Example:
        >>> adapter = MapAdapter(StageSpec(16, 32, 32, True), StageSpec(64, 8, 8, True))
        >>> adapter(torch.zeros(2, 16, 32, 32)).shape
        torch.Size([2, 64, 8, 8])
    """

    def __init__(
        self,
        stage: StageSpec,
        target: StageSpec,
        form: AdapterForm = AdapterForm(),
    ) -> None:
        width, kind, depth = form.width, form.kind, form.depth
        inner = width or max(32, target.channels // 2)
        if kind == "linear":
            layers: list[nn.Module] = [nn.Conv2d(stage.channels, target.channels, 1)]
        else:
            body = _strided if kind == "stride" else _bottleneck
            last = _conv_bn_relu if target.nonnegative else _conv
            layers = [*body(stage, target, inner, depth), *last(inner, target.channels, 1)]
        super().__init__(*layers)
        self.size = (target.height, target.width)
        self.pooled_first = kind != "stride"
        self.to(memory_format=torch.channels_last)

    def forward(self, feature_map: Tensor) -> Tensor:
        """A_l(F_l), ``[B, C_t, H, W]``, from the stage's map ``[B, C_l, H_l, W_l]``."""
        if self.pooled_first:
            feature_map = pool_to(feature_map, *self.size)
        adapted: Tensor = super().forward(feature_map)  # type: ignore[no-untyped-call]
        return pool_to(adapted, *self.size)


class Branch(nn.Module):
    """An adapter and a classifier on a stage: ``F_l -> A_l(F_l) -> z_l``.

    The classifier sees the average of the adapted map.

    Args:
        stage: The student's stage.
        target: The map that supervises it.
        classifier: Builds the classifier for the target's channels.
        form: The form of the adapter.

    Example:
        >>> stage, target = StageSpec(16, 32, 32, True), StageSpec(64, 8, 8, True)
        >>> output = Branch(stage, target, linear_classifier(10))(torch.zeros(2, 16, 32, 32))
        >>> output.logits.shape, output.map.shape
        (torch.Size([2, 10]), torch.Size([2, 64, 8, 8]))
    """

    def __init__(
        self,
        stage: StageSpec,
        target: StageSpec,
        classifier: BuildClassifier,
        form: AdapterForm = AdapterForm(),
    ) -> None:
        super().__init__()
        self.adapter = MapAdapter(stage, target, form)
        self.classifier = classifier(target.channels)
        self.maps, self.form = (stage, target), form

    def forward(self, feature_map: Tensor) -> BranchOutput:
        """The branch's logits and map, from the stage's map ``[B, C_l, H_l, W_l]``."""
        adapted = self.adapter(feature_map)
        return BranchOutput(self.classifier(spatial_mean(adapted)), adapted)

    def config(self) -> dict[str, Any]:
        """Plain values from which `branch_of` builds such a branch, for a file.

        Example:
            >>> maps = StageSpec(16, 32, 32, True), StageSpec(64, 8, 8, True)
            >>> one = Branch(*maps, mlp_classifier(10))
            >>> str(branch_of(**one.config())) == str(one)
            True
        """
        last = self.classifier[-1] if isinstance(self.classifier, nn.Sequential) else None
        linear = last or self.classifier
        assert isinstance(linear, nn.Linear), "each classifier ends in a linear layer"
        return {
            "stage": asdict(self.maps[0]),
            "target": asdict(self.maps[1]),
            "form": asdict(self.form),
            "classifier": "linear" if last is None else "mlp",
            "classes": linear.out_features,
            "bias": linear.bias is not None,
        }


def branch_of(
    stage: Mapping[str, Any],
    target: Mapping[str, Any],
    form: Mapping[str, Any],
    classifier: Literal["linear", "mlp"],
    classes: int,
    bias: bool,
) -> Branch:
    """Builds a branch from the values of `Branch.config`, with weights that are loaded later.

    Args:
        stage: Of a `StageSpec`.
        target: Of a `StageSpec`.
        form: Of an `AdapterForm`.
        classifier: The kind of the classifier.
        classes: Number of classes.
        bias: Whether a linear classifier has a bias.
    """
    mlp = mlp_classifier(classes)
    return Branch(
        StageSpec(**stage),
        StageSpec(**target),
        mlp if classifier == "mlp" else lambda channels: nn.Linear(channels, classes, bias),
        AdapterForm(**form),
    )


class PooledFusion(Fusion):
    """A `Fusion` whose stage is first average-pooled to the target's size, if it is larger.

    That saves computation: *our choice*.

    Example:
        >>> fusion = PooledFusion(StageSpec(16, 8, 8, True), StageSpec(32, 4, 4, True), 24, True)
        >>> adapted, fused = fusion(torch.zeros(2, 16, 8, 8), torch.zeros(2, 24, 1, 1))
        >>> adapted.shape, fused.shape
        (torch.Size([2, 32, 4, 4]), torch.Size([2, 24, 4, 4]))
    """

    def forward(self, feature_map: Tensor, deeper: Tensor | None) -> tuple[Tensor, Tensor]:
        """As `Fusion.forward`."""
        return super().forward(pool_to(feature_map, *self.size), deeper)


class FusedBranch(nn.Module):
    """A fusion with the deeper stages, and a classifier: ``F_l, U_l+1 -> A_l, U_l -> z_l``.

    The classifier sees the average of the map A_l.

    Args:
        stage: The student's stage.
        target: The map that supervises it.
        classifier: Builds the classifier for the target's channels.
        width: Channels of the fused maps U.
        fuses: Whether there is a deeper map.
    """

    def __init__(
        self,
        stage: StageSpec,
        target: StageSpec,
        classifier: BuildClassifier,
        width: int,
        fuses: bool,
    ) -> None:
        super().__init__()
        self.fusion = PooledFusion(stage, target, width, fuses)
        self.classifier = classifier(target.channels)

    def forward(self, feature_map: Tensor, deeper: Tensor | None) -> tuple[BranchOutput, Tensor]:
        """The branch's output, and the fused map for the shallower stage."""
        adapted, fused = self.fusion(feature_map, deeper)
        return BranchOutput(self.classifier(spatial_mean(adapted)), adapted), fused


def linear_classifier(num_classes: int) -> BuildClassifier:
    """Builds a linear layer."""
    return lambda channels: nn.Linear(channels, num_classes)


def mlp_classifier(num_classes: int) -> BuildClassifier:
    """Builds two linear layers with GELU and dropout between them.

    Source: the shallow heads of github.com/leahphw/babylm, whose authors had the full text of
    Luo et al. (IJCNN 2023). The dropout of 0.1 is theirs, the width is *our choice*.
    """
    return lambda channels: nn.Sequential(
        nn.Linear(channels, channels), nn.GELU(), nn.Dropout(0.1), nn.Linear(channels, num_classes)
    )


def _bottleneck(stage: StageSpec, target: StageSpec, inner: int, depth: int) -> list[nn.Module]:
    first = _conv_bn_relu(stage.channels, inner, 1)
    return [*first, *(one for _ in range(depth) for one in _conv_bn_relu(inner, inner, 3))]


def _strided(stage: StageSpec, target: StageSpec, inner: int, depth: int) -> list[nn.Module]:
    """3x3 convolutions; one has stride 2 for every halving from the stage to the target."""
    times = min(stage.height // target.height, stage.width // target.width)
    halvings = max(1, times).bit_length() - 1
    count = max(depth, halvings)
    widths = itertools.pairwise([stage.channels, *[inner] * count])
    strides = [2] * halvings + [1] * (count - halvings)
    return [
        one
        for pair, stride in zip(widths, strides, strict=True)
        for one in _conv_bn_relu(*pair, 3, stride)
    ]


def _conv_bn_relu(
    channels_in: int, channels_out: int, kernel: int, stride: int = 1
) -> list[nn.Module]:
    conv = nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return [conv, nn.BatchNorm2d(channels_out), nn.ReLU()]


def _conv(channels_in: int, channels_out: int, kernel: int) -> list[nn.Module]:
    return [nn.Conv2d(channels_in, channels_out, kernel)]
