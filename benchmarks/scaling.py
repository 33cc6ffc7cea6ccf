"""How time and memory grow with images, their size, supervised stages and students that share.

``make scaling``, or ``python benchmarks/scaling.py``. Prints tables and adds all numbers to
benchmarks/latest.json, which ``make bench`` begins. bfloat16, on the CPU, images of noise.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

import psutil
import torch
from bench import BATCH, LATEST, commit
from method_cost import noise, teacher_of, trainer_of
from results import PAIR, Result
from rows import recipe_of
from speed_tables import hardware_line, scaling_tables
from turns import Steps, Times, Training, take_turns

from dskd.compare.lockstep import LockstepRun
from dskd.config.schema import Recipe
from dskd.data import Dataset
from dskd.data.archives import FolderFiles
from dskd.data.cache import cached
from dskd.data.epoch_plan import draw_plan
from dskd.data.loader import DataLoaders, MemoryLoader
from dskd.engine.build import build_model, build_run
from dskd.engine.trainer import Trainer
from dskd.runtime import device
from dskd.storage.run_directory import RunDirectory
from dskd.teacher.cache import CachedOutputs
from dskd.teacher.outputs import SharedOutputs, TeacherOutputs

CPU = torch.device("cpu")
STAGES_PAIR = "vgg13-vgg8"
"""The pair with the most stages: five."""
SHALLOW = 4


def by_images(counts: Iterable[int]) -> list[Result]:
    """What an epoch costs beside its steps, and what the decoded images hold in memory."""
    return [_images(count) for count in counts]


def _images(count: int) -> Result:
    data = noise(count)
    with TemporaryDirectory(prefix="dskd-scaling-") as folder:
        place = Path(folder)
        files = FolderFiles(place, ())
        cached("noise", files, None, place, lambda: data)
        (file,) = place.glob("*.safetensors")
        spawned = multiprocessing.get_context("spawn")  # nothing of this process's memory
        with spawned.Pool(1) as pool:
            held, seconds = pool.apply(_load, (place,))
        predicted = file.stat().st_size
    split = MemoryLoader(data.train, CPU)
    start = time.perf_counter()
    plan = draw_plan(0, 0, count, padding=4, flip=True)
    planned = time.perf_counter()
    batches = sum(1 for _ in split.batches(plan, BATCH))
    end = time.perf_counter()
    return {
        "images": count,
        "predicted_bytes": predicted,
        "held_bytes": held,
        "load_seconds": seconds,
        "plan_seconds": planned - start,
        "batches_seconds": end - planned,
        "batches": batches,
    }


def _load(place: Path) -> tuple[int, float]:
    """Bytes that this process grew by, and seconds, when it read the images kept in a folder."""
    process = psutil.Process()
    before, start = process.memory_info().rss, time.perf_counter()
    images = DataLoaders(cached("noise", FolderFiles(place, ()), None, place, _missing), CPU)
    seconds = time.perf_counter() - start
    held = process.memory_info().rss - before
    assert len(images.train)
    return held, seconds


def _missing() -> NoReturn:
    raise AssertionError("the images were kept")


def by_kept(counts: Iterable[int]) -> list[Result]:
    """What a bank that is full takes on the disk. One view an image: an epoch then fills it."""
    results = []
    for count in counts:
        with TemporaryDirectory(prefix="dskd-scaling-") as folder:
            settings = ("teacher.cache=features", "teacher.views=1", f"teacher.cache_dir={folder}")
            trainer = trainer_of(
                recipe_of(PAIR, "dskd", "bfloat16", BATCH, *settings), noise(count)
            )
            teacher_outputs = trainer.teacher_outputs
            assert isinstance(teacher_outputs, CachedOutputs)
            runner = Training(trainer)
            for _ in range(trainer.steps):
                runner.step()
            files = [path.stat() for path in Path(folder).rglob("*") if path.is_file()]
            results.append(
                {
                    "images": count,
                    "filled": teacher_outputs.records.filled(),
                    "predicted_bytes": teacher_outputs.records.size,
                    "held_bytes": sum(512 * state.st_blocks for state in files),
                }
            )
    return results


def by_size(sizes: Iterable[int], rounds: int) -> list[Result]:
    """A step of KD and of DSKD on images of other sizes."""
    results = []
    for size in sizes:
        data = noise(4 * BATCH, size=size)
        trainers = {
            name: trainer_of(recipe_of(PAIR, name, "bfloat16", BATCH), data)
            for name in ("kd", "dskd")
        }
        results.append({"size": size} | _timed(trainers, rounds))
    return results


def by_stages(rounds: int) -> list[Result]:
    """A step of DSKD with two to five supervised stages: the last one, and shallow ones."""
    data = noise(4 * BATCH)

    def trainer(method: str, *others: str) -> Trainer:
        return trainer_of(recipe_of(STAGES_PAIR, method, "bfloat16", BATCH, *others), data)

    trainers = {"kd": trainer("kd")}
    for first in range(SHALLOW, 0, -1):
        shallow = list(range(first, SHALLOW + 1))
        trainers[str(len(shallow) + 1)] = trainer("dskd", f"method.supervise={shallow}")
    numbers = _timed(trainers, rounds)
    return [
        {"stages": 1 if name == "kd" else int(name)}
        | {key: numbers[key][name] for key in ("seconds", "memory")}
        for name in trainers
    ]


def _timed(trainers: dict[str, Trainer], rounds: int) -> Result:
    runners = {name: Training(trainer) for name, trainer in trainers.items()}
    times = take_turns(runners, rounds, warmup=0)
    return {
        "n": rounds,
        "seconds": {name: _median(one) for name, one in times.items()},
        "memory": {name: trainer.memory for name, trainer in trainers.items()},
    }


class Cohort:
    """Students of one seed that step side by side, and share their teacher's outputs.

    Args:
        recipe: Of each.
        data: The images.
        count: How many students.
        folder: Where each would be recorded; nothing is written within an epoch.

    Attributes:
        shared: Knows how often the teacher ran.
    """

    lead, rest = 0, 0.0

    def __init__(self, recipe: Recipe, data: Dataset, count: int, folder: Path) -> None:
        images = DataLoaders(data, CPU)
        teacher = teacher_of(recipe, images)
        self.shared = SharedOutputs(TeacherOutputs(teacher))
        self.students = []
        for number in range(count):
            directory = RunDirectory(folder / str(number))
            student = build_model(recipe.student, data, recipe.seed)
            training_run = build_run(recipe, student, images, self.shared.for_student(), directory)
            self.students.append(LockstepRun("kd", recipe.seed, training_run))

    def step(self) -> float:
        """A step of each; the seconds of the teacher's one answer."""
        seconds = 0.0
        for student in self.students:
            watch = student.training_run.trainer.teacher_outputs.watch
            before = watch.seconds
            student.step()
            seconds += watch.seconds - before
        return seconds


