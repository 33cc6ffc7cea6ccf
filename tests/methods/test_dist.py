"""DIST as a method; its loss is tested in tests/losses/test_logits.py."""

from __future__ import annotations

import torch

from dskd.losses.logits import ce, dist
from dskd.methods.dist import DIST
from tests.builders import make_pair, staged
from tests.losses.misfits import Arguments
from tests.methods.inputs import DATA, batch_of

ARGUMENTS = Arguments(
    {"student_logits": "B K", "teacher_logits": "B K"},
    numbers={"beta": float("nan"), "gamma": float("nan"), "temperature": 0.0},
    choices=("reduction",),
)
DEFAULTS = {"beta": 1.0, "gamma": 1.0, "temperature": 4.0, "reduction": "mean"}
PRESETS = {"literature": {"ce": 1.0, "kd": 1.0, "beta": 2.0, "gamma": 2.0}}


def test_the_losses_are_those_of_labels_and_relations() -> None:
    pair, teacher = make_pair(staged(), staged("resnet14"), DATA)
    assert teacher is not None
    method = DIST(pair, ce=0.5, kd=2.0, beta=0.7, gamma=3.0, temperature=2.0).eval()
    batch = batch_of(DATA.train.images[:8])
    taught = teacher(batch.images)
    logits = method.student(batch.images).logits
    expected = {
        "ce": 0.5 * ce(logits, batch.labels),
        "dist": 2 * dist(logits, taught.logits, 0.7, 3.0, 2.0),
    }
    torch.testing.assert_close(method(batch, taught).losses, expected)
