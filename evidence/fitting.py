"""Finds the configurations of a study that its student and teacher do not allow."""

from __future__ import annotations

from dskd.compare.grid import Grid
from dskd.engine.preflight import rehearse
from dskd.engine.prepare import build_student, prepare_teacher
from dskd.engine.teacher_labels import training_data
from dskd.engine.user_objects import UserObjects
from dskd.errors import InputError
from dskd.runtime import device as devices
from evidence.design import Study


def without_misfits(study: Study, grid: Grid) -> Study:
    """The study without the labels that cannot be trained. Each keeps the line that refuses it.

    Args:
        study: The study.
        grid: All of its labels, with the teacher.

    Raises:
        InputError: The baseline cannot be trained.
    """
    misfits = _misfits(grid)
    if study.baseline in misfits:
        raise InputError(f"{study.baseline}: {misfits[study.baseline]}")
    groups = {
        title: [label for label in labels if label not in misfits]
        for title, labels in study.groups.items()
    }
    return study.model_copy(update={"groups": groups, "left_out": misfits})


def _misfits(grid: Grid) -> dict[str, str]:
    """For each label that cannot be trained, why."""
    recipe, objects = grid.recipe_of_all(), UserObjects()
    data = training_data(recipe, objects)
    teacher = prepare_teacher(recipe, data, objects, devices.pick(recipe.train.device))
    student = build_student(recipe, data, objects)
    found = {}
    for variant in grid.variants:
        own = grid.recipe.changed(method=variant.method)
        try:
            rehearse(own, data, student, teacher.model if teacher else None)
        except InputError as error:
            found[variant.label] = str(error)
    return found