def by_students(counts: Iterable[int], rounds: int) -> list[Result]:
    """A student's step of KD where several share a teacher; each alone asks for itself."""
    recipe, data = recipe_of(PAIR, "kd", "bfloat16", BATCH), noise(BATCH * (rounds + 4))
    with TemporaryDirectory(prefix="dskd-scaling-") as folder:
        cohorts = {
            count: Cohort(recipe, data, count, Path(folder) / str(count)) for count in counts
        }
        plain = trainer_of(recipe_of(PAIR, "ce", "bfloat16", BATCH), data)
        runners: dict[str, Steps] = {str(count): lockstep for count, lockstep in cohorts.items()}
        times = take_turns(runners | {"ce": Training(plain)}, rounds)
    alone = _median(times["1"])
    return [
        {
            "students": count,
            "n": rounds,
            "seconds": _median(times[str(count)]) / count,
            "saving": 1 - _median(times[str(count)]) / count / alone,
            "plain_seconds": _median(times["ce"]),
        }
        for count in cohorts
    ]


def _median(times: Times) -> float:
    return statistics.median(step.seconds for step in times.steps)


def measure(*, quick: bool) -> Result:
    """All tables."""
    rounds = 1 if quick else 5
    return {
        "command": f"python benchmarks/scaling.py {' '.join(sys.argv[1:])}".strip(),
        "date": date.today().isoformat(),
        "commit": commit(),
        "environment": device.environment(CPU),
        "rehearsal": quick,
        "batch_size": BATCH,
        "images": by_images((1000,) if quick else (5000, 10_000, 25_000, 50_000, 100_000)),
        "kept": by_kept((128,) if quick else (256, 512, 1024)),
        "size": by_size((32,) if quick else (32, 64, 128), rounds),
        "stages": by_stages(rounds),
        "students": by_students((1, 2) if quick else (1, 2, 4, 8), rounds),
    }


def main() -> None:
    """Measures, adds to the JSON and shows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a rehearsal: numbers mean nothing")
    parser.add_argument("--out", type=Path, default=LATEST, help="the JSON file to add to")
    chosen = parser.parse_args()
    scaling = measure(quick=chosen.quick)
    there = json.loads(chosen.out.read_text()) if chosen.out.is_file() else {}
    chosen.out.write_text(json.dumps(there | {"scaling": scaling}, indent=1) + "\n")
    print(hardware_line(scaling["environment"]))
    for title, lines in scaling_tables(scaling):
        print("", title, "", *lines, sep="\n")


if __name__ == "__main__":
    main()
