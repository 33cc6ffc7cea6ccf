"""Training by labels alone."""

from __future__ import annotations

import torch

from dskd.losses.logits import ce
from dskd.methods.ce import CE
from tests.builders import make_pair, staged
from tests.losses.misfits import Arguments
from tests.methods.inputs import DATA, batch_of

ARGUMENTS = Arguments(
    {"student_logits": "B K", "labels": "B"}, indices={"labels": "K"}, choices=("reduction",)
)
DEFAULTS = {"reduction": "mean"}


def test_the_only_loss_is_that_of_the_labels() -> None:
    pair, _ = make_pair(staged(), None, DATA)
    method = CE(pair, ce=0.5).eval()
    batch = batch_of(DATA.train.images[:8])
    output = method(batch)
    assert output.losses.keys() == {"ce"}
    torch.testing.assert_close(output.losses["ce"], 0.5 * ce(output.logits, batch.labels))
    assert torch.equal(output.logits, method.student(batch.images).logits)


def test_a_teacher_is_not_read() -> None:
    pair, teacher = make_pair(staged(), staged("resnet14"), DATA)
    assert teacher is not None
    method = CE(pair).eval()
    batch = batch_of(DATA.train.images[:8])
    assert not method.needs
    assert torch.equal(
        method(batch, teacher(batch.images)).objective, method(batch, None).objective
    )
