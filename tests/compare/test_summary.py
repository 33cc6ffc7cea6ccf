"""Summaries of the results of a comparison."""

from __future__ import annotations

from typing import Any

import pytest

from dskd.compare.summary import VariantResults, summarize


def result(accuracy: float, **others: Any) -> dict[str, Any]:
    plain = {
        "test_accuracy": accuracy,
        "best_test_accuracy": accuracy + 1,
        "agreement": 90.0,
        "parameters": 100,
        "extra_parameters": 0,
        "seconds": 5.0,
        "teacher_seconds": 2.0,
        "memory": 1000,
    }
    return plain | others


def variant(label: str, *accuracies: float, failed: dict[int, str] | None = None) -> VariantResults:
    results = {seed: result(accuracy) for seed, accuracy in enumerate(accuracies)}
    return VariantResults(label, label.split(":")[0], {"ce": 1.0}, results, failed or {})


def test_each_method_is_compared_with_kd_at_the_same_seeds() -> None:
    ce, kd = variant("ce", 70.0, 71.0, 72.0), variant("kd", 72.0, 74.0, 73.0)
    dskd = variant("dskd", 73.0, 76.0)  # the third seed is not there yet
    found = {s.label: s for s in summarize([ce, kd, dskd], 1000)}
    assert found["kd"].difference is None
    assert found["dskd"].difference is not None
    assert found["dskd"].difference.interval.values == (1.0, 2.0)
    # at the two seeds that all three have: 74.5 against 73 and 70.5
    assert found["dskd"].improvement == pytest.approx(100 * 1.5 / 2.5)
    assert found["ce"].improvement is None


def test_p_values_are_adjusted_for_all_methods_together() -> None:
    variants = [variant("kd", 70.0, 71.0, 72.0), variant("at", 71.0, 72.1, 73.2)]
    alone = summarize(variants, 1000)[1].difference
    both = summarize([*variants, variant("sp", 60.0, 62.0, 61.0)], 1000)[1].difference
    assert alone is not None
    assert both is not None
    assert alone.p == both.p
    assert alone.p is not None
    assert alone.p_holm == alone.p
    assert both.p_holm is not None
    assert both.p_holm > alone.p


def test_seconds_are_the_student_s_own() -> None:
    assert summarize([variant("kd", 70.0)], 1000)[0].seconds == 3.0


def test_a_method_whose_seeds_all_failed_is_still_listed() -> None:
    (found,) = summarize([variant("at", failed={0: "the loss is not finite"})], 1000)
    assert (found.seeds, found.test_accuracy, found.failed) == (
        (),
        None,
        {0: "the loss is not finite"},
    )
    assert found.runs == {}


def test_without_kd_nothing_is_compared() -> None:
    (found,) = summarize([variant("dskd", 70.0, 71.0)], 1000)
    assert (found.difference, found.improvement) == (None, None)
