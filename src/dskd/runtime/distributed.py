"""Several processes that train one model. With one process nothing here does anything.

``torchrun --nproc-per-node=N -m dskd distill RECIPE`` starts the processes, on one machine or on
several. They work together like this:

- **Samples.** Each process draws the same epoch plan. Rank r of N takes every N-th sample of each
  batch, starting at the r-th. So ``train.batch_size`` and ``train.lr`` are those of the whole run,
  and no sample is ever sent. A last batch with fewer than two samples a process joins the batch
  before it, because BatchNorm cannot learn from one sample.
- **Gradients.** torch's `DistributedDataParallel` averages them during the backward pass. A local
  loss is scaled by ``n_r N / n`` (``n_r`` of the ``n`` samples are this process's), so the average
  is exactly the gradient of the mean over the whole batch, also when the shares differ.
- **Weights** start as those of rank 0 and stay equal. Each process has its own BatchNorm
  statistics. Those of rank 0 are sent to all before an evaluation, and a checkpoint holds them.
- **Relations** between the samples of a batch (sp, rkd, cc, pkt, dist, mlkd, semckd, sskd, and
  methods that use a loss of these), and what vkd standardises, are those of the samples of one
  process, as BatchNorm's statistics are unless ``train.sync_batchnorm`` is set. DSKD's weights and
  scales are those of the whole batch.
- **Files.** Rank 0 alone reads and writes the run directory, and sends what it read to the others.
  Images and teacher checkpoints are read by each process.
- **Evaluation.** Each process evaluates every N-th batch of a split; all get all results.
- **Ends.** A signal at any process stops all after the same step. A NaN in one process stops all
  before any weight changes. If a process dies, the others end: at once if its connections close,
  else after `TIMEOUT`, or after `LONG_TIMEOUT` while it worked alone. If torchrun itself is killed,
  its processes stop as after a signal.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dskd.errors import InputError
from dskd.runtime.launch import is_rank_zero, launched_rank, launched_world_size, local_rank
from dskd.runtime.process_group import (
    LONG_TIMEOUT,
    TIMEOUT,
    all_gather,
    alone,
    communication,
    current,
    is_loss,
    process_group,
    rank,
    require_single_process,
    world_size,
)

__all__ = [
    "LONG_TIMEOUT",
    "TIMEOUT",
    "all_gather",
    "all_reduce_max",
    "all_reduce_sum",
    "all_true",
    "averaging_gradients",
    "broadcast",
    "data_parallel",
    "independently",
    "is_loss",
    "is_rank_zero",
    "launched_rank",
    "launched_world_size",
    "local_loss_scale",
    "local_rank",
    "local_rank_zero_first",
    "of_this_process",
    "on_rank_zero",
    "previous_rows",
    "process_group",
    "rank",
    "require_single_process",
    "shard_map",
    "weighted_mean",
    "world_size",
]

A = TypeVar("A")
B = TypeVar("B")
P = ParamSpec("P")


@contextmanager
def independently() -> Iterator[None]:
    """Each process works by itself within the block; afterwards all wait for all.

    Raises:
        InputError: One process raised it; all others raise the same.
    """
    if current() is None:
        yield
        return
    refusal: InputError | None = None
    try:
        with alone():
            yield
    except InputError as error:
        refusal = error
    for message in all_gather(str(refusal) if refusal else None):
        if message is not None:
            raise InputError(message) from refusal


def local_rank_zero_first(work: Callable[[], A]) -> A:
    """Runs ``work`` in one process of each machine, then in the others.

    So the others find what the first downloaded or decoded into the cache.

    Returns:
        What ``work`` returned in this process.

    Raises:
        InputError: As in `independently`.
    """
    results: list[A] = []
    for first in (True, False):
        with independently():
            if first == (local_rank() == 0):
                results.append(work())
    return results[0]


def on_rank_zero(work: Callable[P, A]) -> Callable[P, A]:
    """A function that only rank 0 runs; all processes get what it returned.

    Its InputError is raised in all processes. Any other error ends rank 0 and so the others.

    Example:
        >>> on_rank_zero(lambda: 1)()
        1
    """

    @functools.wraps(work)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> A:
        group = current()
        if group is None:
            return work(*args, **kwargs)
        said: list[object] = [None, None]
        if group.rank == 0:
            try:
                with alone():
                    said[0] = work(*args, **kwargs)
            except InputError as error:
                said[1] = str(error)
        with communication():
            dist.broadcast_object_list(said, src=0, group=group.cpu)
        if said[1] is not None:
            raise InputError(str(said[1]))
        return said[0]  # type: ignore[return-value]

    return wrapper


def of_this_process(items: Iterable[A]) -> Iterator[A]:
    """Items that each process makes for itself, such as its share of the images.

    Raises:
        InputError: An item cannot be made. It is marked as met by this process alone, which then
            says so (``of_one_process``).
    """
    try:
        yield from items
    except InputError as error:
        error.of_one_process = True
        raise


def shard_map(work: Callable[[A], B], items: Iterable[A]) -> list[B]:
    """``work`` of the items of all processes, in order; each item is computed by one process.

    Args:
        work: Returns plain values and CPU tensors.
        items: Those of this process: of all items one of ``world_size()``, from ``rank()`` on.

    Example:
        >>> shard_map(abs, [-1, 2])
        [1, 2]
    """
    own = [work(item) for item in items]
    parts = all_gather(own)
    count = sum(len(part) for part in parts)
    return [parts[item % world_size()][item // world_size()] for item in range(count)]


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Overwrites the tensors of all processes with those of rank 0.

    Args:
        tensors: On one device, with the same shapes and types everywhere.
    """
    tensors, group = list(tensors), current()
    if group is None or not tensors:
        return
    values = [tensor.detach().contiguous().flatten().view(torch.uint8) for tensor in tensors]
    flat = torch.cat(values)
    with communication():
        dist.barrier(group.cpu)
        dist.broadcast(flat, src=0)
    for tensor, part in zip(tensors, torch.split(flat, [len(v) for v in values]), strict=True):
        # The clone is aligned for any type.
        tensor.detach().copy_(part.clone().view(tensor.dtype).view(tensor.shape))


