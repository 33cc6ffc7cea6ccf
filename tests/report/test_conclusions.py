"""The sentences of a report state what the numbers support, and nothing more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dskd.compare.notes import why_no_differences
from dskd.compare.statistics import Difference, Interval
from dskd.compare.summary import Summary, VariantResults, summarize
from dskd.report.conclusions import details, headline, verdict


def summaries(**accuracies: Sequence[float]) -> list[Summary]:
    """The summaries of a comparison with these accuracies, one per seed."""
    variants = [
        VariantResults(
            label, label, {}, {seed: result(value) for seed, value in enumerate(values)}, {}
        )
        for label, values in accuracies.items()
    ]
    return summarize(variants, 1000)


def result(accuracy: float) -> dict[str, Any]:
    return {
        "test_accuracy": accuracy,
        "best_test_accuracy": accuracy,
        "agreement": None,
        "parameters": 1,
        "extra_parameters": 0,
        "seconds": 1.0,
        "teacher_seconds": 0.0,
        "memory": 1,
    }


KD = [70.0, 70.2, 69.9, 70.1]
BETTER = [72.0, 72.3, 71.9, 72.05]
WORSE = [60.0, 60.3, 59.9, 60.05]
OPEN = [70.1, 69.9, 70.2, 69.8]


@pytest.mark.parametrize(
    ("accuracies", "words"),
    [
        ({"kd": KD, "dskd": BETTER}, "dskd is significantly better than kd."),
        ({"kd": KD, "dskd": WORSE}, "dskd is significantly worse than kd."),
        ({"kd": KD, "dskd": OPEN}, "dskd does not differ significantly from kd."),
        ({"kd": KD, "ce": WORSE}, "ce is significantly worse than kd."),
        ({"kd": KD, "a": OPEN, "b": OPEN}, "None of 2 methods differs significantly from kd."),
        ({"kd": KD, "a": BETTER, "b": BETTER}, "All 2 methods are significantly better than kd."),
        (
            {"ce": WORSE, "kd": KD, "a": BETTER, "b": OPEN, "c": WORSE},
            "Of 3 methods, 1 is significantly better than kd (a), 1 is significantly worse than kd "
            "(c), the other one does not differ significantly from it.",
        ),
        ({"kd": [70.0], "dskd": [79.0]}, "With a single seed, no difference to kd can be tested."),
        ({"dskd": [79.0, 80.0]}, "dskd reaches 79.50 ± 6.35 % test accuracy over 2 seeds."),
        (
            {"kd": [70.0, 71.0], "dskd": [71.0, 72.0]},
            "No difference to kd can be tested: each is equal at all seeds, or known at one seed "
            "only.",
        ),
        ({"kd": [70.0]}, "kd reaches 70.00 % test accuracy at one seed."),
        ({"kd": [], "dskd": []}, "No run is finished yet."),
        (
            {"ce": OPEN, "dskd": BETTER},
            "dskd has the highest mean of 2 methods; no difference is tested, since no run of kd "
            "is finished.",
        ),
        (
            {"kd:temperature=2": KD, "dskd": BETTER},
            "dskd has the highest mean of 2 methods; no difference is tested, since kd with the "
            "settings of the recipe is not among the methods.",
        ),
    ],
)
def test_the_headline_says_what_was_found(accuracies: dict[str, list[float]], words: str) -> None:
    assert headline(summaries(**accuracies)) == words


def test_a_finished_baseline_is_not_said_to_be_unfinished() -> None:
    kd = VariantResults("kd", "kd", {}, results={0: result(70.0)}, failed={})
    other = VariantResults("dskd", "dskd", {}, results={1: result(79.0)}, failed={})
    said = headline(summarize([kd, other], 500))
    assert said.endswith("no difference is tested, since no other method has a seed of kd.")
    none = replace(other, results={})
    reason = why_no_differences(summarize([kd, none], 500))
    assert reason == "no other method has a result"


def test_of_many_methods_the_first_few_are_named() -> None:
    many = {f"m{number}": [value + number for value in BETTER] for number in range(6)}
    said = headline(summaries(kd=KD, worst=WORSE, **many))
    assert "6 are significantly better than kd (m5, m4, m3, ...)" in said
    assert "1 is significantly worse than kd (worst)" in said


def test_details_are_given_for_ce_and_dskd() -> None:
    said = details(summaries(ce=WORSE, kd=KD, dskd=OPEN))
    assert said == [
        "ce (labels only) minus kd: -9.99 ± 0.10 points over 4 seeds (significantly worse).",
        "dskd minus kd: -0.05 ± 0.48 points over 4 seeds (not significant).",
    ]
    assert details(summaries(kd=[70.0], dskd=[71.0])) == [
        "dskd minus kd: +1.00 points at one seed, too few for a test."
    ]
    assert details(summaries(kd=[70.0, 71.0], dskd=[71.0, 72.0])) == [
        "dskd minus kd: +1.00 points at each of 2 seeds; equal differences have no interval."
    ]
    assert details(summaries(ce=WORSE, dskd=OPEN)) == []


@given(
    mean=st.floats(-50, 50),
    half=st.none() | st.floats(0, 50),
    p=st.none() | st.floats(0, 1),
)
def test_nothing_is_claimed_where_the_interval_holds_zero(
    mean: float, half: float | None, p: float | None
) -> None:
    difference = Difference(Interval(mean, half, (mean,)), p, p)
    holds_zero = half is None or mean - half <= 0 <= mean + half
    if holds_zero or p is None or p >= 0.05:
        assert verdict(difference) == "not significant"
    else:
        assert verdict(difference) == ("better" if mean > 0 else "worse")


@given(
    st.dictionaries(
        st.sampled_from(["ce", "kd", "dskd", "at", "sp"]),
        st.lists(st.sampled_from([50.0, 60.0, 60.2, 70.0]), max_size=4),
        min_size=1,
    )
)
def test_there_are_words_for_whatever_is_there(accuracies: dict[str, list[float]]) -> None:
    found = summaries(**accuracies)
    said = [headline(found), *details(found)]
    assert all(sentence.endswith(".") for sentence in said)
    told = [s for s in found if verdict(s.difference) != "not significant"]
    if not told:
        assert not any(
            f"{word} than" in sentence for sentence in said for word in ("better", "worse")
        )
