"""Estimate what a whole run needs: time, memory and disk."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import torch

from dskd.config.schema import Recipe
from dskd.data import Dataset
from dskd.data.loader import DataLoaders
from dskd.engine.build import build_teacher_outputs
from dskd.engine.check.findings import CostFindings, StepFindings
from dskd.engine.memory_usage import SavedTensors
from dskd.engine.prepare import Prepared
from dskd.engine.trainer import Trainer
from dskd.engine.unlabelled import teacher_loader
from dskd.runtime.memory import readable
from dskd.teacher.cache import CachedOutputs, cached_views
from dskd.teacher.frozen import FrozenTeacher

CHECKPOINTS = 3
"""Two are kept, and a third is there while it is written."""


def check_cost(
    prepared: Prepared,
    teacher: FrozenTeacher | None,
    data: DataLoaders,
    trainers: Sequence[Trainer],
    steps: Sequence[StepFindings],
    whole: Dataset,
) -> CostFindings:
    """Estimates the cost of a run from a few of its steps.

    Args:
        prepared: The run, perhaps with a sample of its images.
        teacher: On the device; None without one.
        data: The loaders of the images.
        trainers: Of the steps.
        steps: Of the student, and of a teacher that is trained first.
        whole: All images of the run.
    """
    recipe = prepared.recipe
    scale = len(whole.train) / len(data.train)
    evaluated = len(whole.test) + (len(whole.validation) if whole.validation is not None else 0)
    seconds: dict[str, float] = {}
    running: dict[str, float] = {}
    for trainer, found in zip(trainers, steps, strict=True):
        averaged = found.trained == "student" and recipe.train.ema is not None
        evaluations = count_evaluations(trainer.epochs, recipe.train.evaluate_every, averaged)
        seconds_of_one = found.evaluation_seconds * evaluated
        parts = {
            f"{found.trained}'s training": scale * _training_seconds(recipe, trainer, found),
            f"{found.trained}'s evaluation": seconds_of_one * evaluations,
        }
        seconds |= parts
        running |= {name: spent * (1 - found.waiting) for name, spent in parts.items()}
    assert recipe.out is not None, "a resolved recipe has a folder"
    disk = {"run": _run_bytes(recipe, steps)}
    free = {"run": _free(recipe.out)}
    cache = _cache(prepared, teacher, data)
    if cache is not None:
        disk["teacher outputs"] = round(scale * cache[1])
        free["teacher outputs"] = _free(cache[0])
    memory = _memory(teacher, data, steps, scale)
    return CostFindings(seconds, running, memory, _memory_free(data.train.device), disk, free)


def count_evaluations(epochs: int, every: int, averaged: bool) -> int:
    """How often a run evaluates a network.

    Args:
        epochs: Of the training.
        every: ``train.evaluate_every``.
        averaged: Whether the moving average is evaluated, too.

    Example:
        >>> count_evaluations(10, 4, averaged=False), count_evaluations(10, 1, averaged=True)
        (3, 20)
    """
    return math.ceil(epochs / every) * (1 + averaged)


def _training_seconds(recipe: Recipe, trainer: Trainer, found: StepFindings) -> float:
    """The time of all steps. A cache computes each view of an image once."""
    step = found.seconds * trainer.step_size / found.batch_size
    steps = trainer.steps * trainer.epochs
    teacher = step * found.teacher
    computed = 1.0
    if recipe.teacher is not None and recipe.teacher.cache != "none":
        how = recipe.data.crop_padding, recipe.data.flip
        views = cached_views(recipe.teacher.cache, recipe.teacher.views, *how)
        computed = min(1.0, views / trainer.epochs)
    return steps * (step - teacher + teacher * computed)


def _run_bytes(recipe: Recipe, steps: Sequence[StepFindings]) -> int:
    """Checkpoints and models of the run, and of the run of a teacher that is trained first."""
    total = 0
    for found in steps:
        models = 2  # of the last and of the best epoch
        if found.trained == "student" and recipe.train.ema is not None:
            models += 1
        total += CHECKPOINTS * found.state_bytes + models * found.model_bytes
    return total


def _cache(
    prepared: Prepared, teacher: FrozenTeacher | None, data: DataLoaders
) -> tuple[Path, int] | None:
    """The folder of the cached teacher outputs, and the bytes that they still need."""
    recipe = prepared.recipe
    if teacher is None or recipe.teacher is None or recipe.teacher.cache == "none":
        return None
    images = teacher_loader(recipe.data, data)
    outputs = build_teacher_outputs(recipe, images, teacher, prepared.needs)
    if not isinstance(outputs, CachedOutputs):
        return None
    return outputs.records.path, outputs.records.missing_bytes()


def _free(path: Path) -> int:
    """Free bytes where a folder is or will be."""
    path = path.absolute()
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    return shutil.disk_usage(there).free


def _memory(
    teacher: FrozenTeacher | None, data: DataLoaders, steps: Sequence[StepFindings], scale: float
) -> int:
    """Bytes of the larger training, of the frozen teacher, and of images on a GPU."""
    total = max(found.fixed_bytes + found.saved_bytes for found in steps)
    weights = SavedTensors()
    for tensor in (*teacher.parameters(), *teacher.buffers()) if teacher is not None else ():
        weights.add(tensor)
    images = 0
    if data.train.device.type == "cuda":
        held = [data.train, data.test, data.validation, data.unlabelled]
        tensors = [getattr(loader, "images", None) for loader in held]
        images = sum(one.nbytes for one in tensors if isinstance(one, torch.Tensor))
    return total + weights.bytes + round(scale * images)


def _memory_free(device: torch.device) -> int:
    """Bytes that a training in this process can have."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    return int(psutil.virtual_memory().available + psutil.Process().memory_info().rss)


def cost_reasons(cost: CostFindings, device: torch.device) -> Iterator[str]:
    """Why the run does not fit."""
    if cost.memory > cost.memory_free:
        yield (
            f"the training needs about {readable(cost.memory)} of memory, and "
            f"{readable(cost.memory_free)} are available on {device.type}; lower train.batch_size"
        )
    for name, needed in cost.disk.items():
        if needed > cost.disk_free[name]:
            fix = "set out=" if name == "run" else "set teacher.cache_dir="
            yield (
                f"the {name} needs about {readable(needed)} of disk, and "
                f"{readable(cost.disk_free[name])} are free; free some, or {fix}FOLDER on another "
                "disk"
            )
