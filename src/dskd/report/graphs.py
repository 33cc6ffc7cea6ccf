"""What a report on graphs reads and measures: the errors of a student, by class or by label."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from dskd.engine.tasks.graphs.data import GraphData
from dskd.engine.tasks.graphs.loader import predicted
from dskd.engine.tasks.graphs.recipe import RECIPES
from dskd.engine.tasks.graphs.settings import GraphRecipe
from dskd.engine.tasks.graphs.sources import load_graphs
from dskd.engine.tasks.graphs.student import logits_on
from dskd.engine.tasks.graphs.task import micro_f1
from dskd.engine.user_objects import UserObjects
from dskd.report.analysis import Analysis, main_student, or_unavailable
from dskd.report.collect import CollectedRuns
from dskd.report.mistakes import Mistakes, mistakes_of
from dskd.report.scores import ClassScores
from dskd.report.task import ReportTask


def _load(recipe: GraphRecipe, run: Path, given: UserObjects) -> GraphData:
    return load_graphs(recipe.split_data)


def _analyze(collected: CollectedRuns, data: GraphData, given: UserObjects) -> Analysis:
    """Measures the first student of the method that is shown in detail."""
    analyzer = _Analyzer(collected, data)
    if data.multilabel:
        return Analysis(class_scores=or_unavailable(analyzer.scores))
    return Analysis(mistakes=or_unavailable(analyzer.mistakes))


@dataclass(frozen=True)
class _Analyzer:
    """Runs the student on the test nodes."""

    collected: CollectedRuns
    data: GraphData

    def mistakes(self) -> Mistakes:
        """The confused classes."""
        runs, seed = main_student(self.collected)
        logits = logits_on(runs.folders[seed], self.data)
        labels = self.data.test.labels
        return mistakes_of(runs.label, seed, labels, logits.argmax(1), self.data.classes)

    def scores(self) -> ClassScores:
        """The F1 score of each label."""
        runs, seed = main_student(self.collected)
        found = predicted(logits_on(runs.folders[seed], self.data))
        labels = self.data.test.labels.long()
        rows = [
            (runs.label, name, (_f1(found[:, number], labels[:, number]),))
            for number, name in enumerate(self.data.classes)
        ]
        text = (
            f"The F1 score of {runs.label}, seed {seed}, for each label over the "
            f"{len(labels):,} test nodes."
        )
        return ClassScores(text, ("F1, %",), tuple(rows))


def _f1(found: torch.Tensor, labels: torch.Tensor) -> float | None:
    """The F1 score of one label; None if no node has it and it is predicted for none."""
    return micro_f1(found, labels) if bool(found.any() or labels.any()) else None


GRAPH_REPORT = ReportTask("graphs", RECIPES.resolve, _load, _analyze)
