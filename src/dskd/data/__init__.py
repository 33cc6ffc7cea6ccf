"""Data sets: uint8 images and labels, read from files that are never changed.

The names below are imported when they are first used, so that `dskd.data.catalog` comes without
torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dskd.data.catalog import DATASETS
    from dskd.data.dataset import Dataset, Split, channel_statistics
    from dskd.data.registry import load_dataset, take_part

__all__ = ["DATASETS", "Dataset", "Split", "channel_statistics", "load_dataset", "take_part"]

_HOMES = {
    "DATASETS": "catalog",
    "Dataset": "dataset",
    "Split": "dataset",
    "channel_statistics": "dataset",
    "load_dataset": "registry",
    "take_part": "registry",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
