"""Data sets: images as bytes in memory, from files that are only ever read."""

from dskd.data.dataset import Dataset, Split, channel_statistics
from dskd.data.registry import DATASETS, load_dataset, take_part

__all__ = ["DATASETS", "Dataset", "Split", "channel_statistics", "load_dataset", "take_part"]
