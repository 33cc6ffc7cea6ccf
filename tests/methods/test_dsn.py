"""DSN as a method: the labels reach every stage, and only the student is deployed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dskd.data.epoch_plan import draw_plan
from dskd.data.loader import Batch, MemoryLoader
from dskd.errors import InputError
from dskd.losses.logits import ce
from dskd.methods.base import Pair, shallow_stages
from dskd.methods.dsn import DSN
from dskd.models.spec import ModelSpec, StageSpec
from tests.conftest import make_dataset, make_pair, staged

DATA = make_dataset()


def batch_of(size: int = 8) -> Batch:
    plan = draw_plan(0, 0, len(DATA.train), 2, True)
    return next(MemoryLoader(DATA.train, torch.device("cpu")).batches(plan, size))


def made(**settings: Any) -> DSN:
    pair, _ = make_pair(staged("resnet14"), None, DATA)
    return DSN(pair, **settings)


def spec(depth: int) -> ModelSpec:
    return ModelSpec(4, (StageSpec(8, 8, 8, True),) * depth, 8, ("stem", "body"))


def test_the_losses_are_those_of_every_head() -> None:
    method, batch = made(ce=0.5, weight=2.0).eval(), batch_of()
    heads = method.classifier_logits(batch.images)
    assert list(heads) == ["student", "stage1", "stage2"]
    output = method(batch, None)
    torch.testing.assert_close(output.losses["ce"], 0.5 * ce(heads["student"], batch.labels))
    shallow = sum(ce(heads[name], batch.labels) for name in ("stage1", "stage2"))
    torch.testing.assert_close(output.losses["shallow"], 2.0 * shallow)
    assert not method.needs


def test_the_branches_teach_the_shallow_stages_alone() -> None:
    method, batch = made(ce=0.0, supervise=[1]), batch_of()
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


def test_stages_are_named_from_one() -> None:
    assert shallow_stages(spec(4), None) == [0, 1, 2]
    assert shallow_stages(spec(4), [3, 1]) == [0, 2]
    for wrong in ([], [4], [1, 1]):
        with pytest.raises(InputError, match="shallow stages from 1 to 3, each once"):
            shallow_stages(spec(4), wrong)
    with pytest.raises(InputError, match=r"the student has 1; .* parts: stem, body"):
        DSN(Pair(staged(), spec(1)))
