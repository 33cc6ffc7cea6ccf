"""The warning about a branch that has not learned although it had a large weight."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dskd.engine.branch_warning import branch_warnings
from dskd.engine.evaluate import EvaluationResult, percent

LABELS = torch.arange(200) % 10
GUESS = torch.zeros_like(LABELS)
WEIGHTS = {"stage1/weight": 1.8, "stage2/weight": 0.2, "stage1/prediction": 9.0}


def lines(first: Tensor, row: dict[str, Any] = WEIGHTS, **settings: Any) -> list[str]:
    branches = {
        name: EvaluationResult(percent(predictions == LABELS), None, predictions, True)
        for name, predictions in (("stage1", first), ("stage2", LABELS))
    }
    return [*branch_warnings(branches, row, LABELS, 10, settings or {"alpha": 1.0})]


def test_a_branch_at_chance_with_a_large_weight_is_named() -> None:
    (line,) = lines(GUESS)
    assert line.startswith("the branch on stage 1 predicts no better than a guess (10.00 % of the")
    assert line.endswith(
        "it has the weight 1.80 of 2.00, because its loss is large; raise train.epochs, or set "
        "method.allocation=uniform"
    )
    (line,) = lines(GUESS, alpha=1.0, feature_target="matched")
    assert (
        "; set method.feature_target=last, with which it learns in fewer epochs, or raise" in line
    )


@pytest.mark.parametrize(
    ("first", "row", "settings"),
    [
        (torch.where(torch.arange(200) < 60, LABELS, GUESS), WEIGHTS, {}),  # it has learned a bit
        (GUESS, {"stage1/weight": 1.4, "stage2/weight": 0.6}, {}),
        (GUESS, {"stage1/weight": 2.0}, {}),  # dskd weighs one stage alone
        (GUESS, {}, {}),  # byot and dsn do not weigh by losses
        (GUESS, WEIGHTS, {"alpha": 0.0, "gamma": 0.0, "beta": 10.0}),  # nothing trains it
    ],
)
def test_other_branches_are_not(
    first: Tensor, row: dict[str, Any], settings: dict[str, float]
) -> None:
    assert not lines(first, row, **settings)
