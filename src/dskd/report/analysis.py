"""Stage 2 of a report: measures finished students, their layers and their predictions."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch

from dskd.compare.summary import BASELINE, STUDENT
from dskd.data import Dataset
from dskd.deploy.evaluate import check_split
from dskd.engine.user_objects import UserObjects
from dskd.errors import InputError
from dskd.models.default_stages import default_stages
from dskd.models.staged_model import StagedModel
from dskd.models.trace import TRACED
from dskd.report.cka import LayerSimilarity, layer_similarity
from dskd.report.collect import CollectedRuns, MethodRuns
from dskd.report.cost import Cost, measure
from dskd.report.disagreements import Disagreements, find_disagreements
from dskd.report.exits import MeasuredExits, measured_exits
from dskd.report.load_models import load_student, load_teacher_of
from dskd.report.mistakes import Mistakes, find_mistakes
from dskd.report.scores import ClassScores, Drawings
from dskd.runtime.device import pick
from dskd.storage.run_files import EXITS

_STAGE_WEIGHT = re.compile(r"(stage|layer)(\d+)/weight")
log = logging.getLogger("dskd")
T = TypeVar("T")


@dataclass(frozen=True)
class Unavailable:
    """A part of the report that is left out, with the reason as a sentence."""

    reason: str


@dataclass(frozen=True)
class ModelCosts:
    """The inference cost of the deployed models.

    Attributes:
        students: The cost of each student by label.
        teacher: The cost of the teacher; None without one.
        note: A sentence on methods that were not measured; empty if all were.
    """

    students: Mapping[str, Cost]
    teacher: Cost | None
    note: str = ""


@dataclass(frozen=True)
class Analysis:
    """The measurements of a report; None for those that its task does not have.

    Attributes:
        costs: Of all students and of the teacher.
        similarities: Of the layers of two students with those of the teacher.
        disagreements: Of one student with its teacher.
        mistakes: Of the same student.
        exits: Early exits of one student; None if no run kept any.
        class_scores: Of students by class, where a sample has no single class.
        drawings: Of predicted masks.
    """

    costs: ModelCosts | Unavailable | None = None
    similarities: tuple[LayerSimilarity, ...] | Unavailable | None = None
    disagreements: Disagreements | Unavailable | None = None
    mistakes: Mistakes | Unavailable | None = None
    exits: MeasuredExits | Unavailable | None = None
    class_scores: ClassScores | Unavailable | None = None
    drawings: Drawings | Unavailable | None = None


def analyze(collected: CollectedRuns, data: Dataset, given: UserObjects) -> Analysis:
    """Measures finished image classifiers. A measurement that is impossible is left out.

    Args:
        collected: The runs.
        data: Their images.
        given: Objects in place of names.
    """
    analyzer = _Analyzer(collected, data, given)
    return Analysis(
        or_unavailable(analyzer.costs),
        or_unavailable(analyzer.similarities),
        or_unavailable(analyzer.disagreements),
        or_unavailable(analyzer.mistakes),
        or_unavailable(analyzer.exits),
    )


def or_unavailable(measurement: Callable[[], T]) -> T | Unavailable:
    """A measurement, or the reason why it is left out."""
    try:
        return measurement()
    except InputError as error:
        reason = str(error)
        return Unavailable(f"{reason[:1].upper()}{reason[1:]}.")


class _Analyzer:
    """Loads the students and teachers of the runs, and measures them."""

    def __init__(self, collected: CollectedRuns, data: Dataset, given: UserObjects) -> None:
        self.collected, self.data, self.given = collected, data, given
        self.finished = [runs for runs in collected.methods if runs.folders]

    def costs(self) -> ModelCosts:
        """The costs of all models. Students of the same architecture are measured once."""
        if not self.finished:
            raise InputError("no run is finished yet")
        log.info("measuring the latency of student and teacher on this CPU")
        by_architecture: dict[str, Cost] = {}
        students = {}
        for runs in self.finished:
            student = load_student(next(iter(runs.folders.values())), self.data, self.given)
            architecture = repr(student.module)
            if architecture not in by_architecture:
                by_architecture[architecture] = measure(student, self.data.shape)
            students[runs.label] = by_architecture[architecture]
        try:
            teacher = self._teacher(self.finished[0])
        except InputError:  # the costs of the students are worth a chart without it
            return ModelCosts(students, None)
        return ModelCosts(students, measure(teacher, self.data.shape))

    def similarities(self) -> tuple[LayerSimilarity, ...]:
        """The layers of the main student, and of one trained by the baseline or without a teacher.

        See `main_method`.
        """
        main, _ = main_student(self.collected)
        others = (self.collected.find(name) for name in (BASELINE, STUDENT))
        other = next((runs for runs in others if runs not in (None, main)), None)
        return tuple(self._similarity(runs) for runs in (main, other) if runs is not None)

    def _similarity(self, runs: MethodRuns) -> LayerSimilarity:
        log.info("comparing the layers of %s with those of the teacher", runs.label)
        seed, student = self._student(runs)
        settings = self.collected.recipe.student
        images = torch.zeros(TRACED, *self.data.shape)
        stages = settings.stages or default_stages(student.module, images)
        mean, std = student.mean.flatten().tolist(), student.std.flatten().tolist()
        staged = StagedModel(student.module, stages, mean=mean, std=std).to(pick("auto")).eval()
        teacher = self._teacher(runs).to(pick("auto"))
        return layer_similarity(runs.label, seed, staged, teacher, self.data.test)

    def disagreements(self) -> Disagreements:
        """The predictions of the main student and its teacher, see `main_method`."""
        runs, _ = main_student(self.collected)
        log.info("comparing the predictions of %s with those of the teacher", runs.label)
        seed, student = self._student(runs)
        device = pick("auto")
        teacher = self._teacher(runs).to(device)
        if teacher.other_classes is not None:
            raise InputError("the teacher has other classes than the student")
        return find_disagreements(runs.label, seed, student.to(device), teacher, self.data)

    def mistakes(self) -> Mistakes:
        """The errors of the main student, see `main_method`."""
        if self.data.without_labels:
            raise InputError(
                "the images have no labels, so nothing is known about errors; where student and "
                "teacher differ is shown below"
            )
        runs, _ = main_student(self.collected)
        seed, student = self._student(runs)
        return find_mistakes(runs.label, seed, student.to(pick("auto")), self.data)

    def exits(self) -> MeasuredExits | None:
        """The early exits of one student, see `run_with_exits`; None without any."""
        found = run_with_exits(self.collected)
        if found is None:
            return None
        runs, seed = found
        log.info("measuring the early exits of %s on this CPU", runs.label)
        others = self.collected.beside
        return measured_exits(runs, seed, self.data, self.given, others)

    def _student(self, runs: MethodRuns) -> tuple[int, StagedModel]:
        """The student of the first seed.

        Raises:
            InputError: It cannot be built, or the test images are others than those of its run.
        """
        seed = min(runs.folders)
        check_split(runs.folders[seed], self.data)
        return seed, load_student(runs.folders[seed], self.data, self.given)

    def _teacher(self, runs: MethodRuns) -> StagedModel:
        """The teacher of the first seed; for a student without one, the teacher of other runs."""
        seed, error = min(runs.folders), InputError("no run has a teacher")
        own = runs.teacher_fingerprint(seed)
        for other, number in self._with_teachers(seed, runs):
            known = other.teacher_fingerprint(number)
            if known is None or own not in (None, known):
                continue
            try:
                return load_teacher_of(other.folders[number], known, self.data, self.given)
            except InputError as reason:
                error = reason
        raise error

    def _with_teachers(self, seed: int, runs: MethodRuns) -> Iterator[tuple[MethodRuns, int]]:
        """Runs that may have the teacher: the run itself, those of its seed, then all others."""
        yield runs, seed
        yield from ((other, seed) for other in self.finished if seed in other.folders)
        yield from ((other, number) for other in self.finished for number in other.folders)


def main_method(collected: CollectedRuns) -> MethodRuns | None:
    """The method to show in detail: one with shallow stages, else the baseline, else any.

    Returns:
        A method with a finished run; None if there is none.
    """
    finished = [runs for runs in collected.methods if runs.folders]
    staged = next((runs for runs in finished if shallow_stages(runs)), None)
    return staged or collected.find(BASELINE) or (finished[-1] if finished else None)


def main_student(collected: CollectedRuns) -> tuple[MethodRuns, int]:
    """The method to show in detail, and its first finished seed, see `main_method`.

    Raises:
        InputError: No run is finished.
    """
    runs = main_method(collected)
    if runs is None:
        raise InputError("no run is finished yet")
    return runs, min(runs.folders)


def run_with_exits(collected: CollectedRuns) -> tuple[MethodRuns, int] | None:
    """The run whose early exits are shown: one of the main method, or the first that kept any.

    Returns:
        Its method and its seed; None if no finished run kept early exits.
    """
    main = main_method(collected)
    for runs in sorted(collected.methods, key=lambda runs: runs is not main):
        for seed, folder in sorted(runs.folders.items()):
            if (folder / EXITS).is_file():
                return runs, seed
    return None


def shallow_stages(runs: MethodRuns) -> list[str]:
    """The shallow stages of a method that its metrics name.

    Returns:
        Names such as ``["stage1", "stage2"]``, in graphs ``["layer1", "layer2"]``; empty for a
        method without shallow stages.
    """
    matches = map(_STAGE_WEIGHT.fullmatch, next(iter(runs.metrics.values()), {}))
    found = sorted((int(match[2]), match[1]) for match in matches if match)
    return [f"{word}{number}" for number, word in found]
