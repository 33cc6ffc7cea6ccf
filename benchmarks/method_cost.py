"""Measures the cost of each method relative to kd: ``python benchmarks/method_cost.py``.

All methods are built on one pair. The images are noise in the number and size of CIFAR-100, because
time does not depend on their content. The methods take turns, one step each, so that other work on
the machine slows all equally. Writes docs/methods/cost.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from turns import Step, Training, take_turns

from dskd import methods
from dskd.config.recipe import load
from dskd.config.schema import Recipe
from dskd.data import Dataset, Split
from dskd.data.loader import DataLoaders
from dskd.engine.build import build_method, build_model, build_teacher_outputs, build_trainer
from dskd.engine.train_teacher import freeze
from dskd.engine.trainer import Trainer
from dskd.models.zoo import build
from dskd.runtime import device
from dskd.runtime.compile import compile_in_place
from dskd.teacher.frozen import FrozenTeacher

OUT = Path(__file__).parents[1] / "docs/methods/cost.json"
RECIPE = "cifar100/resnet32x4-resnet8x4"


def noise(samples: int, classes: int = 100, size: int = 32) -> Dataset:
    """Images of noise, by default in the shape of CIFAR-100.

    Args:
        samples: Training images.
        classes: Number of classes, and of test images.
        size: Side of the images in pixels.
    """
    draw = torch.Generator().manual_seed(0)

    def split(count: int) -> Split:
        images = torch.randint(0, 256, (count, 3, size, size), generator=draw, dtype=torch.uint8)
        return Split(images, torch.arange(count) % classes)

    names = tuple(map(str, range(classes)))
    return Dataset("noise", split(samples), split(classes), names, (0.5,) * 3, (0.25,) * 3)


def with_method(plan: Recipe, name: str) -> Recipe:
    """The recipe with the default settings of a method.

    Args:
        plan: The recipe.
        name: The method.
    """
    chosen = load(
        RECIPE, [f"method={{name: {name}}}", "train.lr=1e-9"]
    )  # so that training on noise stays finite
    slow = plan.train.model_copy(update={"lr": chosen.train.lr})
    return plan.changed(method=chosen.method, train=slow)


def trainer_of(recipe: Recipe, data: Dataset) -> Trainer:
    """The trainer of a recipe, with an untrained teacher.

    Args:
        recipe: The recipe.
        data: The images.
    """
    cpu = torch.device("cpu")
    device.set_up(cpu)
    images = DataLoaders(data, cpu)
    teacher = teacher_of(recipe, images)
    student = build_model(recipe.student, data, seed=0)
    method = build_method(recipe, data, student, teacher)
    method.student.to_device(images.train.device)
    if recipe.train.compile:
        compile_in_place(method)
    teacher_outputs = build_teacher_outputs(recipe, images.train, teacher, method.needs)
    teacher_outputs.open()
    return build_trainer(recipe, method, teacher_outputs, images.train)


def teacher_of(recipe: Recipe, images: DataLoaders) -> FrozenTeacher | None:
    """The teacher of a recipe, untrained.

    Args:
        recipe: The recipe.
        images: The images, on their device.
    """
    if recipe.teacher is None:
        return None
    torch.manual_seed(1)
    channels, classes = images.data.shape[0], len(images.data.classes)
    untrained = build(recipe.teacher.name, num_classes=classes, in_channels=channels)
    model = build_model(recipe.teacher, images.data, 0, untrained)
    return freeze(model, images, recipe.teacher.fuse_batchnorm, recipe.train.precision)


def measure(trainers: dict[str, Trainer], rounds: int) -> dict[str, list[Step]]:
    """Times the steps of each method; the first step does not count.

    Args:
        trainers: The trainers, by method.
        rounds: Steps of each that count.
    """
    runners = {name: Training(trainer) for name, trainer in trainers.items()}
    return {name: times.steps for name, times in take_turns(runners, rounds, warmup=0).items()}


def rows(trainers: dict[str, Trainer], rounds: int) -> dict[str, Any]:
    """The cost of each method.

    Args:
        trainers: The trainers, by method.
        rounds: Steps of each that count.
    """
    seconds = measure(trainers, rounds)
    whole = {name: statistics.median(step for step, _ in s) for name, s in seconds.items()}
    teacher = {name: statistics.median(part for _, part in s) for name, s in seconds.items()}
    return {
        name: {
            "step_over_kd": round(whole[name] / whole["kd"], 3),
            "student_over_kd": round(
                (whole[name] - teacher[name]) / (whole["kd"] - teacher["kd"]), 3
            ),
            "seconds": round(whole[name], 4),
            "teacher_seconds": round(teacher[name], 4),
            "extra_parameters": _extra(trainer),
            "memory": trainer.memory,
        }
        for name, trainer in trainers.items()
    }


def _extra(trainer: Trainer) -> int:
    deployed = {id(p) for p in trainer.method.deployed().parameters()}
    return sum(
        p.numel() for p in trainer.method.parameters() if p.requires_grad and id(p) not in deployed
    )


def main() -> None:
    """Measures the methods and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="steps of each method")
    parser.add_argument("--images", type=int, default=50_000, help="of the training split")
    chosen = parser.parse_args()
    plan = load(RECIPE)
    data = noise(chosen.images)
    trainers = {name: trainer_of(with_method(plan, name), data) for name in methods.names()}
    result = {
        "command": f"python benchmarks/method_cost.py --rounds {chosen.rounds}",
        "pair": RECIPE.partition("/")[2],
        "batch_size": plan.train.batch_size,
        "precision": plan.train.precision,
        "rounds": chosen.rounds,
        "environment": device.environment(torch.device("cpu")),
        "methods": rows(trainers, chosen.rounds),
    }
    OUT.write_text(json.dumps(result, indent=2) + "\n")
    for name, row in result["methods"].items():
        print(f"{name:10} {row['step_over_kd']:6.2f} x kd, {row['extra_parameters']:>10,} extra")


if __name__ == "__main__":
    main()
