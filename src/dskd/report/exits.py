"""Measures the early exits of a run for a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dskd.data import Dataset
from dskd.deploy.early_exits import ExitEvaluation, load_exits, measure_exits
from dskd.deploy.evaluate import check_split
from dskd.engine.evaluate import evaluate_accuracy
from dskd.engine.user_objects import UserObjects
from dskd.errors import printable
from dskd.models.cost import model_cost
from dskd.models.staged_model import StagedModel
from dskd.report.collect import CollectedRuns, MethodRuns
from dskd.report.load_models import load_fitting, load_student


@dataclass(frozen=True)
class CalibratedExit:
    """How an exit was calibrated on the validation images.

    Attributes:
        name: By its stage.
        temperature: T of its calibrated logits ``z / T``.
        error: Expected calibration error without the temperature, in percent.
        calibrated_error: The same with the temperature.
        multiply_adds: Until this exit has predicted, if no other one runs.
    """

    name: str
    temperature: float
    error: float
    calibrated_error: float
    multiply_adds: int


@dataclass(frozen=True)
class OtherStudent:
    """The student of another run on the test split.

    Attributes:
        run: The folder of the run.
        student: Name of the model.
        method: That trained it.
        seed: Of the run.
        accuracy: Top-1 on the test images, in percent.
        multiply_adds: For one image.
        latency: Milliseconds for one image, measured in turns with the exits.
    """

    run: str
    student: str
    method: str
    seed: int
    accuracy: float
    multiply_adds: int
    latency: float


@dataclass(frozen=True)
class MeasuredExits:
    """The early exits of one run on the test split.

    Attributes:
        label: Of the method.
        seed: Of the run.
        exits: The exits, shallow to deep.
        val_images: Number of validation images.
        found: Accuracy, cost and latency.
        others: Students of other runs.
    """

    label: str
    seed: int
    exits: tuple[CalibratedExit, ...]
    val_images: int
    found: ExitEvaluation
    others: tuple[OtherStudent, ...] = ()


def measured_exits(
    runs: MethodRuns,
    seed: int,
    data: Dataset,
    given: UserObjects,
    beside: Sequence[CollectedRuns] = (),
) -> MeasuredExits:
    """Measures the early exits of a run, and the students of others in turns with them.

    Args:
        runs: The method.
        seed: Of the run, which kept exits.
        data: Its images.
        given: Objects in place of names.
        beside: The other runs, one each.

    Raises:
        InputError: A student cannot be built, or the images are others.
    """
    check_split(runs.folders[seed], data)
    early = load_exits(load_fitting(runs.folders[seed], data, given))
    exits = tuple(
        CalibratedExit(
            name,
            fact.temperature,
            *fact.calibration,
            fact.multiply_adds + fact.branch_multiply_adds,
        )
        for fact, name in zip(early.facts.exits, early.names[:-1], strict=True)
    )
    named = UserObjects(allow_code=given.allow_code)  # the given student is not that of others
    students = [load_student(one.finished[0], data, named) for one in beside]
    found, latencies = measure_exits(early, data, students)
    others = tuple(_other(*one, data=data) for one in zip(beside, students, latencies, strict=True))
    return MeasuredExits(runs.label, seed, exits, early.facts.val_images, found, others)


def _other(run: CollectedRuns, student: StagedModel, latency: float, data: Dataset) -> OtherStudent:
    test = data.test.loader(torch.device("cpu"))
    found = evaluate_accuracy(student, lambda images: {"student": student(images).logits}, test)
    return OtherStudent(
        printable(str(run.finished[0])),
        printable(run.recipe.student.name),
        run.methods[0].label,
        run.recipe.seed,
        found["student"].accuracy,
        model_cost(student.module, data.shape).multiply_adds,
        latency,
    )
