"""What a stage gives as a feature map: convolutional maps, tokens, channels last."""

from __future__ import annotations

import math

from torch import Tensor

from dskd.errors import InputError


def as_map(output: object, name: str, images: Tensor, prefix: int | None) -> Tensor:
    """The output of stage ``name`` for these images as a map ``[B, C, H, W]``."""
    if isinstance(output, Tensor) and output.shape[:1] == images.shape[:1]:
        height, width = images.shape[2:]
        if output.dim() == 3:
            return tokens_to_grid(output, prefix, (height, width))
        if output.dim() == 4:
            return _channels_first(output, height / width)
    raise InputError(
        f"stage {name!r} gives {kind_of(output)} for {len(images)} images, not a map "
        "[B, C, H, W] or tokens [B, N, D]; name a submodule that gives one tensor of these"
    )


def as_vector(pooled: object) -> Tensor | None:
    """The classifier's input ``[B, D]``, also from a 1x1 map; None for anything else."""
    if isinstance(pooled, Tensor) and pooled.dim() >= 2:
        return pooled.flatten(1) if pooled.shape[2:].numel() == 1 else None
    return None


def kind_of(output: object) -> str:
    """The shape of a tensor, the type of anything else: for errors."""
    return str(list(output.shape)) if isinstance(output, Tensor) else type(output).__name__


def average(feature_map: Tensor) -> Tensor:
    """The mean over the positions of ``[B, C, H, W]``: ``[B, C]``.

    The numbers of ``feature_map.mean((2, 3))``. But the gradient of that lies with the channels
    first in memory, and what comes before it would be slow on a map that has them last; the
    gradient here is a view of ``[B, C]`` in no layout of its own.

    Example:
        >>> import torch
        >>> average(torch.arange(8.0).view(1, 2, 2, 2))
        tensor([[1.5000, 5.5000]])
    """
    positions = feature_map.shape[2] * feature_map.shape[3]
    return feature_map.sum((2, 3), dtype=feature_map.dtype) / positions


def tokens_to_grid(
    tokens: Tensor, prefix: int | None = None, image: tuple[int, int] = (1, 1)
) -> Tensor:
    """A transformer's tokens as a feature map.

    Args:
        tokens: ``[B, P + h * w, D]``: P prefix tokens (class, registers), then the h x w patches.
        prefix: P where the model says it, None where it does not: then h x w is the largest grid
            that fits. A sequence of no prefix tokens (a patch embedding's) is known in any case.
        image: Height and width of the images, to which those of the grid are proportional.

    Returns:
        ``[B, D, h, w]``.

    Raises:
        InputError: The tokens are no such grid.

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


def _channels_first(output: Tensor, proportion: float) -> Tensor:
    """``[B, C, H, W]``, also from ``[B, H, W, C]``: a map has the proportions of its image."""
    _, first, second, third = output.shape
    if _apart(second / third, proportion) > _CLEARLY >= _apart(first / second, proportion):
        return output.permute(0, 3, 1, 2)
    return output


_CLEARLY = math.log(1.25)  # rounding of odd sizes stays below


def _apart(one: float, other: float) -> float:
    return abs(math.log(one / other))
