"""The output of a staged model."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class ModelOutput(NamedTuple):
    """The output of one forward pass of a staged model.

    Attributes:
        logits: ``[B, K]``.
        stages: The feature map at the end of each stage, ``[B, C_l, H_l, W_l]``, shallow to deep.
        pooled: The input of the classifier, ``[B, D]``; None if a wrapped model has no linear
            classifier.
        last: The last feature map, ``[B, C, H, W]``. In the zoo, `pooled` is its average (it is
            the last stage or follows it by a layer or two). In a wrapped model it is the last
            stage; None without stages.
    """

    logits: Tensor
    stages: tuple[Tensor, ...]
    pooled: Tensor | None
    last: Tensor | None = None
