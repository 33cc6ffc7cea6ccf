"""Two classes: losses without a gradient are refused, and terms without one are told."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dskd import methods
from dskd.errors import InputError
from dskd.losses.logits import dist, dkd, kd
from dskd.methods.base import Method
from dskd.methods.nkd import nkd_loss
from dskd.methods.norm import normalized_logits
from tests.builders import make_dataset, make_pair, staged


def made(name: str, classes: int = 2, **settings: Any) -> Method:
    data = make_dataset(classes=classes, per_class=12)
    pair, _ = make_pair(staged(classes=classes), staged("resnet14", classes), data)
    return methods.find(name)(pair, **settings)


def test_standardised_logits_of_two_classes_have_no_gradient() -> None:
    """The reason why they are refused."""
    logits = torch.tensor([[1.0, 2.0], [3.0, -1.0]], dtype=torch.float64, requires_grad=True)
    for value in (
        kd(logits, torch.tensor([[0.5, 1.0], [-1.0, 2.0]]), standardize=True),
        normalized_logits(logits, 2.5)[:, 0].sum(),
    ):
        (gradient,) = torch.autograd.grad(value, logits)
        assert gradient.abs().max() < 1e-6


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("kd", {"standardize": True}),
        ("lskd", {}),
        ("lskd", {"base": "dkd"}),
        ("norm", {"logit_scale": 2.5}),
        ("dskd", {"prediction_loss": "kd-standardized"}),
        ("dskd", {"deep_loss": "kd-standardized"}),
    ],
)
def test_standardised_logits_need_three_classes(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="which teaches nothing with 2 classes: only their sign"):
        made(name, **settings)
    assert made(name, classes=3, **settings)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("kd", {"standardize": True, "kd": 0.0}),
        ("lskd", {"base": "mlkd"}),
        ("norm", {}),
        ("dskd", {"prediction_loss": "kd-standardized", "alpha": 0.0}),
        ("dskd", {"deep_loss": "kd-standardized", "kd": 0.0}),
    ],
)
def test_two_classes_are_enough_for_all_else(name: str, settings: dict[str, Any]) -> None:
    assert not made(name, **settings).warnings


@pytest.mark.parametrize(
    ("name", "weight"), [("dist", "beta"), ("dkd", "beta"), ("nkd", "gamma"), ("wkd", "gamma")]
)
def test_a_term_without_a_gradient_is_told(name: str, weight: str) -> None:
    (line,) = made(name).warnings
    assert line.startswith(f"{name}: method.{weight} has no effect with 2 classes, as it ")
    without: dict[str, Any] = {weight: 0.0}
    assert not made(name, **without).warnings
    assert not made(name, classes=3).warnings


def test_these_terms_have_no_gradient() -> None:
    """The reason why they are told."""
    logits = torch.tensor([[1.0, 2.0], [3.0, -1.0]], dtype=torch.float64, requires_grad=True)
    teacher, labels = torch.tensor([[0.5, 1.0], [-1.0, 2.0]]), torch.tensor([0, 1])
    for value in (
        dist(logits, teacher, 1.0, 0.0),
        dkd(logits, teacher, labels, 0.0, 1.0),
        nkd_loss(logits, teacher, labels, 1.0) - nkd_loss(logits, teacher, labels, 0.0),
    ):
        (gradient,) = torch.autograd.grad(value, logits)
        assert gradient.abs().max() < 1e-4
