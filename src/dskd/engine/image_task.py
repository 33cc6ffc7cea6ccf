"""How the students of image classification are evaluated and described."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from dskd.config.schema import Recipe
from dskd.data import Dataset
from dskd.data.loader import DataLoaders, Loader
from dskd.engine.evaluate import EvaluationResult, evaluate_accuracy, percent
from dskd.engine.result import student_metadata
from dskd.engine.stage_record import record_stages
from dskd.engine.task import RunLoaders, Task
from dskd.engine.teacher_accuracy import teacher_facts
from dskd.engine.teacher_labels import labels_file
from dskd.engine.training_run import TrainingRun
from dskd.errors import printable
from dskd.methods.base import Method
from dskd.storage.run_directory import RunDirectory
from dskd.storage.run_files import (
    SKIPPED_IMAGES,
    TEACHER_FACTS,
    TEACHER_LABELS,
    TEST_IMAGES,
    VALIDATION_IMAGES,
)


class ImageTask(Task):
    """Image classification: accuracy, and models with stages."""

    samples: ClassVar[str] = "images"

    def evaluate(
        self, module: nn.Module, logits: Callable[[Any], dict[str, Tensor]], loader: Loader
    ) -> dict[str, EvaluationResult]:
        """See `Task.evaluate`."""
        return evaluate_accuracy(module, logits, loader)

    def score(self, predictions: Tensor, data: RunLoaders) -> float | None:
        """Top-1 accuracy; None for images without labels."""
        own: Any = data.data
        return None if own.without_labels else percent(predictions == data.test.labels.cpu())

    def student_metadata(
        self, recipe: Recipe, data: DataLoaders, method: Method
    ) -> Mapping[str, Any]:
        """See `Task.student_metadata`."""
        return student_metadata(recipe, data.data, method)

    def record_models(self, run: TrainingRun, *, resumes: bool) -> None:
        """Writes which images were left or held out, the stages, and how good the teacher is.

        Without labels, it writes what the teacher predicts for the test split.
        """
        recipe: Any = run.recipe
        data: Any = run.data
        teacher = run.trainer.teacher_outputs.teacher
        _list_images(data.data, run.directory)
        record_stages(
            run.directory,
            run.trainer.method.student,
            teacher.model if teacher is not None else None,
            resumes=resumes,
        )
        if data.data.without_labels:
            run.directory.write_json(TEACHER_LABELS, labels_file(data.data))
        elif facts := teacher_facts(teacher, recipe, data):
            run.directory.write_json(TEACHER_FACTS, facts)


def _list_images(data: Dataset, directory: RunDirectory) -> None:
    """Writes which image files were left out, and which no step trains on."""
    test = data.test.names if data.test_is_held_out else ()
    validation = data.validation.names if data.validation is not None else ()
    listed = {SKIPPED_IMAGES: data.skipped, TEST_IMAGES: test, VALIDATION_IMAGES: validation}
    for name, lines in listed.items():
        if lines:
            text = "".join(f"{printable(line)}\n" for line in lines)
            directory.write_bytes(name, text.encode())


IMAGES = ImageTask()
