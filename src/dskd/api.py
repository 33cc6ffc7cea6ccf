"""The package from Python: distil, train and compare models.

Each part of a run is a name, an object, or a mapping with the settings of its section in a recipe.
Such a mapping may also hold an object, under ``module`` for a model and ``dataset`` for the data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from dskd.compare.grid import plan
from dskd.compare.progress import live_table
from dskd.compare.runner import run_grid
from dskd.compare.summary import Summary, summarize
from dskd.compare.variants import Weights
from dskd.config.recipe import resolve
from dskd.config.schema import Recipe
from dskd.data import Dataset
from dskd.deploy.onnx import export_onnx
from dskd.deploy.student import DeployedStudent, Which, load_deployed
from dskd.deploy.student import predict as predict_deployed
from dskd.engine import run
from dskd.engine.build import UserObjects, name_of
from dskd.engine.result import Result
from dskd.errors import InputError, unknown
from dskd.storage.paths import as_path

Section = Mapping[str, Any]
"""Settings of a section of a recipe, as in ``{"epochs": 10}``."""
T = TypeVar("T", nn.Module, Dataset)


def distill(
    *,
    student: str | nn.Module | Section,
    teacher: str | nn.Module | Section | None = None,
    data: str | Dataset | Section,
    method: str | Section = "dskd",
    train: Section | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    allow_code: bool = False,
) -> Result:
    """Distils a student from a teacher.

    A student module is copied, and `Result.student` is the trained copy. A teacher module counts as
    trained. A teacher given by name is trained first, unless it has a ``checkpoint``.

    Args:
        student: A name, a module or settings, as in ``"resnet8"`` or
            ``{"module": net, "stages": ["layer1", "layer2"]}``.
        teacher: A name, a module or settings, as in ``"resnet20"`` or
            ``{"name": "resnet20", "checkpoint": "teacher.pth"}``; None for a method without a
            teacher.
        data: A name, a data set or settings, as in ``"digits"`` or
            ``{"name": "folder", "root": "images", "size": 64}``.
        method: A name or settings, as in ``"kd"`` or ``{"name": "dskd", "beta": 2.0}``.
        train: Settings of the training, as in ``{"epochs": 10, "lr": 0.05}``; see the section
            ``train`` of the settings.
        seed: The seed of everything random, such as first weights and the order of the images.
        out: The run's folder; by default ``runs/<student>-<teacher>-<data>/<method>-seed<seed>``.
        resume: Continue an interrupted run.
        overwrite: Replace an existing run.
        allow_code: Allow models given as ``package.module:function``.

    Raises:
        InputError: An argument cannot be used.

    Example:
        >>> import dskd, tempfile
        >>> result = dskd.distill(
        ...     student="resnet8", teacher="resnet14", data={"name": "digits", "fraction": 0.1},
        ...     train={"epochs": 1}, out=tempfile.mkdtemp(),
        ... )
        >>> result.parameters
        77754
    """
    recipe, objects = _resolved(
        student, teacher, data, _named(method, "method"), train, seed, out, allow_code
    )
    return run.distill(recipe, resume=resume, overwrite=overwrite, objects=objects)


def train(
    *,
    student: str | nn.Module | Section,
    data: str | Dataset | Section,
    train: Section | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    allow_code: bool = False,
) -> Result:
    """Trains a model on the labels alone.

    Args:
        student: As for `distill`.
        data: As for `distill`.
        train: As for `distill`.
        seed: As for `distill`.
        out: The run's folder; by default ``runs/<student>-<data>/ce-seed<seed>``.
        resume: As for `distill`.
        overwrite: As for `distill`.
        allow_code: As for `distill`.

    Raises:
        InputError: An argument cannot be used.

    Example:
        >>> import dskd, tempfile
        >>> result = dskd.train(
        ...     student="resnet8", data={"name": "digits", "fraction": 0.1}, train={"epochs": 1},
        ...     out=tempfile.mkdtemp(),
        ... )
        >>> result.method
        'ce'
    """
    recipe, objects = _resolved(student, None, data, {"name": "ce"}, train, seed, out, allow_code)
    return run.train(recipe, resume=resume, overwrite=overwrite, objects=objects)


def compare_methods(
    *,
    student: str | nn.Module | Section,
    teacher: str | nn.Module | Section,
    data: str | Dataset | Section,
    methods: Sequence[str],
    seeds: int = 3,
    weights: Weights = "equal",
    train: Section | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    share_teacher: bool = True,
    allow_code: bool = False,
) -> list[Summary]:
    """Compares methods: trains a student by each method at each seed.

    All students learn from one teacher, and those of a seed see the same batches. Finished runs
    stay: the same call continues a comparison, and more methods or seeds extend it.

    Args:
        student: As for `distill`.
        teacher: As for `distill`. It is trained once.
        data: As for `distill`.
        methods: Names of methods, with settings if you like, as in
            ``["kd", "dskd", "dskd:beta=0.1"]``.
        seeds: The number of seeds: ``seed``, ``seed + 1`` and so on.
        weights: ``equal`` sets ``ce = kd = 1`` in all methods that have them. ``literature`` takes
            the weights of each method's publication.
        train: As for `distill`.
        seed: The first seed, and the seed of the teacher.
        out: Folder of the comparison; by default ``runs/compare/<student>-<teacher>-<data>``.
        share_teacher: Compute teacher outputs once per step for all students of a seed. The
            results are the same.
        allow_code: As for `distill`.

    Returns:
        One summary per method in the folder.

    Raises:
        InputError: An argument cannot be used.

    Example:
        >>> import dskd, tempfile
        >>> alone, distilled = dskd.compare_methods(
        ...     student="resnet8", teacher="resnet14", data={"name": "digits", "fraction": 0.1},
        ...     methods=["ce", "kd"], seeds=1, train={"epochs": 1}, out=tempfile.mkdtemp(),
        ... )
        >>> distilled.label, distilled.difference
        ('kd', None)
    """
    recipe, objects = _resolved(
        student, teacher, data, {"name": "ce"}, train, seed, None, allow_code
    )
    assert recipe.out is not None, "a resolved recipe has its folder"
    path = as_path(out, "out") if out is not None else Path("runs/compare") / recipe.out.parent.name
    grid = plan(recipe, methods, path, seeds=seeds, weights=weights, share_teacher=share_teacher)
    with live_table(grid) as callback:
        comparison = run_grid(grid, callback, objects)
    return summarize(comparison.variants, comparison.test_images)


def predict(
    run: str | Path | DeployedStudent,
    images: Sequence[str | Path],
    which: Which = "last",
    *,
    student: nn.Module | None = None,
    allow_code: bool = False,
) -> Tensor:
    """Predicts the probability of each class for image files with the student of a run.

    Args:
        run: Folder of the run, or a student that `dskd.load_deployed` returned.
        images: Paths of the files, of any size.
        which: Use the weights of the ``last`` or of the ``best`` epoch.
        student: The module, if it was given in Python.
        allow_code: Allow models given as ``package.module:function``.

    Returns:
        float32, ``[N, K]``.

    Raises:
        InputError: There is no finished run, or a file is missing or does not decode.
    """
    if not isinstance(run, DeployedStudent):
        run = load_deployed(run, which, student=student, allow_code=allow_code)
    return predict_deployed(run, images)


def export(
    run: str | Path,
    output: str | Path | None = None,
    which: Which = "last",
    *,
    format: str = "onnx",
    student: nn.Module | None = None,
    allow_code: bool = False,
) -> Path:
    """Exports the student of a run to ONNX, for other programs to run.

    The graph takes ``images``, float32 ``[N, C, H, W]`` from 0 to 1, and returns ``logits``.

    Args:
        run: Folder of the run.
        output: File to write; by default ``student.onnx`` or ``student_best.onnx`` in the run.
        which: Export the weights of the ``last`` or of the ``best`` epoch.
        format: ``onnx``.
        student: The module, if it was given in Python.
        allow_code: Allow models given as ``package.module:function``.

    Returns:
        The file.

    Raises:
        InputError: There is no finished run, or its student cannot be exported.
    """
    if format != "onnx":
        raise unknown("format", format, ["onnx"])
    deployed = load_deployed(run, which, student=student, allow_code=allow_code)
    name = "student_best.onnx" if which == "best" else "student.onnx"
    path = as_path(output, "output") if output is not None else as_path(run, "run") / name
    export_onnx(deployed, path)
    return path


def _resolved(
    student: Any,
    teacher: Any,
    data: Any,
    method: dict[str, Any],
    train: Section | None,
    seed: int,
    out: str | Path | None,
    allow_code: bool,
) -> tuple[Recipe, UserObjects]:
    """The checked recipe, and the objects that replace names in it."""
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
    objects = UserObjects(dataset, student_module, teacher_module, allow_code)
    parts = ("student", "teacher", "data") if teacher_values else ("student", "data")
    return resolve(values, _folder(values, *parts)), objects


def _folder(values: Mapping[str, Any], *parts: str) -> Path:
    """The folder of all runs with these models and images."""
    names = (str(values[part].get("name", "")) for part in parts)
    return Path("runs") / "-".join(name.strip("<>").replace("/", "_") for name in names)


def _split(part: Any, what: str, key: str, kind: type[T]) -> tuple[dict[str, Any], T | None]:
    """Splits an argument into its settings and its object.

    Args:
        part: A name, an object, or a mapping.
        what: Name of the argument, for an error.
        key: Name of the object within a mapping.
        kind: Type of the object.
    """
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
    """A name or a mapping as settings."""
    if isinstance(part, str):
        return {"name": part}
    if isinstance(part, Mapping):
        return dict(part)
    raise InputError(
        f"{what}: a name, an object or a mapping of settings is needed, got {type(part).__name__}"
    )
