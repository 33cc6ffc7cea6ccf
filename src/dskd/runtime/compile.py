"""Forward passes that torch compiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from dskd.errors import InputError, first_line

BACKEND = "inductor"
"""What makes the code."""


def check_compiler(device: torch.device) -> None:
    """Sees that torch can compile for a device, by having it compile a line.

    Raises:
        InputError: It cannot, for want of a compiler, say.
    """
    try:
        torch.compile(lambda values: values.sin() + 1, backend=BACKEND)(
            torch.ones(2, device=device)
        )
    except Exception as error:  # torch says this in many ways
        raise InputError(
            f"train.compile=true: torch cannot compile here ({first_line(error)}); fix that, or "
            "drop it"
        ) from error


def compiled(module: nn.Module) -> Callable[..., Any]:
    """A module's forward pass, compiled when it is first called; the module stays as it is.

    Each size of a batch is compiled for itself, so that what a step gives does not depend on the
    sizes before it.
    """
    _never_go_on_without()
    forward: Callable[..., Any] = torch.compile(module, dynamic=False, backend=BACKEND)
    return forward


def compile_in_place(module: nn.Module) -> None:
    """As `compiled`, for whoever calls the module itself from now on."""
    _never_go_on_without()
    module.compile(dynamic=False, backend=BACKEND)


def _never_go_on_without() -> None:
    """Else torch compiles a function some times, and then no more, in silence: other rounding."""
    config = torch._dynamo.config
    config.recompile_limit = config.accumulated_recompile_limit = 10_000
    config.fail_on_recompile_limit_hit = True
