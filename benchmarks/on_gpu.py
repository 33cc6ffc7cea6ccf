"""Checks and measures the GPU's paths: ``python benchmarks/on_gpu.py``.

For a GPU that is lent for minutes. Every part runs in a process of its own, within its own time,
and what it found is written at once to docs/results/gpu.json: a part that fails, hangs or breaks
the GPU's context is recorded so, and the next one runs. With ``--continue`` the parts that are
there already are left out, so that a short lease can follow another. ``--small`` rehearses
everything on little data, also on a CPU, where steps are recorded by calling them anew.

The pictures are noise in CIFAR-100's shape: neither time nor equality depends on what they show.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from method_cost import noise
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import dskd
from dskd import compiling, methods
from dskd import device as devices
from dskd.ahead import Ahead
from dskd.answers import Answers, SharedTeacher
from dskd.build import Given
from dskd.data import Dataset
from dskd.data.plan import draw_plan
from dskd.data.resident import ResidentData
from dskd.disk import replace_file
from dskd.finite import NotFinite
from dskd.graph import CudaRecorder, Recorder
from dskd.interrupt import Stopped
from dskd.models.zoo import build
from dskd.recipe import Recipe, load
from dskd.run import make_session, make_teacher
from dskd.rundir import RunDirectory
from dskd.session import Session
from dskd.train import Trainer

OUT = Path(__file__).parents[1] / "docs/results/gpu.json"
PAIR = "cifar100/resnet32x4-resnet8x4"
BATCH = 64
R = TypeVar("R")
Found = dict[str, Any]


class Calls:
    """Stands for a recorder where there is no GPU: recorded work is called anew."""

    def run(self, work: Callable[[], R]) -> R:
        """See `dskd.graph.Recorder`."""
        return work()

    def record(self, work: Callable[[], R]) -> Callable[[], R]:
        """See `dskd.graph.Recorder`."""
        return work


class Bench:
    """What every part builds on.

    Args:
        small: Little data, and few steps.
    """

    def __init__(self, small: bool) -> None:
        self.small = small
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.on_gpu = self.device.type == "cuda"
        devices.set_up(self.device)
        if not self.on_gpu:
            compiling.BACKEND = "aot_eager"  # a rehearsal makes no code, which takes minutes

    @cache  # noqa: B019 (one of it in a process)
    def pictures(self, count: int) -> ResidentData:
        """So many pictures of noise, on the device."""
        return ResidentData(noise(count), self.device)

    def recorder(self) -> Recorder:
        """Of steps."""
        return CudaRecorder(self.device) if self.on_gpu else Calls()

    def recipe(self, method: str, *changes: str) -> Recipe:
        """The pair's recipe, or that of a small pair."""
        pair = ("student.name=resnet8", "teacher.name=resnet14") if self.small else ()
        return load(PAIR, [f"method={{name: {method}}}", "seed=0", *pair, *changes])

    def teacher(self, plan: Recipe, data: ResidentData) -> Any:
        """The recipe's teacher with fresh weights, frozen, on the device."""
        assert plan.teacher is not None
        torch.manual_seed(1)
        given = Given(teacher=build(plan.teacher.name, num_classes=len(data.data.classes)))
        return make_teacher(plan, data, given, Path(), resume=False)

    def session(
        self,
        method: str,
        *changes: str,
        pictures: int = 500,
        recorded: bool = False,
        answers: Answers | None = None,
        ahead: int = 1,
    ) -> Session:
        """A run that is ready to go, in a folder that is never written to."""
        plan, data = self.recipe(method, *changes), self.pictures(pictures)
        if answers is None:
            answers = Answers(self.teacher(plan, data), compile=plan.train.compile)
        if ahead > 1:
            answers = Ahead(answers, ahead, plan.train.precision)
        session = make_session(plan, data, Given(), answers, RunDirectory(Path()))
        if recorded:
            session.trainer.recorder = self.recorder()
        session.trainer.prepare()
        return session

    def trainer(self, method: str, *changes: str, **others: Any) -> Trainer:
        """As `session`."""
        return self.session(method, *changes, **others).trainer

    def wait(self) -> None:
        """Until the GPU is done."""
        if self.on_gpu:
            torch.cuda.synchronize()


