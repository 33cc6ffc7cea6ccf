"""Checks and measures training on a GPU: ``python benchmarks/on_gpu.py``.

NOTHING OF THIS HAS RUN ON A GPU YET, only the ``--small`` form on a CPU. The first run on a GPU
tests this script as much as the package.

It needs the repository and a Python with the package's dependencies. It checks, then measures, most
important things first; every method is checked after two measurements. Each entry is written into
the JSON file as soon as it is done (see `budget`), as not measured if it does not fit into
``--minutes``. Images are noise, and teachers are untrained.
"""

from __future__ import annotations

import argparse
import math
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import date
from functools import cache, partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # it may not be installed

import device_timing as timing
import torch
from bench import LATEST, commit
from budget import Entry, Result, describe, failed, run_entries, supervise
from machine import environment
from noise import CPU, begin_noise_run, noise_data
from results import PAIR

from dskd import methods
from dskd.config.recipe import load
from dskd.data.loader import DataLoaders
from dskd.engine.training_run import TrainingRun
from dskd.errors import NonFiniteError
from dskd.runtime import compile as compiler
from dskd.runtime import device as devices
from dskd.version import __version__

OUT = LATEST.with_stem("latest-gpu")
RECIPE = f"cifar100/{PAIR}"
SMALL_PAIR, SMALL_MODELS = "resnet14-resnet8", ("teacher.name=resnet14", "student.name=resnet8")
METHODS = ("kd", "dskd")
CACHES = {"kd": ["teacher.cache=logits"], "dskd": ["teacher.cache=features"]}
ONE_VIEW = ["teacher.cache=features", "teacher.views=1"]
"""A cache that an epoch fills, because it holds the only view of each image."""
TWO_EPOCHS = ("train.epochs=2", "train.batch_size=40")
"""Each of 40, 40 and 20 images."""
SMALL_STEPS = ("train.batch_size=50", "train.lr=0.001")
"""So small that rounding does not grow from step to step."""
FEW_IMAGES = {"crd": ["method.negatives=64"], "sskd": ["method.head_epochs=1"]}
"""Settings of methods that would not fit the few images of a check, 3 of each class."""
TOLERANCE = 0.01
"""Largest difference that counts as rounding, relative to how far the weights moved."""


