"""The processes that torchrun started, and the group in which they work together."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from dskd.errors import InputError, ProcessLost, first_line
from dskd.runtime.launch import launched_world_size

A = TypeVar("A")

TIMEOUT = timedelta(seconds=50)
"""How long a process waits for the others in a step. All processes end within a minute."""
LONG_TIMEOUT = timedelta(hours=1)
"""How long it waits for work that one process does alone, such as a download."""
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
    try:
        with _stopped_with_torchrun():
            yield
            all_gather(None)  # no process leaves while another still needs it
    finally:
        _current = None
        dist.destroy_process_group()


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
    # Imported here: some builds of torch lack them.
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, rank, world = next(rendezvous("env://", timeout=TIMEOUT))
    # The store still has the keys of this process's earlier runs, so each run has its own prefix.
    store = PrefixStore(f"dskd{next(_joins)}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=TIMEOUT)
    cpu = dist.new_group(backend="gloo", timeout=LONG_TIMEOUT)
    assert isinstance(cpu, dist.ProcessGroup), "every process is in it"
    return Group(rank, world, cpu)


@contextmanager
def communication() -> Iterator[None]:
    """Turns a backend's error about a lost process into one line.

    Raises:
        ProcessLost: Another process died or does not answer.
    """
    try:
        yield
    except RuntimeError as error:
        reason = first_line(error).partition(". ")[0]
        raise ProcessLost(
            f"another process of this run died or does not answer ({reason}); see what it said, "
            "and go on with --resume"
        ) from error


@contextmanager
def step_communication() -> Iterator[None]:
    """As other communication, for passes of a model that may also fail for reasons of their own.

    torch communicates in the backward pass, and in the forward pass after the first one.

    Raises:
        ProcessLost: Another process died or does not answer.
    """
    if _current is None:
        yield
        return
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error).lower():
            with communication():
                raise
        raise


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
