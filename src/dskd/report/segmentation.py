"""What a report on segmentation reads and measures: scores by class, and drawn predictions."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

from dskd.engine.tasks.same_data import check_same_data
from dskd.engine.tasks.segmentation.dataset import SegmentationData
from dskd.engine.tasks.segmentation.job import build_model
from dskd.engine.tasks.segmentation.overlay import colour, draw_overlay
from dskd.engine.tasks.segmentation.recipe import RECIPES
from dskd.engine.tasks.segmentation.settings import (
    SegmentationRecipe,
    SegmentationTeacherSettings,
)
from dskd.engine.tasks.segmentation.sources import load_images
from dskd.engine.tasks.segmentation.student import (
    SegmentationStudent,
    load_student,
    scores_on,
)
from dskd.engine.tasks.segmentation.unet import SegmentationModel
from dskd.engine.user_objects import UserObjects
from dskd.report.analysis import Analysis, ModelCosts, main_student, or_unavailable
from dskd.report.collect import CollectedRuns
from dskd.report.cost import Cost, measure
from dskd.report.disagreements import png_uri
from dskd.report.scores import ClassScores, Drawings
from dskd.report.task import ReportTask

log = logging.getLogger("dskd")

SHOWN, METHODS = 4, 6
"""Test images that are drawn, and most methods that are measured: those with the best results."""
LARGEST = 160
"""Longest side of a drawing in pixels."""


def _load(recipe: SegmentationRecipe, run: Path, given: UserObjects) -> SegmentationData:
    return load_images(recipe.split_data)


def _analyze(collected: CollectedRuns, data: SegmentationData, given: UserObjects) -> Analysis:
    """Measures one student of each method; see `_Analyzer.folders`."""
    analyzer = _Analyzer(collected, data)
    return Analysis(
        costs=or_unavailable(analyzer.costs),
        class_scores=or_unavailable(analyzer.scores),
        drawings=or_unavailable(analyzer.drawings),
    )


@dataclass(frozen=True)
class _Analyzer:
    """Loads the students of the runs, and runs them on test images."""

    collected: CollectedRuns
    data: SegmentationData

    @cached_property
    def folders(self) -> dict[str, Path]:
        """The run of the first seed of each method, by the method's label.

        Where each seed has a split of its own, the data is that of the seed of the main student.
        Other seeds are left out then: they may have learned from these test images.
        """
        _, shown = main_student(self.collected)
        own_splits = self.collected.recipe.data.split_seed is None
        found = {
            runs.label: runs.folders[shown if own_splits else min(runs.folders)]
            for runs in self.collected.best_first()
            if (shown in runs.folders if own_splits else runs.folders)
        }
        return dict(islice(found.items(), METHODS))

    @cached_property
    def students(self) -> dict[str, SegmentationStudent]:
        """The student of each of these runs."""
        return {label: load_student(folder) for label, folder in self.folders.items()}

    def costs(self) -> ModelCosts:
        """The costs of the students and of the teacher. Each architecture is measured once."""
        log.info("measuring the latency of the students on this CPU")
        by_width: dict[int, Cost] = {}

        def cost(model: SegmentationModel, width: int) -> Cost:
            if width not in by_width:  # a batch of large images would take long
                by_width[width] = measure(model, self.data.shape, batch=False)
            return by_width[width]

        students = {
            label: cost(one.model, one.recipe.student.width) for label, one in self.students.items()
        }
        results = [one for runs in self.collected.methods for one in runs.variant.results.values()]
        if all(one["teacher_accuracy"] is None for one in results):
            return ModelCosts(students, None, self._left_out())
        settings: SegmentationTeacherSettings = self.collected.recipe.teacher
        normalize = self.collected.recipe.data.normalize
        teacher = build_model(settings, self.data, normalize, 0).eval()
        return ModelCosts(students, cost(teacher, settings.width), self._left_out())

    def scores(self) -> ClassScores:
        """Dice and HD95 of each class."""
        self._check_data()
        rows = [
            (label, one.name, (one.dice, one.hd95))
            for label, student in self.students.items()
            for one in scores_on(student, self.data, self.folders[label])
        ]
        text = (
            f"The first seed of each method at its best epoch, on the {len(self.data.test):,} test "
            "images: the mean over images. HD95 is taken where prediction and mask both have the "
            f"class; a dash stands where no image has both.{self._left_out()}"
        )
        return ClassScores(text, ("Dice, %", "HD95, pixels"), tuple(rows))

    def drawings(self) -> Drawings:
        """Some test images under their masks, and under what each student predicts."""
        self._check_data()
        test, classes = self.data.test, self.data.classes[1:]
        chosen = test.examples(SHOWN)
        rows = tuple((test.names[index], tuple(self._drawn(index))) for index in chosen)
        text = (
            "Test images, their masks, and the predictions of the first seed of each method at its "
            f"best epoch.{self._left_out()}"
        )
        colours = {
            name: "#{:02x}{:02x}{:02x}".format(*colour(number))
            for number, name in enumerate(classes, 1)
        }
        return Drawings(text, ("image", "mask", *self.students), rows, colours)

    def _check_data(self) -> None:
        """Refuses data that is not that of the runs any more."""
        fingerprint = self.data.fingerprint()
        for folder in self.folders.values():
            check_same_data(folder, fingerprint)

    def _drawn(self, index: int) -> Iterator[str]:
        """The drawings of one image: plain, its mask, and a prediction of each student."""
        image, mask = (
            part[index].numpy() for part in (self.data.test.images, self.data.test.masks)
        )
        masks = [0 * mask, mask, *(student.predict(image) for student in self.students.values())]
        yield from (png_uri(draw_overlay(image, one), LARGEST) for one in masks)

    def _left_out(self) -> str:
        finished = sum(bool(runs.folders) for runs in self.collected.methods)
        if finished == len(self.folders):
            return ""
        return f" {len(self.folders)} methods of {finished} are shown, the best results first."


SEGMENTATION_REPORT = ReportTask("segment", RECIPES.resolve, _load, _analyze)
