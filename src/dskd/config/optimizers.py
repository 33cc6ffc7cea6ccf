"""The optimizers that a recipe can name: our own choices, and those of timm."""

from __future__ import annotations

import importlib
from typing import get_args

from dskd.errors import InputError, unknown
from dskd.settings import OwnOptimizer

OWN: tuple[str, ...] = get_args(OwnOptimizer)
TIMM = "timm/"


def timm_optimizer(name: str) -> str | None:
    """The name of a timm optimizer in timm; None for one of our own.

    Args:
        name: As in ``train.optimizer``: ``timm/<name>``, or the plain name.

    Raises:
        InputError: There is no such optimizer, or it cannot train here.

    Example:
        >>> timm_optimizer("timm/lamb"), timm_optimizer("lamb"), timm_optimizer("sgd")
        ('lamb', 'lamb', None)
    """
    if name in OWN:
        return None
    plain = name.removeprefix(TIMM)
    optim = importlib.import_module("timm.optim")  # here, since it takes a second
    known = optim.list_optimizers()
    if plain not in known:
        prefix = TIMM if name.startswith(TIMM) else ""
        names = sorted({*OWN, *(f"{prefix}{other}" for other in known)})
        raise InputError(f"train.optimizer: {unknown('optimizer', name, names)}")
    if optim.get_optimizer_info(plain).second_order:
        raise InputError(
            f"train.optimizer={name}: it needs second derivatives, which a training step does not "
            "compute; take another optimizer"
        )
    return str(plain)
