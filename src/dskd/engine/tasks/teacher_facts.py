"""Write down how good the teacher of a task's run is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from dskd.data.loader import Loader
from dskd.engine.task import Task
from dskd.engine.training_run import TrainingRun
from dskd.storage.run_files import TEACHER_FACTS


def record_teacher(
    task: Task, run: TrainingRun, near_chance: Callable[[Tensor, Loader], bool]
) -> None:
    """Writes the name and the score of a run's teacher into its folder, if there is one.

    Args:
        task: Scores the predictions.
        run: Which begins.
        near_chance: Whether predictions of a split are hardly better than a guess.
    """
    teacher = run.trainer.teacher_outputs.teacher
    if teacher is None or teacher.test_predictions is None:
        return
    recipe: Any = run.recipe
    facts = {
        "name": recipe.teacher.name,
        "test_accuracy": task.score(teacher.test_predictions, run.data),
        "test_images": len(run.data.test),
        "near_chance": near_chance(teacher.test_predictions, run.data.test),
    }
    run.directory.write_json(TEACHER_FACTS, facts)
