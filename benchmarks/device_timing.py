"""Times steps or epochs on a device in turns, with their peak memory."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

import torch
from budget import Result, describe
from reference import ReferenceSteps, reference_steps
from results import quartiles
from subprocess_steps import SubprocessSteps

from dskd.engine.trainer import Trainer
from dskd.engine.training_run import TrainingRun

WARMUP = 5
"""Untimed steps. A CUDA graph is recorded in the second or third."""


class Case(NamedTuple):
    """Steps or epochs to be timed.

    Attributes:
        seconds: Takes some of them; returns the seconds of one.
        memory: Returns the peak memory of another process that takes them, in bytes; None if this
            process takes them.
    """

    seconds: Callable[[], float]
    memory: Callable[[], int] | None = None


def training_steps(run: TrainingRun, count: int) -> Case:
    """The steps of a run, which repeats its first epoch.

    Args:
        run: Takes some steps to warm up; if it fills a cache, a whole epoch.
        count: Steps in each turn.
    """
    trainer = run.trainer
    device, steps = trainer.loader.device, _repeated(trainer)
    cold = trainer.teacher_outputs.cache_counts is not None

    def seconds(count: int) -> float:
        wait(device)
        start = time.perf_counter()
        for _ in range(count):
            next(steps)
        wait(device)
        return (time.perf_counter() - start) / count

    seconds(trainer.steps + 1 if cold else WARMUP)
    return Case(partial(seconds, count))


def training_epochs(run: TrainingRun) -> Case:
    """The epochs of a run, with evaluation and checkpoint. The first one is the warm-up."""
    steps = run.steps()

    def seconds() -> float:
        start = time.perf_counter()
        next(row for row in steps if row is not None)
        return time.perf_counter() - start

    seconds()
    return Case(seconds)


def reference_case(
    pair: str,
    samples: int,
    batch_size: int,
    device: torch.device,
    count: int,
    workers: int,
    stack: ExitStack,
) -> Case:
    """The reference steps of KD in a process of their own (see `reference`).

    Args:
        pair: Teacher and student.
        samples: Number of training images.
        batch_size: Images a step.
        device: That trains.
        count: Timed steps in each turn. Before them come as many as the workers have prepared.
        workers: Processes of the DataLoader.
        stack: Ends the process.
    """
    make = partial(reference_steps, pair, "kd", samples, batch_size, device.type, workers)
    steps = SubprocessSteps(make)
    stack.callback(steps.close)
    untimed = 2 * workers + 1
    steps.call("time_steps", 1, WARMUP)

    def seconds() -> float:
        found: float = steps.call("time_steps", count, untimed)
        time.sleep(ReferenceSteps.pause)  # the workers finish before the next case is timed
        return found

    return Case(seconds, partial(steps.call, "peak_memory"))


def measure(
    cases: Mapping[str, Callable[[ExitStack], Case]],
    images: Mapping[str, int],
    rounds: int,
    until: float,
    device: torch.device,
) -> Result:
    """Opens all cases, then times them in turns.

    Args:
        cases: By name, each opened by a function whose stack cleans up after it.
        images: Of a step or an epoch of each case.
        rounds: At most.
        until: No further case or round begins after this time of `time.monotonic`.
        device: That trains.

    Returns:
        ``rows`` by name. A case that raises has its error there.
    """
    rows: dict[str, Result] = {}
    with ExitStack() as stack:
        opened = {}
        for name, open_case in cases.items():
            if time.monotonic() > until:
                rows[name] = {"status": "not measured"}
                continue
            try:
                opened[name], rows[name] = _open(open_case, stack, device)
            except Exception as error:  # the other cases are timed all the same
                rows[name] = {"status": "error", "error": describe(error)}
        seconds: dict[str, list[float]] = {name: [] for name in opened}
        for done in range(rounds):
            if done == 0 or time.monotonic() < until:
                for name in [one for one in opened if "error" not in rows[one]]:
                    try:
                        seconds[name].append(opened[name].seconds())
                    except Exception as error:
                        rows[name] |= {"status": "error", "error": describe(error)}
    for name, values in seconds.items():
        if not values:
            continue
        low, middle, high = quartiles(values)
        rows[name] |= {"seconds": middle, "low": low, "high": high, "n": len(values)}
        rows[name] |= {"images_per_second": images[name] / middle, "all_seconds": values}
    states = [row.get("status", "measured") for row in rows.values()]
    return {"status": "error" if "error" in states else "measured", "rows": rows}


def print_rows(result: Result) -> None:
    """Prints the rows of all entries, and the error of a worker that did not start."""
    print(result.get("error", ""))
    for name, entry in result["entries"].items():
        print(f"{name}: {entry['status']}")
        for case, row in entry.get("rows", {}).items():
            if "seconds" in row:
                time_and_rate = f"{1000 * row['seconds']:9.2f} ms, {row['images_per_second']:8,.0f}"
                print(f"  {case:26} {time_and_rate} / s, {row['peak_memory_bytes'] / 1e9:5.2f} GB")


def _open(
    open_case: Callable[[ExitStack], Case], stack: ExitStack, device: torch.device
) -> tuple[Case, Result]:
    """Opens a case; returns also how long this took, with its warm-up, and the case's peak memory.

    The peak memory is that of the case alone: without the images and the cases opened before it.
    """
    on_gpu, start = device.type == "cuda", time.perf_counter()
    before = torch.cuda.memory_allocated() if on_gpu else 0
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    case = open_case(stack)
    opened = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() - before if on_gpu else 0
    if case.memory is not None:
        peak = case.memory()
    return case, {"open_seconds": opened, "peak_memory_bytes": peak}


def free_memory() -> None:
    """Frees memory and compiled code. Raises if the GPU's context is broken."""
    gc.collect()
    torch.compiler.reset()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def wait(device: torch.device) -> None:
    """Waits until a GPU is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def _repeated(trainer: Trainer) -> Iterator[None]:
    while True:
        yield from trainer.train_epoch()
        trainer.step = 0
