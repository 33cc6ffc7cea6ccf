"""What a model seen through its stages answers."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class ModelOutput(NamedTuple):
    """One forward pass of a staged model.

    Attributes:
        logits: ``[B, K]``.
        stages: The feature map at the end of each stage, ``[B, C_l, H_l, W_l]``, shallow to deep.
        pooled: The vector that the classifier sees, ``[B, D]``; None where a wrapped model has no
            linear classifier.
    """

    logits: Tensor
    stages: tuple[Tensor, ...]
    pooled: Tensor | None
