"""One summary per method: its results over all seeds, and its difference to the baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
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
from dskd.storage.metric_names import Metric

BASELINE, STUDENT = "kd", "ce"
"""Labels of the methods that differences and relative improvements refer to by default."""
BASELINES = {"graphs": "alone", "segment": "masks"}
"""The labels that differences refer to in other tasks than images."""
SAMPLES = {"graphs": "nodes"}
"""The word for samples in tasks whose samples are no images."""


def baseline_of(task: str) -> str:
    """The label of the method that differences refer to.

    Args:
        task: Of the recipe; empty for images.

    Example:
        >>> baseline_of(""), baseline_of("graphs")
        ('kd', 'alone')
    """
    return BASELINES.get(task, BASELINE)


def samples_of(task: str) -> str:
    """The word for the samples of a task.

    Example:
        >>> samples_of(""), samples_of("graphs")
        ('images', 'nodes')
    """
    return SAMPLES.get(task, "images")


@dataclass(frozen=True)
class Summary:
    """A method over its seeds.

    Accuracies are top-1 on the test split, in percent.

    Attributes:
        label: The method's name, with the settings that distinguish it from others of this name.
        method: The method's name.
        weights: The weights of its losses: ``ce``, ``kd`` and its own.
        seeds: The seeds that are finished.
        failed: The seeds without a result, with the reason.
        test_accuracy: After the last epoch.
        best_test_accuracy: After the best epoch.
        agreement: Test images that student and teacher classify alike, in percent; None without a
            teacher.
        difference: Test accuracy minus that of the baseline, at the seeds that both have; None
            for the baseline itself and if there is none.
        improvement: Average relative improvement (ARI) over the baseline, in percent.
        sampling_error: Half the 95 % interval of an accuracy due to the size of the test split.
        parameters: Parameters of the deployed student.
        extra_parameters: Parameters that were trained with the student and are not deployed.
        seconds: Mean training time of a seed, without that of the teacher.
        memory: Bytes that a training step holds, without those of the teacher.
        metric: What the accuracies are: ``accuracy``, or another measure in percent.
        path: Folder of the comparison, as ``dskd report`` takes it; None for runs of several
            folders.
        runs: Folder of each finished run by its seed, as `dskd.load_deployed` takes it.
    """

    label: str
    method: str
    weights: Mapping[str, float]
    seeds: tuple[int, ...]
    failed: Mapping[int, str]
    test_accuracy: Interval | None = None
    best_test_accuracy: Interval | None = None
    agreement: Interval | None = None
    difference: Difference | None = None
    improvement: float | None = None
    sampling_error: float | None = None
    parameters: int | None = None
    extra_parameters: int | None = None
    seconds: float | None = None
    memory: int | None = None
    metric: Metric = "accuracy"
    path: Path | None = None
    runs: Mapping[int, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class VariantResults:
    """The results of a method so far.

    Attributes:
        label: As in `Summary`.
        method: The method's name.
        weights: The weights of its losses.
        results: Content of ``result.json`` by finished seed.
        failed: The reason by seed without a result.
        path: As in `Summary`.
        runs: As in `Summary`.
    """

    label: str
    method: str
    weights: Mapping[str, float]
    results: Mapping[int, Mapping[str, Any]]
    failed: Mapping[int, str]
    path: Path | None = None
    runs: Mapping[int, Path] = field(default_factory=dict)


def summarize(
    variants: Sequence[VariantResults], test_images: int, baseline: str = BASELINE
) -> list[Summary]:
    """Summarizes methods, in their order.

    Args:
        variants: The methods and their results.
        test_images: Size of the test split.
        baseline: Label of the method that differences and relative improvements refer to.
    """
    by_label = {variant.label: variant for variant in variants}
    kd, student = by_label.get(baseline), by_label.get(STUDENT)
    summaries = [_summary(variant, kd, student, test_images) for variant in variants]
    adjusted = holm([s.difference.p if s.difference else None for s in summaries])
    return [
        replace(s, difference=replace(s.difference, p_holm=p_holm)) if s.difference else s
        for s, p_holm in zip(summaries, adjusted, strict=True)
    ]


def _summary(
    variant: VariantResults,
    baseline: VariantResults | None,
    student: VariantResults | None,
    test_images: int,
) -> Summary:
    seeds = tuple(sorted(variant.results))
    summary = Summary(
        variant.label,
        variant.method,
        variant.weights,
        seeds,
        variant.failed,
        path=variant.path,
        runs=variant.runs,
    )
    if not seeds:
        return summary
    results = [variant.results[seed] for seed in seeds]
    test_accuracy = interval([r["test_accuracy"] for r in results])
    metric: Metric = results[0].get("metric", "accuracy")
    agreements = [r["agreement"] for r in results if r["agreement"] is not None]
    return replace(
        summary,
        test_accuracy=test_accuracy,
        best_test_accuracy=interval([r["best_test_accuracy"] for r in results]),
        agreement=interval(agreements) if agreements else None,
        difference=_difference(variant, baseline),
        improvement=_improvement(variant, baseline, student),
        sampling_error=(
            sampling_error(test_accuracy.mean, test_images)
            if metric not in ("micro_f1", "dice")
            else None
        ),
        metric=metric,
        parameters=results[0]["parameters"],
        extra_parameters=results[0]["extra_parameters"],
        seconds=sum(r["seconds"] - r["teacher_seconds"] for r in results) / len(results),
        memory=max(r["memory"] for r in results),
    )


def _difference(variant: VariantResults, baseline: VariantResults | None) -> Difference | None:
    if baseline is None or variant.label == baseline.label:
        return None
    values = _accuracies([variant, baseline])
    return paired(*values) if values[0] else None


def _improvement(
    variant: VariantResults, baseline: VariantResults | None, student: VariantResults | None
) -> float | None:
    """The ARI at the seeds that all three have."""
    if baseline is None or student is None or variant.label in (baseline.label, student.label):
        return None
    values = _accuracies([variant, baseline, student])
    means = [sum(v) / len(v) for v in values if v]
    return relative_improvement(*means) if len(means) == 3 else None


def _accuracies(variants: Sequence[VariantResults]) -> list[list[float]]:
    """The test accuracies of each variant at the seeds that all of them have."""
    seeds = sorted(set.intersection(*(set(variant.results) for variant in variants)))
    return [[variant.results[seed]["test_accuracy"] for seed in seeds] for variant in variants]
