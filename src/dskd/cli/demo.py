"""The demo: a teacher and three students on real handwritten digits, in about a minute."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from dskd.config import recipe
from dskd.deploy.evaluate import evaluate
from dskd.engine import run
from dskd.engine.prepare import teacher_recipe
from dskd.engine.result import Result
from dskd.errors import InputError, option
from dskd.runtime import distributed
from dskd.storage.atomic import check_writable
from dskd.storage.run_files import LAST

log = logging.getLogger("dskd")

NOTE = (
    "One seed on 500 test images: differences of one or two points are noise here. "
    "Best epochs are chosen on the test split."
)
_STUDENTS = {"ce": "student alone", "kd": "student, KD", "dskd": "student, DSKD"}


def run_demo(out: Path, overrides: Sequence[str] = ()) -> tuple[Path, list[str], list[list[str]]]:
    """Trains a teacher, then one student by each of three methods with the same batches.

    Args:
        out: Folder of the runs. If it exists, ``-2``, ``-3`` and so on is appended.
        overrides: Changes to the recipe ``digits``.

    Returns:
        The folder, and the columns and rows of the table.

    Raises:
        InputError: ``out`` has no name of its own, an override does not fit, or torchrun started
            several processes.
    """
    distributed.require_single_process("the demo")
    out = free_folder(out)
    check_writable(out, option("out", "FOLDER"))
    plan = recipe.load("digits", overrides)
    if plan.teacher is None:
        raise InputError("the demo needs a teacher; set teacher.name")
    log.info("teacher %s", plan.teacher.name)
    teacher = run.train(teacher_recipe(plan).changed(out=out / "teacher"))
    evaluated = evaluate(teacher.path)
    rows = [_row("teacher", plan.teacher.name, teacher, None)]
    checkpoint = [f"teacher.checkpoint={out / 'teacher' / LAST}"]
    for method, label in _STUDENTS.items():
        log.info("%s", label)
        changes = [f"method={{name: {method}}}", f"out={out / method}"]
        student_plan = recipe.load("digits", [*overrides, *checkpoint, *changes])
        student = run.distill(student_plan)
        agreement = evaluate(student.path).agreement(evaluated)
        rows.append(_row(label, student_plan.student.name, student, agreement))
    columns = [
        "",
        "model",
        "parameters",
        "test accuracy, %",
        "best epoch, %",
        "agreement, %",
        "seconds",
    ]
    return out, columns, rows


def _row(label: str, model: str, result: Result, agreement: float | None) -> list[str]:
    return [
        label,
        model,
        f"{result.parameters:,}",
        f"{result.test_accuracy:.1f}",
        f"{result.best_test_accuracy:.1f}",
        "-" if agreement is None else f"{agreement:.1f}",
        f"{result.seconds:.1f}",
    ]


def free_folder(out: Path) -> Path:
    """The first of ``out``, ``out-2``, ``out-3``, ... that does not exist.

    Raises:
        InputError: ``out`` has no name of its own.
    """
    if out.name in ("", ".."):
        raise InputError(
            f"the demo makes a folder of its own; name it, as in {option('out', str(out / 'demo'))}"
        )
    candidate, number = out, 1
    while candidate.exists():
        number += 1
        candidate = out.with_name(f"{out.name}-{number}")
    return candidate
