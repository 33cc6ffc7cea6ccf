"""`dskd.check`: the check of a run from Python."""

from __future__ import annotations

from pathlib import Path

from dskd.engine.arguments import Data, Model, Section, resolve_arguments
from dskd.engine.check import run
from dskd.engine.check.findings import CheckReport
from dskd.engine.progress import python_output
from dskd.methods import outside
from dskd.methods.base import Method


def check(
    student: Model | None = None,
    *,
    teacher: Model | None = None,
    data: Data | None = None,
    method: str | type[Method] | Section | None = None,
    epochs: int | None = None,
    train: Section | None = None,
    seed: int | None = None,
    recipe: str | Path | Section | None = None,
    out: str | Path | None = None,
    allow_code: bool = False,
    verbose: int = 1,
) -> CheckReport:
    """Checks a run of `dskd.distill` before it starts. It writes nothing into the run's folder.

    Args:
        student: As for `dskd.distill`.
        teacher: As for `dskd.distill`.
        data: As for `dskd.distill`.
        method: As for `dskd.distill`.
        epochs: As for `dskd.distill`.
        train: As for `dskd.distill`.
        seed: As for `dskd.distill`.
        recipe: As for `dskd.distill`.
        out: As for `dskd.distill`.
        allow_code: As for `dskd.distill`.
        verbose: As for `dskd.distill`.

    Returns:
        The findings. ``reasons`` is empty if the run can be started.

    Raises:
        InputError: An argument cannot be used.

    Example:
        >>> import dskd
        >>> report = dskd.check(
        ...     "resnet8", data={"name": "digits", "fraction": 0.1}, method="ce", epochs=1,
        ... )
        >>> report.reasons, report.data.splits[0].images
        ([], 130)
    """
    parts = {"student": student, "teacher": teacher, "data": data}
    settings = {"method": method, "epochs": epochs, "train": train, "seed": seed, "out": out}
    with python_output(verbose), outside.code_allowed(allow_code):
        resolved, objects = resolve_arguments(recipe, parts, settings, allow_code, "run")
        return run.check(resolved, objects)
