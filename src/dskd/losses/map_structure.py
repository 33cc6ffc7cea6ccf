"""Losses between feature maps that compare their structure rather than their raw values.

Shapes: ``B`` images, ``C`` channels, ``H x W`` positions. All losses are 0 for equal maps and about
1 for maps that have nothing in common.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from dskd.errors import InputError
from dskd.losses.checks import check_choice, check_same_shape
from dskd.losses.feature_maps import FeatureScale, feature_loss, pool_to, squared_error
from dskd.losses.logits import Reduction
from dskd.losses.precision import in_full_precision

FeatureLoss = Literal["mse", "pyramid", "cosine", "channel", "relation"]
LEVELS = (4, 2, 1)
"""The sides of the pooled maps that a pyramid compares, after the maps themselves."""
EPS = 1e-8


def pyramid(difference: Tensor) -> Iterator[tuple[float, Tensor]]:
    """A map and its pooled maps with sides 4, 2 and 1, with halving weights from 1.

    Sides that are not smaller than the map are skipped, and do not halve the weight.

    Source: the hierarchical context loss of ReviewKD, see `dskd.losses.reviewkd`.

    Example:
        >>> [(weight, list(part.shape)) for weight, part in pyramid(torch.zeros(1, 3, 4, 4))]
        [(1.0, [1, 3, 4, 4]), (0.5, [1, 3, 2, 2]), (0.25, [1, 3, 1, 1])]
    """
    weight = 1.0
    yield weight, difference
    for side in LEVELS:
        if side < max(difference.shape[2:]):
            weight /= 2
            # Every side is half the one before, so pooling what is pooled gives the same.
            difference = pool_to(difference, side, side)
            yield weight, difference


@in_full_precision
def pyramid_loss(
    adapted: Tensor, target: Tensor, scale: FeatureScale = "relative", reduction: Reduction = "mean"
) -> Tensor:
    """Maps compared as they are and pooled: ``sum_k 2^-k M(A_k, F_k) / sum_k 2^-k``.

    ``M`` is `dskd.losses.feature_maps.feature_loss`, and ``A_k`` and ``F_k`` are the maps of
    `pyramid`.

    Args:
        adapted: The branch's map A, ``[B, C, H, W]``.
        target: The target map F, of the same shape.
        scale: ``relative``, or ``none``, for ``M``.
        reduction: ``mean`` over the batch, or ``none`` for one value per image, ``[B]``.

    Example:
        >>> pyramid_loss(torch.zeros(1, 2, 4, 4), torch.ones(1, 2, 4, 4)).item()
        1.0
    """
    check_same_shape(adapted, target, "feature maps [B, C, H, W]")
    check_choice("scale", scale, get_args(FeatureScale))
    levels = list(zip(pyramid(adapted - target), pyramid(target), strict=True))
    losses = [weight * squared_error(d, f, scale) for (weight, d), (_, f) in levels]
    return _reduce(torch.stack(losses).sum(0) / sum(w for (w, _), _ in levels), reduction)


@in_full_precision
def cosine_loss(adapted: Tensor, target: Tensor, reduction: Reduction = "mean") -> Tensor:
    """One minus the cosine between the channel vectors of both maps, averaged over positions.

    Args:
        adapted: The branch's map, ``[B, C, H, W]``.
        target: The target map, of the same shape.
        reduction: ``mean`` over the batch, or ``none`` for one value per image, ``[B]``.

    Example:
        >>> cosine_loss(torch.ones(1, 2, 3, 3), 5 * torch.ones(1, 2, 3, 3)).abs().item() < 1e-6
        True
    """
    check_same_shape(adapted, target, "feature maps [B, C, H, W]")
    values = 1 - F.cosine_similarity(adapted, target, dim=1, eps=EPS).mean((1, 2))
    return _reduce(values, reduction)


@in_full_precision
def channel_loss(adapted: Tensor, target: Tensor, reduction: Reduction = "mean") -> Tensor:
    """One minus the correlation of both maps over the positions of a channel, averaged.

    So only the places count at which a channel is active, and neither its mean nor its scale. A
    channel that is constant in the target teaches nothing and does not count.

    Args:
        adapted: The branch's map, ``[B, C, H, W]``.
        target: The target map, of the same shape.
        reduction: ``mean`` over the batch, or ``none`` for one value per image, ``[B]``.

    Raises:
        InputError: The maps have a single position, over which nothing varies.

    Example:
        >>> maps = torch.tensor([[[[1.0, 2.0]]]])
        >>> [round(channel_loss(other, maps).item(), 4) for other in (3 * maps + 1, -maps)]
        [0.0, 2.0]
    """
    check_same_shape(adapted, target, "feature maps [B, C, H, W]")
    if adapted[0, 0].numel() == 1:
        raise InputError("channel compares positions, and the maps have one; take another loss")
    ours, theirs = (
        maps.flatten(2) - maps.flatten(2).mean(2, keepdim=True) for maps in (adapted, target)
    )
    varies = (theirs.square().mean(2) > EPS * target.flatten(2).square().mean(2)).to(ours.dtype)
    distance = 1 - F.cosine_similarity(ours, theirs, dim=2, eps=EPS)
    values = (varies * distance).sum(1) / varies.sum(1).clamp_min(1)
    return _reduce(values, reduction)


@in_full_precision
def relation_loss(adapted: Tensor, target: Tensor) -> Tensor:
    """One minus the linear CKA of both maps over the images of the batch.

    With the centred Gram matrices ``G`` of the flattened maps: ``1 - <G_A, G_F> / (|G_A| |G_F|)``.

    Source: Kornblith et al., Similarity of Neural Network Representations Revisited, ICML 2019,
    arXiv 1905.00414, equation 3, as a loss: *our choice*.

    Args:
        adapted: The branch's map, ``[B, C, H, W]``.
        target: The target map, of the same shape.

    Example:
        >>> maps = torch.eye(4).view(4, 1, 2, 2)
        >>> round(relation_loss(2 * maps, maps).item(), 4)
        0.0
    """
    check_same_shape(adapted, target, "feature maps [B, C, H, W]")
    ours, theirs = (_centred_gram(maps.flatten(1)).flatten() for maps in (adapted, target))
    return 1 - F.cosine_similarity(ours, theirs, dim=0, eps=EPS)


def _centred_gram(vectors: Tensor) -> Tensor:
    centred = vectors - vectors.mean(0)
    centred = centred / torch.linalg.matrix_norm(centred).clamp_min(EPS)
    gram: Tensor = centred @ centred.T
    return gram


def bind_feature_loss(
    name: FeatureLoss, scale: FeatureScale
) -> Callable[[Tensor, Tensor, Reduction], Tensor]:
    """The loss between two maps that the setting ``feature_loss`` names.

    Args:
        name: ``mse`` is `dskd.losses.feature_maps.feature_loss`; the others are in this module.
        scale: The scale of ``mse`` and ``pyramid``.

    Raises:
        InputError: The name does not exist.

    Example:
        >>> loss = bind_feature_loss("mse", "relative")
        >>> loss(torch.zeros(1, 2, 3, 3), torch.ones(1, 2, 3, 3), "mean").item()
        1.0
    """
    check_choice("feature loss", name, get_args(FeatureLoss))
    if name in ("mse", "pyramid"):
        scaled = feature_loss if name == "mse" else pyramid_loss
        return lambda adapted, target, reduction: scaled(adapted, target, scale, reduction)
    if name == "relation":
        return lambda adapted, target, _: relation_loss(adapted, target)
    plain = cosine_loss if name == "cosine" else channel_loss
    return lambda adapted, target, reduction: plain(adapted, target, reduction)


def _reduce(values: Tensor, reduction: Reduction) -> Tensor:
    check_choice("reduction", reduction, get_args(Reduction))
    return values.mean() if reduction == "mean" else values
