"""Gradient accumulation: the batch of a step in parts, and their outputs as those of one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from dskd.data.epoch_plan import MIN_SAMPLES
from dskd.data.loader import Batch
from dskd.methods.contracts import StepOutput
from dskd.runtime import distributed


def count_parts(
    global_size: int,
    batch_size: int,
    accumulate: int,
    world_size: int = 1,
    fewest: int | None = None,
) -> int:
    """How many parts a step has: as few as possible of at most ``batch_size`` samples each.

    The last step of an epoch may have fewer samples than the others. Each process gets two samples
    or more of each part.

    Args:
        global_size: Samples of the step, over all processes.
        batch_size: Samples of a part, over all processes.
        accumulate: Most parts.
        world_size: Number of processes.
        fewest: Samples that the process with the fewest has; None for an even share.

    Example:
        >>> count_parts(64, 16, 4), count_parts(65, 16, 4), count_parts(20, 16, 4)
        (4, 4, 2)
    """
    needed = min(accumulate, -(-global_size // batch_size))
    fewest = global_size // world_size if fewest is None else fewest
    return max(1, min(needed, fewest // MIN_SAMPLES))


def process_sizes(batch: Batch, world_size: int) -> list[int]:
    """How many samples of a step each process has.

    Rank r of N has every N-th sample with a label, and every N-th without, each from the r-th on.
    """
    kinds = batch.kinds or (batch.global_size,)
    return [
        sum(-(-max(0, size - rank) // world_size) for size in kinds) for rank in range(world_size)
    ]


def split(batch: Batch, parts: int) -> list[Batch]:
    """The parts of this process's share of a batch.

    The whole batch is cut into parts of nearly the same size. Each process takes its share of each
    part, so that the parts hold the same samples for any number of processes. With images without
    labels, each process cuts its own share, in which both kinds are evenly mixed.

    Args:
        batch: This process's samples.
        parts: How many.
    """
    if parts == 1:
        return [batch]
    rank, world = distributed.rank(), distributed.world_size()
    if batch.kinds is None:
        whole = [batch.global_size * number // parts for number in range(parts + 1)]
        own = [max(0, -(-(bound - rank) // world)) for bound in whole]
    else:
        sizes = process_sizes(batch, world)
        cuts = [[size * number // parts for size in sizes] for number in range(parts + 1)]
        whole, own = [sum(cut) for cut in cuts], [cut[rank] for cut in cuts]
    found = []
    for number, (start, stop) in enumerate(pairwise(own)):
        values: dict[str, Any] = {
            name: value[start:stop]
            for name, value in vars(batch).items()
            if isinstance(value, Tensor)
        }
        size = whole[number + 1] - whole[number]
        found.append(replace(batch, **values, part=number, global_size=size))
    return found


def joined(outputs: Sequence[StepOutput], sizes: Sequence[int]) -> StepOutput:
    """The output of a whole batch from those of its parts: means over its samples.

    Args:
        outputs: Of the parts, with the same losses and metrics.
        sizes: Samples of each part.
    """
    if len(outputs) == 1:
        return outputs[0]
    shares = [size / sum(sizes) for size in sizes]

    def mean(values: Sequence[Tensor]) -> Tensor:
        scaled = [share * value for share, value in zip(shares, values, strict=True)]
        return torch.stack(scaled).sum(0)

    first = outputs[0]
    return StepOutput(
        {name: mean([output.losses[name] for output in outputs]) for name in first.losses},
        torch.cat([output.logits for output in outputs]),
        {name: mean([output.metrics[name] for output in outputs]) for name in first.metrics},
    )
