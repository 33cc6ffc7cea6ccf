"""What was found, in words: told from the numbers, and never more than they bear."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from dskd.compare.statistics import CONFIDENCE, Difference
from dskd.compare.summary import BASELINE, STUDENT, Summary
from dskd.compare.table import interval_text

_LEVEL = 1 - CONFIDENCE
_NAMED = 3
Verdict = Literal["better", "worse", "open"]


def verdict(difference: Difference | None) -> Verdict:
    """What a difference to the baseline allows to say.

    A method is better or worse only where the interval leaves out zero and the p-value, adjusted
    for the number of methods, is below 0.05; a single seed never tells.

    Example:
        >>> from dskd.compare.statistics import paired
        >>> verdict(paired([2.0], [1.0]))
        'open'
    """
    if difference is None or difference.interval.half is None or difference.p_holm is None:
        return "open"
    mean, half = difference.interval.mean, difference.interval.half
    if abs(mean) <= half or difference.p_holm >= _LEVEL:
        return "open"
    return "better" if mean > 0 else "worse"


def headline(summaries: Sequence[Summary]) -> str:
    """One sentence for the top of the page."""
    finished = [s for s in summaries if s.last is not None]
    if not finished:
        return "No run is finished yet."
    compared = [s for s in finished if s.difference is not None]
    baselines = [s for s in compared if s.label != STUDENT] or compared
    if not baselines:
        return _without_baseline(finished)
    if all(s.difference is None or s.difference.interval.half is None for s in baselines):
        return f"At a single seed no method can be told apart from {BASELINE}."
    return _of_one(baselines[0]) if len(baselines) == 1 else _of_many(baselines)


def _of_one(baseline: Summary) -> str:
    word = verdict(baseline.difference)
    if word == "open":
        return f"{baseline.label} and {BASELINE} cannot be told apart."
    return f"{baseline.label} is {word} than {BASELINE}."


def _of_many(baselines: Sequence[Summary]) -> str:
    by_size = sorted(baselines, key=_size, reverse=True)
    told = {
        word: [s for s in by_size if verdict(s.difference) == word] for word in ("better", "worse")
    }
    left = len(baselines) - sum(map(len, told.values()))
    if left == len(baselines):
        return f"None of {left} methods can be told apart from {BASELINE}."
    said = []
    for word, found in told.items():
        if len(found) == len(baselines):
            return f"All {len(baselines)} methods are {word} than {BASELINE}."
        if found:
            said.append(f"{_are(found)} {word} than {BASELINE} ({_names(found)})")
    if left:
        said.append(f"the other {left if left > 1 else 'one'} cannot be told apart from it")
    return f"Of {len(baselines)} methods {', '.join(said)}."


def _size(summary: Summary) -> float:
    """Of the difference to the baseline, whatever its sign."""
    return abs(summary.difference.interval.mean) if summary.difference else 0.0


def details(summaries: Sequence[Summary]) -> list[str]:
    """A sentence each on what the reader will ask first: distillation at all, and dskd."""
    by_label = {s.label: s for s in summaries if s.last is not None}
    sentences = []
    if BASELINE in by_label and STUDENT in by_label:
        sentences.append(_sentence(by_label[STUDENT], f"{STUDENT} (labels alone)"))
    if BASELINE in by_label and "dskd" in by_label:
        sentences.append(_sentence(by_label["dskd"], "dskd"))
    return [sentence for sentence in sentences if sentence]


def _sentence(summary: Summary, name: str) -> str:
    difference = summary.difference
    if difference is None:
        return ""
    gain = f"{name} minus {BASELINE}: {interval_text(difference.interval, sign='+')} points"
    if difference.interval.half is None:
        return f"{gain} at one seed, which says little of the methods."
    word = verdict(difference)
    told = "they cannot be told apart" if word == "open" else f"{summary.label} is {word}"
    return f"{gain} over {len(difference.interval.values)} seeds; {told}."


def _without_baseline(finished: Sequence[Summary]) -> str:
    if len(finished) == 1:
        (only,) = finished
        seeds = f"over {len(only.seeds)} seeds" if len(only.seeds) > 1 else "at one seed"
        return f"{only.label} reaches {interval_text(only.last)} % {seeds}."
    best = max(finished, key=lambda s: s.last.mean if s.last else 0.0)
    return (
        f"The highest mean of {len(finished)} methods is that of {best.label}; without a finished "
        f"run of {BASELINE} no difference is tested."
    )


def _are(summaries: Sequence[Summary]) -> str:
    return f"{len(summaries)} {'is' if len(summaries) == 1 else 'are'}"


def _names(summaries: Sequence[Summary]) -> str:
    """The labels; of many the first few."""
    labels = [s.label for s in summaries]
    return ", ".join(labels if len(labels) <= _NAMED else [*labels[:_NAMED], "..."])
