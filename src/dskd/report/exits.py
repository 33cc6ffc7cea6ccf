"""Measures the early exits of a run for a report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dskd.data import Dataset
from dskd.deploy.early_exits import ExitEvaluation, load_exits, measure_exits
from dskd.deploy.student import load_deployed
from dskd.engine.user_objects import UserObjects
from dskd.report.load_models import load_student


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
class MeasuredExits:
    """The early exits of one run on the test split.

    Attributes:
        label: Of the method.
        seed: Of the run.
        exits: The exits, shallow to deep.
        val_images: Number of validation images.
        found: Accuracy, cost and latency.
    """

    label: str
    seed: int
    exits: tuple[CalibratedExit, ...]
    val_images: int
    found: ExitEvaluation


def measured_exits(
    label: str, seed: int, folder: Path, data: Dataset, given: UserObjects
) -> MeasuredExits:
    """Measures the early exits of a run.

    Args:
        label: Of the method.
        seed: Of the run.
        folder: Of the run, which kept exits.
        data: Its images.
        given: Objects in place of names.

    Raises:
        InputError: The student cannot be built, or the images are others.
    """
    load_student(folder, data, given)  # checks that the images fit
    deployed = load_deployed(folder, "last", student=given.student, allow_code=given.allow_code)
    early = load_exits(deployed)
    exits = tuple(
        CalibratedExit(
            name,
            fact.temperature,
            *fact.calibration,
            fact.multiply_adds + fact.branch_multiply_adds,
        )
        for fact, name in zip(early.facts.exits, early.names[:-1], strict=True)
    )
    found = measure_exits(early, data)
    return MeasuredExits(label, seed, exits, early.facts.val_images, found)
