"""Shared by all tests: fixtures, one thread, the order of parallel tests."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import sys
from collections import defaultdict
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

_done: set[int] = set()
"""The process id of a worker of pytest-xdist that has run all of its tests."""


@atexit.register
def _leave() -> None:
    """Ends such a worker: to undo thousands of imports takes Python four seconds more.

    This is registered before torch and others are imported, so their handlers are called first.
    Torch is imported by the tests alone: the process that starts the workers does without it.
    """
    if os.getpid() in _done:
        os._exit(0)


# Images and networks are small here: a second thread costs more than it does. Torch reads this when
# it is imported, here and in the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"

# Traces, graphs and test reports are many small objects, and nearly all of them are in use: to look
# for garbage after every 700 of them takes a tenth of the time.
gc.set_threshold(20_000, 20, 20)

# How long an example takes depends on what else the machine does.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skips tests that need a GPU where there is none, and lets workers start with the long files.

    With ``--dist loadfile`` one worker runs all tests of a file, so that its fixtures are set up
    once. (Groups of pytest-xdist have no effect in pytest 9.2.)
    """
    for item in items:
        if item.get_closest_marker("gpu") and not _has_gpu():
            item.add_marker(pytest.mark.skip(reason="no GPU"))
    if hasattr(config, "workerinput"):
        seconds = defaultdict[Path, float](float)
        for item in items:
            seconds[item.path] += _seconds(item)
        items.sort(key=lambda item: -seconds[item.path])


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Imports and collection make no garbage to speak of."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_finish() -> None:
    """Takes what lives to the end out of garbage collection: thousands of tests, and torch."""
    gc.freeze()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Gives it back: without xdist, libraries report what is left at the end."""
    gc.unfreeze()
    if hasattr(config, "workerinput") and "coverage" not in sys.modules:  # writes at the end
        _done.add(os.getpid())


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _seconds(item: pytest.Item) -> float:
    """About how long a test takes: what its mark says, or half a second if it is slow."""
    marks = [mark for name in ("slow", "distributed") for mark in item.iter_markers(name)]
    return sum(float(mark.kwargs.get("seconds", 0.5)) for mark in marks)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache folder."""
    monkeypatch.setenv("DSKD_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True, scope="session")
def _disk_is_not_waited_for() -> Iterator[None]:
    """A run flushes a hundred files to the disk, which takes longer than to train it.

    Whether files are flushed is checked in `tests.storage` and by `tests.faults.disk_faults`.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def _no_trace() -> None:
    """Torch writes no trace of exports and compilations, which takes time.

    pytest adds a handler to each logger that does not propagate. By a handler of this one, torch
    takes it that somebody wants a trace. Torch's own handler goes at its first message, which would
    then reach standard error.
    """
    import torch

    trace = logging.getLogger(f"{torch.__name__}.__trace")
    trace.propagate = True
    trace.handlers.clear()


@pytest.fixture(autouse=True, scope="session")
def _tables_of_onnx_are_made_once() -> Iterator[None]:
    """At the first export: most tests export nothing, and what makes the tables is large."""
    import torch

    from tests import onnx_tables

    export = torch.onnx.export
    with pytest.MonkeyPatch.context() as patch:

        def first(*arguments: Any, **options: Any) -> Any:
            patch.setattr(torch.onnx, "export", export)
            onnx_tables.keep(patch)
            return export(*arguments, **options)

        patch.setattr(torch.onnx, "export", first)
        yield


@pytest.fixture(autouse=True, scope="session")
def _latency_takes_no_time() -> Iterator[None]:
    """A latency is that of few calls. Tests that want real times set the seconds."""
    from dskd.deploy import latency

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "SECONDS", 0.0)
        yield


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Seeds only what is there: for a GPU to come, torch keeps the seed and a stack trace."""
    import torch

    torch.default_generator.manual_seed(0)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(0)
