"""KD as a method; its loss is tested in tests/losses/test_logits.py."""

from __future__ import annotations

import pytest
import torch

from dskd.losses.logits import ce, kd
from dskd.methods.kd import KD
from tests.builders import make_pair, staged
from tests.losses.misfits import Arguments
from tests.methods.inputs import DATA, batch_of

ARGUMENTS = Arguments(
    {"student_logits": "B K", "teacher_logits": "B K"},
    numbers={"temperature": 0.0},
    choices=("reduction", "standardize"),
)
DEFAULTS = {"temperature": 4.0, "standardize": False, "reduction": "mean"}
PRESETS = {"literature": {"ce": 0.1, "kd": 0.9}}


@pytest.mark.parametrize("standardize", [False, True])
def test_the_losses_are_those_of_labels_and_teacher(standardize: bool) -> None:
    pair, teacher = make_pair(staged(), staged("resnet14"), DATA)
    assert teacher is not None
    method = KD(pair, ce=0.5, kd=2.0, temperature=3.0, standardize=standardize).eval()
    batch = batch_of(DATA.train.images[:8])
    teacher_output = teacher(batch.images)
    output = method(batch, teacher_output)
    logits = method.student(batch.images).logits
    expected = {
        "ce": 0.5 * ce(logits, batch.labels),
        "kd": 2 * kd(logits, teacher_output.logits, 3.0, standardize),
    }
    torch.testing.assert_close(output.losses, expected)
    assert torch.equal(output.logits, logits)
    assert (method.needs.logits, method.needs.stages, method.needs.pooled) == (True, (), False)
