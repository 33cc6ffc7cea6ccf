"""The best rates of a machine, its hardware, and the work of a computation."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from dskd.runtime import device as devices
from dskd.settings import Precision

DTYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_SIDE = 2048
_MAP = (64, 256, 8, 8)
_COPIED = 256 * 2**20


def rates(seconds: float = 2.0) -> dict[str, Any]:
    """Measures the rates of the machine. Each is the best of many tries.

    Args:
        seconds: Time to spend on each rate.

    Returns:
        Multiply-adds in a second for each precision: of a square matrix ``product``, of a 3x3
        ``convolution``, and the larger of the two as ``multiply_adds`` (different libraries
        compute them, and neither is always the faster one). ``copied_bytes`` in a second; each
        byte is read and written, and counts twice. ``load``: the load of the minute before.
    """
    load = os.getloadavg()[0]
    product = {name: _product(dtype, seconds) for name, dtype in DTYPES.items()}
    convolution = {name: _convolution(dtype, seconds) for name, dtype in DTYPES.items()}
    return {
        "product": product,
        "convolution": convolution,
        "multiply_adds": {name: max(product[name], convolution[name]) for name in DTYPES},
        "copied_bytes": _copy(seconds),
        "load": load,
    }


def _product(dtype: torch.dtype, seconds: float) -> float:
    one, other = (torch.randn(_SIDE, _SIDE).to(dtype) for _ in range(2))
    return _SIDE**3 / _fastest(lambda: torch.mm(one, other), seconds)


@torch.no_grad()
def _convolution(dtype: torch.dtype, seconds: float) -> float:
    convolution = torch.nn.Conv2d(_MAP[1], _MAP[1], 3, padding=1, bias=False, dtype=dtype)
    convolution.to(memory_format=torch.channels_last)
    images = torch.randn(_MAP).to(dtype).to(memory_format=torch.channels_last)
    work = multiply_adds(lambda: convolution(images))
    return work / _fastest(lambda: convolution(images), seconds)


def _copy(seconds: float) -> float:
    source = torch.ones(_COPIED, dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2 * _COPIED / _fastest(lambda: target.copy_(source), seconds)


def _fastest(work: Callable[[], object], seconds: float) -> float:
    work()
    found, end = float("inf"), time.monotonic() + seconds
    while time.monotonic() < end:
        start = time.perf_counter()
        work()
        found = min(found, time.perf_counter() - start)
    return found


def multiply_adds(work: Callable[[], object]) -> int:
    """The multiply-adds of the convolutions and matrix products of a computation.

    Args:
        work: The computation. It runs once.

    Example:
        >>> one = torch.ones(2, 3)
        >>> multiply_adds(lambda: one @ one.T)
        12
    """
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops()) // 2


def environment(device: torch.device, _: float = 0.0) -> dict[str, Any]:
    """The hardware and the software of a measurement, of a GPU with driver, libraries and memory.

    Args:
        device: The device that trains.
    """
    found = devices.environment(device) | {"status": "measured"}
    if device.type == "cuda":
        found |= {"driver": _driver(), "cuda": torch.version.cuda}
        found |= {"cudnn": torch.backends.cudnn.version()}  # type: ignore[no-untyped-call]
        found |= {"gpu_memory_bytes": torch.cuda.get_device_properties(device).total_memory}
    return found


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
