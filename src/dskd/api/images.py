"""The package from Python: distil, train and compare models.

A run is a recipe, and arguments that take the place of its parts. Each part is a name, an object,
or a mapping with the settings of its section in a recipe. Such a mapping may also hold an object,
under ``module`` for a model and ``dataset`` for the data. Without a recipe, settings that suit the
models and the data are filled in (see `dskd.config.chosen`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dskd.compare.grid import plan
from dskd.compare.jobs import launcher_for
from dskd.compare.progress import live_table
from dskd.compare.runner import run_grid
from dskd.compare.summary import Summary, summarize
from dskd.compare.variants import Weights
from dskd.config.schema import Recipe
from dskd.deploy.early_exits import load_exits
from dskd.deploy.formats import DYNAMIC
from dskd.deploy.predict import predict as predict_deployed
from dskd.deploy.ship import Exported, ShipOptions, ship
from dskd.deploy.student import DeployedStudent, Which, load_deployed
from dskd.engine import run
from dskd.engine.arguments import Data, Model, Section, resolve_arguments
from dskd.engine.progress import python_output
from dskd.engine.result import Result
from dskd.engine.user_objects import UserObjects
from dskd.errors import InputError
from dskd.methods import outside
from dskd.methods.base import Method
from dskd.runtime.launchers.choose import named_launcher
from dskd.storage.paths import as_path, one_or_more


def distill(
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
    resume: bool = False,
    overwrite: bool = False,
    allow_code: bool = False,
    verbose: int = 1,
) -> Result:
    """Distils a student from a teacher.

    A student module is copied, and `Result.student` is the trained copy. A teacher module counts as
    trained. A teacher given by name is trained first, unless it has a ``checkpoint``.

    Args:
        student: A name, a module or settings, as in ``"timm/resnet18"`` or
            ``{"module": net, "stages": ["layer1", "layer2"]}``.
        teacher: The same, as in ``{"name": "resnet20", "checkpoint": "teacher.pth"}``. None means
            the recipe's, or none.
        data: A folder or another source, a data set or its name, or settings, as in ``{"name":
            "folder", "root": "photos"}`` or, with objects, ``{"dataset": a, "test": b}``.
        method: A name, a class, or settings, as in ``{"name": "dskd", "beta": 2.0}``; by default
            the recipe's, or ``dskd``.
        epochs: Short for ``train={"epochs": ...}``.
        train: Settings of the training, as in ``{"epochs": 10, "lr": 0.05}``; see the section
            ``train`` of the settings.
        seed: The seed of everything random; by default the recipe's, or 0.
        recipe: A shipped recipe, a YAML file, or its content as a mapping. The arguments change it.
        out: The run's folder; by default the recipe's, or ``<method>-seed<seed>`` in
            ``runs/<recipe>`` or ``runs/<student>-<teacher>-<data>``.
        resume: Continue an interrupted run, or a finished one to more epochs.
        overwrite: Replace an existing run.
        allow_code: Allow models ``package.module:function`` and methods ``package.module:Class``.
        verbose: 1 for notes and a line for each epoch, on stderr or through `logging` where that is
            set up. 0 for warnings only.

    Raises:
        InputError: An argument cannot be used.

    Example:
        >>> import dskd, tempfile
        >>> result = dskd.distill(
        ...     "resnet8", teacher="resnet14", data={"name": "digits", "fraction": 0.1}, epochs=1,
        ...     out=tempfile.mkdtemp(),
        ... )
        >>> result.parameters
        77754
    """
    parts = {"student": student, "teacher": teacher, "data": data}
    settings = {"method": method, "epochs": epochs, "train": train, "seed": seed, "out": out}
    with python_output(verbose), outside.code_allowed(allow_code):
        resolved, objects = resolve_arguments(recipe, parts, settings, allow_code, "run")
        return run.distill(resolved, resume=resume, overwrite=overwrite, objects=objects)


def train(
    student: Model | None = None,
    *,
    data: Data | None = None,
    epochs: int | None = None,
    train: Section | None = None,
    seed: int | None = None,
    recipe: str | Path | Section | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    allow_code: bool = False,
    verbose: int = 1,
) -> Result:
    """Trains a model on the labels alone.

    Args:
        student: As for `distill`.
        data: As for `distill`.
        epochs: As for `distill`.
        train: As for `distill`.
        seed: As for `distill`.
        recipe: As for `distill`; its teacher and its method are ignored.
        out: As for `distill`; the method is ``ce``.
        resume: As for `distill`.
        overwrite: As for `distill`.
        allow_code: As for `distill`.
        verbose: As for `distill`.

    Raises:
        InputError: An argument cannot be used.

    Example:
        >>> import dskd, tempfile
        >>> result = dskd.train(
        ...     "resnet8", data={"name": "digits", "fraction": 0.1}, epochs=1,
        ...     out=tempfile.mkdtemp(),
        ... )
        >>> result.method
        'ce'
    """
    parts = {"student": student, "data": data}
    settings = {"method": "ce", "epochs": epochs, "train": train, "seed": seed, "out": out}
    with python_output(verbose), outside.code_allowed(allow_code):
        resolved, objects = resolve_arguments(recipe, parts, settings, allow_code, "labels")
        return run.train(resolved, resume=resume, overwrite=overwrite, objects=objects)


def compare_methods(
    student: Model | None = None,
    *,
    teacher: Model | None = None,
    data: Data | None = None,
    methods: str | Sequence[str | type[Method]],
    seeds: int = 3,
    weights: Weights = "equal",
    epochs: int | None = None,
    train: Section | None = None,
    seed: int | None = None,
    recipe: str | Path | Section | None = None,
    out: str | Path | None = None,
    share_teacher: bool = True,
    jobs: int | None = None,
    launcher: str | Section = "processes",
    allow_code: bool = False,
    verbose: int = 1,
) -> list[Summary]:
    """Compares methods: trains a student by each method at each seed.

    Finished runs stay: the same call continues, and more methods or seeds extend a comparison.

    Args:
        student: As for `distill`.
        teacher: As for `distill`. It is trained once.
        data: As for `distill`.
        methods: Names, also with settings: ``"kd,dskd:beta=0.1"`` or a list, also of classes.
        seeds: The number of seeds: ``seed``, ``seed + 1`` and so on.
        weights: ``equal`` sets ``ce = kd = 1``; ``literature`` takes those of each publication.
        epochs: As for `distill`.
        train: As for `distill`.
        seed: The first seed, and the seed of the teacher. None means the recipe's, or 0.
        recipe: As for `distill`; settings of its method hold where that is compared.
        out: Folder of the comparison; by default named as for `distill`, in ``runs/compare``.
        share_teacher: Compute teacher outputs once per step for all students of a seed.
        jobs: Processes, each for students of one seed. None for one; on a cluster for any number.
        launcher: ``processes``, ``ray``, ``slurm``, or settings: ``{"name": "ray", "gpus": 1}``.
        allow_code: As for `distill`.
        verbose: As for `distill`.

    Returns:
        One summary per method in the folder.

    Raises:
        InputError: An argument cannot be used.

    Example:
        >>> import dskd, tempfile
        >>> alone, kd = dskd.compare_methods("resnet8", teacher="resnet14", methods=["ce", "kd"],
        ...     data={"name": "digits", "fraction": 0.1}, seeds=1, epochs=1, out=tempfile.mkdtemp())
        >>> kd.label, kd.difference
        ('kd', None)
    """
    parts = {"student": student, "teacher": teacher, "data": data}
    settings = {"method": None, "epochs": epochs, "train": train, "seed": seed}
    options = {"seeds": seeds, "weights": weights, "share_teacher": share_teacher}
    with python_output(verbose), outside.code_allowed(allow_code):
        resolved, objects = resolve_arguments(recipe, parts, settings, allow_code, "comparison")
        return _compare(resolved, objects, methods, out, options, jobs, launcher)


def _compare(
    recipe: Recipe,
    objects: UserObjects,
    methods: str | Sequence[str | type[Method]],
    out: str | Path | None,
    options: Mapping[str, Any],
    jobs: int | None,
    launcher: str | Section,
) -> list[Summary]:
    """Runs a comparison in its folder; ``options`` are those of `dskd.compare.grid.plan`."""
    assert recipe.out is not None, "a resolved recipe has its folder"
    default = Path("runs/compare") / recipe.out.parent.name
    path = default if out is None else as_path(out, "out")
    methods = [methods] if isinstance(methods, str) else methods
    names = [outside.give(one) if isinstance(one, type) else one for one in methods]
    objects = replace(objects, methods=tuple(one for one in methods if isinstance(one, type)))
    grid = plan(recipe, names, path, **options)
    where = launcher_for(grid, grid.runs, jobs, *named_launcher(launcher))
    with live_table(grid) as callback:
        comparison = run_grid(grid, callback, objects, where)
    return summarize(comparison.variants, comparison.test_images)


def predict(
    run: str | Path | DeployedStudent,
    images: str | Path | Sequence[str | Path],
    which: Which | None = None,
    *,
    max_loss: float | None = None,
    student: nn.Module | None = None,
    allow_code: bool = False,
) -> Tensor:
    """Predicts the probability of each class for image files with the student of a run.

    Args:
        run: Folder of the run, or a student that `dskd.load_deployed` returned; ``which`` and
            ``student`` are then given there.
        images: Path of a file, of any size, or of several.
        which: Use the weights of the ``last`` or of the ``best`` epoch, or the moving average
            ``ema``. None takes the average if the run has one (``train.ema``), else the last epoch.
        max_loss: Predict at the early exits of the run (``train.exits``) that lose at most so many
            percentage points of accuracy on the validation images; None for the plain student.
        student: The module, if it was given in Python.
        allow_code: Allow models given as ``package.module:function``.

    Returns:
        float32, ``[N, K]``.

    Raises:
        InputError: There is no finished run, or a file is missing or does not decode.
    """
    run = _loaded(run, which, student, allow_code, max_loss)
    exits = load_exits(run, max_loss).student if max_loss is not None else None
    return predict_deployed(run, one_or_more(images), exits)


def _loaded(
    run: str | Path | DeployedStudent,
    which: Which | None,
    student: nn.Module | None,
    allow_code: bool,
    max_loss: float | None,
) -> DeployedStudent:
    """The student of a run. Early exits belong to that of the last epoch.

    Raises:
        InputError: The student is loaded, and weights or a module are chosen nevertheless.
    """
    if isinstance(run, DeployedStudent):
        if which is not None or student is not None:
            extra = "which" if which is not None else "student"
            raise InputError(
                f"{extra} has no effect on a student that is loaded; give it to load_deployed"
            )
        return run
    which = which if max_loss is None else which or "last"
    return load_deployed(run, which, student=student, allow_code=allow_code)


def export(
    run: str | Path | DeployedStudent,
    out: str | Path | None = None,
    which: Which | None = None,
    *,
    format: str | None = None,
    batch: int | str = DYNAMIC,
    int8: bool = False,
    calibration_images: int | None = None,
    tolerance: float | None = None,
    measure: bool = True,
    license: str | None = None,
    max_loss: float | None = None,
    qat: int | None = None,
    qat_lr: float | None = None,
    student: nn.Module | None = None,
    teacher: nn.Module | None = None,
    data: Data | None = None,
    root: str | Path | None = None,
    allow_code: bool = False,
) -> Exported:
    """Exports the student of a run to a file that other programs run, with a model card.

    A file with operations takes ``images``, float32 ``[N, C, H, W]`` from 0 to 1, and returns
    ``logits``. The card next to it says what else it expects, and has a program that calls it.

    Args:
        run: Folder of the run, or a student that `dskd.load_deployed` returned; ``which`` and
            ``student`` are then given there.
        out: File to write; by default one in the folder ``export`` of the run.
        which: Export the weights of the ``last`` or of the ``best`` epoch, or the moving average
            ``ema``. None takes the average if the run has one (``train.ema``), else the last epoch.
        format: ``safetensors``, ``torch-export``, ``onnx``, ``openvino`` or ``executorch``. None
            chooses by the suffix of ``out``, or ``onnx``.
        batch: Images of a call: a number, or ``dynamic`` for any number.
        int8: Quantize weights and activations to 8-bit integers.
        calibration_images: With ``int8``: training images that choose the ranges; None for 256.
        tolerance: The largest allowed difference of the outputs, relative to the largest output;
            by default 1e-4, or 0.5 with ``int8``.
        measure: Measure the accuracy on the test split, and the latency of teacher, student and
            file. What cannot be measured is named in ``Exported.measured.missing``.
        license: Of the weights, for the card, as in ``apache-2.0``.
        max_loss: As for `predict`: a file of ONNX for one image, which predicts early.
        qat: With ``int8``: train so many epochs with rounded weights and activations first.
        qat_lr: The learning rate of ``qat``; by default a hundredth of that of the run.
        student: The student's module, if it was given in Python.
        teacher: The teacher's module, if it was given in Python.
        data: The data set, if it was given in Python, in the same form.
        root: Folder of the data set, in place of the recipe's.
        allow_code: Allow models given as ``package.module:function``.

    Raises:
        InputError: There is no finished run, or its student cannot be exported.
    """
    run = _loaded(run, which, student, allow_code, max_loss)
    form = format, out, batch, tolerance, measure, license, root
    options = ShipOptions(*form, int8, calibration_images, max_loss, qat, qat_lr)
    return ship(run, options, data=data, teacher=teacher, allow_code=allow_code)