def all_reduce_sum(values: Tensor) -> Tensor:
    """The sum of the values over all processes."""
    return _reduced(values, dist.ReduceOp.SUM)


def all_true(flags: Tensor) -> Tensor:
    """For each flag, bool of any shape, whether it is set in every process."""
    return flags if current() is None else _reduced(flags.int(), dist.ReduceOp.MIN).bool()


def all_reduce_max(value: int) -> int:
    """The largest of the processes' numbers."""
    return value if current() is None else int(_reduced(torch.tensor(value), dist.ReduceOp.MAX))


def weighted_mean(values: Tensor, num_samples: int) -> Tensor:
    """Means over the whole batch from the means over each process's samples.

    ``sum_r n_r v_r / sum_r n_r`` with ``n_r`` the samples of rank r. With several processes no
    gradient passes through.

    Args:
        values: Any shape, the same in every process. Returned as it is with one process.
        num_samples: Of this process.
    """
    if current() is None:
        return values
    values = values.detach().to(torch.promote_types(values.dtype, torch.float32))
    sums = all_reduce_sum(torch.cat([values.flatten(), values.new_ones(1)]) * num_samples)
    return (sums[:-1] / sums[-1]).view(values.shape)


def data_parallel(module: nn.Module, *, static_graph: bool) -> nn.Module:
    """The module whose backward pass also averages gradients over all processes.

    torch's `DistributedDataParallel` sends the weights and buffers of rank 0 to all, and averages
    gradients in buckets while the backward pass goes on. Its `no_sync` serves gradient
    accumulation. Each process keeps its own BatchNorm statistics.

    Args:
        module: On its device. Returned as it is with one process.
        static_graph: Whether every step uses the same parameters in the same order.
    """
    if current() is None:
        return module
    with communication(), warnings.catch_warnings():
        # Newer versions of torch have another name for it, which older ones lack.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        return nn.parallel.DistributedDataParallel(
            module,
            broadcast_buffers=False,
            static_graph=static_graph,
            find_unused_parameters=not static_graph,
        )


def averaging_gradients(module: nn.Module | None, wanted: bool) -> AbstractContextManager[Any]:
    """A block whose backward pass averages gradients over all processes, or adds them up locally.

    Args:
        module: As `data_parallel` returned it; None for one process.
        wanted: Whether to average, also what earlier blocks added up.
    """
    if wanted or not isinstance(module, nn.parallel.DistributedDataParallel):
        return nullcontext()
    return module.no_sync()


def previous_rows(values: Tensor, global_size: int) -> Tensor:
    """For each of this process's samples of a step, the row of the sample before it in the step.

    The sample before the first is the last. Rank r of N has every N-th sample, from the r-th on.

    Args:
        values: ``[B, ...]``, of this process's samples.
        global_size: Samples of the step, over all processes.

    Example:
        >>> previous_rows(torch.tensor([1, 2, 3]), 3)
        tensor([3, 1, 2])
    """
    group = current()
    if group is None:
        return values.roll(1, 0)
    rows = -(-global_size // group.world_size)
    own = values.new_zeros(rows, *values.shape[1:])
    own[: len(values)] = values
    parts = [torch.empty_like(own) for _ in range(group.world_size)]
    with communication():
        dist.all_gather(parts, own)
    end = max(group.rank, global_size)  # a process may have no sample
    wanted = torch.arange(group.rank, end, group.world_size, device=values.device) - 1
    wanted %= global_size
    return torch.stack(parts)[wanted % group.world_size, wanted // group.world_size]


def local_loss_scale(num_samples: int, global_size: int) -> float:
    """The factor on this process's mean loss that makes averaged gradients exact: ``n_r N / n``.

    Args:
        num_samples: ``n_r``, of this process.
        global_size: ``n``, of all processes.

    Example:
        >>> local_loss_scale(10, 10)
        1.0
    """
    return num_samples * world_size() / global_size


def _reduced(values: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
    if current() is None:
        return values
    values = values.detach().clone()
    with communication():
        dist.all_reduce(values, operation)
    return values
