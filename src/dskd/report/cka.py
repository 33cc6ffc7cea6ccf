"""How alike the layers of student and teacher are: linear CKA."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from dskd.data import Split
from dskd.errors import InputError
from dskd.models.staged_model import StagedModel

IMAGES = 512
_BATCH = 64
_COLUMNS = 1 << 15
"""Features that are taken at once in float64: memory then does not grow with a map's size."""


@dataclass(frozen=True)
class Similarity:
    """Linear CKA between all layers of a student and all of its teacher.

    Attributes:
        label: Of the student's method.
        seed: Of its run.
        images: How many test images it was measured on.
        student: The names of the student's layers, shallow to deep.
        teacher: The names of the teacher's.
        values: From 0 to 1, a row for each of the student's layers; None where a layer gives the
            same for every image, or what is not finite.
    """

    label: str
    seed: int
    images: int
    student: tuple[str, ...]
    teacher: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]


def linear_cka(one: Tensor, other: Tensor) -> float | None:
    """Linear centred kernel alignment of two layers that saw the same images.

    ``<K, L> / (|K| |L|)`` with ``K`` and ``L`` the centred Gram matrices of the two layers. It
    is from 0 to 1, and does not change when a layer is rotated or scaled.

    Source: Kornblith et al., Similarity of Neural Network Representations Revisited, ICML 2019,
    arXiv 1905.00414, equations 3 to 5.

    Args:
        one: A layer's centred Gram matrix, float64 ``[N, N]``, see `gram`.
        other: Another's, of the same images.

    Returns:
        The similarity; None where a layer gives the same for every image, or what is not finite.

    Example:
        >>> layer = torch.randn(8, 5, dtype=torch.float64)
        >>> round(linear_cka(gram(layer), gram(3 * layer.flip(1))), 6)
        1.0
    """
    norms = float(one.norm() * other.norm())
    if not 0 < norms < math.inf:
        return None
    return min(1.0, max(0.0, float((one * other).sum()) / norms))  # rounding may lead beyond


def gram(features: Tensor) -> Tensor:
    """The centred Gram matrix of a layer, float64 ``[N, N]``.

    Args:
        features: ``[N, ...]``, what the layer gives for each of N images.
    """
    matrix = torch.zeros(len(features), len(features), dtype=torch.float64).to(features.device)
    for part in torch.split(features.flatten(1), _COLUMNS, dim=1):
        # Centring the features centres their Gram matrix, and keeps small differences exact.
        centred = part.double() - part.double().mean(0)
        matrix += centred @ centred.T
    return matrix


def similarity(
    label: str, seed: int, student: StagedModel, teacher: StagedModel, split: Split
) -> Similarity:
    """Linear CKA of every stage, the pooled vector and the logits of both.

    Args:
        label: Of the student's method.
        seed: Of its run.
        student: In eval mode, with stages.
        teacher: The same, on the same device.
        split: Up to 512 of its images are shown, spread evenly over it.

    Raises:
        InputError: One of the two has no stages.
    """
    for what, model in (("student", student), ("teacher", teacher)):
        if not (model.native or model.stage_names):
            raise InputError(
                f"the {what} shows no layers to compare; name some with {what}.stages=[a,b]"
            )
    images = split.images[_spread(len(split))].to(student.mean.device)
    own, theirs = _grams(student, images), _grams(teacher, images)
    values = tuple(tuple(linear_cka(a, b) for b in theirs.values()) for a in own.values())
    return Similarity(label, seed, len(images), tuple(own), tuple(theirs), values)


def _spread(count: int) -> Tensor:
    """Which images: a split may be sorted by class, so they are taken from all of it."""
    return torch.arange(min(count, IMAGES)) * count // min(count, IMAGES)


@torch.no_grad()
def _grams(model: StagedModel, images: Tensor) -> dict[str, Tensor]:
    """The centred Gram matrix of each layer, by its name."""
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
