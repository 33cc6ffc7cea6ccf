"""What a GPU is to do exactly as a CPU does, or as it did before."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from gpu_bench import Bench, Found, difference, each, epochs, settings
from method_cost import noise

import dskd
from dskd import methods
from dskd.data import Dataset
from dskd.data.epoch_plan import draw_plan
from dskd.engine.trainer import Trainer
from dskd.errors import NonFiniteError, Stopped
from dskd.models.zoo import build


def every_method(bench: Bench) -> Found:
    """Every method takes steps, in both precisions."""

    def check(name: str) -> Found:
        found: Found = {"ok": True}
        for precision in ("float32", "bfloat16"):
            changes = [f"train.precision={precision}", "train.batch_size=32", *settings(name)]
            trainer = bench.trainer(name, *changes, images=100)
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
        teacher = trainer.teacher_outputs.teacher
        assert teacher is not None
        for parameter in teacher.parameters():
            parameter.data.fill_(float("nan"))
        said = ""
        try:
            list(running)
        except NonFiniteError as error:
            said = str(error)
        same = all(map(torch.equal, kept, trainer.method.parameters()))
        return {"ok": same and "the teacher's logits are not finite" in said, "said": said}

    return each(["plain", "recorded"], check)


def no_waits(bench: Bench) -> Found:
    """Torch is told to refuse whatever waits for the GPU; steps go on."""

    def check(name: str) -> Found:
        method, _, how = name.partition(" ")
        with tempfile.TemporaryDirectory() as folder:
            changes = ["train.batch_size=20", *settings(method)]
            if "ahead" in how:
                changes.append("teacher.ahead=3")
            if "kept" in how:
                changes += ["teacher.cache=logits", f"teacher.cache_dir={folder}"]
            trainer = bench.trainer(method, *changes, recorded=how != "plain")
            if "kept" in how:  # they are to be there
                epochs(trainer, 1)
                trainer.epoch = 0
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
    return each([*names, "dskd ahead", "kd kept", "kd kept ahead"], check)


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
        asked: Found = {"ahead": 3 if "ahead" in how else 1}
        if "kept" in how:
            asked |= {"cache": "bank", "cache_dir": folder.parent / "answers"}
        dskd.distill(
            student="resnet8",
            teacher={"module": teacher, **asked},
            data=data,
            method=name,
            train=train,
            out=folder,
            resume=resume,
        )
        return (folder / "student.safetensors").read_bytes()

    def check(what: str) -> Found:
        name, _, how = what.partition(" ")
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

    ways = ("plain", "recorded", "ahead", "kept", "kept, ahead")
    return each([f"{name} {how}" for name in ("kd", "dskd") for how in ways], check)


def ahead(bench: Bench) -> Found:
    """Answers of groups are those of batches but for rounding, and runs on them repeat."""

    def check(name: str) -> Found:
        recorded = name == "recorded"
        changes = ("train.batch_size=16",)
        four = (*changes, "teacher.ahead=4")
        one, again = (bench.trainer("dskd", *four, recorded=recorded) for _ in range(2))
        for trainer in (one, again):
            epochs(trainer, 3)
        alone, group = bench.trainer("dskd", *changes), bench.trainer("dskd", *four)
        worst = 0.0
        needs = alone.method.needs
        plan = draw_plan(0, 0, len(alone.split), alone.padding, alone.flip)
        planned = partial(alone.split.batches, plan, 16)
        for batch in group.teacher_outputs.following(planned, 0, needs):
            expected, found = (
                alone.teacher_outputs(batch, needs),
                group.teacher_outputs(batch, needs),
            )
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
            means.append(trainer.metrics.means()["train_loss"])
        return {"ok": abs(means[0] - means[1]) < 0.01 * abs(means[0]), "losses": means}

    return each(["kd", "dskd"], check)
