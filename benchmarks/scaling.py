"""Measures how time and memory grow: ``make scaling``, or ``python benchmarks/scaling.py``.

The dimensions are the number of images, their size, the supervised stages of DSKD, and students
that share a teacher. All is measured in bfloat16 on the CPU, with images of noise. Prints tables
and adds the numbers to benchmarks/latest.json, which ``make bench`` writes.
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
from bench import BATCH, LATEST, commit
from interleave import Steps, Times, TrainerSteps, interleave
from noise import CPU, noise_data, noise_trainer, untrained_teacher
from results import PAIR, Result
from rows import recipe_of
from speed_tables import hardware_line, scaling_tables

from dskd.compare.lockstep import LockstepRun
from dskd.config.schema import Recipe
from dskd.data import Dataset
from dskd.data.cache import cached
from dskd.data.epoch_plan import draw_plan
from dskd.data.folder_files import FolderFiles
from dskd.data.loader import DataLoaders, MemoryLoader
from dskd.engine.build import build_run
from dskd.engine.build_model import build_model
from dskd.engine.trainer import Trainer
from dskd.runtime import device
from dskd.storage.run_directory import RunDirectory
from dskd.teacher.cache import CachedOutputs
from dskd.teacher.outputs import SharedOutputs, TeacherOutputs

STAGES_PAIR = "vgg13-vgg8"
"""The pair with the most stages: five."""
SHALLOW = 4


def by_images(counts: Iterable[int]) -> list[Result]:
    """The cost of an epoch without its steps, and the memory of the decoded images.

    Args:
        counts: Numbers of images.
    """
    return [_images(count) for count in counts]


def _images(count: int) -> Result:
    data = noise_data(count)
    with TemporaryDirectory(prefix="dskd-scaling-") as folder:
        path = Path(folder)
        files = FolderFiles(path, ())
        cached("noise", files, None, path, lambda: data)
        (file,) = path.glob("*.safetensors")
        spawned = multiprocessing.get_context("spawn")  # shares no memory with this process
        with spawned.Pool(1) as pool:
            held, seconds = pool.apply(_load, (path,))
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


def _load(folder: Path) -> tuple[int, float]:
    """Reads cached images; returns the growth of this process in bytes, and the seconds."""
    process = psutil.Process()
    before, start = process.memory_info().rss, time.perf_counter()
    images = DataLoaders(cached("noise", FolderFiles(folder, ()), None, folder, _missing), CPU)
    seconds = time.perf_counter() - start
    held = process.memory_info().rss - before
    assert len(images.train)
    return held, seconds


def _missing() -> NoReturn:
    raise AssertionError("the images are cached")


def by_cache(counts: Iterable[int]) -> list[Result]:
    """The size on disk of a full cache of features with one view of each image.

    Args:
        counts: Numbers of images.
    """
    results = []
    for count in counts:
        with TemporaryDirectory(prefix="dskd-scaling-") as folder:
            settings = ("teacher.cache=features", "teacher.views=1", f"teacher.cache_dir={folder}")
            trainer = noise_trainer(
                recipe_of(PAIR, "dskd", "bfloat16", BATCH, *settings), noise_data(count)
            )
            teacher_outputs = trainer.teacher_outputs
            assert isinstance(teacher_outputs, CachedOutputs)
            runner = TrainerSteps(trainer)
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
    """A step of KD and a step of DSKD, by the size of the images.

    Args:
        sizes: Sides of the images in pixels.
        rounds: Steps of each that count.
    """
    results = []
    for size in sizes:
        data = noise_data(4 * BATCH, size=size)
        trainers = {
            name: noise_trainer(recipe_of(PAIR, name, "bfloat16", BATCH), data)
            for name in ("kd", "dskd")
        }
        results.append({"size": size} | _timed(trainers, rounds))
    return results


def by_stages(rounds: int) -> list[Result]:
    """A step of DSKD with two to five supervised stages: the last one and shallow ones.

    Args:
        rounds: Steps of each that count.
    """
    data = noise_data(4 * BATCH)

    def trainer(method: str, *others: str) -> Trainer:
        return noise_trainer(recipe_of(STAGES_PAIR, method, "bfloat16", BATCH, *others), data)

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
    runners = {name: TrainerSteps(trainer) for name, trainer in trainers.items()}
    times = interleave(runners, rounds, warmup=0)
    return {
        "n": rounds,
        "seconds": {name: _median(one) for name, one in times.items()},
        "memory": {name: trainer.memory for name, trainer in trainers.items()},
    }


class LockstepStudents:
    """Students of one seed in lockstep, which share the outputs of their teacher.

    Args:
        recipe: The recipe of all students.
        data: The images.
        count: Number of students.
        folder: The folder of their runs. Nothing is written during an epoch.

    Attributes:
        shared: The shared outputs, which count the forward passes of the teacher.
    """

    untimed, pause = 0, 0.0

    def __init__(self, recipe: Recipe, data: Dataset, count: int, folder: Path) -> None:
        images = DataLoaders(data, CPU)
        teacher = untrained_teacher(recipe, images)
        self.shared = SharedOutputs(TeacherOutputs(teacher))
        self.students = []
        for number in range(count):
            directory = RunDirectory(folder / str(number))
            student = build_model(recipe.student, data, recipe.seed)
            training_run = build_run(recipe, student, images, self.shared.for_student(), directory)
            self.students.append(LockstepRun("kd", recipe.seed, training_run))

    def step(self) -> float:
        """Takes a step of each student, and returns the seconds of the teacher."""
        seconds = 0.0
        for student in self.students:
            watch = student.training_run.trainer.teacher_outputs.watch
            before = watch.seconds
            student.step()
            seconds += watch.seconds - before
        return seconds


def by_students(counts: Iterable[int], rounds: int) -> list[Result]:
    """A step of KD for each student, by the number of students that share a teacher.

    Args:
        counts: Numbers of students.
        rounds: Steps of each that count.
    """
    recipe, data = recipe_of(PAIR, "kd", "bfloat16", BATCH), noise_data(BATCH * (rounds + 4))
    with TemporaryDirectory(prefix="dskd-scaling-") as folder:
        groups = {
            count: LockstepStudents(recipe, data, count, Path(folder) / str(count))
            for count in counts
        }
        plain = noise_trainer(recipe_of(PAIR, "ce", "bfloat16", BATCH), data)
        runners: dict[str, Steps] = {str(count): group for count, group in groups.items()}
        times = interleave(runners | {"ce": TrainerSteps(plain)}, rounds)
    alone = _median(times["1"])
    return [
        {
            "students": count,
            "n": rounds,
            "seconds": _median(times[str(count)]) / count,
            "saving": 1 - _median(times[str(count)]) / count / alone,
            "plain_seconds": _median(times["ce"]),
        }
        for count in groups
    ]


def _median(times: Times) -> float:
    return statistics.median(step.seconds for step in times.steps)


def measure(*, quick: bool) -> Result:
    """Measures all tables.

    Args:
        quick: Whether this is a rehearsal.
    """
    rounds = 1 if quick else 5
    return {
        "command": f"python benchmarks/scaling.py {' '.join(sys.argv[1:])}".strip(),
        "date": date.today().isoformat(),
        "commit": commit(),
        "environment": device.environment(CPU),
        "rehearsal": quick,
        "batch_size": BATCH,
        "images": by_images((1000,) if quick else (5000, 10_000, 25_000, 50_000, 100_000)),
        "cached": by_cache((128,) if quick else (256, 512, 1024)),
        "size": by_size((32,) if quick else (32, 64, 128), rounds),
        "stages": by_stages(rounds),
        "students": by_students((1, 2) if quick else (1, 2, 4, 8), rounds),
    }


def main() -> None:
    """Measures, adds the numbers to the JSON and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="a rehearsal, whose numbers mean nothing"
    )
    parser.add_argument("--out", type=Path, default=LATEST, help="the JSON file to add to")
    chosen = parser.parse_args()
    scaling = measure(quick=chosen.quick)
    before = json.loads(chosen.out.read_text()) if chosen.out.is_file() else {}
    chosen.out.write_text(json.dumps(before | {"scaling": scaling}, indent=1) + "\n")
    print(hardware_line(scaling["environment"]))
    for title, lines in scaling_tables(scaling):
        print("", title, "", *lines, sep="\n")


if __name__ == "__main__":
    main()
