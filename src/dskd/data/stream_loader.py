"""The loader of images that are decoded whenever they are used."""

from __future__ import annotations

import atexit
import hashlib
import multiprocessing
import pickle
import signal
import sys
import threading
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from dskd.data.epoch_plan import EpochPlan
from dskd.data.loader import Batch, BatchAssembly, InOrder, Loader
from dskd.data.stream_decoding import Decoder, Job, import_for_crops
from dskd.errors import InputError, ProcessLost, first_line

PREFETCHED = 2
"""Batches that each worker decodes in advance."""
SHARED = 2
"""The last batches, which a reader that is a step behind another still gets."""


class StreamedSplit(Protocol):
    """A split whose images are decoded whenever they are used.

    Attributes:
        labels: int64, ``[N]``.
        sample_shape: Channels, height and width of an image as it is used.
        workers: Processes that decode batches; 0 decodes them in the process that asks.
        decoder: Makes the batches.
    """

    @property
    def labels(self) -> Tensor: ...  # noqa: D102 (see the attributes)
    @property
    def sample_shape(self) -> tuple[int, int, int]: ...  # noqa: D102
    @property
    def workers(self) -> int: ...  # noqa: D102
    @property
    def decoder(self) -> Decoder: ...  # noqa: D102

    def images_at(self, indices: Tensor) -> Tensor:
        """See `dskd.data.dataset.Samples.images_at`."""

    def identity(self) -> dict[str, Any]:
        """Plain values that differ if the images differ."""


