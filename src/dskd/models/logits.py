"""Take the logits from what a classifier returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any

from torch import Tensor, nn

from dskd.errors import InputError


def find_logits(output: Any, samples: int, module: nn.Module) -> Any:
    """The logits in the output of a module.

    An output may be a tensor, or hold the logits: as ``logits`` (Hugging Face, torchvision's
    GoogLeNet and Inception v3), as its only tensor ``[B, K]``, or, in a module with
    ``aux_logits``, as the first of several (timm's Inception v3).

    Args:
        output: What the module returned: a tensor, tuple, mapping or object.
        samples: The batch size B.
        module: The module.

    Returns:
        The logits; the output itself if it holds no tensor ``[B, K]``.

    Raises:
        InputError: It holds several such tensors, and none is called ``logits``.

    Example:
        >>> import torch
        >>> output = {"logits": torch.zeros(2, 3), "features": torch.ones(2, 9)}
        >>> find_logits(output, 2, nn.Identity()).shape
        torch.Size([2, 3])
    """
    parts = _parts(output)
    if isinstance(parts.get("logits"), Tensor):
        return parts["logits"]
    fitting = {
        key: part
        for key, part in parts.items()
        if isinstance(part, Tensor) and part.dim() == 2 and part.shape[0] == samples
    }
    if len(fitting) > 1 and not getattr(module, "aux_logits", False):
        listed = ", ".join(f"{key} {list(part.shape)}" for key, part in fitting.items())
        raise InputError(
            f"{type(module).__name__} gives {listed}, not logits [B, K] alone; wrap it in a module "
            "that returns only logits"
        )
    return next(iter(fitting.values()), output)


def _parts(output: Any) -> dict[str, Any]:
    """The parts of an output by name or number."""
    if isinstance(output, Tensor):
        return {}
    if isinstance(output, Mapping):
        return {str(key): part for key, part in output.items()}
    if isinstance(output, tuple) and hasattr(output, "_asdict"):
        return dict(output._asdict())
    if isinstance(output, tuple | list):
        return {f"output {number}": part for number, part in enumerate(output)}
    if is_dataclass(output) or hasattr(output, "logits"):
        found = dict(getattr(output, "__dict__", {}))
        return found | {"logits": getattr(output, "logits", None)}
    return {}
