"""Several processes that train one model; where there is one, nothing here does anything.

``torchrun --nproc-per-node=N -m dskd distill RECIPE`` starts the processes, on one machine or on
several. A rank is the number of one of them. They go together like this:

- **Images.** Each process draws the same epoch plan, and rank r of N takes every N-th image of
  each batch, from the r-th on. So ``train.batch_size`` and ``train.lr`` are the whole run's, and no
  image is ever sent. A last batch of fewer than two images for each process joins the one
  before it: BatchNorm cannot learn from one.
- **Gradients** are averaged after the backward pass, each weighted by its process's share of the
  batch, which gives the gradient of the mean over the whole batch. All processes must use the same
  parameters in a step.
- **Weights** are rank 0's at the start, and stay equal. Each process keeps its own BatchNorm
  statistics; rank 0's are the run's: they are sent to all before anything is evaluated, and they are
  what a checkpoint holds. So a run that was stopped goes on to the same bytes.
- **Relations** between the images of a batch (sp, rkd, cc, pkt, dist, semckd, sskd) are those
  between the images of one process's share, as BatchNorm's statistics are unless
  ``train.sync_batchnorm`` is set. DSKD's weights and scales are those of the whole batch.
- **Files.** Rank 0 alone reads and writes the run's folder and sends the others what it read; no
  other process needs to see it. Images and checkpoints are read by each.
- **Evaluation** is shared: each process evaluates every N-th batch of a split, and all get all results.
- **Ends.** A signal at any process stops all after the same step; so does a number that is not
  finite, before any weight changes. When a process dies, the others end: at once where its
  connections close, else after `TIMEOUT`, or `PATIENCE` where it worked alone. When torchrun itself
  is killed, its processes stop as after a signal.
"""

from __future__ import annotations

import functools
import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dskd.errors import InputError, ProcessLost, first_line

A = TypeVar("A")
B = TypeVar("B")
P = ParamSpec("P")

TIMEOUT = timedelta(seconds=50)
"""How long a process waits for the others in a step: all have ended within a minute then."""
PATIENCE = timedelta(hours=1)
"""How long it waits for work that another does alone: a download, say."""
WATCHED_EVERY = 1.0
"""Seconds after which a process sees whether the torchrun that started it is still there."""

_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class _Group:
    """The processes that are joined.

    Attributes:
        rank: This one's number.
        world: How many they are.
        hosts: For what is said through main memory, and with `PATIENCE`.
    """

    rank: int
    world: int
    hosts: dist.ProcessGroup


_group: _Group | None = None
_joins = itertools.count()


def launched_world_size() -> int:
    """How many processes torchrun started together; 1 without torchrun.

    Example:
        >>> launched_world_size(), is_rank_zero()
        (1, True)
    """
    return int(os.environ["WORLD_SIZE"]) if all(key in os.environ for key in _TORCHRUN) else 1


def launched_rank() -> int:
    """Which of the started processes this is, from 0."""
    return int(os.environ["RANK"]) if launched_world_size() > 1 else 0


def local_rank() -> int:
    """Which of the processes on its machine this is, from 0."""
    return int(os.environ["LOCAL_RANK"]) if launched_world_size() > 1 else 0


def is_rank_zero() -> bool:
    """Whether this is the process that writes and speaks for all."""
    return launched_rank() == 0


def rank() -> int:
    """This process's number in what all do together at the moment; 0 where it works alone."""
    return _group.rank if _group else 0


def world_size() -> int:
    """How many processes work together at the moment.

    Example:
        >>> rank(), world_size()
        (0, 1)
    """
    return _group.world if _group else 1