SMALL = {
    "crd": ["method.negatives=64"],
    "sskd": ["method.head_epochs=1"],
    "semckd": ["train.lr=0.001"],  # at its weight of 400, noise makes it diverge
}


def settings(name: str) -> list[str]:
    """What makes a method fit for a few pictures."""
    return SMALL.get(name, [])


def epochs(trainer: Trainer, count: int) -> None:
    """Trains so many."""
    for _ in range(count):
        for _ in trainer.train_epoch():
            pass
        trainer.end_epoch()


def difference(one: Trainer, other: Trainer) -> float:
    """The largest between what two methods hold."""
    first, second = one.method.state_dict(), other.method.state_dict()
    differences = [(first[key].double() - second[key].double()).abs().max() for key in first]
    return float(torch.stack(differences).max())


def each(names: Iterator[str] | list[str], work: Callable[[str], Found]) -> Found:
    """What a check says of each; ``ok`` where it says so of all."""
    found: Found = {}
    for name in names:
        try:
            found[name] = work(name)
        except Exception as error:  # the others are to be checked too
            found[name] = {"ok": False, "error": described(error)}
    return {"ok": all(value["ok"] for value in found.values()), "each": found}


def described(error: BaseException) -> str:
    """An error in a few lines."""
    return "".join(traceback.format_exception(error))[-1500:]


# Checks


def every_method(bench: Bench) -> Found:
    """Every method takes steps, in both precisions."""

    def check(name: str) -> Found:
        found: Found = {"ok": True}
        for precision in ("float32", "bfloat16"):
            changes = [f"train.precision={precision}", "train.batch_size=32", *settings(name)]
            trainer = bench.trainer(name, *changes, pictures=100)
            epochs(trainer, 1)
            finite = all(bool(p.isfinite().all()) for p in trainer.method.parameters())
            found[precision] = finite
            found["ok"] = found["ok"] and finite
        return found

    return each(methods.names(), check)


def recorded_equals_plain(bench: Bench) -> Found:
    """Two epochs with an odd last batch, recorded and not, come to the same bytes."""

    def check(name: str) -> Found:
        found: Found = {"ok": True}
        for precision in ("float32", "bfloat16"):
            changes = [f"train.precision={precision}", "train.batch_size=48", *settings(name)]
            plain, again, recorded = (
                bench.trainer(name, *changes, recorded=on) for on in (False, False, True)
            )
            for trainer in (plain, again, recorded):
                epochs(trainer, 2)
            found[precision] = difference(plain, recorded)
            found[f"{precision} plain, again"] = difference(plain, again)
            found["ok"] = found["ok"] and found[precision] == 0
        return found

    first = ["ce", "kd", "dskd"]
    others = [] if bench.small else [n for n in methods.names() if n not in first]
    return each(first + others, check)


def bad_objective(bench: Bench) -> Found:
    """From a bad objective on no weight changes, and the run says which step it was."""

    def check(name: str) -> Found:
        trainer = bench.trainer("kd", "train.batch_size=50", recorded=name == "recorded")
        running, kept = trainer.train_epoch(), []
        for _ in range(5):
            next(running)
        kept = [p.detach().clone() for p in trainer.method.parameters()]
        teacher = trainer.answers.teacher
        assert teacher is not None
        for parameter in teacher.parameters():
            parameter.data.fill_(float("nan"))
        said = ""
        try:
            list(running)
        except NotFinite as error:
            said = str(error)
        same = all(map(torch.equal, kept, trainer.method.parameters()))
        return {"ok": same and "the teacher's logits are not finite" in said, "said": said}

    return each(["plain", "recorded"], check)


def no_waits(bench: Bench) -> Found:
    """Torch is told to refuse whatever waits for the GPU; steps go on."""

    def check(name: str) -> Found:
        method, _, how = name.partition(" ")
        changes = ["train.batch_size=20", *settings(method)]
        trainer = bench.trainer(method, *changes, recorded=how == "recorded")
        running = trainer.train_epoch()
        for _ in range(8):
            next(running)
        if bench.on_gpu:
            torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(10):
                next(running)
        finally:
            if bench.on_gpu:
                torch.cuda.set_sync_debug_mode("default")
        return {"ok": True}

    names = [f"{name} {how}" for name in methods.names() for how in ("plain", "recorded")]
    return each(names, check)


