"""What is timed on a GPU."""

from __future__ import annotations

import importlib
import statistics
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_bench import Bench, Found, again, endless, interleaved, timed
from method_cost import noise
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dskd.models.zoo import build
from dskd.teacher.outputs import CacheCounts, SharedOutputs

BATCH = 64
EPOCHS = 240
"""Of the field's schedule."""


def floor(bench: Bench) -> Found:
    """What the machine can do, and what a step asks of it."""
    size = 256 if bench.small else 8192
    found: Found = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        one = torch.randn(size, size, device=bench.device, dtype=dtype)
        seconds = timed(bench, lambda one=one: one @ one, 20)  # type: ignore[misc]
        found[f"{name} multiply-adds a second"] = size**3 / seconds
    source = torch.ones(4 * size * size, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    seconds = timed(bench, lambda: target.copy_(source), 20)
    found["copied bytes a second"] = 2 * source.nbytes / seconds
    for name in ("ce", "kd", "dskd"):
        trainer = bench.trainer(name, f"train.batch_size={BATCH}")
        running = trainer.train_epoch()
        with FlopCounterMode(display=False) as counter:
            next(running)
        found[f"{name} multiply-adds a step"] = counter.get_total_flops() // 2
    return found


AHEAD = "recorded, 8 batches ahead"
WAYS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "recorded": (),
    AHEAD: ("teacher.ahead=8",),
}
"""How a step is taken, and the settings that this takes."""


def ways(name: str) -> dict[str, tuple[str, ...]]:
    """Those that there are for a method; ce has no teacher that could answer ahead."""
    return {way: changes for way, changes in WAYS.items() if name != "ce" or way != AHEAD}


def steps(bench: Bench, precision: str) -> Found:
    """A step of the plain student, KD and DSKD, in every way that there is."""
    common = (f"train.batch_size={BATCH}", f"train.precision={precision}")
    many = 500 if bench.small else 50_000
    runners = {}
    for name in ("ce", "kd", "dskd"):
        for way, changes in ways(name).items():
            recorded = way != "plain"
            trainer = bench.trainer(name, *common, *changes, images=many, recorded=recorded)
            runners[f"{name}, {way}"] = endless(trainer)
    return interleaved(bench, runners)


def kept_steps(bench: Bench) -> Found:
    """A step from answers that are all there: logits, and for DSKD a bank of all that it reads."""
    common = (f"train.batch_size={BATCH}", "train.precision=bfloat16")
    many = 500 if bench.small else 6400
    runners, tallies, found = {}, {}, Found()
    with tempfile.TemporaryDirectory() as folder:
        for name, keep in (("kd", "logits"), ("dskd", "bank")):
            for together in (1, 16):
                own = (f"teacher.cache={keep}", f"teacher.ahead={together}")
                changes = (*common, *own, f"teacher.cache_dir={folder}")
                trainer = bench.trainer(name, *changes, images=many, recorded=True)
                row = f"{name}, {keep} kept, recorded, {together} batches at once"
                runners[row] = again(trainer)
                for _ in range(trainer.steps + 1):  # all answers are there then
                    runners[row]()
                trainer.teacher_outputs.cache_counts = tallies[row] = CacheCounts()
        found = interleaved(bench, runners)
    return found | {"hits": {row: cache_counts.share for row, cache_counts in tallies.items()}}


def compiled_steps(bench: Bench) -> Found:
    """As `steps`, compiled; apart, for the time that compiling takes."""
    runners = {}
    for name in ("ce", "kd", "dskd"):
        changes = (f"train.batch_size={BATCH}", "train.precision=bfloat16", "train.compile=true")
        trainer = bench.trainer(name, *changes, images=500 if bench.small else 6400)
        runners[name] = endless(trainer)
    return interleaved(bench, runners)


def reference_steps(bench: Bench) -> Found:
    """The field's step (benchmarks/reference.py), fed by 2 workers, and by 8 with pinned memory."""
    field = importlib.import_module("reference")  # needs torchvision
    count, rounds = (3, 2) if bench.small else (100, 3)
    data = noise(500 if bench.small else 50_000)
    samples = field.Images(data.train, field.transforms(data.mean, data.std, 32))
    plan = bench.recipe("kd")
    assert plan.teacher is not None
    found: Found = {}
    for name, workers, pinned in (("2 workers", 2, False), ("8 workers, pinned", 8, True)):
        for method in ("ce", "kd"):
            student = build(plan.student.name, num_classes=100).to(bench.device)
            teacher = build(plan.teacher.name, num_classes=100).to(bench.device)
            step = field.ReferenceStep(student, teacher if method == "kd" else None)
            loader = torch.utils.data.DataLoader(
                samples,
                min(BATCH, 64),
                shuffle=True,
                num_workers=2 if bench.small else workers,
                drop_last=True,
                pin_memory=pinned and bench.on_gpu,
                persistent_workers=True,
            )
            batches = forever(loader)

            def take(step: Any = step, batches: Any = batches, pinned: bool = pinned) -> None:
                images, labels = next(batches)
                place = partial(Tensor.to, device=bench.device, non_blocking=pinned)
                step(place(images), place(labels))

            values = [timed(bench, take, count) for _ in range(rounds)]
            found[f"{method}, {name}"] = {"seconds": statistics.median(values), "rounds": values}
    return found


