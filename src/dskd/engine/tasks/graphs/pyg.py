"""The one place that imports PyTorch Geometric."""

from __future__ import annotations

import warnings
from typing import Any

from dskd.runtime.extras import import_extra


def pyg(module: str) -> Any:
    """A module of PyTorch Geometric.

    Args:
        module: Its name in the package, such as ``nn``.

    Raises:
        InputError: PyTorch Geometric is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # it uses torch.jit, and torch says so
        needed = "graphs need PyTorch Geometric, which is not installed;"
        return import_extra(f"torch_geometric.{module}", "graphs", needed)
