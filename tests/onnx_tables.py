"""Tables that torch makes anew for each file of ONNX, which takes longer than the file."""

from __future__ import annotations

import functools
from contextlib import suppress
from typing import Any

import pytest


def keep(patch: pytest.MonkeyPatch) -> None:
    """Has all exports use the tables of the first one. They are torch's own matter."""
    with suppress(ImportError, AttributeError):
        from torch.onnx._internal.exporter import _decomp, _registration

        registry: Any = _registration.ONNXRegistry
        make: Any = functools.cache(registry.__dict__["from_torchlib"].__func__)
        table = _decomp.create_onnx_friendly_decomposition_table
        made: list[Any] = []

        def once(operations: Any) -> Any:
            if not made:
                made.append(table(operations))
            return dict(made[0])

        patch.setattr(registry, "from_torchlib", classmethod(make))
        patch.setattr(_decomp, "create_onnx_friendly_decomposition_table", once)
