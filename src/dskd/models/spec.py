"""What a staged model gives, told from a few pictures."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dskd.errors import InputError, first_line
from dskd.models.stages import StagedModel


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
    """What a staged model gives for pictures of one shape.

    Attributes:
        classes: K, the length of the logits.
        stages: Shallow to deep; empty where no stages were named.
        pooled: The length of the vector that the classifier sees, None without one.
        parts: The model's own submodules, any of which may be named as a stage.
    """

    classes: int
    stages: tuple[StageSpec, ...]
    pooled: int | None
    parts: tuple[str, ...] = ()


@torch.no_grad()
def describe(model: StagedModel, images: Tensor) -> ModelSpec:
    """What ``model`` gives for pictures like these; the model is left as it was.

    Args:
        model: The staged model.
        images: A few pictures, uint8 ``[B, C, H, W]``, on the model's device: whether a map can
            be negative is read off them.

    Raises:
        InputError: The model does not run on such pictures, or gives no logits ``[B, K]``.
    """
    modes = {part: part.training for part in model.modules()}
    model.eval()
    try:
        output = model(images)
    except InputError:
        raise
    except Exception as error:  # anybody's module may raise anything
        raise InputError(
            f"{type(model.module).__name__} does not run on pictures {list(images.shape[1:])}: "
            f"{first_line(error)}"
        ) from error
    finally:
        for part, training in modes.items():
            part.training = training
    return ModelSpec(
        classes=output.logits.shape[1],
        stages=tuple(
            StageSpec(channels, height, width, bool((stage >= 0).all()))
            for stage in output.stages
            for channels, height, width in [stage.shape[1:]]
        ),
        pooled=output.pooled.shape[-1] if output.pooled is not None else None,
        parts=tuple(name for name, _ in model.module.named_children()),
    )
