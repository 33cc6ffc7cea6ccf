"""The conclusions of a report in sentences. They state no more than the tests support."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from dskd.compare.columns import interval_text
from dskd.compare.notes import why_no_differences
from dskd.compare.statistics import Difference
from dskd.compare.summary import BASELINE, STUDENT, Summary

_LEVEL = 0.05
_MOST_NAMED = 3
Verdict = Literal["better", "worse", "not significant"]


def verdict(difference: Difference | None) -> Verdict:
    """The conclusion from a difference to the baseline.

    A method is better or worse only if the interval excludes zero and the p-value, adjusted for
    the number of methods, is below 0.05. Without an interval, as with a single seed, no difference
    is significant.

    Args:
        difference: The difference; None without a baseline.

    Example:
        >>> from dskd.compare.statistics import paired
        >>> verdict(paired([2.0], [1.0]))
        'not significant'
    """
    if difference is None or difference.interval.half is None or difference.p_holm is None:
        return "not significant"
    mean, half = difference.interval.mean, difference.interval.half
    if abs(mean) <= half or difference.p_holm >= _LEVEL:
        return "not significant"
    return "better" if mean > 0 else "worse"


def headline(summaries: Sequence[Summary], baseline: str = BASELINE) -> str:
    """The main conclusion in one sentence, for the top of the page.

    Args:
        summaries: The methods, best first.
        baseline: Label of the method that the others are compared with.
    """
    finished = [s for s in summaries if s.test_accuracy is not None]
    if not finished:
        return "No run is finished yet."
    compared = [s for s in finished if s.difference is not None]
    distilled = [s for s in compared if s.label != STUDENT] or compared
    if not distilled:
        return _without_differences(finished, summaries, baseline)
    untested = [s.difference.interval for s in distilled if s.difference]
    if all(one.half is None for one in untested):
        if all(len(one.values) == 1 for one in untested):
            return f"With a single seed, no difference to {baseline} can be tested."
        return (
            f"No difference to {baseline} can be tested: each is equal at all seeds, or known at "
            "one seed only."
        )
    if len(distilled) == 1:
        return _of_one(distilled[0], baseline)
    return _of_many(distilled, baseline)


def _of_one(method: Summary, baseline: str) -> str:
    word = verdict(method.difference)
    if word == "not significant":
        return f"{method.label} does not differ significantly from {baseline}."
    return f"{method.label} is significantly {word} than {baseline}."


def _of_many(distilled: Sequence[Summary], baseline: str) -> str:
    by_size = sorted(distilled, key=_size, reverse=True)
    significant = {
        word: [s for s in by_size if verdict(s.difference) == word] for word in ("better", "worse")
    }
    others = len(distilled) - sum(map(len, significant.values()))
    if others == len(distilled):
        return f"None of {others} methods differs significantly from {baseline}."
    parts = []
    for word, found in significant.items():
        if len(found) == len(distilled):
            return f"All {len(distilled)} methods are significantly {word} than {baseline}."
        if found:
            parts.append(f"{_are(found)} significantly {word} than {baseline} ({_names(found)})")
    if others:
        parts.append(
            f"the other {others} do not differ significantly from it"
            if others > 1
            else "the other one does not differ significantly from it"
        )
    return f"Of {len(distilled)} methods, {', '.join(parts)}."


def _size(summary: Summary) -> float:
    """The absolute difference to the baseline."""
    return abs(summary.difference.interval.mean) if summary.difference else 0.0


def details(summaries: Sequence[Summary], baseline: str = BASELINE) -> list[str]:
    """A sentence each on the gain of distillation and on that of dskd.

    Args:
        summaries: The methods.
        baseline: Label of the method that the others are compared with.
    """
    by_label = {s.label: s for s in summaries if s.test_accuracy is not None}
    sentences = []
    if baseline in by_label and STUDENT in by_label:
        sentences.append(_sentence(by_label[STUDENT], f"{STUDENT} (labels only)", baseline))
    if baseline in by_label and "dskd" in by_label:
        sentences.append(_sentence(by_label["dskd"], "dskd", baseline))
    return [sentence for sentence in sentences if sentence]


def _sentence(summary: Summary, name: str, baseline: str) -> str:
    difference = summary.difference
    if difference is None:
        return ""
    gain = f"{name} minus {baseline}: {interval_text(difference.interval, sign='+')} points"
    seeds = len(difference.interval.values)
    if seeds == 1:
        return f"{gain} at one seed, too few for a test."
    if difference.interval.half is None:
        return f"{gain} at each of {seeds} seeds; equal differences have no interval."
    word = verdict(difference)
    significantly = "" if word == "not significant" else "significantly "
    return f"{gain} over {seeds} seeds ({significantly}{word})."


def _without_differences(
    finished: Sequence[Summary], summaries: Sequence[Summary], baseline: str
) -> str:
    if len(finished) == 1:
        (only,) = finished
        seeds = f"over {len(only.seeds)} seeds" if len(only.seeds) > 1 else "at one seed"
        return f"{only.label} reaches {interval_text(only.test_accuracy)} % test accuracy {seeds}."
    best = max(finished, key=lambda s: s.test_accuracy.mean if s.test_accuracy else 0.0)
    return (
        f"{best.label} has the highest mean of {len(finished)} methods; no difference is tested, "
        f"since {why_no_differences(summaries, baseline)}."
    )


def _are(summaries: Sequence[Summary]) -> str:
    return f"{len(summaries)} {'is' if len(summaries) == 1 else 'are'}"


def _names(summaries: Sequence[Summary]) -> str:
    """The labels, or the first few of many."""
    labels = [s.label for s in summaries]
    return ", ".join(labels if len(labels) <= _MOST_NAMED else [*labels[:_MOST_NAMED], "..."])
