"""The package from Python: names or objects in, a trained student out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from dskd.compare.grid import plan
from dskd.compare.progress import live_table
from dskd.compare.runner import run_grid
from dskd.compare.summary import Summary, summarize
from dskd.compare.variants import Weights
from dskd.config.recipe import resolve
from dskd.config.schema import Recipe
from dskd.data import Dataset
from dskd.engine import run
from dskd.engine.build import UserObjects, name_of
from dskd.engine.training_run import Result
from dskd.errors import InputError

Keys = Mapping[str, Any]
T = TypeVar("T", nn.Module, Dataset)


def distill(
    *,
    student: str | nn.Module | Keys,
    teacher: str | nn.Module | Keys | None = None,
    data: str | Dataset | Keys,
    method: str | Keys = "dskd",
    train: Keys | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    allow_code: bool = False,
) -> Result:
    """Distils a student from a teacher.

    Each part is a name, an object, or a mapping of the recipe's settings for it, in which the
    object may stand under ``module`` (of a model) or ``dataset`` (of the data).

    A module that is given stays as it is: a copy of it is trained, and `Result.student` is that
    copy. A teacher module counts as trained; a teacher's name without a ``checkpoint`` is trained
    first.

    Args:
        student: As in ``"resnet8"`` or ``{"module": net, "stages": ["layer1", "layer2"]}``.
        teacher: As in ``"resnet20"`` or ``{"name": "resnet20", "checkpoint": "teacher.pth"}``;
            None for a method that needs none.
        data: As in ``"digits"`` or ``{"name": "folder", "root": "images", "size": 64}``.
        method: As in ``"kd"`` or ``{"name": "dskd", "beta": 2.0}``.
        train: As in ``{"epochs": 10, "lr": 0.05}``; see `dskd.config.schema.TrainSettings`.
        seed: Of the student's weights, the order of the images and all else.
        out: The run's folder; by default ``runs/<student>-<teacher>-<data>/<method>-seed<seed>``.
        resume: Continue an interrupted run.
        overwrite: Replace the run that is there.
        allow_code: Whether ``package.module:function`` names may run.

    Raises:
        InputError: Something cannot be used; one line says what, where and the fix.

    Example:
        >>> import dskd, tempfile
        >>> result = dskd.distill(
        ...     student="resnet8", teacher="resnet14", data={"name": "digits", "share": 0.1},
        ...     train={"epochs": 1}, out=tempfile.mkdtemp(),
        ... )
        >>> result.parameters
        77754
    """
    recipe, given = _resolved(
        student, teacher, data, _named(method, "method"), train, seed, out, allow_code
    )
    return run.distill(recipe, resume=resume, overwrite=overwrite, given=given)


def _resolved(
    student: Any,
    teacher: Any,
    data: Any,
    method: dict[str, Any],
    train: Keys | None,
    seed: int,
    out: str | Path | None,
    allow_code: bool,
) -> tuple[Recipe, UserObjects]:
    """The recipe of a distillation, and the objects that were given in place of names."""
    student_values, student_module = _split(student, "student", "module", nn.Module)
    data_values, dataset = _split(data, "data", "dataset", Dataset)
    teacher_values, teacher_module = (
        _split(teacher, "teacher", "module", nn.Module) if teacher is not None else ({}, None)
    )
    for key in ("epochs", "lr"):
        if teacher_module is not None and key in teacher_values:
            raise InputError(f"teacher.{key} does not apply: a module counts as trained; drop it")
    values: dict[str, Any] = {
        "student": student_values,
        "data": data_values,
        "teacher": teacher_values or None,
        "method": method,
        "seed": seed,
        "out": out,
    }
    if train is not None:
        values["train"] = train
    given = UserObjects(dataset, student_module, teacher_module, allow_code)
    parts = ("student", "teacher", "data") if teacher_values else ("student", "data")
    return resolve(values, _folder(values, *parts)), given


def compare_methods(
    *,
    student: str | nn.Module | Keys,
    teacher: str | nn.Module | Keys,
    data: str | Dataset | Keys,
    methods: Sequence[str],
    seeds: int = 3,
    weights: Weights = "equal",
    train: Keys | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    share_teacher: bool = True,
    allow_code: bool = False,
) -> list[Summary]:
    """Distils by several methods at several seeds, under the same images in the same order.

    What is finished in the folder stays: the same call again continues, and more methods or seeds
    are added. `dskd report` draws the folder.

    Args:
        student: As for `distill`.
        teacher: As for `distill`; trained once, and shared by all.
        data: As for `distill`.
        methods: Names, also with settings, as in ``["kd", "dskd", "dskd:beta=0.1"]``.
        seeds: How many, from ``seed`` on.
        weights: ``equal`` for ``ce = kd = 1`` in all methods that have them, ``literature`` for
            what each was published with.
        train: As for `distill`.
        seed: The first seed, and the teacher's.
        out: The comparison's folder; by default ``runs/compare/<student>-<teacher>-<data>``.
        share_teacher: Whether the students of a seed share one forward pass of the teacher per
            step. The results are the same.
        allow_code: Whether ``package.module:function`` names may run.

    Returns:
        A summary a method, of all that the folder holds.

    Raises:
        InputError: Something cannot be used; one line says what, where and the fix.

    Example:
        >>> import dskd, tempfile
        >>> alone, taught = dskd.compare_methods(
        ...     student="resnet8", teacher="resnet14", data={"name": "digits", "share": 0.1},
        ...     methods=["ce", "kd"], seeds=1, train={"epochs": 1}, out=tempfile.mkdtemp(),
        ... )
        >>> taught.label, taught.difference
        ('kd', None)
    """
    recipe, given = _resolved(student, teacher, data, {"name": "ce"}, train, seed, None, allow_code)
    assert recipe.out is not None, "a resolved recipe has its folder"
    path = Path(out) if out is not None else Path("runs/compare") / recipe.out.parent.name
    grid = plan(recipe, methods, path, seeds=seeds, weights=weights, share_teacher=share_teacher)
    with live_table(grid) as callback:
        comparison = run_grid(grid, callback, given)
    return summarize(comparison.variants, comparison.test_images)


def train(
    *,
    student: str | nn.Module | Keys,
    data: str | Dataset | Keys,
    train: Keys | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    allow_code: bool = False,
) -> Result:
    """Trains a model by labels alone; its arguments are those of `distill`.

    Raises:
        InputError: Something cannot be used; one line says what, where and the fix.

    Example:
        >>> import dskd, tempfile
        >>> result = dskd.train(
        ...     student="resnet8", data={"name": "digits", "share": 0.1}, train={"epochs": 1},
        ...     out=tempfile.mkdtemp(),
        ... )
        >>> result.method
        'ce'
    """
    student_values, module = _split(student, "student", "module", nn.Module)
    data_values, dataset = _split(data, "data", "dataset", Dataset)
    values: dict[str, Any] = {
        "student": student_values,
        "data": data_values,
        "method": {"name": "ce"},
        "seed": seed,
        "out": out,
    }
    if train is not None:
        values["train"] = train
    given = UserObjects(dataset, module, None, allow_code)
    recipe = resolve(values, _folder(values, "student", "data"))
    return run.train(recipe, resume=resume, overwrite=overwrite, given=given)


def _folder(values: Mapping[str, Any], *parts: str) -> Path:
    """Where the runs of these models and images go."""
    names = (str(values[part].get("name", "")) for part in parts)
    return Path("runs") / "-".join(name.strip("<>").replace("/", "_") for name in names)


def _split(part: Any, what: str, key: str, kind: type[T]) -> tuple[dict[str, Any], T | None]:
    """The settings of a part, and the object that was given for it."""
    if isinstance(part, kind):
        return {"name": name_of(part)}, part
    values = _named(part, what)
    given = values.pop(key, None)
    if given is None:
        return values, None
    if not isinstance(given, kind):
        raise InputError(f"{what}: {key} must be a {kind.__name__}, got {type(given).__name__}")
    return {"name": name_of(given)} | values, given


def _named(part: Any, what: str) -> dict[str, Any]:
    if isinstance(part, str):
        return {"name": part}
    if isinstance(part, Mapping):
        return dict(part)
    raise InputError(
        f"{what}: a name, an object or a mapping of settings is needed, got {type(part).__name__}"
    )
