"""Forward passes that torch compiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from dskd.errors import InputError, first_line

BACKEND = "inductor"
"""The compiler behind ``torch.compile``."""
MODE = "reduce-overhead"
"""On a GPU, the compiled kernels also run as a CUDA graph: one launch in place of hundreds."""


def check_compiler(device: torch.device) -> None:
    """Compiles one line, to see that torch can compile for a device.

    Raises:
        InputError: It cannot, for example because there is no C++ compiler.
    """
    try:
        torch.compile(lambda values: values.sin() + 1, backend=BACKEND)(
            torch.ones(2, device=device)
        )
    except Exception as error:  # torch reports this in many ways
        raise InputError(
            f"train.compile=true: torch cannot compile here ({first_line(error)}); fix that, or "
            "drop it"
        ) from error


def compiled(module: nn.Module) -> Callable[..., Any]:
    """A module's forward pass, compiled at its first call. The module itself stays as it is.

    Each batch size is compiled by itself, so that a result never depends on earlier batch sizes.
    """
    _fail_rather_than_fall_back()
    forward: Callable[..., Any] = torch.compile(module, dynamic=False, **_options())
    return forward


def compile_in_place(module: nn.Module) -> None:
    """As `compiled`, but calls of the module itself run the compiled forward pass from now on."""
    _fail_rather_than_fall_back()
    module.compile(dynamic=False, **_options())


def _options() -> dict[str, Any]:
    """The arguments of torch.compile; only inductor knows modes."""
    mode = MODE if BACKEND == "inductor" and torch.cuda.is_available() else None
    return {"backend": BACKEND, "mode": mode}


def _fail_rather_than_fall_back() -> None:
    """Makes torch raise where it would silently stop compiling a function it compiled too often.

    The uncompiled function rounds differently.
    """
    config = torch._dynamo.config
    config.recompile_limit = config.accumulated_recompile_limit = 10_000
    config.fail_on_recompile_limit_hit = True
