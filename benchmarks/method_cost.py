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

from interleave import StepTime, TrainerSteps, interleave
from noise import CPU, noise_data, noise_trainer

from dskd import methods
from dskd.config.recipe import load
from dskd.config.schema import Recipe
from dskd.engine.trainer import Trainer
from dskd.runtime import device

OUT = Path(__file__).parents[1] / "docs/methods/cost.json"
RECIPE = "cifar100/resnet32x4-resnet8x4"


def with_method(plan: Recipe, name: str) -> Recipe:
    """The recipe with the default settings of a method.

    Args:
        plan: The recipe.
        name: The method.
    """
    # The rate is so small that training on noise stays finite.
    chosen = load(RECIPE, [f"method={{name: {name}}}", "train.lr=1e-9"])
    slow = plan.train.model_copy(update={"lr": chosen.train.lr})
    return plan.changed(method=chosen.method, train=slow)


def measure(trainers: dict[str, Trainer], rounds: int) -> dict[str, list[StepTime]]:
    """Times the steps of each method; the first step does not count.

    Args:
        trainers: The trainers, by method.
        rounds: Steps of each that count.
    """
    runners = {name: TrainerSteps(trainer) for name, trainer in trainers.items()}
    return {name: times.steps for name, times in interleave(runners, rounds, warmup=0).items()}


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
    data = noise_data(chosen.images)
    trainers = {name: noise_trainer(with_method(plan, name), data) for name in methods.names()}
    result = {
        "command": f"python benchmarks/method_cost.py --rounds {chosen.rounds}",
        "pair": RECIPE.partition("/")[2],
        "batch_size": plan.train.batch_size,
        "precision": plan.train.precision,
        "rounds": chosen.rounds,
        "environment": device.environment(CPU),
        "methods": rows(trainers, chosen.rounds),
    }
    OUT.write_text(json.dumps(result, indent=2) + "\n")
    for name, row in result["methods"].items():
        print(f"{name:10} {row['step_over_kd']:6.2f} x kd, {row['extra_parameters']:>10,} extra")


if __name__ == "__main__":
    main()
