"""What a comparison came to: one summary a method, from the results of its runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dskd.compare.statistics import (
    Difference,
    Interval,
    holm,
    interval,
    paired,
    relative_improvement,
    sampling_error,
)

BASELINE, STUDENT = "kd", "ce"
"""The labels of the methods that differences and relative improvements refer to by default."""


@dataclass(frozen=True)
class Summary:
    """A method over its seeds.

    Accuracies are top-1 on the test split, in percent.

    Attributes:
        label: The method's name, with the settings that set it apart from others of this name.
        method: The method's name.
        weights: Of its losses: ``ce``, ``kd`` and its own.
        seeds: Those that are finished.
        failed: Seeds that ended without a result, and why.
        last: Accuracy after the last epoch.
        best: Accuracy after the best epoch.
        agreement: With the teacher, in percent of the test images; None without a teacher.
        difference: Accuracy after the last epoch against the baseline, at the seeds that both
            have; None for the baseline itself and where there is none.
        improvement: Relative to the baseline's over the plain student, in percent (ARI).
        sampling_error: Half the 95 % interval of an accuracy from the size of the test split.
        parameters: Of the deployed student.
        extra_parameters: Trained beside the student and not deployed.
        seconds: Of training a seed, the teacher's time not counted; the mean.
        memory: Bytes that a training step holds, the teacher's not counted.
    """

    label: str
    method: str
    weights: Mapping[str, float]
    seeds: tuple[int, ...]
    failed: Mapping[int, str]
    last: Interval | None = None
    best: Interval | None = None
    agreement: Interval | None = None
    difference: Difference | None = None
    improvement: float | None = None
    sampling_error: float | None = None
    parameters: int | None = None
    extra_parameters: int | None = None
    seconds: float | None = None
    memory: int | None = None


@dataclass(frozen=True)
class Entry:
    """A method's runs, as far as they are.

    Attributes:
        label: As in `Summary`.
        method: The method's name.
        weights: Of its losses.
        results: ``result.json`` of each finished seed.
        failed: Why a seed ended without a result.
    """

    label: str
    method: str
    weights: Mapping[str, float]
    results: Mapping[int, Mapping[str, Any]]
    failed: Mapping[int, str]


def summarize(
    entries: Sequence[Entry], test_images: int, baseline: str = BASELINE
) -> list[Summary]:
    """A summary of every entry, in their order.

    Args:
        entries: The methods and their results.
        images: Of the test split.
        baseline: The label that differences and relative improvements refer to.
    """
    by_label = {entry.label: entry for entry in entries}
    against, student = by_label.get(baseline), by_label.get(STUDENT)
    summaries = [_summary(entry, against, student, test_images) for entry in entries]
    adjusted = holm([s.difference.p if s.difference else None for s in summaries])
    return [
        replace(s, difference=replace(s.difference, p_holm=p_holm)) if s.difference else s
        for s, p_holm in zip(summaries, adjusted, strict=True)
    ]


def _summary(
    entry: Entry, baseline: Entry | None, student: Entry | None, test_images: int
) -> Summary:
    seeds = tuple(sorted(entry.results))
    summary = Summary(entry.label, entry.method, entry.weights, seeds, entry.failed)
    if not seeds:
        return summary
    results = [entry.results[seed] for seed in seeds]
    last = interval([r["test_accuracy"] for r in results])
    agreed = [r["agreement"] for r in results if r["agreement"] is not None]
    return replace(
        summary,
        last=last,
        best=interval([r["best_test_accuracy"] for r in results]),
        agreement=interval(agreed) if agreed else None,
        difference=_difference(entry, baseline),
        improvement=_improvement(entry, baseline, student),
        sampling_error=sampling_error(last.mean, test_images),
        parameters=results[0]["parameters"],
        extra_parameters=results[0]["extra_parameters"],
        seconds=sum(r["seconds"] - r["teacher_seconds"] for r in results) / len(results),
        memory=max(r["memory"] for r in results),
    )


def _difference(entry: Entry, baseline: Entry | None) -> Difference | None:
    if baseline is None or entry.label == baseline.label:
        return None
    values = _accuracies([entry, baseline])
    return paired(*values) if values[0] else None


def _improvement(entry: Entry, baseline: Entry | None, student: Entry | None) -> float | None:
    """At the seeds that all three have."""
    if baseline is None or student is None or entry.label in (baseline.label, student.label):
        return None
    values = _accuracies([entry, baseline, student])
    means = [sum(v) / len(v) for v in values if v]
    return relative_improvement(*means) if len(means) == 3 else None


def _accuracies(entries: Sequence[Entry]) -> list[list[float]]:
    """The accuracies of the last epoch, of each entry, at the seeds that all of them have."""
    seeds = sorted(set.intersection(*(set(entry.results) for entry in entries)))
    return [[entry.results[seed]["test_accuracy"] for seed in seeds] for entry in entries]
