"""The contents of a report: the runs, their summaries and the measurements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from dskd.compare.summary import Summary, summarize
from dskd.engine.user_objects import UserObjects
from dskd.report.analysis import Analysis, ModelCosts
from dskd.report.collect import CollectedRuns
from dskd.report.cost import Cost
from dskd.report.task import ReportedData
from dskd.runtime import device as devices
from dskd.storage.json_file import read_json
from dskd.storage.metric_names import Metric
from dskd.storage.run_files import LAST, TEACHER_FACTS, TeacherFile
from dskd.storage.weights import read_metadata

SHARED = ("data", "student", "teacher", "train")
"""The sections of a recipe that all runs of a report share."""


@dataclass(frozen=True)
class ReportContents:
    """Everything that the page and the tables show.

    Attributes:
        collected: The runs.
        summaries: One per method, sorted by mean test accuracy, those without a result last.
        analysis: The measurements.
        test_images: Size of the test split.
        machine: Where they were made, see `dskd.runtime.device.environment`.
        metric: What was measured on the test split.
    """

    collected: CollectedRuns
    summaries: tuple[Summary, ...]
    analysis: Analysis
    test_images: int
    machine: Mapping[str, Any]
    metric: Metric = "accuracy"

    @property
    def costs(self) -> Mapping[str, Cost] | None:
        """The cost of the deployed students by label; empty if it could not be measured.

        None for a task whose reports do not measure it.
        """
        costs = self.analysis.costs
        if costs is None:
            return None
        return costs.students if isinstance(costs, ModelCosts) else {}

    @property
    def teacher_cost(self) -> Cost | None:
        """The cost of the teacher; None if it could not be measured."""
        costs = self.analysis.costs
        return costs.teacher if isinstance(costs, ModelCosts) else None

    @property
    def own_splits(self) -> bool:
        """Whether each seed has a split of the data of its own."""
        return getattr(self.collected.recipe.data, "split_seed", 0) is None

    def results(self) -> list[Mapping[str, Any]]:
        """The content of ``result.json`` of every finished run."""
        return [result for m in self.collected.methods for result in m.variant.results.values()]

    def teacher_accuracies(self) -> list[float]:
        """The test accuracy of each teacher; more than one if runs trained their own."""
        found = (result["teacher_accuracy"] for result in self.results())
        return sorted({accuracy for accuracy in found if accuracy is not None})

    def teachers(self) -> int:
        """The number of different teachers of the finished runs, as far as it is known."""
        found = (result.get("fingerprints", {}).get("teacher") for result in self.results())
        return max(len({one for one in found if one}), len(self.teacher_accuracies()))

    def teachers_near_chance(self) -> list[TeacherFile]:
        """The teachers of finished runs that are no better than a guess, each once."""
        found: dict[tuple[str, float], TeacherFile] = {}
        for folder in self.collected.finished:
            if (folder / TEACHER_FACTS).is_file():  # older versions wrote none
                fix = f"remove {folder} and make the run again"
                teacher = read_json(folder / TEACHER_FACTS, TeacherFile, fix)
                if teacher.near_chance:
                    found[teacher.name, teacher.test_accuracy] = teacher
        return list(found.values())

    def larger_students(self) -> list[Summary]:
        """The methods that deploy more than the plain student."""
        labels = {
            m.label
            for m in self.collected.methods
            if any(
                read_metadata(folder / LAST).get("deploy_config") for folder in m.folders.values()
            )
        }
        return [summary for summary in self.summaries if summary.label in labels]


def make_contents(
    collected: CollectedRuns, data: ReportedData, given: UserObjects
) -> ReportContents:
    """Summarizes and analyzes the runs.

    Args:
        collected: The runs.
        data: Their data set.
        given: Objects in place of names.
    """
    task, size = collected.task, len(data.test)
    summaries = summarize([m.variant for m in collected.methods], size, task.baseline)
    summaries.sort(key=lambda s: -s.test_accuracy.mean if s.test_accuracy else 1.0)
    analysis = task.analyze(collected, data, given)
    machine = devices.environment(torch.device("cpu"))
    return ReportContents(collected, tuple(summaries), analysis, size, machine, data.metric)
