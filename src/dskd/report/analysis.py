"""What a report measures anew on finished students: their cost, their layers, their answers."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from dskd.compare.summary import BASELINE, STUDENT
from dskd.data import Dataset
from dskd.engine.build import UserObjects
from dskd.errors import InputError
from dskd.models.staged_model import StagedModel
from dskd.report.cka import Similarity, similarity
from dskd.report.collect import CollectedRuns, MethodRuns
from dskd.report.cost import Cost, measure
from dskd.report.disagreements import Differences, differences
from dskd.report.load_models import load_student, load_teacher
from dskd.runtime.device import pick

_STAGE_WEIGHT = re.compile(r"stage(\d+)/weight")
log = logging.getLogger("dskd")
T = TypeVar("T")


@dataclass(frozen=True)
class Missing:
    """Why a part of the report is left out, as one sentence."""

    reason: str


@dataclass(frozen=True)
class Costs:
    """What the deployed models take.

    Attributes:
        students: By label.
        teacher: None where there is no teacher.
    """

    students: Mapping[str, Cost]
    teacher: Cost | None


@dataclass(frozen=True)
class Examined:
    """All that is measured anew.

    Attributes:
        costs: Of students and teacher.
        similarities: Of a student taught at its stages, and of one that was not.
        differences: Of a student and its teacher.
    """

    costs: Costs | Missing
    similarities: tuple[Similarity, ...] | Missing
    differences: Differences | Missing


def examine(gathered: CollectedRuns, data: Dataset, given: UserObjects) -> Examined:
    """Measures the finished students; what cannot be is left out, with the reason.

    Args:
        gathered: The runs.
        data: Their images.
        given: Objects in place of names.
    """
    laboratory = _Laboratory(gathered, data, given)
    return Examined(
        _or_missing(laboratory.costs),
        _or_missing(laboratory.similarities),
        _or_missing(laboratory.differences),
    )


def _or_missing(measured: Callable[[], T]) -> T | Missing:
    try:
        return measured()
    except InputError as error:
        reason = str(error)
        return Missing(f"{reason[:1].upper()}{reason[1:]}.")


class _Laboratory:
    """Builds students and teachers of the runs, and measures them."""

    def __init__(self, gathered: CollectedRuns, data: Dataset, given: UserObjects) -> None:
        self.gathered, self.data, self.given = gathered, data, given
        self.finished = [runs for runs in gathered.methods if runs.folders]

    def costs(self) -> Costs:
        """Models of the same build are measured once."""
        if not self.finished:
            raise InputError("no run is finished yet")
        log.info("measuring the latency of student and teacher on this CPU")
        measured: dict[str, Cost] = {}
        students = {}
        for runs in self.finished:
            student = load_student(next(iter(runs.folders.values())), self.data, self.given)
            build = repr(student.module)
            if build not in measured:
                measured[build] = measure(student, self.data.shape)
            students[runs.label] = measured[build]
        try:
            teacher = self._teacher(self.finished[0])
        except InputError:  # the students are worth a chart without it
            return Costs(students, None)
        return Costs(students, measure(teacher, self.data.shape))

    def similarities(self) -> tuple[Similarity, ...]:
        """Of the student that `_subject` chooses, and of one that was taught otherwise."""
        subject = self._subject()
        others = (self.gathered.find(name) for name in (BASELINE, STUDENT))
        other = next((runs for runs in others if runs not in (None, subject)), None)
        return tuple(self._similarity(runs) for runs in (subject, other) if runs is not None)

    def _similarity(self, runs: MethodRuns) -> Similarity:
        log.info("comparing the layers of %s with the teacher's", runs.label)
        seed, student = self._student(runs)
        stages = self.gathered.recipe.student.stages
        mean, std = student.mean.flatten().tolist(), student.std.flatten().tolist()
        staged = StagedModel(student.module, stages, mean=mean, std=std).to(pick("auto")).eval()
        teacher = self._teacher(runs).to(pick("auto"))
        return similarity(runs.label, seed, staged, teacher, self.data.test)

    def differences(self) -> Differences:
        """Of the student that `_subject` chooses."""
        runs = self._subject()
        log.info("comparing the answers of %s with the teacher's", runs.label)
        seed, student = self._student(runs)
        device = pick("auto")
        teacher = self._teacher(runs).to(device)
        return differences(runs.label, seed, student.to(device), teacher, self.data)

    def _subject(self) -> MethodRuns:
        """The student of most interest: taught at its stages, else by the baseline, else any."""
        if not self.finished:
            raise InputError("no run is finished yet")
        staged = (runs for runs in self.finished if shallow_stages(runs))
        return next(staged, None) or self.gathered.find(BASELINE) or self.finished[-1]

    def _student(self, runs: MethodRuns) -> tuple[int, StagedModel]:
        seed = min(runs.folders)
        return seed, load_student(runs.folders[seed], self.data, self.given)

    def _teacher(self, runs: MethodRuns) -> StagedModel:
        """The teacher of a method's first seed; a student alone is held against that of others."""
        recipe, error = self.gathered.recipe, InputError("no run has a teacher")
        for folder in self._folders(min(runs.folders), runs):
            try:
                teacher = load_teacher(folder, recipe, self.data, self.given)
            except InputError as reason:
                error = reason
                continue
            if teacher is not None:
                return teacher
        raise error

    def _folders(self, seed: int, runs: MethodRuns) -> Iterator[Path]:
        """Where the teacher may lie: the run itself first, then those of its seed."""
        yield runs.folders[seed]
        yield from (other.folders[seed] for other in self.finished if seed in other.folders)
        yield from (folder for other in self.finished for folder in other.folders.values())


def shallow_stages(runs: MethodRuns) -> list[str]:
    """The shallow stages whose losses and weights a method's metrics tell.

    Returns:
        As in ``["stage1", "stage2"]``; empty for a method that teaches the last layer alone.
    """
    rows = next(iter(runs.rows().values()), [])
    told = (_STAGE_WEIGHT.fullmatch(key) for key in (rows[-1] if rows else ()))
    return [f"stage{number}" for number in sorted(int(match[1]) for match in told if match)]
