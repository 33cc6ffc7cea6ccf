"""The table of a comparison, in words and numbers for a person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dskd.compare.reader import Comparison
from dskd.compare.statistics import Difference, Interval
from dskd.compare.summary import Summary

COLUMNS = [
    "method",
    "weights",
    "seeds",
    "last epoch, %",
    "best epoch, %",
    "against kd",
    "p (Holm)",
    "ARI, %",
    "parameters",
    "extra",
    "seconds",
    "memory, MB",
]


def summary_table(summaries: Sequence[Summary]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows; a method without a result yet has dashes."""
    return COLUMNS, [_row(summary) for summary in summaries]


def _row(s: Summary) -> list[str]:
    return [
        s.label,
        weights_text(s.weights),
        str(len(s.seeds)) + (f" ({len(s.failed)} failed)" if s.failed else ""),
        interval_text(s.last),
        interval_text(s.best),
        interval_text(s.difference.interval, sign="+") if s.difference else "-",
        p_text(s.difference),
        "-" if s.improvement is None else f"{s.improvement:+.0f}",
        "-" if s.parameters is None else f"{s.parameters:,}",
        "-" if s.extra_parameters is None else f"{s.extra_parameters:,}",
        "-" if s.seconds is None else f"{s.seconds:,.1f}",
        "-" if s.memory is None else f"{s.memory / 1e6:,.1f}",
    ]


def weights_text(weights: Mapping[str, float]) -> str:
    """Weights in a line: ``ce=1 kd=1``.

    Example:
        >>> weights_text({"ce": 1.0, "weight": 1000.0})
        'ce=1 weight=1000'
    """
    return " ".join(f"{name}={value:g}" for name, value in weights.items())


def interval_text(value: Interval | None, sign: str = "") -> str:
    """Mean and half-width: ``95.30 ± 0.41``; the mean alone for a single seed.

    Args:
        value: The interval.
        sign: ``+`` to show the sign of a mean above zero too.
    """
    if value is None:
        return "-"
    mean = f"{value.mean:{sign}.2f}"
    return mean if value.half is None else f"{mean} ± {value.half:.2f}"


def p_text(difference: Difference | None) -> str:
    """The adjusted p-value: ``0.031``, ``<0.001``, or a dash where there is none."""
    if difference is None or difference.p_holm is None:
        return "-"
    return "<0.001" if difference.p_holm < 0.001 else f"{difference.p_holm:.3f}"


def notes(comparison: Comparison, summaries: Sequence[Summary]) -> list[str]:
    """What a reader of the table must know."""
    lines = [
        "± is the 95 % interval over seeds: the noise of training (Student's t), not of the "
        "images.",
        "p: paired t-test against kd at the same seeds, adjusted for all methods (Holm). ARI: gain "
        "over kd relative to kd's gain over ce.",
        "seconds: of training a seed, the teacher's time aside. extra: parameters trained beside "
        "the student and not deployed. memory: of a training step, the teacher's aside.",
    ]
    errors = [s.sampling_error for s in summaries if s.sampling_error is not None]
    if errors:
        lines.insert(
            1,
            f"Beside it, the {comparison.test_images:,} test images are a sample: ± "
            f"{min(errors):.1f} to {max(errors):.1f} points (95 %, Wilson), the same images for "
            "all.",
        )
    plain = min((s.parameters for s in summaries if s.parameters), default=None)
    lines += [
        f"{s.label} deploys a larger student: {s.parameters:,} parameters, {plain:,} without."
        for s in summaries
        if s.parameters and plain and s.parameters > plain
    ]
    lines += [
        f"{s.label}, seed {seed}: failed; {reason}"
        for s in summaries
        for seed, reason in s.failed.items()
    ]
    return [
        *lines,
        f"runs kept in {comparison.path}; draw them with `dskd report {comparison.path}`",
    ]
