"""Any module seen through its stages: wrapped, never edited."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from dskd.errors import InputError
from dskd.models.net import StagedNet
from dskd.models.output import ModelOutput


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


class StagedModel(nn.Module):
    """A model with its own normalisation, whose one forward gives logits, stages and pooled vector.

    The model itself stays what it was: `module` is the object that was given, and the hooks that
    read its stages are there only while it runs.

    Args:
        module: Any classifier from normalised pictures to logits. A model with a method
            ``forward_stages`` (the zoo) gives its own stages where none are named.
        stages: Names of submodules whose outputs are the stages, shallow to deep, as in
            ``["layer1", "layer2"]``. A map is taken as it is; a token sequence ``[B, N, D]``
            becomes its square grid ``[B, D, sqrt(N), sqrt(N)]`` without the prefix tokens; a map
            with the channels last, as Swin's, gets them first.
        mean: Of each channel, on the scale from 0 to 1, subtracted from the pictures.
        std: Of each channel, on the scale from 0 to 1, that the pictures are divided by.
        classifier: Name of the submodule whose input is the pooled vector; by default the model's
            own ``get_classifier()`` (timm) or the last linear layer.

    Raises:
        InputError: A name does not exist, or mean and std do not fit.

    Example:
        >>> pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), pool, nn.Linear(4, 2))
        >>> staged = StagedModel(net, ["0"], mean=(0.5,), std=(0.25,))
        >>> output = staged(torch.zeros(3, 1, 8, 8, dtype=torch.uint8))
        >>> output.logits.shape, output.stages[0].shape, output.pooled.shape
        (torch.Size([3, 2]), torch.Size([3, 4, 6, 6]), torch.Size([3, 4]))
    """

    def __init__(
        self,
        module: nn.Module,
        stages: Sequence[str] | None = None,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        classifier: str | None = None,
    ) -> None:
        super().__init__()
        _check_statistics(mean, std)
        self.module = module
        self.stage_names = tuple(stages) if stages is not None else None
        for name in [*(stages or ()), *([classifier] if classifier else [])]:
            _check_submodule(module, name)
        if stages is not None and len(set(stages)) < len(stages):
            raise InputError(f"a stage is named twice in {list(stages)}; name each once")
        self.classifier = classifier or _find_classifier(module)
        # Not part of any state_dict: the student's file has the student's own keys.
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def normalize(self, images: Tensor) -> Tensor:
        """Pictures as the module expects them.

        Args:
            images: uint8 ``[B, C, H, W]``, or floating point from 0 to 1.
        """
        if images.dtype == torch.uint8:
            images = images.to(self.mean.dtype) / 255
        return (images - self.mean) / self.std

    def forward(self, images: Tensor) -> ModelOutput:
        """Logits, stages and pooled vector of a batch of pictures (see `normalize`)."""
        pictures = self.normalize(images)
        if self.stage_names is None and hasattr(self.module, "forward_stages"):
            return cast(StagedNet, self.module).forward_stages(pictures)
        with _reading(self.module, self.stage_names or (), self.classifier) as seen:
            logits = self.module(pictures)
        square = pictures.shape[2] == pictures.shape[3]
        stages = tuple(seen.map(name, square) for name in self.stage_names or ())
        return ModelOutput(logits, stages, seen.pooled)


class _Seen:
    """What the hooks caught in one forward pass."""

    def __init__(self) -> None:
        self.outputs: dict[str, tuple[Any, int]] = {}
        self.pooled: Tensor | None = None

    def output(self, _module: nn.Module, _inputs: Any, output: Any, *, name: str) -> None:
        self.outputs[name] = (output, output._version if isinstance(output, Tensor) else 0)

    def classifier_input(self, _module: nn.Module, inputs: Any) -> None:
        self.pooled = inputs[0]

    def map(self, name: str, square: bool) -> Tensor:
        """The output of stage ``name`` as a map ``[B, C, H, W]``."""
        if name not in self.outputs:
            raise InputError(
                f"stage {name!r} did not run in the model's forward; name one that does"
            )
        output, version = self.outputs[name]
        if not isinstance(output, Tensor) or output.dim() not in (3, 4):
            what = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise InputError(
                f"stage {name!r} gives {what}, not a map [B, C, H, W] or tokens [B, N, D]; "
                "name a submodule that gives one tensor of these"
            )
        if output._version != version:
            raise InputError(
                f"the output of stage {name!r} is changed in place by a later layer; "
                "name that later layer as the stage"
            )
        return tokens_to_grid(output) if output.dim() == 3 else _channels_first(output, square)


@contextmanager
def _reading(module: nn.Module, stages: Sequence[str], classifier: str | None) -> Iterator[_Seen]:
    """Hooks on the named submodules while the block runs."""
    seen = _Seen()
    handles = [
        module.get_submodule(name).register_forward_hook(partial(seen.output, name=name))
        for name in stages
    ]
    if classifier is not None:
        head = module.get_submodule(classifier)
        handles.append(head.register_forward_pre_hook(seen.classifier_input))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def tokens_to_grid(tokens: Tensor) -> Tensor:
    """A transformer's tokens as a feature map.

    Args:
        tokens: ``[B, P + n * n, D]``: P prefix tokens (class, registers), then the n x n patches,
            with n the largest that fits.

    Returns:
        ``[B, D, n, n]``.

    Example:
        >>> tokens_to_grid(torch.zeros(2, 17, 8)).shape
        torch.Size([2, 8, 4, 4])
    """
    side = math.isqrt(tokens.shape[1])
    patches = tokens[:, tokens.shape[1] - side * side :]
    return patches.transpose(1, 2).reshape(len(tokens), -1, side, side)


def _channels_first(output: Tensor, square: bool) -> Tensor:
    # Square pictures have square maps: equal sizes in front are height and width.
    if square and output.shape[1] == output.shape[2] != output.shape[3]:
        return output.permute(0, 3, 1, 2)
    return output


def _check_submodule(module: nn.Module, name: str) -> None:
    names = [n for n, _ in module.named_modules() if n]
    if name in names:
        return
    top = [n for n, _ in module.named_children()]
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise InputError(
        f"{type(module).__name__} has no submodule {name!r}; {hint}its parts: {', '.join(top)}"
    )


def _find_classifier(module: nn.Module) -> str | None:
    get_own: Callable[[], object] = getattr(module, "get_classifier", lambda: None)
    own = get_own()
    linear: str | None = None
    for name, part in module.named_modules():
        if own is not None and part is own:
            return name or None
        if isinstance(part, nn.Linear):
            linear = name or None
    return linear


def _check_statistics(mean: Sequence[float], std: Sequence[float]) -> None:
    if len(mean) != len(std):
        raise InputError(f"mean has {len(mean)} channels, std has {len(std)}; give as many of each")
    if any(not value > 0 for value in std):
        raise InputError(f"std must be above 0 in every channel, got {list(std)}")


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
    except (RuntimeError, AssertionError, TypeError, IndexError) as error:
        raise InputError(
            f"{type(model.module).__name__} does not run on pictures {list(images.shape[1:])}: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from error
    finally:
        for part, training in modes.items():
            part.training = training
    if not isinstance(output.logits, Tensor) or output.logits.dim() != 2:
        raise InputError(f"{type(model.module).__name__} gives no logits [B, K]")
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
