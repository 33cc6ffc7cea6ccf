"""The shapes of a staged model's outputs, measured on a few images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from dskd.errors import InputError, first_line
from dskd.models.eval_mode import eval_mode
from dskd.models.output import ModelOutput
from dskd.models.staged_model import StagedModel, submodule_names


@dataclass(frozen=True)
class StageSpec:
    """The feature map at the end of a stage.

    Attributes:
        channels: Number of channels.
        height: Height.
        width: Width.
        nonnegative: Whether no value was below zero (as after a ReLU).
    """

    channels: int
    height: int
    width: int
    nonnegative: bool


@dataclass(frozen=True)
class ModelSpec:
    """The outputs of a staged model for images of one shape.

    Attributes:
        classes: Number of classes, the length of the logits.
        stages: The stages, shallow to deep; empty if none were named.
        pooled: Length of the pooled vector; None without one.
        submodules: Names of submodules, which can be named as stages, for messages.
        last: The last feature map, see `dskd.models.output.ModelOutput`.
        average_pooled: Whether the pooled vector is the average of the last feature map.
        linear_logits: Whether the logits are the model's linear layer applied to that vector.
        drops_pooled: Whether a dropout between map and vector is active in training. It is known of
            a vector that is the average without it.
    """

    classes: int
    stages: tuple[StageSpec, ...]
    pooled: int | None
    submodules: tuple[str, ...] = ()
    last: StageSpec | None = None
    average_pooled: bool = False
    linear_logits: bool = False
    drops_pooled: bool = False

    @property
    def pooled_nonnegative(self) -> bool:
        """Whether the pooled vector is nonnegative because it averages a nonnegative map."""
        return self.average_pooled and self.last is not None and self.last.nonnegative


@torch.no_grad()
def describe(model: StagedModel, images: Tensor) -> ModelSpec:
    """Measure the outputs of a model on a few images; the model is not changed.

    Args:
        model: The staged model.
        images: A few images, uint8 ``[B, C, H, W]``, on the device of the model. They show whether
            a map can be negative and whether the last one is averaged.

    Raises:
        InputError: The model does not run on such images, or gives no logits ``[B, K]``.
    """
    try:
        with eval_mode(model):
            output = model(images)
    except InputError:
        raise
    except Exception as error:  # a user's module may raise any type
        raise InputError(
            f"{type(model.module).__name__} does not run on images {list(images.shape[1:])}: "
            f"{first_line(error)}"
        ) from error
    averages = _is_average(output.last, output.pooled) and _averages_trained(model, images)
    return ModelSpec(
        classes=output.logits.shape[1],
        stages=tuple(map(_stage_spec, output.stages)),
        pooled=output.pooled.shape[-1] if output.pooled is not None else None,
        submodules=submodule_names(model.module),
        last=_stage_spec(output.last) if output.last is not None else None,
        average_pooled=averages,
        linear_logits=_has_linear_logits(model.linear_classifier, output),
        drops_pooled=averages and _drops_pooled(model, images),
    )


def _stage_spec(stage: Tensor) -> StageSpec:
    channels, height, width = stage.shape[1:]
    return StageSpec(channels, height, width, bool((stage >= 0).all()))


def _is_average(last: Tensor | None, pooled: Tensor | None) -> bool:
    """Whether ``pooled`` is the average of ``last``, up to rounding."""
    if last is None or pooled is None or last.shape[:2] != pooled.shape:
        return False
    return _close(last.mean((2, 3)), pooled)


def _averages_trained(model: StagedModel, images: Tensor) -> bool:
    """Whether the pooled vector stays the average of the last map when the model is trained.

    A new BatchNorm between the two is the identity. A trained one is not.
    """
    necks = [part for part in model.modules() if isinstance(part, nn.BatchNorm1d)]
    variances = [part.running_var for part in necks if part.running_var is not None]
    if not variances:
        return True
    before = [variance.clone() for variance in variances]
    try:
        for variance in variances:
            variance.mul_(4)
        with eval_mode(model):
            output = model(images)
    finally:
        for variance, own in zip(variances, before, strict=True):
            variance.copy_(own)
    return _is_average(output.last, output.pooled)


def _drops_pooled(model: StagedModel, images: Tensor) -> bool:
    """Whether the pooled vector is no longer the average of the last map if dropouts are active."""
    with eval_mode(model):
        model.train()  # leaves parts that came frozen in evaluation mode
        dropouts = [part for part in model.modules() if part.training and _drops(part)]
        model.eval()
        for part in dropouts:
            part.training = True
        if not dropouts:
            return False
        devices = [images.device] if images.device.type == "cuda" else []
        with torch.random.fork_rng(devices):  # a run draws the same numbers as without this
            torch.manual_seed(0)
            try:
                output = model(images)
            except Exception:  # the rehearsed step says what the model cannot do in training
                return False
    return not _is_average(output.last, output.pooled)


def _drops(part: nn.Module) -> bool:
    """Whether it is a dropout, or says that it applies one as a function (timm's models)."""
    rate = part.p if isinstance(part, _DropoutNd) else getattr(part, "drop_rate", 0)
    return isinstance(rate, int | float) and rate > 0


def _has_linear_logits(linear: nn.Linear | None, output: ModelOutput) -> bool:
    """Whether the layer gives the logits, up to rounding; some models scale them or add two."""
    if linear is None or output.pooled is None or output.pooled.shape[1] != linear.in_features:
        return False
    return _close(linear(output.pooled), output.logits)


def _close(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape:
        return False
    return bool(((found - expected).abs() <= 1e-4 * expected.abs().max()).all())