def stops(self: Trainer, train_epoch: Callable[[Trainer], Iterator[None]]) -> Iterator[None]:
    """An epoch in whose middle a signal asks for a stop."""
    for _ in train_epoch(self):
        if (self.epoch, self.step) == (1, 3):
            signal.raise_signal(signal.SIGINT)
        yield


def resumed(bench: Bench) -> Found:
    """Whole runs, stopped in an epoch's middle, go on to the same bytes."""
    data: Dataset = noise(300)
    torch.manual_seed(1)
    teacher = build("resnet14", num_classes=len(data.classes))

    def run(folder: Path, name: str, how: str, resume: bool = False) -> bytes:
        train: Found = {"epochs": 2, "batch_size": 40, "graph": how == "recorded" and bench.on_gpu}
        dskd.distill(
            student="resnet8",
            teacher={"module": teacher, "ahead": 3 if how == "ahead" else 1},
            data=data,
            method=name,
            train=train,
            out=folder,
            resume=resume,
        )
        return (folder / "student.safetensors").read_bytes()

    def check(what: str) -> Found:
        name, how = what.split()
        with tempfile.TemporaryDirectory() as folder:
            whole = run(Path(folder) / "whole", name, how)
            train_epoch = Trainer.train_epoch
            Trainer.train_epoch = lambda self: stops(self, train_epoch)  # type: ignore[method-assign]
            try:
                run(Path(folder) / "parts", name, how)
                return {"ok": False, "error": "it was not stopped"}
            except Stopped:
                pass
            finally:
                Trainer.train_epoch = train_epoch  # type: ignore[method-assign]
            return {"ok": run(Path(folder) / "parts", name, how, resume=True) == whole}

    ways = ("plain", "recorded", "ahead")
    return each([f"{name} {how}" for name in ("kd", "dskd") for how in ways], check)


def ahead(bench: Bench) -> Found:
    """Answers of groups are those of batches but for rounding, and runs on them repeat."""

    def check(name: str) -> Found:
        recorded = name == "recorded"
        changes = ["train.batch_size=16"]
        one, again = (bench.trainer("dskd", *changes, recorded=recorded, ahead=4) for _ in range(2))
        for trainer in (one, again):
            epochs(trainer, 3)
        alone, group = bench.trainer("dskd", *changes), bench.trainer("dskd", *changes, ahead=4)
        worst = 0.0
        needs = alone.method.needs
        plan = draw_plan(0, 0, len(alone.split), alone.padding, alone.flip)
        planned = partial(alone.split.planned, plan, 16)
        for batch in group.answers.following(planned, 0, needs):
            expected, found = alone.answers(batch, needs), group.answers(batch, needs)
            assert expected is not None
            assert found is not None
            scale = expected.logits.abs().max()
            worst = max(worst, ((expected.logits - found.logits).abs().max() / scale).item())
        repeats = difference(one, again) == 0
        return {"ok": repeats and worst < 1e-3, "repeats": repeats, "largest difference": worst}

    return each(["plain", "recorded"], check)


def compiled(bench: Bench) -> Found:
    """Compiled steps give the plain ones' losses, but for rounding."""

    def check(name: str) -> Found:
        plain, other = (
            bench.trainer(name, "train.batch_size=50", f"train.compile={how}")
            for how in ("false", "true")
        )
        means = []
        for trainer in (plain, other):
            running = trainer.train_epoch()
            for _ in range(3):
                next(running)
            means.append(trainer.meter.means()["train_loss"])
        return {"ok": abs(means[0] - means[1]) < 0.01 * abs(means[0]), "losses": means}

    return each(["kd", "dskd"], check)


# Measures


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


def timed(bench: Bench, work: Callable[[], object], count: int) -> float:
    """Seconds of one of many calls in a row, once warm."""
    for _ in range(3):
        work()
    bench.wait()
    start = time.perf_counter()
    for _ in range(count):
        work()
    bench.wait()
    return (time.perf_counter() - start) / count


