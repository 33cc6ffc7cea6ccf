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
        last: The last map of all, ``[B, C, H, W]``. In the zoo it is the one that is averaged to
            the pooled vector (often the last stage itself, else a layer or two behind it); in a
            wrapped model the last of its stages, None where none were named.
    """

    logits: Tensor
    stages: tuple[Tensor, ...]
    pooled: Tensor | None
    last: Tensor | None = None