class Bench:
    """Opens runs on noise images; ``small`` has tiny settings, on the CPU."""

    def __init__(self, small: bool) -> None:
        self.small, self.device = small, torch.device("cpu" if small else "cuda")
        devices.set_up(self.device)
        if small:
            compiler.BACKEND = "eager"  # inductor takes a minute

    @cache  # noqa: B019 (there is one Bench)
    def images(self, samples: int, device: torch.device) -> DataLoaders:
        """Noise images on a device."""
        size, tested = (8, 20) if self.small else (32, samples // 5)
        return DataLoaders(noise_data(samples, size=size, test_samples=tested), device)

    def open(
        self, folder: Path, method: str, *changes: str, images: DataLoaders | None = None
    ) -> TrainingRun:
        """A run of small models that has begun; one that was stopped in the folder goes on."""
        chosen = [f"method={{name: {method}}}", f"out={folder}", *SMALL_MODELS, "train.lr=0.01"]
        images = images or self.images(100, self.device)
        return begin_noise_run(load(RECIPE, [*chosen, *changes]), images)

    def train(self, folder: Path, method: str, *changes: str) -> TrainingRun:
        """A run of two epochs, trained to its end."""
        run = self.open(folder, method, *TWO_EPOCHS, *changes)
        list(run.steps())
        run.directory.close()
        return run


def equal(one: TrainingRun, other: TrainingRun) -> bool:
    """Whether two runs have the same weights and buffers to the byte."""
    first, second = one.trainer.method.state_dict(), other.trainer.method.state_dict()
    return all(torch.equal(value, second[name]) for name, value in first.items())


def compare_steps(one: TrainingRun, other: TrainingRun, count: int) -> Result:
    """Takes steps of two runs, and compares their weights."""

    def weights(run: TrainingRun) -> torch.Tensor:
        parts = [parameter.detach().cpu() for parameter in run.trainer.method.parameters()]
        return torch.cat([part.double().flatten() for part in parts])

    start = weights(one)
    list(zip(islice(one.steps(), count), islice(other.steps(), count), strict=True))
    moved = weights(one)
    found = ((weights(other) - moved).norm() / (moved - start).norm()).item()
    return {"ok": found < TOLERANCE, "relative_difference": found}


def same_as_cpu(bench: Bench, folder: Path, method: str) -> Result:
    """Three steps on the GPU give the weights of the CPU to rounding."""
    images = bench.images(100, CPU)
    cpu = bench.open(folder / "cpu", method, *SMALL_STEPS, images=images)
    return compare_steps(cpu, bench.open(folder / "gpu", method, *SMALL_STEPS), 3)


def compiles(bench: Bench, folder: Path, method: str) -> Result:
    """Compiled steps give the weights of eager steps to rounding, also when CUDA graphs replay."""
    eager = bench.open(folder / "eager", method, *SMALL_STEPS)
    compiled = bench.open(folder / "compiled", method, *SMALL_STEPS, "train.compile=true")
    return compare_steps(eager, compiled, 8)


def repeats(bench: Bench, folder: Path, method: str) -> Result:
    """In both precisions, the same run twice gives the same bytes, and its losses are finite."""
    found: Result = {"ok": True}
    for precision in ("float32", "bfloat16"):
        change = f"train.precision={precision}"
        one, other = (bench.train(folder / f"{precision}{n}", method, change) for n in (1, 2))
        losses = [row["train_loss"] for row in one.rows]
        found |= {precision: equal(one, other), f"{precision} losses": losses}
        found["ok"] &= found[precision] and all(map(math.isfinite, losses))
    return found


def resumes(bench: Bench, folder: Path, method: str) -> Result:
    """A run that is stopped within its second epoch and resumed gives the same bytes."""
    whole = bench.train(folder / "whole", method)
    stopped = bench.open(folder / "parts", method, *TWO_EPOCHS)
    list(islice(stopped.steps(), 4))
    stopped.save()
    return {"ok": equal(whole, bench.train(folder / "parts", method))}


def caches(bench: Bench, folder: Path, method: str) -> Result:
    """A run that fills a cache and one that reads it give the same bytes."""
    changes = [*CACHES[method], f"teacher.cache_dir={folder / 'cache'}"]
    cold, warm = (bench.train(folder / name, method, *changes) for name in ("cold", "warm"))
    rates = {row["teacher_cache_hit_rate"] for row in warm.rows}
    return {"ok": equal(cold, warm) and rates == {1.0}, "hit_rates": sorted(rates)}


def refuses_nan(bench: Bench, folder: Path, method: str) -> Result:
    """NaN in the teacher's outputs is refused, and no weight changes."""
    run = bench.open(folder, method, *SMALL_STEPS)
    steps, student, teacher = run.steps(), run.trainer.method, run.trainer.teacher_outputs.teacher
    list(islice(steps, 2))
    before = [parameter.detach().clone() for parameter in student.parameters()]
    for parameter in teacher.parameters() if teacher else ():
        parameter.data.fill_(math.nan)
    try:
        next(steps)
    except NonFiniteError as error:
        same = all(map(torch.equal, before, student.parameters()))
        return {"ok": same and "teacher" in str(error), "message": str(error)}
    return {"ok": False, "message": "not refused"}


def takes_steps(bench: Bench, folder: Path, method: str) -> Result:
    """A method takes steps, and its numbers are finite."""
    changes = ["train.lr=0.001", *FEW_IMAGES.get(method, [])]
    run = bench.open(folder, method, *changes, images=bench.images(300, bench.device))
    list(islice(run.steps(), 2))
    run.trainer.check_state()
    return {"ok": True}


def check(
    bench: Bench, work: Callable[[Bench, Path, str], Result], names: Sequence[str], _: float
) -> Result:
    """What a check finds for each method."""
    found: Result = {}
    for name in names:
        with TemporaryDirectory() as folder:
            try:
                found[name] = work(bench, Path(folder), name)
            except Exception as error:  # the other methods are checked all the same
                found[name] = {"ok": False, "error": describe(error)}
    passed = all(one["ok"] for one in found.values())
    return {"status": "passed" if passed else "failed", "methods": found}


def time_cases(
    bench: Bench, unit: str, batch_size: int, precision: str, compiled: bool, until: float
) -> Result:
    """Steps or epochs of KD and DSKD, with live and with cached teacher outputs.

    ``unit`` is ``step`` or ``epoch``. Eager steps are compared with the reference steps of KD,
    which are in float32; compiled steps and epochs are compared with eager ones.
    """
    teacher, student = (SMALL_PAIR if bench.small else PAIR).split("-")
    counts = (64, 32) if bench.small else (50_176, 6_144)  # so that no batch is partial
    images, few_images = (bench.images(count, bench.device) for count in counts)
    count, rounds = (15, 7) if unit == "step" else (1, 3)  # in each turn, and turns at most
    if bench.small:
        batch_size, count, rounds = 16, 2, 2
    common = [f"teacher.name={teacher}", f"student.name={student}", "train.lr=0.001"]
    common += [f"train.batch_size={batch_size}", f"train.precision={precision}"]

    def open_case(method: str, kind: str, stack: ExitStack) -> timing.Case:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        changes, own = [*common, f"train.compile={'compiled' in kind}"], images
        if "cached" in kind:
            own = few_images  # the maps of all would be 10 GB for each view
            cached = CACHES[method] if unit == "step" else ONE_VIEW
            changes += [*cached, f"teacher.cache_dir={folder}"]
        run = bench.open(folder / "run", method, *changes, images=own)
        stack.callback(run.directory.close)
        return timing.training_steps(run, count) if unit == "step" else timing.training_epochs(run)

    kinds = ("", ", compiled", ", cached, compiled") if compiled else ("", ", cached")
    cases = {f"{m}{kind}": partial(open_case, m, kind) for m in METHODS for kind in kinds}
    if unit == "step" and not compiled:
        settings = (f"{teacher}-{student}", max(counts[0], 512), batch_size, bench.device, count)
        for workers in (2,) if bench.small else (2, 8):
            name = f"reference-kd, {workers} workers"
            cases[name] = partial(timing.reference_case, *settings, workers)
    per_turn = {n: batch_size if unit == "step" else counts["cached" in n] for n in cases}
    return timing.measure(cases, per_turn, rounds, until, bench.device)


CHECKS = {
    "the GPU equals the CPU": (same_as_cpu, 40),
    "a run repeats to the byte": (repeats, 60),
    "a stopped run resumes to the byte": (resumes, 40),
    "NaN changes no weight": (refuses_nan, 30),
    "cached outputs": (caches, 40),
    "compiled equals eager": (compiles, 120),
}
"""Each check, and the seconds that it may take."""
MEASURES = (
    *(("step", 64, "bfloat16", False, 60), ("step", 64, "bfloat16", True, 150)),
    *(("epoch", 64, "bfloat16", False, 110), ("step", 512, "bfloat16", False, 60)),
    *(("step", 64, "float32", False, 60), ("epoch", 512, "bfloat16", False, 60)),
    *(("step", 512, "bfloat16", True, 150), ("step", 512, "float32", False, 60)),
    *(("epoch", 64, "bfloat16", True, 150), ("step", 64, "float32", True, 150)),
)
"""Unit, batch size, precision, whether compiled, and the seconds that it may take."""


def entries(bench: Bench) -> dict[str, Entry]:
    """All entries by name, in their order."""
    works = {"environment": (partial(environment, bench.device), 30)}
    for name, (work, seconds) in CHECKS.items():
        works[f"check: {name}"] = (partial(check, bench, work, METHODS), seconds)
    names = (*METHODS, *FEW_IMAGES, "wkd") if bench.small else methods.names()
    measures = MEASURES[:3] if bench.small else MEASURES
    for number, (unit, size, precision, compiled, seconds) in enumerate(measures):
        if number == 2:
            works["check: every method"] = (partial(check, bench, takes_steps, names), 90)
        name = f"measure: {unit}, batch {size}, {precision}{', compiled' if compiled else ''}"
        works[name] = (partial(time_cases, bench, unit, size, precision, compiled), seconds)
    slow = 4 if bench.small else 1
    return {name: Entry(slow * seconds, work) for name, (work, seconds) in works.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs all entries in a worker; 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT, help="the JSON file")
    parser.add_argument("--minutes", type=float, default=8, help="for everything")
    parser.add_argument("--only", default="", help="only entries whose name has this in it")
    parser.add_argument("--small", action="store_true", help="a rehearsal on the CPU")
    parser.add_argument("--worker", type=float, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if not chosen.small and not torch.cuda.is_available():
        parser.error("torch sees no GPU here; rehearse with --small")
    deadline = chosen.worker or time.time() + 60 * chosen.minutes
    bench = Bench(chosen.small)
    wanted = {name: entry for name, entry in entries(bench).items() if chosen.only in name}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no process stays behind
    if chosen.worker:
        run_entries(wanted, chosen.out, deadline, timing.free_memory)
        return 0
    command = [sys.executable, __file__, "--out", str(chosen.out), "--worker", str(deadline)]
    command += ["--only", chosen.only, *(["--small"] if chosen.small else [])]
    facts = {"command": " ".join(sys.argv), "commit": commit(), "date": date.today().isoformat()}
    facts |= {"version": __version__, "rehearsal": chosen.small, "minutes": chosen.minutes}
    result = supervise(command, list(wanted), chosen.out, deadline, facts)
    timing.print_rows(result)
    return int(failed(result))


if __name__ == "__main__":
    sys.exit(main())
