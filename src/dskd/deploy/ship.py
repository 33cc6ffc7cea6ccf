"""Ship the student of a run: export it, compare it, measure it, and write its model card."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor, nn

from dskd.config.schema import Recipe
from dskd.data import Dataset
from dskd.data.file_split import spread
from dskd.deploy.caller import caller
from dskd.deploy.early_exits import EarlyExits, load_exits
from dskd.deploy.evaluate import check_split, load_run_data
from dskd.deploy.export import (
    ExportDraft,
    card_path,
    check_place,
    choose_batch,
    choose_exits,
    choose_format,
    choose_int8,
    default_path,
    exporting,
)
from dskd.deploy.formats import Format
from dskd.deploy.load_teacher import load_teacher
from dskd.deploy.measure import (
    EXPORTED,
    QUANTIZED,
    STUDENT,
    TEACHER,
    Accuracy,
    Measurements,
    measure_accuracy,
    measure_times,
)
from dskd.deploy.model_card import CardParts, RunFacts, model_card
from dskd.deploy.qat import QATOptions, quantization_aware
from dskd.deploy.student import DeployedStudent
from dskd.engine.given_data import DataArgument, given_images
from dskd.engine.user_objects import UserObjects
from dskd.errors import InputError, option
from dskd.models.staged_model import StagedModel
from dskd.runtime import cores
from dskd.storage.paths import as_path

CALIBRATION_IMAGES = 256
"""Images that choose the ranges of 8-bit integers."""


@dataclass(frozen=True)
class ShipOptions:
    """How a student is exported.

    Attributes:
        form: A name of `dskd.deploy.formats.FORMATS`; None chooses by the suffix of ``out``, or
            ONNX.
        out: The file to write; None for one in the folder ``export`` of the run.
        batch: Images of a call: a number, or ``dynamic``.
        tolerance: The largest allowed difference of the outputs, relative to the largest output;
            None for 1e-4, or 0.5 with int8.
        measure: Whether accuracy and latency are measured.
        license: Of the weights, for the model card.
        int8: Whether weights and activations become 8-bit integers.
        calibration_images: Images of the training split that choose the ranges of these integers;
            None for `CALIBRATION_IMAGES`.
        root: Folder of the data set, in place of the recipe's.
        qat: Epochs of quantization-aware training before the export with int8; None for none.
        qat_lr: Its learning rate; None for a hundredth of that of the run.
        max_loss: Export early exits that lose at most so many percentage points of accuracy on the
            validation images; None for the plain student.
    """

    form: str | None = None
    out: str | Path | None = None
    batch: int | str | None = None
    tolerance: float | None = None
    measure: bool = True
    license: str | None = None
    root: str | Path | None = None
    int8: bool = False
    calibration_images: int | None = None
    max_loss: float | None = None
    qat: int | None = None
    qat_lr: float | None = None


@dataclass(frozen=True)
class Exported:
    """An exported student.

    Attributes:
        path: The file.
        card: The model card, next to the file.
        form: The name of the format.
        runtime: The program that runs the file.
        difference: The largest difference of the outputs from those of the trained student,
            relative to the largest output.
        size: Bytes on disk.
        measured: Accuracy and latency.
        teacher_accuracy: Of the run, in percent; None without a teacher.
    """

    path: Path
    card: Path
    form: str
    runtime: str
    difference: float
    size: int
    measured: Measurements = field(default_factory=Measurements)
    teacher_accuracy: float | None = None


def ship(
    deployed: DeployedStudent,
    options: ShipOptions,
    *,
    data: DataArgument | None = None,
    teacher: nn.Module | None = None,
    allow_code: bool = False,
) -> Exported:
    """Exports a student with its model card.

    Args:
        deployed: The student of a run or of a file.
        options: How.
        data: The data set of the run, if it was given in Python.
        teacher: The teacher of the run, if it was given in Python.
        allow_code: Whether a model ``package.module:function`` may run.

    Raises:
        InputError: An option cannot be used, or the student cannot be exported. Then nothing is
            written.
    """
    out = as_path(options.out, "out") if options.out is not None else None
    form = choose_format(options.form, out)
    exits = _exits(deployed, options, form)
    batch = choose_batch(options.batch, form) if exits is None else 1
    choose_int8(options.int8, form)
    _check_int8_options(options)
    given_images(data)  # it is loaded where it is needed; what is refused must not cost time first
    path = out or default_path(deployed, form, options.int8, exits is not None)
    check_place(path, form, options.int8)
    facts = RunFacts.read(deployed.run) if deployed.run is not None else None
    objects = UserObjects(teacher=teacher, allow_code=allow_code)
    calibration = _calibration(deployed, options, data) if options.int8 else None
    plan = _Plan(form, path, batch, options, facts, calibration, exits, data, objects)
    if options.qat is None:
        return _export(deployed, plan, {})
    before = _before_qat(deployed, plan) if options.measure else {}
    with quantization_aware(
        deployed,
        facts.recipe if facts is not None else None,
        QATOptions(options.qat, options.qat_lr, options.root, data, teacher, allow_code),
    ) as finished:
        return _export(finished, plan, before)


@dataclass(frozen=True)
class _Plan:
    """An export that is about to begin; the fields are those of its parts."""

    form: Format
    path: Path
    batch: int | None
    options: ShipOptions
    facts: RunFacts | None
    calibration: Tensor | None
    exits: EarlyExits | None
    data: DataArgument | None
    objects: UserObjects


def _check_int8_options(options: ShipOptions) -> None:
    if options.calibration_images is not None and not options.int8:
        raise InputError(f"images for calibration are for 8 bits; add {option('int8')}")
    if options.qat is not None and not options.int8:
        raise InputError(f"quantization-aware training is for 8 bits; add {option('int8')}")
    if options.qat is None and options.qat_lr is not None:
        raise InputError(f"a learning rate is for training; add {option('qat', '3')}")
    if options.qat is not None and not (isinstance(options.qat, int) and options.qat >= 1):
        raise InputError(f"qat: a number of epochs of at least 1 is needed, got {options.qat!r}")
    if options.qat_lr is not None and not 0 < options.qat_lr < math.inf:
        raise InputError(f"qat_lr: a learning rate above 0 is needed, got {options.qat_lr!r}")


def _before_qat(deployed: DeployedStudent, plan: _Plan) -> dict[str, Accuracy]:
    """The accuracy of the student as trained, and of the same student in 8 bits.

    Empty if the test images are others than those of the run, which `_measure` says.
    """
    run = deployed.run or ""
    images = load_run_data(run, deployed, plan.options.root, plan.data)
    try:
        check_split(run, images)
    except InputError:
        return {}
    with (
        tempfile.TemporaryDirectory(prefix="dskd-int8-") as folder,
        exporting(
            deployed,
            Path(folder) / plan.path.name,
            plan.form.name,
            batch=plan.batch,
            tolerance=math.inf,
            calibration=plan.calibration,
        ) as draft,
    ):
        found = measure_accuracy(draft, images)
    return {STUDENT: found[STUDENT], QUANTIZED: found[EXPORTED]}


def _export(deployed: DeployedStudent, plan: _Plan, before: Mapping[str, Accuracy]) -> Exported:
    """Exports a student; ``before`` are accuracies from before it was finished."""
    form, path, options, facts = plan.form, plan.path, plan.options, plan.facts
    with exporting(
        deployed,
        path,
        form.name,
        batch=plan.batch,
        tolerance=options.tolerance,
        calibration=plan.calibration,
        exits=plan.exits,
    ) as draft:
        measured = Measurements()
        if options.measure:
            measured = _measure(draft, facts, options.root, plan.data, plan.objects)
            measured = replace(measured, accuracy={**measured.accuracy, **before})
        contract = draft.graph.contract
        parts = CardParts(
            contract,
            caller(contract, form, path.name),
            path.name,
            form.runtime,
            facts,
            measured,
            options.license,
            draft.difference,
            draft.size,
            options.qat,
        )
        draft.card = str(model_card(parts))
        size = draft.size
    accuracy = facts.result.get("teacher_accuracy") if facts is not None else None
    return Exported(
        path, card_path(path), form.name, form.runtime, draft.difference, size, measured, accuracy
    )


def _exits(deployed: DeployedStudent, options: ShipOptions, form: Format) -> EarlyExits | None:
    """The early exits to export; None for the plain student.

    Raises:
        InputError: They cannot be exported, or they would save nothing.
    """
    if options.max_loss is None:
        return None
    choose_exits(form, options.batch, options.int8)
    exits = load_exits(deployed, options.max_loss)
    if not exits.running:
        raise InputError(
            f"at a loss of at most {options.max_loss:g} points on the validation images, no exit "
            f"saves time; give a larger {option('max_loss', '2')}, or export the plain student"
        )
    return exits


def _calibration(
    deployed: DeployedStudent, options: ShipOptions, data: DataArgument | None
) -> Tensor:
    """Images of the training split without augmentation, from all over the split."""
    count = CALIBRATION_IMAGES if options.calibration_images is None else options.calibration_images
    if count < 1:
        raise InputError("calibration_images: one image or more is needed")
    where = deployed.run or "the student"
    train = load_run_data(where, deployed, options.root, data).train
    images = train.images_at(spread(len(train), count))
    return images.cpu().float() / 255


def _measure(
    draft: ExportDraft,
    facts: RunFacts | None,
    root: str | Path | None,
    data: DataArgument | None,
    objects: UserObjects,
) -> Measurements:
    """Measures all that can be measured; the rest has its reason."""
    student, missing = draft.graph.contract.student, {}
    images: Dataset | None = None
    accuracy: dict[str, Accuracy] = {}
    teacher: StagedModel | None = None
    try:
        run = student.run or draft.path.name
        images = load_run_data(run, student, root, data)
        check_split(run, images)
        accuracy = measure_accuracy(draft, images)
    except InputError as error:
        missing["accuracy"] = str(error)
    try:
        teacher = _teacher(student, facts.recipe if facts is not None else None, images, objects)
    except InputError as error:
        missing["teacher"] = str(error)
    models = {STUDENT: student.model.module}
    if teacher is not None:
        models = {TEACHER: teacher.module} | models
    parameters = {name: sum(p.numel() for p in m.parameters()) for name, m in models.items()}
    before = cores.times()
    latency = measure_times(draft, teacher, images)
    waiting = cores.waiting_share(before, cores.times())
    all_cores = not draft.form.takes_threads
    return Measurements(accuracy, latency, parameters, missing, waiting, all_cores)


def _teacher(
    student: DeployedStudent, recipe: Recipe | None, images: Dataset | None, objects: UserObjects
) -> StagedModel | None:
    """The teacher of a run; None without one."""
    if recipe is None or student.run is None or recipe.teacher is None:
        return None
    if images is None:
        raise InputError("the images of the run are needed to build it")
    return load_teacher(student.run, recipe, images, objects)
