"""Say at the end of a run that a branch has not learned although it had a large weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from dskd.engine.evaluate import EvaluationResult
from dskd.engine.teacher_accuracy import surely_near_chance

LARGE = 1.5
"""A weight is large from so many times the mean weight of the stages on."""
_TRAINING = ("alpha", "gamma")
"""The weights of the losses that train the classifiers of branches."""


def branch_warnings(
    branches: Mapping[str, EvaluationResult],
    row: Mapping[str, Any],
    labels: Tensor,
    classes: int,
    settings: Mapping[str, Any],
) -> Iterator[str]:
    """A line for each branch that is no better than a guess and has a large weight.

    Nothing is computed but this: an epoch evaluates the branches with the student.

    Args:
        branches: Each branch on the test images after the last epoch, as in ``stage1``.
        row: The metrics of the last epoch.
        labels: int64 ``[N]``, of the test images.
        classes: Number of classes.
        settings: Of the method. Without ``alpha`` and ``gamma``, nothing trains the classifiers.
    """
    weights = {name: row[f"{name}/weight"] for name in branches if f"{name}/weight" in row}
    if len(weights) < 2 or not any(settings.get(key) for key in _TRAINING):
        return
    total = sum(weights.values())
    for name, weight in weights.items():
        predictions = branches[name].predictions
        large = weight * len(weights) >= LARGE * total
        if large and surely_near_chance(predictions, labels, classes):
            yield (
                f"the branch on stage {name.removeprefix('stage')} predicts no better than a guess "
                f"({branches[name].accuracy:.2f} % of the test images), and it has the weight "
                f"{weight:.2f} of {total:.2f}, because its loss is large; {_fix(settings)}"
            )


def _fix(settings: Mapping[str, Any]) -> str:
    last = "set method.feature_target=last, with which it learns in fewer epochs, or "
    matched = settings.get("feature_target") == "matched"
    return f"{last if matched else ''}raise train.epochs, or set method.allocation=uniform"
