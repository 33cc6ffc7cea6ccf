"""What torchrun told this process: its rank, and how many processes there are.

The launcher sets environment variables, so nothing here imports torch.
"""

from __future__ import annotations

import os

_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def launched_world_size() -> int:
    """Number of processes that torchrun started; 1 without torchrun.

    Example:
        >>> launched_world_size(), is_rank_zero()
        (1, True)
    """
    return int(os.environ["WORLD_SIZE"]) if all(key in os.environ for key in _TORCHRUN) else 1


def launched_rank() -> int:
    """Rank that torchrun gave this process, from 0."""
    return int(os.environ["RANK"]) if launched_world_size() > 1 else 0


def local_rank() -> int:
    """Rank of this process among those on its machine, from 0."""
    return int(os.environ["LOCAL_RANK"]) if launched_world_size() > 1 else 0


def local_world_size() -> int:
    """Number of processes that torchrun started on this machine; 1 without torchrun."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if launched_world_size() > 1 else 1


def is_rank_zero() -> bool:
    """Whether this process writes files and messages for all."""
    return launched_rank() == 0
