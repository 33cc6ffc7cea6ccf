"""DSN: the labels reach every stage, and only the student is deployed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dskd.errors import InputError
from dskd.losses.logits import ce
from dskd.methods.contracts import Pair
from dskd.methods.dsn import DSN, dsn_loss
from dskd.models.spec import ModelSpec, StageSpec
from tests.builders import make_pair, staged
from tests.losses.misfits import Arguments
from tests.methods.edge_cases import check_finite_with_gradient, check_full_precision
from tests.methods.inputs import DATA, first_batch

ARGUMENTS = Arguments({"branch_logits": "[B K]", "labels": "B"}, indices={"labels": "K"})
PRESETS = {"literature": {"ce": 1.0, "weight": 1.0}}


def test_the_loss_is_the_sum_over_the_branches() -> None:
    labels, logits = torch.tensor([0, 3, 1]), torch.randn(2, 3, 4).double()
    expected = sum(
        -row.log_softmax(0)[label].item() / len(labels)
        for branch in logits
        for row, label in zip(branch, labels, strict=True)
    )
    assert dsn_loss([*logits], labels).item() == pytest.approx(expected)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("fill", [0.0, 100.0])
def test_values_and_gradients_are_finite(batch: int, fill: float) -> None:
    labels = torch.ones(batch, dtype=torch.long)
    logits = torch.tensor([[fill, -fill]]).repeat(batch, 1)
    check_finite_with_gradient(lambda z: dsn_loss([z], labels), logits)


def test_half_precision_is_computed_in_full() -> None:
    labels = torch.tensor([0, 1, 3])
    check_full_precision(lambda z: dsn_loss([z, z.flip(0)], labels), torch.randn(3, 4))


def made(**settings: Any) -> DSN:
    pair, _ = make_pair(staged("resnet14"), None, DATA)
    return DSN(pair, **settings)


def test_every_classifier_has_a_loss() -> None:
    method, batch = made(ce=0.5, weight=2.0).eval(), first_batch()
    classifiers = method.classifier_logits(batch.images)
    assert list(classifiers) == ["student", "stage1", "stage2"]
    output = method(batch, None)
    torch.testing.assert_close(output.losses["ce"], 0.5 * ce(classifiers["student"], batch.labels))
    shallow = sum(ce(classifiers[name], batch.labels) for name in ("stage1", "stage2"))
    torch.testing.assert_close(output.losses["shallow"], 2.0 * shallow)
    assert not method.needs


def test_the_loss_of_a_branch_reaches_only_the_stages_before_it() -> None:
    method, batch = made(ce=0.0, supervise=[1]), first_batch()
    method(batch).objective.backward()
    student = method.student.module
    for part, learns in (("layer1", True), ("layer2", False), ("layer3", False), ("fc", False)):
        gradients = [p.grad for p in student.get_submodule(part).parameters()]
        assert any(g is not None and g.abs().sum() > 0 for g in gradients) == learns, part


def test_the_deployed_student_has_no_branch() -> None:
    method = made()
    assert set(method.auxiliary_state_dict()) == {
        k for k in method.state_dict() if k.startswith("branches.")
    }
    assert not any("branch" in key for key in method.deployed().state_dict())


def test_a_student_without_shallow_stages_is_refused() -> None:
    spec = ModelSpec(4, (StageSpec(8, 8, 8, True),), 8, ("stem", "body"))
    with pytest.raises(InputError, match=r"the student has 1; .* parts: stem, body"):
        DSN(Pair(staged(), spec))
