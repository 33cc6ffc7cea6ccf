"""Bring outputs of stages into the form ``[B, C, H, W]``."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from dskd.errors import InputError


def to_feature_map(
    output: object,
    name: str,
    images: Tensor,
    prefix: int | None,
    channels_last: bool = False,
) -> Tensor:
    """Convert the output of a stage to a feature map ``[B, C, H, W]``.

    Args:
        output: A feature map with the channels first or last, or tokens ``[B, N, D]``; or an object
            that holds such a tensor, see `main_tensor`.
        name: Name of the stage, for messages.
        images: The images ``[B, C, H, W]`` that the model ran on.
        prefix: Number of prefix tokens; see `tokens_to_grid`.
        channels_last: Whether a map is ``[B, H, W, C]`` if its shape does not tell, see
            `has_channels_last`.

    Raises:
        InputError: The output is something else.
    """
    tensor = main_tensor(output)
    if tensor is not None and tensor.shape[:1] == images.shape[:1]:
        height, width = images.shape[2:]
        if tensor.dim() == 3:
            return tokens_to_grid(tensor, prefix, (height, width))
        if tensor.dim() == 4:
            return _channels_first(tensor, height / width, channels_last)
    raise InputError(
        f"stage {name!r} gives {shape_text(output)} for {len(images)} images, not a map "
        "[B, C, H, W] or tokens [B, N, D]; name a submodule that returns one such tensor"
    )


def main_tensor(output: object) -> Tensor | None:
    """The tensor that a submodule passes on: its output, or what the output holds.

    Blocks of Hugging Face ``transformers`` return a tuple whose first part is the tensor, and their
    encoders an object that has it as ``last_hidden_state``.

    Returns:
        None if there is no such tensor, or if a tuple holds another one of the same shape.

    Example:
        >>> import torch
        >>> main_tensor((torch.zeros(2, 3), None)).shape
        torch.Size([2, 3])
    """
    if isinstance(output, tuple) and not hasattr(output, "_fields") and output:
        first, *rest = output
        if not isinstance(first, Tensor):
            return None
        same = any(isinstance(part, Tensor) and part.shape == first.shape for part in rest)
        return None if same else first
    held = output if isinstance(output, Tensor) else getattr(output, "last_hidden_state", None)
    return held if isinstance(held, Tensor) else None


def to_vector(pooled: object) -> Tensor | None:
    """The classifier's input ``[B, D]``, also from a 1x1 map; None for anything else."""
    if isinstance(pooled, Tensor) and pooled.dim() >= 2:
        return pooled.flatten(1) if pooled.shape[2:].numel() == 1 else None
    return None


def shape_text(output: object) -> str:
    """The shape of a tensor or the type of another object, for messages."""
    return str(list(output.shape)) if isinstance(output, Tensor) else type(output).__name__


def spatial_mean(feature_map: Tensor) -> Tensor:
    """The mean over all positions, from ``[B, C, H, W]`` to ``[B, C]``.

    The result equals ``feature_map.mean((2, 3))``. The gradient of that is contiguous with the
    channels first, which slows down the backward pass of channels-last maps. The gradient here is
    an expanded view of ``[B, C]``, which has no memory format of its own. Maps in float16 are
    summed in float32, as the sum of a large map is beyond the range of float16.

    Example:
        >>> import torch
        >>> spatial_mean(torch.arange(8.0).view(1, 2, 2, 2))
        tensor([[1.5000, 5.5000]])
    """
    positions = feature_map.shape[2] * feature_map.shape[3]
    if feature_map.dtype == torch.float16:
        mean: Tensor = _Float16Mean.apply(feature_map)
        return mean
    return feature_map.sum((2, 3), dtype=feature_map.dtype) / positions


class _Float16Mean(torch.autograd.Function):
    """The spatial mean in float16, from a sum in float32.

    It has a gradient of its own because that of a sum in another type has the channels first.
    """

    @staticmethod
    def forward(ctx: Any, feature_map: Tensor) -> Tensor:
        ctx.shape = feature_map.shape
        mean: Tensor = feature_map.sum((2, 3), dtype=torch.float32) / ctx.shape[2:].numel()
        return mean.half()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        each: Tensor = gradient / ctx.shape[2:].numel()
        return each[:, :, None, None].expand(ctx.shape)


def tokens_to_grid(
    tokens: Tensor, prefix: int | None = None, image: tuple[int, int] = (1, 1)
) -> Tensor:
    """Arrange the patch tokens of a transformer as a feature map.

    Args:
        tokens: ``[B, P + h * w, D]``: P prefix tokens (class, registers), then h x w patches.
        prefix: P, if the model tells it. Otherwise h x w is the largest grid that fits. Outputs
            without prefix tokens (of a patch embedding) are recognised in both cases.
        image: Height and width of the images; the grid has the same aspect ratio.

    Returns:
        ``[B, D, h, w]``.

    Raises:
        InputError: The tokens do not form such a grid.

    Example:
        >>> import torch
        >>> tokens_to_grid(torch.zeros(2, 17, 8)).shape
        torch.Size([2, 8, 4, 4])
        >>> tokens_to_grid(torch.zeros(2, 25, 8), prefix=9).shape
        torch.Size([2, 8, 4, 4])
        >>> tokens_to_grid(torch.zeros(2, 9, 8), image=(32, 64)).shape
        torch.Size([2, 8, 2, 4])
    """
    height, width = (side // math.gcd(*image) for side in image)
    count = tokens.shape[1]
    for patches in (count,) if prefix is None else (count - prefix, count):
        times = math.isqrt(max(patches, 0) // (height * width))
        h, w = times * height, times * width
        if h * w and (prefix is None or h * w == patches):
            return tokens[:, count - h * w :].transpose(1, 2).reshape(tokens.shape[0], -1, h, w)
    raise InputError(
        f"{count} tokens are no grid of the images' proportions, {image[0]}x{image[1]}"
        f"{f', after {prefix} prefix tokens' if prefix else ''}; name another stage"
    )


def has_channels_last(module: nn.Module) -> bool:
    """Whether the maps of a model have the channels last.

    Models of timm say so (``output_fmt``), also inside another module. Swin of torchvision has a
    part that brings its last map into the usual order.

    Example:
        >>> has_channels_last(nn.Conv2d(3, 8, 3))
        False
    """
    return any(
        getattr(part, "output_fmt", None) == "NHWC"
        or getattr(getattr(part, "permute", None), "dims", None) == [0, 3, 1, 2]
        for part in module.modules()
    )


def _channels_first(output: Tensor, aspect: float, channels_last: bool) -> Tensor:
    """``[B, C, H, W]``, also from ``[B, H, W, C]``: a map has the aspect ratio of its image.

    If both orders fit, the closer one is taken: for square images that in which height and width
    are equal.
    """
    _, first, second, third = output.shape
    as_first, as_last = _distance(second / third, aspect), _distance(first / second, aspect)
    if as_last <= _TOLERANCE and (as_last < as_first or (channels_last and as_last == as_first)):
        return output.permute(0, 3, 1, 2)
    return output


_TOLERANCE = math.log(1.25)  # rounding of odd sizes changes the aspect ratio by less


def _distance(one: float, other: float) -> float:
    return abs(math.log(one / other))
