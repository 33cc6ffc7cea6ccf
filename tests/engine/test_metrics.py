"""Means of an epoch, compared with numbers made by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dskd.data.loader import Batch
from dskd.engine.metrics import EpochMetrics
from dskd.methods.contracts import StepOutput


def step(labels: list[int], predicted: list[int], ce: float, kd: float) -> tuple[Batch, StepOutput]:
    count = len(labels)
    logits = torch.nn.functional.one_hot(torch.tensor(predicted), 3).float()
    rows: Tensor = torch.arange(count)
    batch = Batch(torch.zeros(count, 1, 2, 2), torch.tensor(labels), rows, rows, rows, 0, 0)
    losses = {"ce": torch.tensor(ce, requires_grad=True), "kd": torch.tensor(kd)}
    return batch, StepOutput(losses, logits, {"stage1/weight": torch.tensor(ce / 2)})


def two_steps() -> EpochMetrics:
    metrics = EpochMetrics()
    metrics.add(*step([0, 1, 2, 2], [0, 1, 2, 0], ce=2.0, kd=1.0))  # 3 of 4
    metrics.add(*step([1], [0], ce=7.0, kd=0.0))  # 0 of 1
    return metrics


def test_train_accuracy_and_losses_are_means_over_samples_not_over_steps() -> None:
    means = two_steps().means()
    assert means == {
        "train_loss": pytest.approx((4 * 3 + 7) / 5),
        "train_accuracy": pytest.approx(60.0),  # 3 of 5, in percent
        "loss/ce": pytest.approx((4 * 2 + 7) / 5),
        "loss/kd": pytest.approx(4 / 5),
        "stage1/weight": pytest.approx((4 * 1 + 3.5) / 5),
    }


def test_one_mean_is_that_of_all() -> None:
    metrics = two_steps()
    for name, value in metrics.means().items():
        assert metrics.mean(name) == pytest.approx(value)


def test_no_step_has_no_means() -> None:
    assert EpochMetrics().means() == {}


def test_a_saved_state_goes_on() -> None:
    saved = two_steps().state()
    restored = EpochMetrics()
    restored.restore(saved, torch.device("cpu"))
    restored.add(*step([2, 2], [2, 2], ce=1.0, kd=1.0))
    assert restored.means()["train_accuracy"] == pytest.approx(100 * 5 / 7)
    assert restored.num_samples == 7


def test_sums_keep_no_graph() -> None:
    metrics = two_steps()
    assert metrics.sums is not None
    assert not metrics.sums.requires_grad
    assert metrics.sums.dtype == torch.float64
