"""The tokens that a transformer puts in front of its patches."""

from __future__ import annotations

import re

from torch import nn

_TOKENS = re.compile(r"(cls|class|dist|distillation|reg|register|storage)_?tokens?$")
"""Names of the parameters that become prefix tokens, as transformers usually call them."""


def find_prefix_tokens(module: nn.Module) -> int | None:
    """The number of a transformer's class, distillation and register tokens.

    It is the ``num_prefix_tokens`` of a model of timm, also inside another module, else the number
    of the parameters ``cls_token``, ``register_tokens`` and the like, ``[1, n, D]``, of a part.

    Args:
        module: Any module.

    Returns:
        None if the module tells nothing.

    Example:
        >>> import torch
        >>> net = nn.ParameterDict({"cls_token": torch.zeros(1, 1, 8)})
        >>> net["register_tokens"] = torch.zeros(1, 4, 8)
        >>> find_prefix_tokens(net), find_prefix_tokens(nn.Linear(2, 2))
        (5, None)
    """
    parts = list(module.modules())
    told = (getattr(part, "num_prefix_tokens", None) for part in parts)
    if (number := next((n for n in told if isinstance(n, int)), None)) is not None:
        return number
    return max(sum(map(_count, part.named_parameters(recurse=False))) for part in parts) or None


def _count(named: tuple[str, nn.Parameter]) -> int:
    name, parameter = named
    if not _TOKENS.search(name) or parameter.dim() != 3 or parameter.shape[0] != 1:
        return 0
    return parameter.shape[1]
