"""The pure loss functions: ``dskd.losses.NAME`` is the loss of the method NAME.

Losses that several methods share are in this package. A method's own loss is in its file:
``dskd.losses.at`` is ``at_loss`` of `dskd.methods.at`. It is looked up when it is first used, so
that a new method needs no entry here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

from torch import Tensor

from dskd.losses.allocation import allocate
from dskd.losses.feature_maps import feature_loss
from dskd.losses.logits import LOGIT_LOSSES, ce, dist, dkd, kd

__all__ = ["LOGIT_LOSSES", "allocate", "ce", "dist", "dkd", "feature_loss", "kd"]


def __getattr__(name: str) -> Callable[..., Tensor]:
    from dskd import methods  # the one import upward: methods import their losses from here

    if name not in methods.names():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{methods.__name__}.{name}")
    loss: Callable[..., Tensor] = getattr(module, f"{name}_loss")
    return loss


def __dir__() -> list[str]:
    from dskd import methods

    return sorted({*globals(), *methods.names()})
