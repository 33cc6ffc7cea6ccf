"""Preparing a process for training."""

from __future__ import annotations

import platform
import sys

import pytest
import torch

from dskd.runtime.device import set_up

resource = pytest.importorskip("resource")


def page_faults(rounds: int) -> int:
    """Number of pages that the system provides while blocks are allocated and freed repeatedly."""

    def step() -> None:
        blocks = [torch.zeros(16 << 20, dtype=torch.uint8) for _ in range(8)]
        assert len(blocks) == 8

    step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        step()
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)


@pytest.mark.skipif(
    sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="glibc's allocator"
)
def test_memory_that_a_step_frees_is_reused_by_the_next() -> None:
    set_up(torch.device("cpu"))
    one_step = 8 * (16 << 20) // resource.getpagesize()
    assert page_faults(rounds=4) < one_step
