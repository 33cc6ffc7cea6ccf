"""What the results of a run measure: accuracy, or another measure in percent.

Without labels it is agreement with the teacher, whose predictions are the labels then. On graphs
with several labels a node it is micro-F1, and on masks it is Dice. The code calls all of them
accuracy. Files and texts name them as they are. This module is the only place that translates.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

Metric = Literal["accuracy", "agreement", "micro_f1", "dice"]
"""``agreement`` for images without labels (``data.labels=none``), ``micro_f1`` for graphs with
several labels a node, ``dice`` for masks."""
_WORDS: dict[str, str] = {
    "accuracy": "test accuracy",
    "agreement": "agreement with the teacher",
    "micro_f1": "test micro-F1",
    "dice": "test Dice",
}
_PRIVATE = 0xF0000
"""First character of a plane that no text uses."""
_SHORT = {"micro_f1": "micro-F1", "dice": "Dice"}
"""Metrics that take the place of accuracy, word for word."""
_TEXTS = (
    (r"\b(test|val|train)_accuracy", r"\1_agreement"),
    (r"\b(val)_accuracies\b", r"\1_agreements"),
    (r"\bvalidation accuracy\b", "validation agreement with the teacher"),
    (r"_(test|val)_accuracy", r"_\1_agreement"),
    (r"\bTest accuracy\b", "Agreement with the teacher"),
    (r"\btest accuracy\b", "agreement with the teacher"),
    (r"\b([Tt]op-[15]) accuracy on the test split\b", r"\1 agreement with the teacher"),
    (r"\btest top-5 accuracy\b", "top-5 agreement with the teacher"),
    (r"\bits accuracy\b", "its agreement"),
    (r"\baccuracy now\b", "agreement now"),
)


def words(metric: Metric) -> str:
    """How a line names a metric.

    Example:
        >>> words("agreement")
        'agreement with the teacher'
    """
    return _WORDS[metric]


def to_file(values: Mapping[str, Any], metric: Metric) -> dict[str, Any]:
    """The keys of metrics as a file of the run has them.

    Example:
        >>> to_file({"epoch": 1, "test_accuracy": 90.0, "ema_val_accuracy": 91.0}, "agreement")
        {'epoch': 1, 'test_agreement': 90.0, 'ema_val_agreement': 91.0}
    """
    if metric == "accuracy":
        return dict(values)
    return {_renamed(key, "accuracy", metric): value for key, value in values.items()}


def from_file(values: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of metrics as the code has them.

    Example:
        >>> from_file({"agreement": 80.0, "best_test_agreement": 90.0})
        {'agreement': 80.0, 'best_test_accuracy': 90.0}
    """
    return {
        _renamed(key, "(?:agreement|micro_f1|dice)", "accuracy"): value
        for key, value in values.items()
    }


def in_text(text: str, metric: Metric, samples: str = "images", kept: Iterable[str] = ()) -> str:
    """A text about accuracy on test images, as it reads for a metric and other samples.

    Args:
        text: About accuracy.
        metric: What was measured.
        samples: The word for the samples of the task.
        kept: Names and commands of the user within the text, which stay as they are.

    Example:
        >>> in_text("test accuracy, %", "agreement")
        'agreement with the teacher, %'
        >>> in_text("Top-1 accuracy of the 20 test images", "micro_f1", "nodes")
        'Micro-F1 of the 20 test nodes'
        >>> in_text("test accuracy in runs/accuracy", "dice", kept=["runs/accuracy"])
        'test Dice in runs/accuracy'
    """
    changed = [name for name in kept if name in text and in_text(name, metric, samples) != name]
    for number, name in enumerate(sorted(changed, key=len, reverse=True)):
        text = text.replace(name, chr(_PRIVATE + number))
    text = _translated(text, metric, samples)
    for number, name in enumerate(sorted(changed, key=len, reverse=True)):
        text = text.replace(chr(_PRIVATE + number), name)
    return text


def _translated(text: str, metric: Metric, samples: str) -> str:
    if samples != "images":
        text = re.sub(r"\b(test|same) images\b", rf"\1 {samples}", text)
    if metric == "accuracy":
        return text
    if metric in _SHORT:
        text = re.sub(r"\b((?:best_)?(?:test|val))_accuracy", rf"\1_{metric}", text)
        short = _SHORT[metric]
        text = re.sub(r"\bTop-1 accuracy\b", short[0].upper() + short[1:], text)
        return re.sub(r"\b(?:top-1 )?accuracy\b", short, text)
    for pattern, replacement in _TEXTS:
        text = re.sub(pattern, replacement, text)
    return text


def metric_of(recipe: Mapping[str, Any]) -> Metric:
    """What a run measures, from its recipe as plain values."""
    data = recipe.get("data")
    without = isinstance(data, Mapping) and data.get("labels") == "none"
    return "agreement" if without else "accuracy"


def _renamed(key: str, old: str, new: str) -> str:
    return re.sub(rf"((?:^|_|/)(?:test|val))_{old}(?=_top5$|$)", rf"\1_{new}", key)
