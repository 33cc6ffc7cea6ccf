"""Similarity of the layers of student and teacher: linear CKA."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from dskd.data.dataset import Samples
from dskd.errors import InputError
from dskd.models.staged_model import StagedModel

IMAGES = 512
_BATCH = 64
_COLUMNS = 1 << 15
"""Features that are converted to float64 at once. It bounds the memory for large feature maps."""


@dataclass(frozen=True)
class LayerSimilarity:
    """Linear CKA between all layers of a student and all layers of its teacher.

    Attributes:
        label: Label of the student's method.
        seed: Seed of its run.
        images: Number of test images.
        student: Names of the student's layers, from shallow to deep.
        teacher: Names of the teacher's layers, from shallow to deep.
        values: From 0 to 1, one row per layer of the student; None if a layer is constant over the
            images, or not finite.
    """

    label: str
    seed: int
    images: int
    student: tuple[str, ...]
    teacher: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]


def linear_cka(one: Tensor, other: Tensor) -> float | None:
    """Linear centred kernel alignment of two layers on the same images.

    ``<K, L> / (|K| |L|)`` with ``K`` and ``L`` the centred Gram matrices of the two layers. It
    lies between 0 and 1, and is invariant to rotation and scaling of a layer.

    Source: Kornblith et al., Similarity of Neural Network Representations Revisited, ICML 2019,
    arXiv 1905.00414, equations 3 to 5.

    Args:
        one: The centred Gram matrix of a layer, float64 ``[N, N]``, see `gram`.
        other: That of the other layer, on the same images.

    Returns:
        The similarity; None if a layer is constant over the images, or not finite.

    Example:
        >>> layer = torch.randn(8, 5, dtype=torch.float64)
        >>> round(linear_cka(gram(layer), gram(3 * layer.flip(1))), 6)
        1.0
    """
    norms = float(one.norm() * other.norm())
    if not 0 < norms < math.inf:
        return None
    return min(1.0, max(0.0, float((one * other).sum()) / norms))  # rounding may exceed 1


def gram(features: Tensor) -> Tensor:
    """The centred Gram matrix of a layer, float64 ``[N, N]``.

    Args:
        features: ``[N, ...]``, the output of the layer for N images.
    """
    matrix = torch.zeros(len(features), len(features), dtype=torch.float64).to(features.device)
    for part in torch.split(features.flatten(1), _COLUMNS, dim=1):
        # Centring the features centres the Gram matrix, with less rounding than centring it itself.
        centred = part.double() - part.double().mean(0)
        matrix += centred @ centred.T
    return matrix


def layer_similarity(
    label: str, seed: int, student: StagedModel, teacher: StagedModel, split: Samples
) -> LayerSimilarity:
    """Linear CKA of all stages, the pooled vector and the logits of both models.

    Args:
        label: Label of the student's method.
        seed: Seed of its run.
        student: In eval mode, with stages.
        teacher: In eval mode, with stages, on the same device.
        split: Up to 512 of its images are used, evenly spaced.

    Raises:
        InputError: A model has no stages.
    """
    for role, model in (("student", student), ("teacher", teacher)):
        if not (model.returns_stages or model.stage_names):
            raise InputError(
                f"the {role} has no layers to compare; name some with {role}.stages=[a,b]"
            )
    images = split.images_at(_spread(len(split))).to(student.mean.device)
    own, theirs = _grams(student, images), _grams(teacher, images)
    values = tuple(tuple(linear_cka(a, b) for b in theirs.values()) for a in own.values())
    return LayerSimilarity(label, seed, len(images), tuple(own), tuple(theirs), values)


def _spread(count: int) -> Tensor:
    """Indices of evenly spaced images. The first ones may be of one class, if a split is sorted."""
    return torch.arange(min(count, IMAGES)) * count // min(count, IMAGES)


@torch.no_grad()
def _grams(model: StagedModel, images: Tensor) -> dict[str, Tensor]:
    """The centred Gram matrix of each layer by name."""
    outputs = [model(batch) for batch in torch.split(images, _BATCH)]
    stages = [torch.cat(parts) for parts in zip(*(o.stages for o in outputs), strict=True)]
    layers = dict(zip(_names(model, len(stages)), stages, strict=True))
    if outputs[0].pooled is not None:
        layers["pooled"] = torch.cat([o.pooled for o in outputs])
    layers["logits"] = torch.cat([o.logits for o in outputs])
    return {name: gram(layer) for name, layer in layers.items()}


def _names(model: StagedModel, count: int) -> tuple[str, ...]:
    own = model.stage_names
    if own is None:
        own = getattr(cast(object, model.module), "stage_names", ())
    return own if len(own) == count else tuple(f"stage{stage + 1}" for stage in range(count))