def forever(loader: Any) -> Iterator[Any]:
    """The batches of a loader, over and over."""
    while True:
        yield from loader


def whole_epochs(bench: Bench) -> Found:
    """An epoch of 50,000 images, its evaluation on 10,000 and its checkpoint included."""
    found: Found = {}
    for name in ("ce", "kd", "dskd"):
        for way, changes in ways(name).items():
            seconds, row = epochs_of(bench, name, *changes, recorded=way != "plain", count=2)
            found[f"{name}, {way}"] = {
                "seconds": seconds[1],  # the first warms up
                "first": seconds[0],
                "training": row["seconds"],
                "teacher": row["teacher_seconds"],
            }
    return found


def whole_run(bench: Bench, how: str) -> Found:
    """240 epochs of KD, or as many of them as there is time for.

    Args:
        bench: What there is.
        how: ``online``, where the teacher answers at every step, or ``kept``: from answers to one
            view an image, which are all there after the first epoch.
    """
    count, limit = (3, 60.0) if bench.small else (EPOCHS, 240.0)
    changes = ["teacher.ahead=16", "train.lr=0.001"]  # so slow that noise makes nothing diverge
    with tempfile.TemporaryDirectory() as store:
        if how == "kept":
            changes += ["teacher.cache=features", "teacher.views=1", f"teacher.cache_dir={store}"]
        seconds, row = epochs_of(bench, "kd", *changes, recorded=True, count=count, limit=limit)
    left = EPOCHS - len(seconds)
    return {
        "epochs": len(seconds),
        "seconds": sum(seconds) + left * statistics.median(seconds[1:]),
        "extrapolated": left > 0,
        "first": seconds[0],
        "a later one": statistics.median(seconds[1:]),
        "teacher_cache_hit_rate": row.get("teacher_cache_hit_rate"),
    }


def epochs_of(
    bench: Bench,
    name: str,
    *changes: str,
    recorded: bool,
    count: int,
    limit: float = float("inf"),
) -> tuple[list[float], dict[str, float]]:
    """Seconds of each of a run's first epochs, all of it included, and what the last one gave.

    Args:
        bench: What there is.
        name: Of the method.
        changes: Of its recipe.
        recorded: Whether its steps are.
        count: Epochs; two at least.
        limit: Seconds after which no further one is begun.
    """
    common = (f"train.batch_size={BATCH}", "train.precision=bfloat16")
    many = 500 if bench.small else 50_000
    with tempfile.TemporaryDirectory() as folder:
        training_run = bench.training_run(
            name, *common, *changes, images=many, recorded=recorded, folder=Path(folder)
        )
        running, seconds = training_run.steps(), list[float]()
        until = time.monotonic() + limit
        while len(seconds) < 2 or (len(seconds) < count and time.monotonic() < until):
            start = time.perf_counter()
            row = next(row for row in running if row is not None)
            seconds.append(time.perf_counter() - start)
        training_run.directory.close()
    return seconds, row


def eight_students(bench: Bench) -> Found:
    """Eight KD students on one teacher, a step of each, beside eight steps of a plain student."""
    common = (f"train.batch_size={BATCH}", "train.precision=bfloat16")
    many = 500 if bench.small else 50_000
    shared = SharedOutputs(bench.teacher_outputs(bench.recipe("kd", *common), bench.images(many)))
    students = [
        endless(
            bench.trainer(
                "kd", *common, images=many, recorded=True, teacher_outputs=shared.teacher_outputs()
            )
        )
        for _ in range(8)
    ]
    alone = endless(bench.trainer("ce", *common, images=many, recorded=True))

    def together() -> None:
        for student in students:
            student()

    def eight_times() -> None:
        for _ in range(8):
            alone()

    found = interleaved(bench, {"eight kd": together, "eight plain": eight_times})
    found["asked"], found["ran"] = shared.asked, shared.ran
    return found
