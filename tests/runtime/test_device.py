"""Preparing a process for training."""

from __future__ import annotations

import os
import platform
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dskd.errors import InputError
from dskd.runtime import device
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


@pytest.mark.parametrize(("native", "lines"), [(True, 0), (False, 1)])
def test_imitated_bfloat16_is_told(
    native: bool, lines: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(device, "computes_bfloat16", lambda: native)
    set_up(torch.device("cpu"), "float32")
    assert not caplog.messages
    set_up(torch.device("cpu"), "bfloat16")
    assert len(caplog.messages) == lines
    assert not lines or "train.precision=float32" in caplog.messages[0]


@pytest.mark.skipif(
    sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="glibc's allocator"
)
def test_memory_that_a_step_frees_is_reused_by_the_next() -> None:
    set_up(torch.device("cpu"))
    one_step = 8 * (16 << 20) // resource.getpagesize()
    assert page_faults(rounds=4) < one_step


def test_a_gpu_is_taken_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device.pick("auto") == device.pick("cuda") == torch.device("cuda")
    assert device.pick("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device.pick("auto") == torch.device("cpu")
    with pytest.raises(InputError, match="torch sees no GPU here"):
        device.pick("cuda")


def test_a_gpu_computes_repeatably_and_does_not_fill_new_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    deterministic = torch.utils.deterministic
    places: list[tuple[Any, str]] = [
        (deterministic, "fill_uninitialized_memory"),
        (torch.backends.cudnn, "benchmark"),
        (torch.backends.cudnn, "allow_tf32"),
        (torch.backends.cuda.matmul, "allow_tf32"),
    ]
    before = [getattr(place, name) for place, name in places]
    try:
        device._make_deterministic()
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert [getattr(place, name) for place, name in places] == [False] * 4
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)
        for (place, name), value in zip(places, before, strict=True):
            setattr(place, name, value)


def test_a_process_keeps_the_random_state_of_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    states = {index: torch.tensor([index]) for index in range(4)}
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda one: states[one.index or 0])
    kept = device.random_state(torch.device("cuda", 2))
    assert [one.tolist() for one in kept["random_cuda"]] == [[2]]
    assert device.random_state(torch.device("cpu"))["random_cuda"] == []
    restored: list[tuple[int, int | None]] = []

    def restore(state: Tensor, one: torch.device) -> None:
        restored.append((int(state), one.index))

    monkeypatch.setattr(torch.cuda, "set_rng_state", restore)
    before = kept | {"random_cuda": [*states.values()]}  # of an earlier version
    for state, own in [(kept, "cuda"), (kept, "cuda:1"), (before, "cuda:3"), (before, "cuda")]:
        device.restore_random_state(state, torch.device(own))
    assert restored == [(2, None), (2, 1), (3, 3), (0, None)]
    device.restore_random_state(before, torch.device("cpu"))
    device.restore_random_state(device.random_state(torch.device("cpu")), torch.device("cuda"))
    assert len(restored) == 4


def convolved(groups: int, channels: int, *, ours: bool) -> tuple[Tensor, Tensor]:
    """The result of a convolution in bfloat16, and the gradient of its weights."""
    torch.manual_seed(0)
    layer = nn.Conv2d(8, channels, 3, groups=groups)
    own = device.autocast(torch.device("cpu"), "bfloat16")
    with own if ours else torch.autocast("cpu", torch.bfloat16):
        found = layer(torch.randn(4, 8, 6, 6))
    found.float().square().sum().backward()
    assert layer.weight.grad is not None
    return found.detach(), layer.weight.grad


def test_depthwise_convolutions_are_trained_in_float32_on_a_cpu() -> None:
    found, gradient = convolved(8, 8, ours=True)
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 8, 3, groups=8)
    expected = layer(torch.randn(4, 8, 6, 6)).to(torch.bfloat16)
    expected.float().square().sum().backward()
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)
    assert layer.weight.grad is not None
    assert torch.equal(gradient, layer.weight.grad)
    assert not torch.equal(gradient, convolved(8, 8, ours=False)[1])


@pytest.mark.parametrize(("groups", "channels"), [(1, 8), (2, 8), (8, 16), (1, 1)])
def test_other_convolutions_are_those_of_autocast(groups: int, channels: int) -> None:
    found = convolved(groups, channels, ours=True), convolved(groups, channels, ours=False)
    assert all(map(torch.equal, *found))


def test_a_forward_pass_without_gradients_is_that_of_autocast() -> None:
    layer, images = nn.Conv2d(8, 8, 3, groups=8), torch.randn(4, 8, 6, 6)
    with torch.no_grad():
        with device.autocast(torch.device("cpu"), "bfloat16"):
            found = layer(images)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(found, layer(images))


@pytest.mark.slow
def test_depthwise_convolutions_are_compiled_in_float32_too() -> None:
    layer, images = nn.Conv2d(8, 8, 3, groups=8), torch.randn(4, 8, 6, 6)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    with device.autocast(torch.device("cpu"), "bfloat16"):
        assert torch.equal(compiled(images), layer(images))