def endless(trainer: Trainer) -> Callable[[], None]:
    """The next step, of epoch after epoch."""

    def steps() -> Iterator[None]:
        while True:
            yield from trainer.train_epoch()
            trainer.end_epoch()

    return partial(next, steps())


def interleaved(bench: Bench, runners: dict[str, Callable[[], None]]) -> Found:
    """Seconds of a step of each, by turns: the median of some rounds, and all of them."""
    count, rounds = (3, 2) if bench.small else (100, 5)
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(rounds):
        for name, runner in runners.items():
            seconds[name].append(timed(bench, runner, count))
    return {
        name: {"seconds": statistics.median(values), "rounds": values}
        for name, values in seconds.items()
    }


def steps(bench: Bench, precision: str) -> Found:
    """A step of the plain student, KD and DSKD, in every way that there is."""
    common = (f"train.batch_size={BATCH}", f"train.precision={precision}")
    many = 500 if bench.small else 50_000
    ways: dict[str, Found] = {
        "plain": {},
        "recorded": {"recorded": True},
        "recorded, 8 batches ahead": {"recorded": True, "ahead": 8},
    }
    runners = {}
    for name in ("ce", "kd", "dskd"):
        for way, how in ways.items():
            if name == "ce" and "ahead" in how:
                continue
            trainer = bench.trainer(name, *common, pictures=many, **how)
            runners[f"{name}, {way}"] = endless(trainer)
    return interleaved(bench, runners)


def compiled_steps(bench: Bench) -> Found:
    """As `steps`, compiled; apart, for the time that compiling takes."""
    runners = {}
    for name in ("ce", "kd", "dskd"):
        changes = (f"train.batch_size={BATCH}", "train.precision=bfloat16", "train.compile=true")
        trainer = bench.trainer(name, *changes, pictures=500 if bench.small else 6400)
        runners[name] = endless(trainer)
    return interleaved(bench, runners)


