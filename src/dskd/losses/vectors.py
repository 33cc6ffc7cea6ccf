"""Vectors of unit length, for losses that compare directions."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def unit(vectors: Tensor) -> Tensor:
    """``vectors`` scaled to length 1 along the last dimension; zero vectors stay zero.

    A zero vector has no direction and gets no gradient. Dividing it by a small constant instead,
    as ``F.normalize`` does, would give it a huge gradient.

    Example:
        >>> unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    lengths = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    directions: Tensor = vectors / lengths.masked_fill(lengths < 1e-12, math.inf)
    return directions
