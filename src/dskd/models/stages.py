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
            becomes its grid ``[B, D, H, W]`` without the prefix tokens (see `tokens_to_grid`; a
            model that says ``num_prefix_tokens``, as timm's do, is believed); a map with the
            channels last, as Swin's, gets them first.
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
        if stages is not None and len({module.get_submodule(n) for n in stages}) < len(stages):
            raise InputError(f"a stage is named twice in {list(stages)}; name each once")
        self.classifier = classifier or _find_classifier(module)
        self.prefix_tokens = _find_prefix_tokens(module)
        # Not part of any state_dict: the student's file has the student's own keys.
        for key, values in (("mean", mean), ("std", std)):
            statistic = torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)
            self.register_buffer(key, statistic, persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def normalize(self, images: Tensor) -> Tensor:
        """Pictures as the module expects them.

        Args:
            images: uint8 ``[B, C, H, W]``, or floating point from 0 to 1.

        Raises:
            InputError: They are not pictures of as many channels as mean and std have.
        """
        channels = self.mean.shape[1]
        if images.dim() != 4 or images.shape[1] != channels:  # one channel would be broadcast
            raise InputError(
                f"pictures [B, {channels}, H, W] are needed, as mean and std have {channels} "
                f"channels, got {list(images.shape)}"
            )
        if not images.is_floating_point():
            images = images.to(self.mean.dtype) / 255
        return (images - self.mean) / self.std

    def forward(self, images: Tensor) -> ModelOutput:
        """Logits, stages and pooled vector of a batch of pictures (see `normalize`)."""
        pictures = self.normalize(images)
        if self.stage_names is None and hasattr(self.module, "forward_stages"):
            output = cast(StagedNet, self.module).forward_stages(pictures)
        else:
            output = self._watched(pictures)
        if not isinstance(output.logits, Tensor) or output.logits.dim() != 2:
            raise InputError(
                f"{type(self.module).__name__} gives {_what(output.logits)}, not logits [B, K]; "
                "wrap it in a module that gives them alone"
            )
        return output

    def _watched(self, pictures: Tensor) -> ModelOutput:
        """One forward of a model that knows nothing of stages."""
        names = self.stage_names or ()
        with _reading(self.module, names, self.classifier) as seen:
            logits = self.module(pictures)
        outputs = seen.ordered(names)
        maps = [_as_map(o, n, pictures, self.prefix_tokens) for n, o in outputs.items()]
        return ModelOutput(logits, tuple(maps), _as_vector(seen.pooled))


class _Seen:
    """What the hooks caught in one forward pass."""

    def __init__(self) -> None:
        self.outputs: dict[str, tuple[Any, int]] = {}
        self.pooled: object = None

    def output(self, _module: nn.Module, _inputs: Any, output: Any, *, name: str) -> None:
        self.outputs.pop(name, None)  # a module that runs again counts where it ran last
        self.outputs[name] = (output, _version(output))

    def classifier_input(self, _module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.pooled = inputs[0] if inputs else None

    def ordered(self, names: Sequence[str]) -> dict[str, Any]:
        """The outputs of the stages, all of which ran, in their order, and were left as given."""
        for name in names:
            if name not in self.outputs:
                raise InputError(
                    f"stage {name!r} did not run in the model's forward; name one that does"
                )
        if list(self.outputs) != list(names):
            raise InputError(
                f"stages go from shallow to deep, and {list(names)} do not run in this order; "
                f"name them as {list(self.outputs)}"
            )
        for name, (output, version) in self.outputs.items():
            if _version(output) != version:
                raise InputError(
                    f"the output of stage {name!r} is changed in place by a later layer; "
                    "name that later layer as the stage"
                )
        return {name: output for name, (output, _) in self.outputs.items()}


def _version(output: object) -> int:
    """How often a tensor was changed in place; tensors of inference mode do not count it."""
    return output._version if isinstance(output, Tensor) and not output.is_inference() else 0


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


def _as_map(output: object, name: str, pictures: Tensor, prefix: int | None) -> Tensor:
    """The output of stage ``name`` for these pictures as a map ``[B, C, H, W]``."""
    if isinstance(output, Tensor) and output.shape[:1] == pictures.shape[:1]:
        height, width = pictures.shape[2:]
        if output.dim() == 3:
            return tokens_to_grid(output, prefix, (height, width))
        if output.dim() == 4:
            return _channels_first(output, height / width)
    raise InputError(
        f"stage {name!r} gives {_what(output)} for {len(pictures)} pictures, not a map "
        "[B, C, H, W] or tokens [B, N, D]; name a submodule that gives one tensor of these"
    )


def _what(output: object) -> str:
    return str(list(output.shape)) if isinstance(output, Tensor) else type(output).__name__


def _as_vector(pooled: object) -> Tensor | None:
    """The classifier's input ``[B, D]``, also from a 1x1 map; None for anything else."""
    if isinstance(pooled, Tensor) and pooled.dim() >= 2:
        return pooled.flatten(1) if pooled.shape[2:].numel() == 1 else None
    return None


def tokens_to_grid(
    tokens: Tensor, prefix: int | None = None, picture: tuple[int, int] = (1, 1)
) -> Tensor:
    """A transformer's tokens as a feature map.

    Args:
        tokens: ``[B, P + h * w, D]``: P prefix tokens (class, registers), then the h x w patches.
        prefix: P where the model says it, None where it does not: then h x w is the largest grid
            that fits. A sequence of no prefix tokens (a patch embedding's) is known in any case.
        picture: Height and width of the pictures, to which those of the grid are proportional.

    Returns:
        ``[B, D, h, w]``.

    Raises:
        InputError: The tokens are no such grid.

    Example:
        >>> tokens_to_grid(torch.zeros(2, 17, 8)).shape
        torch.Size([2, 8, 4, 4])
        >>> tokens_to_grid(torch.zeros(2, 25, 8), prefix=9).shape
        torch.Size([2, 8, 4, 4])
        >>> tokens_to_grid(torch.zeros(2, 9, 8), picture=(32, 64)).shape
        torch.Size([2, 8, 2, 4])
    """
    height, width = (side // math.gcd(*picture) for side in picture)
    count = tokens.shape[1]
    for patches in (count,) if prefix is None else (count - prefix, count):
        times = math.isqrt(max(patches, 0) // (height * width))
        h, w = times * height, times * width
        if h * w and (prefix is None or h * w == patches):
            return tokens[:, count - h * w :].transpose(1, 2).reshape(len(tokens), -1, h, w)
    raise InputError(
        f"{count} tokens are no grid of the pictures' proportions, {picture[0]}x{picture[1]}"
        f"{f', after {prefix} prefix tokens' if prefix else ''}; name another stage"
    )


def _channels_first(output: Tensor, proportion: float) -> Tensor:
    """``[B, C, H, W]``, also from ``[B, H, W, C]``: a map has the proportions of its picture."""
    _, first, second, third = output.shape
    if _apart(first / second, proportion) < _apart(second / third, proportion):
        return output.permute(0, 3, 1, 2)
    return output


def _apart(one: float, other: float) -> float:
    return abs(math.log(one / other))


def _check_submodule(module: nn.Module, name: str) -> None:
    names = [n for n, _ in module.named_modules(remove_duplicate=False) if n]
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


def _find_prefix_tokens(module: nn.Module) -> int | None:
    """What a vision transformer says of itself, also where another module wraps it."""
    found = (getattr(part, "num_prefix_tokens", None) for part in module.modules())
    return next((number for number in found if isinstance(number, int)), None)


def _check_statistics(mean: Sequence[float], std: Sequence[float]) -> None:
    if not mean or len(mean) != len(std):
        raise InputError(
            f"mean has {len(mean)} channels, std has {len(std)}; give one of each a channel"
        )
    if not all(math.isfinite(value) for value in mean):
        raise InputError(f"mean must be a finite number in every channel, got {list(mean)}")
    if not all(0 < value < math.inf for value in std):
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
    except InputError:
        raise
    except Exception as error:  # anybody's module may raise anything
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise InputError(
            f"{type(model.module).__name__} does not run on pictures {list(images.shape[1:])}: "
            f"{reason}"
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