class StreamLoader(Loader):
    """Decodes images in worker processes, in time for each step.

    A worker makes whole batches: it decodes, crops and augments the images of a step. Everything
    random comes from the epoch plan, so the batches do not depend on the number of workers. The
    images travel as uint8; models normalise them on the device. Runs that ask for the same batches
    at the same time, as those of a comparison in lockstep do, share one stream.

    Args:
        split: Images and labels.
        device: The device on which batches arrive.
    """

    def __init__(self, split: StreamedSplit, device: torch.device) -> None:
        self.split = split
        self.labels = split.labels.to(device)
        self.device = device
        self.sample_shape = split.sample_shape
        self._running: weakref.WeakValueDictionary[Hashable, _Stream] = (
            weakref.WeakValueDictionary()
        )
        self._decoder = split.decoder

    def batches(
        self,
        plan: EpochPlan,
        batch_size: int,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> Iterator[Batch]:
        """See `Loader.batches`.

        Raises:
            InputError: An image cannot be used any more.
            ProcessLost: A worker process died.
        """
        assemble = BatchAssembly(plan, self.labels)
        shares = list(plan.shares(batch_size, rank, world_size))
        key = _key(plan), batch_size, rank, world_size
        stream = None
        for step, (share, global_size) in islice(enumerate(shares), start, None):
            if stream is None or not stream.has(step):
                stream = self._stream(key, plan, [share for share, _ in shares], step)
            yield assemble(stream.take(step), step, share, global_size)

    def _stream(
        self, key: Hashable, plan: EpochPlan, shares: Sequence[slice], start: int
    ) -> _Stream:
        """The running stream of these batches, if it is at step ``start``; else a new one."""
        stream = self._running.get(key)
        if stream is None or not stream.has(start):
            if plan.augmentation.crop_scale is not None:
                import_for_crops()
            stream = _Stream(self._decode(_PlannedJobs(plan, shares[start:])), start)
            self._running[key] = stream
        return stream

    def in_order(self, batch_size: int, rank: int = 0, world_size: int = 1) -> InOrder:
        """See `Loader.in_order`."""
        parts = np.split(np.arange(len(self)), range(batch_size, len(self), batch_size))
        jobs = [Job(part) for part in parts[rank::world_size]]
        labels = torch.split(self.labels, batch_size)[rank::world_size]
        yield from zip(self._decode(jobs), labels, strict=True)

    def probe(self, count: int) -> Tensor:
        """See `Loader.probe`."""
        return self.split.images_at(torch.arange(min(count, len(self)))).to(self.device)

    def identity(self) -> dict[str, Any]:
        """See `Loader.identity` and `StreamedSplit.identity`."""
        return self.split.identity()

    def _decode(self, jobs: Sequence[Job] | _PlannedJobs) -> Iterator[Tensor]:
        """The images of each job, on the device."""
        pin = self.device.type == "cuda"
        for images in in_workers(self._decoder, jobs, self.split.workers, pin):
            yield images.to(self.device, non_blocking=True)


def in_workers(
    work: Callable[[Job], Tensor],
    jobs: Sequence[Job] | Sampler[Job],
    workers: int,
    pin: bool = False,
) -> Iterator[Tensor]:
    """The result of each job, in their order, from worker processes.

    Args:
        work: Does a job.
        jobs: The jobs.
        workers: Processes, at most; 0 does all jobs in this process.
        pin: Whether the results are copied to pinned memory.

    Raises:
        InputError: A job raised it, or the work cannot be sent to a process.
        ProcessLost: A worker process died.
    """
    workers = min(workers, len(jobs))  # type: ignore[arg-type]
    loader = DataLoader(
        _Batches(work),
        batch_size=None,  # a job is a whole batch
        sampler=jobs,
        num_workers=workers,
        prefetch_factor=PREFETCHED if workers else None,
        pin_memory=pin,
        # Its own generator: the global one belongs to the training.
        generator=torch.Generator(),
        # Forked workers share the names of the files with this process.
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        worker_init_fn=_ignore_stop_signals,
    )
    try:
        with _noting_workers(), _keeping_handler(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Got pickle error")  # the error below says it
            found = iter(loader)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise InputError(
            f"the images cannot be read in worker processes here: {first_line(error)}; define the "
            "class of the data set in a module, or set data.workers=0"
        ) from error
    while True:
        try:
            result = next(found)
        except StopIteration:
            return
        except RuntimeError as error:
            raise _lost_worker(error) from error
        if isinstance(result, InputError):
            raise result
        yield result


class _Stream:
    """Images of the steps of an epoch, for one reader or for several at about the same step.

    Args:
        images: Of each step.
        start: The first step.
    """

    def __init__(self, images: Iterator[Tensor], start: int) -> None:
        self._images, self._next = images, start
        self._latest: deque[tuple[int, Tensor]] = deque(maxlen=SHARED)

    def has(self, step: int) -> bool:
        """Whether `take` can return a step."""
        return step == self._next or any(step == number for number, _ in self._latest)

    def take(self, step: int) -> Tensor:
        """The images of a step. They must not be changed."""
        for number, images in self._latest:
            if number == step:
                return images
        images = next(self._images)
        self._latest.append((step, images))
        self._next = step + 1
        return images


def _key(plan: EpochPlan) -> Hashable:
    """What tells epoch plans apart."""
    digest = hashlib.sha256()
    for part in (plan.order, plan.dy, plan.dx, plan.flip, plan.seeds):
        digest.update(part.numpy().data)
    return digest.digest(), plan.epoch, plan.padding, plan.augmentation, plan.bounds


class _PlannedJobs(Sampler[Job]):
    """The job of each step of an epoch, made when a worker takes it.

    Args:
        plan: The epoch's random choices, on the CPU.
        shares: Which part of its order belongs to each step.
    """

    def __init__(self, plan: EpochPlan, shares: Sequence[slice]) -> None:
        self._plan, self._shares = plan, shares

    def __len__(self) -> int:
        return len(self._shares)

    def __iter__(self) -> Iterator[Job]:
        plan = self._plan
        for share in self._shares:
            own = plan.order[share]
            yield Job(
                own.numpy(),
                plan.dy[own].numpy(),
                plan.dx[own].numpy(),
                plan.flip[own].numpy(),
                plan.seeds[own].numpy(),
                plan.padding,
                plan.augmentation,
            )


class _Batches(TorchDataset[Tensor]):
    """Batches by their jobs, as torch's DataLoader asks for them."""

    def __init__(self, work: Callable[[Job], Tensor]) -> None:
        self._work = work

    def __getitem__(self, job: Job) -> Tensor | InputError:  # type: ignore[override]
        try:
            return self._work(job)
        except InputError as error:  # torch would add a traceback to its text
            return error


def _ignore_stop_signals(_worker: int) -> None:
    """Leaves Ctrl-C and a cluster's SIGTERM, which go to all processes, to the training process.

    It still needs batches to end its step and to save. A worker ends when it is told to, or when
    the training process is gone.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


_started: weakref.WeakSet[BaseProcess] = weakref.WeakSet()
"""Worker processes."""


@contextmanager
def _noting_workers() -> Iterator[None]:
    """Notes the processes that start within the block."""
    before = set(multiprocessing.active_children())
    yield
    _started.update(set(multiprocessing.active_children()) - before)


@atexit.register
def _kill_workers() -> None:
    """Ends the workers that an error left running; Python would wait for them after a SIGTERM."""
    for worker in list(_started):
        worker.kill()


@contextmanager
def _keeping_handler() -> Iterator[None]:
    """Keeps the handler of SIGCHLD.

    torch's own raises an error wherever the program is when a worker dies. Without it, the error
    comes where the next batch is asked for, at most 5 seconds later.
    """
    if threading.current_thread() is not threading.main_thread() or sys.platform == "win32":
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


def _lost_worker(error: RuntimeError) -> RuntimeError:
    """What is raised for an error of torch's DataLoader."""
    if "DataLoader worker" not in str(error):
        return error
    return ProcessLost(
        "a worker process that decodes images died; the system kills one if memory or /dev/shm is "
        "short, so set a smaller data.workers or train.batch_size, and continue the run"
    )
