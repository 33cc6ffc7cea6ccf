"""What all exports of a test session share."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest


@pytest.fixture(autouse=True, scope="session")
def _tables_are_made_once() -> Iterator[None]:
    """Torch makes two tables anew for each file of ONNX, which takes longer than the file."""
    with pytest.MonkeyPatch.context() as patch:
        with suppress(ImportError, AttributeError):  # they are torch's own matter
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
        yield
