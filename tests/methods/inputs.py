"""Batches for the tests of methods."""

from __future__ import annotations

import torch
from torch import Tensor

from dskd.data import Dataset
from dskd.data.epoch_plan import draw_plan
from dskd.data.loader import Batch, MemoryLoader
from tests.builders import make_dataset

DATA = make_dataset()


def batch_of(images: Tensor, epoch: int = 0) -> Batch:
    """A batch of these images, with labels 0, 1, 2, 3, 0, ..."""
    count = torch.arange(len(images))
    return Batch(images, count % 4, count, count, count, epoch, step=0)


def first_batch(size: int = 8, epoch: int = 0, data: Dataset = DATA) -> Batch:
    """The first augmented batch of an epoch."""
    plan = draw_plan(0, epoch, len(data.train), 2, True)
    return next(MemoryLoader(data.train, torch.device("cpu")).batches(plan, size))
