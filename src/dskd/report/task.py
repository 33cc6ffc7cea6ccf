"""What a report needs to know of its task: what differs between images and other data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dskd.compare.summary import baseline_of, samples_of
from dskd.storage.metric_names import Metric

if TYPE_CHECKING:
    from dskd.engine.user_objects import UserObjects
    from dskd.report.analysis import Analysis
    from dskd.report.collect import CollectedRuns


class ReportedData(Protocol):
    """What a report reads of a data set as a whole."""

    @property
    def test(self) -> Sized:
        """The test split."""

    @property
    def metric(self) -> Metric:
        """What was measured on the test split."""

    def fingerprint(self) -> str:
        """A hash of all of it, equal for equal data only."""


@dataclass(frozen=True)
class ReportTask:
    """What a report does in the way of its task.

    Attributes:
        name: As in the recipe; empty for images.
        resolve: Checks a recipe of plain values; the path names it in messages.
        load: The data set of a recipe. It also takes the folder of a run, and objects in place of
            names.
        analyze: Measures the finished students.
    """

    name: str
    resolve: Callable[[Mapping[str, Any], Path], Any]
    load: Callable[[Any, Path, UserObjects], ReportedData]
    analyze: Callable[[CollectedRuns, Any, UserObjects], Analysis]

    @property
    def baseline(self) -> str:
        """Label of the method that the table compares the others with."""
        return baseline_of(self.name)

    @property
    def samples(self) -> str:
        """The word for samples."""
        return samples_of(self.name)


def task_of(recipe: Mapping[str, Any]) -> ReportTask:
    """The task of a recipe. Tasks other than images need an extra, so they are imported here."""
    if recipe.get("task") == "graphs":
        from dskd.report.graphs import GRAPH_REPORT

        return GRAPH_REPORT
    if recipe.get("task") == "segment":
        from dskd.report.segmentation import SEGMENTATION_REPORT

        return SEGMENTATION_REPORT
    from dskd.report.images import IMAGE_REPORT

    return IMAGE_REPORT
