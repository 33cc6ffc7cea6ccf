"""What the runs of all tasks know of their teachers."""

from __future__ import annotations

from abc import ABC

from dskd import methods
from dskd.engine.task import Job
from dskd.engine.tasks.settings import TaskRecipe


def needs_teacher(recipe: TaskRecipe) -> bool:
    """Whether the method of a run learns from a teacher."""
    return methods.find(recipe.method.name).needs_teacher


class TaskJob(Job, ABC):
    """A run of a task, whose teacher is trained unless the recipe gives one.

    Args:
        recipe: The run.
    """

    def __init__(self, recipe: TaskRecipe) -> None:
        super().__init__(recipe)
        teacher = recipe.teacher
        self._trains_teacher = (
            needs_teacher(recipe) and teacher is not None and not teacher.is_given
        )

    @property
    def trains_teacher(self) -> bool:
        """See `Job.trains_teacher`."""
        return self._trains_teacher
