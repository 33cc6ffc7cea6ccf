"""The result of a run, and what its student's file says about the student."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import nn

from dskd.config.schema import DataSettings, Recipe
from dskd.data import Dataset
from dskd.data.catalog import are_own
from dskd.methods.base import Method
from dskd.models.hub_models import network
from dskd.settings import Number, Percent, Size
from dskd.storage.metric_names import Metric, to_file


@dataclass(frozen=True)
class Result:
    """The result of a run.

    Attributes:
        path: The run directory.
        student: The deployed student after the last epoch, on the CPU, in eval mode. It takes
            normalised images, ``(pixel / 255 - mean) / std`` with the mean and std of the run;
            ``dskd.load_deployed(path).model`` normalises ``uint8`` images itself.
        method: Name of the method.
        parameters: Number of parameters of the deployed student.
        test_accuracy: Top-1 on the test split after the last epoch, in percent.
        test_accuracy_top5: Top-5 on the test split after the last epoch, in percent; None with
            five classes or fewer.
        best_test_accuracy: Top-1 on the test split after the best epoch, in percent.
        best_epoch: The best epoch, counted from 1.
        best_chosen_on: ``validation`` if there is a validation split. Otherwise ``test``, and then
            the best accuracy is optimistic.
        teacher_accuracy: The teacher's top-1 on the test split; None without a teacher, or with
            one of other classes.
        agreement: Share of the test images for which student and teacher predict the same class,
            in percent; None like `teacher_accuracy`.
        seconds: Time of all training steps.
        teacher_seconds: The part of ``seconds`` that the teacher's outputs took.
        checkpoint_seconds: Time spent on checkpoints.
        teacher_cache_hit_rate: Share of the samples whose teacher outputs were in the cache
            (``teacher.cache``); None without a cache.
        extra_parameters: Number of parameters that were trained with the student and are not
            deployed.
        memory: Bytes that a training step holds (see `dskd.engine.trainer.Trainer`).
        ema_test_accuracy: Top-1 of the moving average on the test split, in percent; None without
            ``train.ema``. All other numbers are those of the student itself.
        ema_student: The moving average of the deployed student, on the CPU, in eval mode; None
            without ``train.ema``.
        metric: What the accuracies are, and how files name them: ``agreement`` with the teacher's
            predictions for images without labels (``data.labels=none``), ``micro_f1`` for graphs
            with several labels a node, ``dice`` for masks.
    """

    path: Path
    student: nn.Module = field(repr=False)
    method: str
    parameters: Size
    test_accuracy: Percent
    test_accuracy_top5: Percent | None
    best_test_accuracy: Percent
    best_epoch: Size
    best_chosen_on: Literal["validation", "test"]
    teacher_accuracy: Percent | None
    agreement: Percent | None
    seconds: Number
    teacher_seconds: Number
    checkpoint_seconds: Number
    teacher_cache_hit_rate: Number | None
    extra_parameters: Size
    memory: Size
    ema_test_accuracy: Percent | None = None
    ema_student: nn.Module | None = field(default=None, repr=False)
    metric: Metric = "accuracy"

    def numbers(self) -> dict[str, Any]:
        """All but the modules and the path, as ``result.json`` holds them."""
        left_out = {"path", "student", "ema_student"}
        if self.ema_test_accuracy is None:
            left_out.add("ema_test_accuracy")
        if self.metric == "accuracy":
            left_out.add("metric")
        kept = {key: value for key, value in vars(self).items() if key not in left_out}
        return to_file(kept, self.metric)


def student_metadata(recipe: Recipe, data: Dataset, method: Method) -> dict[str, Any]:
    """All that is needed to build a deployed student and to feed it, as plain values."""
    student = recipe.student
    name, options = network(student.name, student.options, weights=student.pretrained is True)
    return {
        "model": name,
        "options": options,
        "classes": list(data.classes),
        "shape": list(data.shape),
        "method": recipe.method.name,
        "deploy_config": method.deploy_config(),
        "mean": method.student.mean.flatten().tolist(),
        "std": method.student.std.flatten().tolist(),
        "pixels": _pixels(recipe.data),
    }


def _pixels(data: DataSettings) -> dict[str, Any]:
    """How image files become images, for a prediction on new ones."""
    return {
        "value_range": data.value_range,
        "crop_pct": data.crop_pct,
        # Published data sets are resized by rules of their own; there it is for random crops only.
        "interpolation": data.interpolation if are_own(data.name) else None,
    }