def reference_steps(bench: Bench) -> Found:
    """The field's step (benchmarks/reference.py), fed by 2 workers, and by 8 with pinned memory."""
    field = importlib.import_module("reference")  # needs torchvision
    count, rounds = (3, 2) if bench.small else (100, 3)
    data = noise(500 if bench.small else 50_000)
    pictures = field.Pictures(data.train, field.transforms(data.mean, data.std, 32))
    plan = bench.recipe("kd")
    assert plan.teacher is not None
    found: Found = {}
    for name, workers, pinned in (("2 workers", 2, False), ("8 workers, pinned", 8, True)):
        for method in ("ce", "kd"):
            student = build(plan.student.name, num_classes=100).to(bench.device)
            teacher = build(plan.teacher.name, num_classes=100).to(bench.device)
            step = field.ReferenceStep(student, teacher if method == "kd" else None)
            loader = torch.utils.data.DataLoader(
                pictures,
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
    """An epoch of 50,000 pictures, its judging and its snapshot included."""
    found: Found = {}
    many = 500 if bench.small else 50_000
    for name in ("ce", "kd", "dskd"):
        for how in ("plain", "recorded"):
            with tempfile.TemporaryDirectory() as folder:
                changes = (f"train.batch_size={BATCH}", "train.precision=bfloat16")
                session = bench.session(name, *changes, pictures=many, recorded=how == "recorded")
                session.directory = RunDirectory(Path(folder))
                session.directory.rewind([])
                running = session.steps()
                seconds = []
                for _ in range(2):  # the first warms up
                    start = time.perf_counter()
                    row = next(row for row in running if row is not None)
                    seconds.append(time.perf_counter() - start)
                session.directory.close()
            found[f"{name}, {how}"] = {
                "seconds": seconds[1],
                "first": seconds[0],
                "training": row["seconds"],
                "teacher": row["teacher_seconds"],
            }
    return found


def eight_students(bench: Bench) -> Found:
    """Eight KD students on one teacher, a step of each, beside eight steps of a plain student."""
    common = (f"train.batch_size={BATCH}", "train.precision=bfloat16")
    many = 500 if bench.small else 50_000
    teacher = bench.teacher(bench.recipe("kd", *common), bench.pictures(many))
    shared = SharedTeacher(Answers(teacher))
    students = [
        endless(
            bench.trainer("kd", *common, pictures=many, recorded=True, answers=shared.answers())
        )
        for _ in range(8)
    ]
    alone = endless(bench.trainer("ce", *common, pictures=many, recorded=True))

    def together() -> None:
        for student in students:
            student()

    def eight_times() -> None:
        for _ in range(8):
            alone()

    found = interleaved(bench, {"eight kd": together, "eight plain": eight_times})
    found["asked"], found["ran"] = shared.asked, shared.ran
    return found


PARTS: dict[str, tuple[int, Callable[[Bench], Found]]] = {
    "check: recorded equals plain": (150, recorded_equals_plain),
    "check: a bad objective": (40, bad_objective),
    "check: no step waits": (90, no_waits),
    "check: runs go on to the byte": (90, resumed),
    "check: every method": (90, every_method),
    "check: answers ahead": (60, ahead),
    "measure: floor": (40, floor),
    "measure: steps in bfloat16": (120, partial(steps, precision="bfloat16")),
    "measure: steps in float32": (120, partial(steps, precision="float32")),
    "measure: the reference": (150, reference_steps),
    "measure: whole epochs": (150, whole_epochs),
    "measure: eight students": (90, eight_students),
    "check: compiled": (150, compiled),
    "measure: compiled steps": (240, compiled_steps),
}
"""What there is, and how many seconds it may take; what matters most comes first."""


def run_part(name: str, small: bool) -> None:
    """Runs one part and prints what it found as the last line."""
    bench = Bench(small)
    found = PARTS[name][1](bench)
    if bench.on_gpu:
        found["largest memory, bytes"] = torch.cuda.max_memory_allocated()
    print(json.dumps(found))


def start_part(name: str, small: bool, seconds: float) -> Found:
    """Runs one part in a process of its own, and gives what became of it."""
    command = [sys.executable, __file__, "--part", name, *(["--small"] if small else [])]
    start = time.monotonic()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, errors = process.communicate()
        why = f"stopped after {seconds:.0f} seconds; {errors[-1500:]}"
        return {"ok": False, "error": why}
    took = round(time.monotonic() - start, 1)
    if process.returncode:
        return {"ok": False, "error": errors[-3000:], "took": took}
    return {**json.loads(output.splitlines()[-1]), "took": took}


def main() -> None:
    """Runs what was chosen, and writes after every part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--small", action="store_true", help="a rehearsal")
    parser.add_argument("--minutes", type=float, default=9.5, help="for all parts together")
    parser.add_argument(
        "--continue", dest="go_on", action="store_true", help="only the parts that are not there"
    )
    parser.add_argument("--only", default="", help="parts whose name has this in it")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.part:
        run_part(chosen.part, chosen.small)
        return
    until = time.monotonic() + 60 * chosen.minutes
    result: Found = {}
    if chosen.go_on and chosen.out.is_file():
        result = json.loads(chosen.out.read_text())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    result |= {"environment": devices.environment(device), "rehearsal": chosen.small}
    parts = result.setdefault("parts", {})
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    for name, (seconds, _) in PARTS.items():
        left = until - time.monotonic()
        if chosen.only not in name or (chosen.go_on and name in parts) or left < 15:
            continue
        seconds *= 4 if chosen.small else 1  # a CPU is slow
        parts[name] = start_part(name, chosen.small, min(seconds, left))
        replace_file(chosen.out, (json.dumps(result, indent=2) + "\n").encode())
        print(f"{name}: {verdict(parts[name])}", flush=True)


def verdict(found: Found) -> str:
    """What became of a part, in a line."""
    took = f"{found.get('took', '?')} s"
    if found.get("ok", True):
        return f"done, {took}"
    bad = [name for name, value in found.get("each", {}).items() if not value["ok"]]
    return f"FAILED, {took}: {', '.join(bad) or found.get('error', '').strip()[-200:]}"


if __name__ == "__main__":
    main()
