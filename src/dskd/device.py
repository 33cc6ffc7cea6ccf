"""Where a run computes, and in which precision."""

from __future__ import annotations

import os
import platform
import sys
from contextlib import AbstractContextManager
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import psutil
import torch

from dskd.errors import InputError

Precision = Literal["float32", "bfloat16"]
DeviceName = Literal["auto", "cpu", "cuda"]


def pick(name: DeviceName) -> torch.device:
    """The device called ``name``; ``auto`` is the GPU where there is one.

    Raises:
        InputError: ``cuda`` was asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("train.device=cuda: torch sees no GPU here; use train.device=cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda")


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """bfloat16 where it is safe, float32 elsewhere; nothing for ``float32``."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def repeatable(device: torch.device) -> None:
    """The same numbers from the same settings, at some cost on a GPU; float32 is float32 there.

    Sets flags of the whole process. A CPU needs none.
    """
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False


def environment(device: torch.device) -> dict[str, Any]:
    """What a result depends on beside its recipe: versions, hardware, the command."""
    packages = ("dskd", "torch", "numpy", "timm", "torchvision")
    installed = {d.metadata["Name"] for d in metadata.distributions()}
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in packages if name in installed},
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": psutil.cpu_count(logical=True),
        "threads": torch.get_num_threads(),
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
