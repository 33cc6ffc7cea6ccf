"""DKD as a method; its loss is tested in tests/losses/test_logits.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dskd.losses.logits import ce, dkd
from dskd.methods.contracts import StepOutput
from dskd.methods.dkd import DKD
from tests.builders import make_pair, staged
from tests.losses.misfits import Arguments
from tests.methods.inputs import DATA, batch_of

ARGUMENTS = Arguments(
    {"student_logits": "B K", "teacher_logits": "B K", "labels": "B"},
    indices={"labels": "K"},
    numbers={"alpha": float("nan"), "beta": float("nan"), "temperature": 0.0},
    choices=("reduction",),
)
DEFAULTS = {"alpha": 1.0, "beta": 8.0, "temperature": 4.0, "reduction": "mean"}
PRESETS = {"literature": {"ce": 1.0, "kd": 1.0, "alpha": 1.0, "beta": 8.0, "warmup": 20.0}}

IMAGES = DATA.train.images[:8]


def losses(epoch: int = 0, **settings: Any) -> tuple[StepOutput, DKD, torch.Tensor]:
    torch.manual_seed(0)
    pair, teacher = make_pair(staged(), staged("resnet14"), DATA)
    assert teacher is not None
    method = DKD(pair, **settings).eval()
    teacher_output = teacher(IMAGES)
    return method(batch_of(IMAGES, epoch), teacher_output), method, teacher_output.logits


def test_the_losses_are_those_of_labels_and_teacher() -> None:
    output, method, taught = losses(ce=0.5, kd=2.0, alpha=0.7, beta=3.0, temperature=2.0)
    logits, labels = method.student(IMAGES).logits, batch_of(IMAGES).labels
    expected = {
        "ce": 0.5 * ce(logits, labels),
        "dkd": 2 * dkd(logits, taught, labels, 0.7, 3.0, 2.0),
    }
    torch.testing.assert_close(output.losses, expected)


def test_the_weight_rises_over_the_warmup() -> None:
    def value(epoch: int, warmup: float) -> float:
        return losses(epoch, warmup=warmup)[0].losses["dkd"].item()

    whole = value(0, 0.0)
    assert [value(epoch, 4.0) for epoch in (0, 2, 3, 9)] == pytest.approx(
        [whole / 4, 3 * whole / 4, whole, whole]
    )


def test_a_method_with_a_warmup_is_not_compiled() -> None:
    assert not losses()[1].uncompiled
    assert "method.warmup changes a weight" in losses(warmup=2.0)[1].uncompiled
