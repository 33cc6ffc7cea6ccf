"""A report before it is written: runs, their summaries, and what was measured on them anew."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from dskd.compare.summary import Summary, summarize
from dskd.data import Dataset
from dskd.engine.build import UserObjects
from dskd.report.analysis import Costs, Examined, Missing, examine
from dskd.report.collect import CollectedRuns
from dskd.report.conclusions import details, headline
from dskd.report.cost import Cost
from dskd.report.tables import flat
from dskd.runtime import device as devices
from dskd.storage.run_files import LAST
from dskd.storage.weights import read_metadata


@dataclass(frozen=True)
class Report:
    """All that a report says.

    Attributes:
        gathered: The runs.
        summaries: One a method, the highest mean accuracy first, those without a result last.
        examined: What was measured anew.
        images: Of the test split.
        machine: Where it was measured, see `dskd.runtime.device.environment`.
    """

    gathered: CollectedRuns
    summaries: tuple[Summary, ...]
    examined: Examined
    images: int
    machine: Mapping[str, Any]

    @property
    def costs(self) -> Mapping[str, Cost]:
        """What the deployed students take, by label, as far as it could be measured."""
        costs = self.examined.costs
        return costs.students if isinstance(costs, Costs) else {}

    @property
    def teacher_cost(self) -> Cost | None:
        """What the teacher takes, where it could be measured."""
        costs = self.examined.costs
        return costs.teacher if isinstance(costs, Costs) else None

    def results(self) -> list[Mapping[str, Any]]:
        """``result.json`` of every finished run."""
        return [result for m in self.gathered.methods for result in m.entry.results.values()]

    def teacher_accuracies(self) -> list[float]:
        """Of each teacher; more than one where runs trained their own."""
        found = (result["teacher_accuracy"] for result in self.results())
        return sorted({accuracy for accuracy in found if accuracy is not None})

    def larger(self) -> list[Summary]:
        """Methods that deploy more than the plain student."""
        labels = {
            m.label
            for m in self.gathered.methods
            if any(
                read_metadata(folder / LAST).get("deploy_config") for folder in m.folders.values()
            )
        }
        return [summary for summary in self.summaries if summary.label in labels]


def make_content(gathered: CollectedRuns, data: Dataset, given: UserObjects) -> Report:
    """Summarises the runs and measures what they do not tell.

    Args:
        gathered: The runs.
        data: Their images.
        given: Objects in place of names.
    """
    summaries = summarize([m.entry for m in gathered.methods], len(data.test))
    summaries.sort(key=lambda s: -s.last.mean if s.last else 1.0)
    examined = examine(gathered, data, given)
    machine = devices.environment(torch.device("cpu"))
    return Report(gathered, tuple(summaries), examined, len(data.test), machine)


def rows(report: Report) -> list[dict[str, Any]]:
    """A row of plain values for every method."""
    return [flat(summary, report.costs.get(summary.label)) for summary in report.summaries]


def record(report: Report) -> dict[str, Any]:
    """The report as plain values for JSON: all numbers of the page, without its images."""
    gathered, examined = report.gathered, report.examined
    values = {
        "headline": headline(report.summaries),
        "details": details(report.summaries),
        "test_pictures": report.images,
        "methods": rows(report),
        "settings": {m.label: dict(m.settings) for m in gathered.methods},
        "epochs": {m.label: m.rows() for m in gathered.methods},
        "teacher": {
            "name": gathered.recipe.teacher.name if gathered.recipe.teacher else None,
            "accuracy": report.teacher_accuracies(),
            "cost": asdict(report.teacher_cost) if report.teacher_cost else None,
        },
        "similarity": _plain(examined.similarities),
        "differences": _plain(examined.differences),
        "recipe": {k: v for k, v in gathered.recipe.plain().items() if k in SHARED},
        "environment": dict(gathered.environment),
        "commands": [list(command) for command in gathered.commands],
        "measured_on": {"processor": report.machine["processor"], "threads": 1},
    }
    plain: dict[str, Any] = _finite(values)
    return plain


SHARED = ("data", "student", "teacher", "train")
"""The sections of a recipe that all runs of a report have in common."""


def _finite(value: Any) -> Any:
    """Plain values as JSON admits them: what is not a number is None."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(found: Any) -> Any:
    """Plain values of what was measured; what is left out says why."""
    if isinstance(found, Missing):
        return {"missing": found.reason}
    if isinstance(found, Sequence):
        return [_plain(one) for one in found]
    values = asdict(found)
    for pair in values.get("pairs", ()):
        pair["examples"] = [example["index"] for example in pair["examples"]]
    return values
