"""The output of a staged model."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from dskd.models.feature_maps import spatial_mean


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

    def before_dropout(self) -> ModelOutput:
        """The output of a model whose spec has ``drops_pooled``, as if it had no dropout there.

        The pooled vector is the average of the last map again: what the model has learned, not what
        a dropout left of it. The logits stay.
        """
        assert self.last is not None, "the spec says so"
        return self._replace(pooled=spatial_mean(self.last))
