"""Choose the device and the precision of a run, and prepare the process for it."""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dskd.errors import InputError, printable
from dskd.runtime import distributed
from dskd.settings import DeviceName, Precision

log = logging.getLogger("dskd")


def pick(name: DeviceName) -> torch.device:
    """The device of this process.

    If torchrun started several processes on a machine, each of them gets its own GPU.

    Args:
        name: ``cpu``, ``cuda``, or ``auto`` for a GPU if there is one.

    Raises:
        InputError: ``name`` is ``cuda`` and there is no GPU, or there are fewer GPUs than
            processes.

    Example:
        >>> pick("cpu")
        device(type='cpu')
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("train.device=cuda: torch sees no GPU here; use train.device=cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if distributed.launched_world_size() == 1:
        return torch.device("cuda")
    processes, gpus = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
    if processes > gpus:
        raise InputError(
            f"torchrun started {processes} processes here, and torch sees {gpus} GPUs; "
            f"use --nproc-per-node={gpus} or train.device=cpu"
        )
    return torch.device("cuda", distributed.local_rank())


class Stopwatch:
    """Adds up the time of several blocks of work. Measuring never waits for a GPU.

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
        """Measures the time of the block; on a GPU, of the work that the block launches."""
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
        """The total time so far. On a GPU, this waits until the work is done."""
        for begin, end in self._events:
            end.synchronize()
            self._seconds += begin.elapsed_time(end) / 1000
        self._events.clear()
        return self._seconds

    def set(self, seconds: float) -> None:
        """Sets the total time, to continue from that of an earlier process."""
        self._seconds = seconds
        self._events.clear()


@contextmanager
def autocast(device: torch.device, precision: Precision) -> Iterator[None]:
    """Autocast for a training step; does nothing for ``float32``.

    On a CPU, depthwise convolutions that are trained stay in float32 under ``bfloat16``: torch
    computes their gradients several times slower in bfloat16.

    Args:
        device: The device of the step.
        precision: With ``bfloat16`` or ``float16``, torch uses it for the operations for which it
            is safe.
    """
    half = torch.float16 if precision == "float16" else torch.bfloat16
    slow = device.type == "cpu" and precision == "bfloat16"
    own = _DepthwiseInFloat32() if slow else nullcontext()
    with torch.autocast(device.type, half, enabled=precision != "float32"), own:
        yield


class _DepthwiseInFloat32(TorchFunctionMode):
    """Computes depthwise convolutions with gradients in float32. Their results are bfloat16."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is not torch.conv2d or kwargs or not _is_depthwise(*args):
            return func(*args, **kwargs or {})
        images, weight, bias, *others = args
        bias = None if bias is None else bias.float()
        with torch.autocast("cpu", enabled=False):
            found: Tensor = func(images.float(), weight.float(), bias, *others)
        return found.to(torch.bfloat16)


def _is_depthwise(images: Tensor, weight: Tensor, *_: object) -> bool:
    return torch.is_grad_enabled() and weight.shape[1] == 1 < weight.shape[0] == images.shape[1]


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of torch's random generators of the CPU and of a process's own GPU."""
    own = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return {"random": torch.get_rng_state(), "random_cuda": own}


def restore_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Goes back to a state that `random_state` returned, perhaps on a GPU of another number.

    Earlier versions saved the states of all GPUs that the process saw, by their numbers.
    """
    torch.set_rng_state(state["random"].cpu())
    saved = state["random_cuda"]
    if device.type == "cuda" and saved:
        number = device.index or 0
        own = saved[number] if number < len(saved) else saved[0]
        torch.cuda.set_rng_state(own.cpu(), device)


_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
"""Parameters of glibc's ``mallopt``, as numbered in ``malloc.h``."""


def set_up(device: torch.device, precision: Precision = "float32") -> None:
    """Prepares the process for training on a device.

    On a GPU, torch uses deterministic algorithms and full float32 precision. On a CPU, the memory
    allocator keeps freed memory. A warning says if this CPU has no instructions for the precision.
    """
    if device.type == "cuda":
        _make_deterministic()
        return
    _keep_freed_memory()
    if precision == "bfloat16" and not computes_bfloat16():
        log.warning(
            "train.precision=bfloat16: this processor has no instructions for it, so a step can "
            "take ten times as long as with train.precision=float32"
        )


def computes_bfloat16() -> bool:
    """Whether torch's CPU library computes in bfloat16 here. If not, torch imitates it slowly."""
    answer: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return answer


def _keep_freed_memory() -> None:
    """Makes glibc's allocator keep the memory that a step frees, for the next step.

    By default it returns large blocks to the system, which clears every page when the memory is
    allocated again. That takes up to a tenth of a step. Other allocators are not changed.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_THRESHOLD, 32 << 20)  # the maximum
        library.mallopt(_TRIM_THRESHOLD, -1)  # never


def _make_deterministic() -> None:
    """Makes runs repeatable on a GPU, which costs some speed, and disables TF32."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # By default, deterministic mode fills new memory: one more kernel for each tensor.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def environment(device: torch.device) -> dict[str, Any]:
    """Describes what a result depends on apart from the recipe.

    Args:
        device: The device of the run.

    Returns:
        The command, the versions of Python and of the packages, and the hardware; plain values.
    """
    return {
        "command": [*map(printable, (*_program(Path(sys.argv[0])), *sys.argv[1:]))],
        "python": platform.python_version(),
        "packages": {**_versions("dskd", "torch", "numpy", "timm", "torchvision")},
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": psutil.cpu_count(logical=True),
        "threads": torch.get_num_threads(),
        "processes": distributed.launched_world_size(),
        "memory_bytes": psutil.virtual_memory().total,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }


@functools.cache  # they do not change while a process runs, and to find them takes a while
def _versions(*names: str) -> dict[str, str]:
    """The versions of the packages that are installed."""
    versions: dict[str, str] = {}
    for name in names:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _program(path: Path) -> tuple[str, ...]:
    """How a program is called, by its path.

    Example:
        >>> _program(Path("bin/dskd")), _program(Path("site-packages/dskd/__main__.py"))
        (('dskd',), ('python', '-m', 'dskd'))
    """
    return ("python", "-m", path.parent.name) if path.name == "__main__.py" else (path.name,)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