def require_single_process(what: str) -> None:
    """Refuses work that one process does.

    Raises:
        InputError: torchrun started several.
    """
    if launched_world_size() > 1:
        raise InputError(
            f"{what} runs in one process, and torchrun started {launched_world_size()}; start it without "
            "torchrun"
        )


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """While the block runs, the processes that torchrun started work together.

    Args:
        device: This process's own. GPUs talk through NCCL, CPUs through gloo.

    Raises:
        InputError: Somebody else has joined them already.
        Lost: One did not come within `TIMEOUT`, or is lost.
    """
    global _group
    if launched_world_size() == 1:
        yield
        return
    if dist.is_initialized():
        raise InputError(
            "torch.distributed is in use in this process already; let dskd start it, or run dskd "
            "without torchrun"
        )
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with _asking():
        _group = _join("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        with _stopped_with_torchrun():
            yield
            all_gather(None)  # nobody leaves while another still needs it
    finally:
        _group = None
        dist.destroy_process_group()


@contextmanager
def _stopped_with_torchrun() -> Iterator[None]:
    """Has the process get SIGTERM when its torchrun is killed, which can send it none.

    Only there: what started a process otherwise may end before it, as a shell does.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield
        return
    left, parent = threading.Event(), os.getppid()

    def watch() -> None:
        while not left.wait(WATCHED_EVERY):
            if os.getppid() != parent:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        left.set()


def _join(backend: str) -> _Group:
    # Here: they are not there in every build of torch.
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, rank, world = next(rendezvous("env://", timeout=TIMEOUT))
    # The keys of a process's earlier runs are still there: each run has its own.
    store = PrefixStore(f"dskd{next(_joins)}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=TIMEOUT)
    hosts = dist.new_group(backend="gloo", timeout=PATIENCE)
    assert isinstance(hosts, dist.ProcessGroup), "every process is in it"
    return _Group(rank, world, hosts)


@contextmanager
def _asking() -> Iterator[None]:
    """Says in one line what any backend says of processes that are gone."""
    try:
        yield
    except RuntimeError as error:
        reason = first_line(error).partition(". ")[0]
        raise ProcessLost(
            f"another process of this run died or does not answer ({reason}); see what it said, "
            "and go on with --resume"
        ) from error


@contextmanager
def _apart() -> Iterator[None]:
    """Within the block this process asks nothing of the others."""
    global _group
    group, _group = _group, None
    try:
        yield
    finally:
        _group = group


@contextmanager
def independently() -> Iterator[None]:
    """Within the block each process works as if there were no other; then all wait for all.

    Raises:
        InputError: One process raised it; all others raise the same.
    """
    if _group is None:
        yield
        return
    refusal: InputError | None = None
    try:
        with _apart():
            yield
    except InputError as error:
        refusal = error
    for message in all_gather(str(refusal) if refusal else None):
        if message is not None:
            raise InputError(message) from refusal


def local_rank_zero_first(work: Callable[[], A]) -> A:
    """What ``work`` gives on each process, once a first process of each machine has done it.

    So what it decodes and downloads into a cache, the others on the machine find there.

    Raises:
        InputError: As in `alone`.
    """
    results: list[A] = []
    for turn in (True, False):
        with independently():
            if turn == (local_rank() == 0):
                results.append(work())
    return results[0]


def on_rank_zero(work: Callable[P, A]) -> Callable[P, A]:
    """A function that rank 0 alone carries out; the others get what it returned.

    Its InputError is everybody's. Any other error ends rank 0, and with it the others.

    Example:
        >>> on_rank_zero(lambda: 1)()
        1
    """

    @functools.wraps(work)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> A:
        if _group is None:
            return work(*args, **kwargs)
        said: list[object] = [None, None]
        if _group.rank == 0:
            try:
                with _apart():
                    said[0] = work(*args, **kwargs)
            except InputError as error:
                said[1] = str(error)
        with _asking():
            dist.broadcast_object_list(said, src=0, group=_group.hosts)
        if said[1] is not None:
            raise InputError(str(said[1]))
        return said[0]  # type: ignore[return-value]

    return wrapper


def all_gather(value: A) -> list[A]:
    """The value of every process, in the order of their ranks.

    Args:
        value: Plain values and tensors on the CPU.
    """
    if _group is None:
        return [value]
    values = [value] * _group.world
    with _asking():
        dist.all_gather_object(values, value, group=_group.hosts)
    return values


def shard_map(work: Callable[[A], B], items: Iterable[A]) -> list[B]:
    """What ``work`` gives for every item, in order, each item done by one process.

    Args:
        work: Gives plain values and tensors on the CPU.
        items: The same on all processes.

    Example:
        >>> shard_map(abs, [-1, 2])
        [1, 2]
    """
    own = [work(item) for item in itertools.islice(items, rank(), None, world_size())]
    parts = all_gather(own)
    count = sum(len(part) for part in parts)
    return [parts[item % world_size()][item // world_size()] for item in range(count)]


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Gives the tensors of all processes the values that they have on rank 0, once all are there.

    Args:
        tensors: On one device, of the same shapes and types everywhere.
    """
    tensors = list(tensors)
    if _group is None or not tensors:
        return
    values = [tensor.detach().contiguous().flatten().view(torch.uint8) for tensor in tensors]
    flat = torch.cat(values)
    with _asking():
        dist.barrier(_group.hosts)
        dist.broadcast(flat, src=0)
    for tensor, part in zip(tensors, torch.split(flat, [len(v) for v in values]), strict=True):
        # A copy starts where any type may start.
        tensor.detach().copy_(part.clone().view(tensor.dtype).view(tensor.shape))


def all_reduce_sum(values: Tensor) -> Tensor:
    """The sum of the processes' values."""
    return _reduced(values, dist.ReduceOp.SUM)


def all_true(flag: Tensor) -> Tensor:
    """Whether a flag, bool of any shape, is set on every process."""
    return flag if _group is None else _reduced(flag.int(), dist.ReduceOp.MIN).bool()


def all_reduce_max(value: int) -> int:
    """The largest of the processes' numbers."""
    return value if _group is None else int(_reduced(torch.tensor(value), dist.ReduceOp.MAX))


def weighted_mean(values: Tensor, num_samples: int) -> Tensor:
    """Means over the whole batch, from those over each process's images.

    ``sum_r n_r v_r / sum_r n_r`` with ``n_r`` the images of rank r. No gradient passes through
    where there are several processes.

    Args:
        values: Any shape, the same on every process. Returned as it is where there is one.
        images: How many this process has.
    """
    if _group is None:
        return values
    values = values.detach().to(torch.promote_types(values.dtype, torch.float32))
    sums = all_reduce_sum(torch.cat([values.flatten(), values.new_ones(1)]) * num_samples)
    return (sums[:-1] / sums[-1]).view(values.shape)


def average_gradients(parameters: Iterable[nn.Parameter], num_samples: int) -> None:
    """Makes each gradient that of the mean over the whole batch: one message for all of them.

    Args:
        parameters: Those without a gradient are left without.
        images: How many this process's gradients are the mean of.
    """
    if _group is None:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = weighted_mean(torch.cat([gradient.flatten() for gradient in gradients]), num_samples)
    parts = torch.split(flat, [gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def _reduced(values: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
    if _group is None:
        return values
    values = values.detach().clone()
    with _asking():
        dist.all_reduce(values, operation)
    return values
