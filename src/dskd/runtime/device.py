"""Where a run computes, and in which precision."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

from dskd.errors import InputError, printable
from dskd.runtime import distributed
from dskd.settings import DeviceName, Precision


def pick(name: DeviceName, *, graph: bool = False) -> torch.device:
    """The device called ``name``; ``auto`` is the GPU where there is one.

    Of several processes on a machine each takes a GPU of its own.

    Args:
        name: Of the device.
        graph: Whether steps are to be recorded there, which a GPU alone does.

    Raises:
        InputError: ``cuda`` or ``graph`` was asked for and there is no GPU, or there are too few
            for all.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("train.device=cuda: torch sees no GPU here; use train.device=cpu")
    if name == "cpu" or not torch.cuda.is_available():
        if graph:
            raise InputError("train.graph=true needs a GPU, and this run is on a CPU; drop it")
        return torch.device("cpu")
    if distributed.launched_world_size() == 1:
        return torch.device("cuda")
    here, gpus = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
    if here > gpus:
        raise InputError(
            f"torchrun started {here} processes here, and torch sees {gpus} of the GPUs that they "
            f"need; use --nproc-per-node={gpus} or train.device=cpu"
        )
    return torch.device("cuda", distributed.local_rank())


class Stopwatch:
    """Adds up the time that pieces of work take, without waiting for a GPU that does them.

    Example:
        >>> watch = Stopwatch()
        >>> with watch.running(torch.device("cpu")):
        ...     pass
        >>> watch.seconds >= 0
        True
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def running(self, device: torch.device) -> Iterator[None]:
        """Counts the time of the block, or of the work that it gives to a GPU."""
        if device.type == "cuda":
            begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            begin.record()
            yield
            end.record()
            self._events.append((begin, end))
        else:
            start = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - start

    @property
    def seconds(self) -> float:
        """All so far; on a GPU this waits until the work is done."""
        for begin, end in self._events:
            end.synchronize()
            self._seconds += begin.elapsed_time(end) / 1000
        self._events.clear()
        return self._seconds

    def set(self, seconds: float) -> None:
        """Goes on from so many seconds."""
        self._seconds = seconds
        self._events.clear()


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """bfloat16 where it is safe, float32 elsewhere; nothing for ``float32``."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
"""Of glibc's ``mallopt``, as ``malloc.h`` numbers them."""


def set_up(device: torch.device) -> None:
    """Makes the process fit for training: see `_repeatable` and `_keep_freed_memory`."""
    if device.type == "cuda":
        _repeatable()
    else:
        _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Memory that a step frees stays with the process, for the next step.

    As it comes, glibc's allocator gives large blocks back to the system, which clears them page by
    page when they are asked for again: up to a tenth of a step goes there. Other allocators are
    left as they are.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_THRESHOLD, 32 << 20)  # the most it takes
        library.mallopt(_TRIM_THRESHOLD, -1)  # never


def _repeatable() -> None:
    """The same numbers from the same settings, at some cost; float32 is float32."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Else new memory is filled before it is written: a kernel more for each tensor.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def environment(device: torch.device) -> dict[str, Any]:
    """What a result depends on beside its recipe: versions, hardware, the command."""
    packages = ("dskd", "torch", "numpy", "timm", "torchvision")
    installed = {d.metadata["Name"] for d in metadata.distributions()}
    return {
        "command": [*map(printable, (Path(sys.argv[0]).name, *sys.argv[1:]))],
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in packages if name in installed},
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": psutil.cpu_count(logical=True),
        "threads": torch.get_num_threads(),
        "processes": distributed.launched_world_size(),
        "memory_bytes": psutil.virtual_memory().total,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
