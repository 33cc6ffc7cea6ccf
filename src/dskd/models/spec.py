"""What a staged model gives, told from a few images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dskd.errors import InputError, first_line
from dskd.models.eval_mode import eval_mode
from dskd.models.output import ModelOutput
from dskd.models.staged_model import StagedModel


@dataclass(frozen=True)
class StageSpec:
    """The feature map at the end of a stage.

    Attributes:
        channels: C.
        height: H.
        width: W.
        nonnegative: No value below zero was seen (a map behind a ReLU).
    """

    channels: int
    height: int
    width: int
    nonnegative: bool


@dataclass(frozen=True)
class ModelSpec:
    """What a staged model gives for images of one shape.

    Attributes:
        classes: K, the length of the logits.
        stages: Shallow to deep; empty where no stages were named.
        pooled: The length of the vector that the classifier sees, None without one.
        parts: The model's own submodules, any of which may be named as a stage.
        last: The last map of all, see `dskd.models.output.ModelOutput`.
        averaged: Whether the pooled vector is the average of that map.
        classified: Whether the logits are what the model's linear layer makes of that vector.
    """

    classes: int
    stages: tuple[StageSpec, ...]
    pooled: int | None
    parts: tuple[str, ...] = ()
    last: StageSpec | None = None
    averaged: bool = False
    classified: bool = False

    @property
    def never_negative(self) -> bool:
        """Whether the pooled vector is known to be so: as the average of a map that is."""
        return self.averaged and self.last is not None and self.last.nonnegative


@torch.no_grad()
def describe(model: StagedModel, images: Tensor) -> ModelSpec:
    """What ``model`` gives for images like these; the model is left as it was.

    Args:
        model: The staged model.
        images: A few images, uint8 ``[B, C, H, W]``, on the model's device: whether a map can
            be negative, and whether the last is averaged, is read off them.

    Raises:
        InputError: The model does not run on such images, or gives no logits ``[B, K]``.
    """
    try:
        with eval_mode(model):
            output = model(images)
    except InputError:
        raise
    except Exception as error:  # anybody's module may raise anything
        raise InputError(
            f"{type(model.module).__name__} does not run on images {list(images.shape[1:])}: "
            f"{first_line(error)}"
        ) from error
    return ModelSpec(
        classes=output.logits.shape[1],
        stages=tuple(map(_stage_spec, output.stages)),
        pooled=output.pooled.shape[-1] if output.pooled is not None else None,
        parts=tuple(name for name, _ in model.module.named_children()),
        last=_stage_spec(output.last) if output.last is not None else None,
        averaged=_averages(output.last, output.pooled),
        classified=_classifies(model.linear, output),
    )


def _stage_spec(stage: Tensor) -> StageSpec:
    channels, height, width = stage.shape[1:]
    return StageSpec(channels, height, width, bool((stage >= 0).all()))


def _averages(last: Tensor | None, pooled: Tensor | None) -> bool:
    """Whether ``pooled`` is the average of ``last``, up to rounding."""
    if last is None or pooled is None or last.shape[:2] != pooled.shape:
        return False
    return _same(last.mean((2, 3)), pooled)


def _classifies(linear: nn.Linear | None, output: ModelOutput) -> bool:
    """Whether the layer gives the logits, up to rounding: some models scale them, or have two."""
    if linear is None or output.pooled is None or output.pooled.shape[1] != linear.in_features:
        return False
    return _same(linear(output.pooled), output.logits)


def _same(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape:
        return False
    return bool(((found - expected).abs() <= 1e-4 * expected.abs().max()).all())
