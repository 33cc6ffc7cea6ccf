"""Read what a finished run of a task was, before its student is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from dskd.engine.tasks.recipes import TaskRecipes
from dskd.engine.tasks.settings import R
from dskd.errors import InputError, option, unknown
from dskd.storage.run_files import BEST, LAST, RECIPE, RESULT
from dskd.storage.yaml_file import read_yaml_file

Which = Literal["last", "best"]
"""The weights of the last epoch, or of the best one."""


def finished_run(run: Path, recipes: TaskRecipes[R], which: Which) -> tuple[R, Path]:
    """The recipe of a finished run, and the file of its weights.

    Args:
        run: The folder of the run.
        recipes: Of the task.
        which: The weights of the last or of the best epoch.

    Raises:
        InputError: There is no finished run of this task.
    """
    if which not in get_args(Which):
        raise unknown("choice of weights", which, get_args(Which))
    if not (run / RECIPE).is_file():
        raise InputError(f"{run} holds no run; give the folder of one")
    values = read_yaml_file(run / RECIPE, "recipe")
    if values.get("task") != recipes.task:
        raise InputError(
            f"{run} is a run of another task; use the same command without `{recipes.task}`, or "
            "with the other task"
        )
    recipe = recipes.resolve(values, run)
    if not (run / RESULT).is_file():
        raise InputError(
            f"{run} is not finished; distil {run / RECIPE} with out={run} and {option('resume')}"
        )
    return recipe, run / (LAST if which == "last" else BEST)
