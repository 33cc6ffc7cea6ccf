"""The processes that torchrun started, and the group in which they work together."""

from __future__ import annotations

import functools
import itertools
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist

from dskd.errors import InputError, ProcessLost, first_line, option
from dskd.runtime.launch import launched_world_size

if TYPE_CHECKING:  # some builds of torch lack it
    from torch.distributed.distributed_c10d import Store

A = TypeVar("A")

TIMEOUT = timedelta(seconds=50)
"""How long a process waits for the others in a step. All processes end within a minute."""
LONG_TIMEOUT = timedelta(hours=1)
"""How long it waits for work that one process does alone, such as a download."""
PATIENCE_SECONDS = 5.0
"""How long a process that lost another waits for its own part of the communication to end."""
_OF_BACKENDS = ("gloo", "nccl", "connection closed by peer", "connection reset by peer")
"""Words in the errors of a backend."""
_MEETING_POINT = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE")
"""The environment variables that say where processes find each other."""
PARENT_CHECK_SECONDS = 1.0
"""How often a process checks that the torchrun that started it is still alive."""


@dataclass(frozen=True)
class Group:
    """The processes that work together.

    Attributes:
        rank: Of this process.
        world_size: Number of processes.
        cpu: The gloo group for Python values, with `LONG_TIMEOUT`.
    """

    rank: int
    world_size: int
    cpu: dist.ProcessGroup


_current: Group | None = None
_joins = itertools.count()


def current() -> Group | None:
    """The processes that share the work right now; None while this process works alone."""
    return _current


def rank() -> int:
    """Rank in the work that is shared right now; 0 while this process works alone."""
    return _current.rank if _current else 0


def world_size() -> int:
    """Number of processes that share the work right now.

    Example:
        >>> rank(), world_size()
        (0, 1)
    """
    return _current.world_size if _current else 1


def require_single_process(what: str) -> None:
    """Refuses several processes for work that one process does.

    Raises:
        InputError: torchrun started several.
    """
    if launched_world_size() > 1:
        raise InputError(
            f"{what} runs in one process, and torchrun started {launched_world_size()}; start it "
            "without torchrun"
        )


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Joins the processes that torchrun started while the block runs.

    Args:
        device: Of this process. GPUs use NCCL, CPUs use gloo.

    Raises:
        InputError: ``torch.distributed`` is already in use.
        ProcessLost: A process did not join within `TIMEOUT`, or died.
    """
    global _current
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
    with communication():
        _current = _join("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    lost = False
    try:
        with _stopped_with_torchrun(), _losses_recognized():
            yield
            all_gather(None)  # no process leaves while another still needs it
    except ProcessLost:
        lost = True
        raise
    finally:
        _current = None
        _leave(lost)


@contextmanager
def _losses_recognized() -> Iterator[None]:
    """Turns a backend's error from anywhere in the run into `ProcessLost`.

    `DistributedDataParallel` communicates in forward and backward passes, which may also fail for
    reasons of their own.
    """
    try:
        yield
    except RuntimeError as error:
        if is_loss(error):
            with communication():
                raise
        raise


def is_loss(error: BaseException) -> bool:
    """Whether an error says that another process is lost.

    Example:
        >>> is_loss(ProcessLost("gone")), is_loss(RuntimeError("shapes differ"))
        (True, False)
    """
    if isinstance(error, ProcessLost | dist.DistError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in text for word in _OF_BACKENDS)


def _leave(lost: bool) -> None:
    """Ends the communication of this process.

    After a loss, neither an error nor a backend that hangs keeps the process from reporting it.
    """
    if not lost:
        dist.destroy_process_group()
        return
    _store.cache_clear()

    def destroy() -> None:
        with suppress(Exception):
            dist.destroy_process_group()

    thread = threading.Thread(target=destroy, daemon=True)
    thread.start()
    thread.join(PATIENCE_SECONDS)


@contextmanager
def _stopped_with_torchrun() -> Iterator[None]:
    """Sends this process SIGTERM if its torchrun was killed and could not send it.

    Only under torchrun: another parent, such as a shell, may end before its children.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield
        return
    left, parent = threading.Event(), os.getppid()

    def watch() -> None:
        while not left.wait(PARENT_CHECK_SECONDS):
            if os.getppid() != parent:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        left.set()


def _join(backend: str) -> Group:
    from torch.distributed.distributed_c10d import PrefixStore  # some builds of torch lack it

    base, rank, world = _store(*(os.environ.get(key) for key in _MEETING_POINT))
    # The store still has the keys of this process's earlier runs, so each run has its own prefix.
    store = PrefixStore(f"dskd{next(_joins)}", base)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=TIMEOUT)
    cpu = dist.new_group(backend="gloo", timeout=LONG_TIMEOUT)
    assert isinstance(cpu, dist.ProcessGroup), "every process is in it"
    return Group(rank, world, cpu)


@functools.cache
def _store(*meeting_point: str | None) -> tuple[Store, int, int]:
    """The store in which processes find each other, this process's rank, and their number.

    It stays until the process ends. If a run closed it, another process could begin its next run
    with the old store, and lose it.

    Args:
        meeting_point: The values of `_MEETING_POINT`.
    """
    from torch.distributed.rendezvous import rendezvous  # some builds of torch lack it

    found: tuple[Store, int, int] = next(rendezvous("env://", timeout=TIMEOUT))
    return found


@contextmanager
def communication() -> Iterator[None]:
    """Turns a backend's error about a lost process into one line.

    Raises:
        ProcessLost: Another process died or does not answer.
    """
    try:
        yield
    except ProcessLost:
        raise
    except RuntimeError as error:
        reason = first_line(error).partition(". ")[0]
        raise ProcessLost(
            f"another process of this run died or does not answer ({reason}); see what it said, "
            f"and go on with {option('resume')}"
        ) from error


@contextmanager
def alone() -> Iterator[None]:
    """This process does not communicate within the block."""
    global _current
    group, _current = _current, None
    try:
        yield
    finally:
        _current = group


def all_gather(value: A) -> list[A]:
    """The value of every process, by rank.

    Args:
        value: Plain values and CPU tensors.
    """
    if _current is None:
        return [value]
    values = [value] * _current.world_size
    with communication():
        dist.all_gather_object(values, value, group=_current.cpu)
    return values
