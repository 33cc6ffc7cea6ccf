"""Fused attention in plain operations, for exporters that do not know all its forms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Unfused(TorchFunctionMode):
    """Within the block, attention over other than four dimensions runs as plain operations.

    torch's ONNX exporter translates `torch.nn.functional.scaled_dot_product_attention` only for
    tensors with four dimensions. timm's NesT and Hiera call it with five.

    Example:
        >>> x = torch.rand(2, 2, 3, 4, 5)
        >>> fused = F.scaled_dot_product_attention(x, x, x)
        >>> with Unfused():
        ...     torch.allclose(F.scaled_dot_product_attention(x, x, x), fused, atol=1e-6)
        True
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Runs a function of torch, or plain attention in its place."""
        kwargs = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            query = args[0] if args else kwargs["query"]
            if query.dim() != 4:
                return attention(*args, **kwargs)
        return func(*args, **kwargs)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``softmax(scale * Q K^T + mask) V``, as torch's scaled_dot_product_attention without dropout.

    Args:
        query: ``[..., L, E]``.
        key: ``[..., S, E]``.
        value: ``[..., S, D]``.
        attn_mask: Added to the scores; of type bool, False hides a position.
        dropout_p: Ignored: a student that is exported is in evaluation mode.
        is_causal: Whether position i sees the positions up to i only.
        scale: By default ``1 / sqrt(E)``.
        enable_gqa: Whether several heads of the queries share a head of keys and values.

    Returns:
        ``[..., L, D]``.

    Source: the documentation of `torch.nn.functional.scaled_dot_product_attention`.
    """
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~seen, float("-inf"))
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, float("-inf"))
    elif attn_mask is not None:
        scores = scores + attn_mask
    return scores.softmax(-1) @ value
