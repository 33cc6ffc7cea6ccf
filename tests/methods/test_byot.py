"""BYOT as a method: the student's end teaches its branches and is not taught by them."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from dskd.data.epoch_plan import draw_plan
from dskd.data.loader import Batch, MemoryLoader
from dskd.losses.branched import byot, byot_terms
from dskd.methods.byot import BYOT
from dskd.methods.dsn import DSN
from dskd.settings import signature_settings
from tests.conftest import make_dataset, make_pair, staged

DATA = make_dataset()


def batch_of(size: int = 8) -> Batch:
    plan = draw_plan(0, 0, len(DATA.train), 2, True)
    return next(MemoryLoader(DATA.train, torch.device("cpu")).batches(plan, size))


def made(name: str = "resnet14", **settings: Any) -> BYOT:
    pair, _ = make_pair(staged(name), None, DATA)
    return BYOT(pair, **settings)


def test_without_its_own_terms_it_is_dsn() -> None:
    pair, _ = make_pair(staged(), None, DATA)
    torch.manual_seed(1)
    ours = BYOT(pair, ce=0.5, weight=2.0, kd=0.0, features=0.0)
    torch.manual_seed(1)
    theirs = DSN(pair, ce=0.5, weight=2.0)
    batch = batch_of()
    torch.testing.assert_close(ours(batch, None).objective, theirs(batch, None).objective)


@pytest.mark.parametrize("own", ["kd", "features"])
def test_the_end_is_not_taught_by_the_branches(own: str) -> None:
    settings: dict[str, Any] = {"ce": 0.0, "weight": 0.0, "kd": 0.0, "features": 0.0, own: 1.0}
    method, batch = made(**settings), batch_of()
    method(batch, None).objective.backward()
    student = method.student.module
    for part, learns in (("layer1", True), ("layer2", True), ("layer3", False), ("fc", False)):
        gradients = [p.grad for p in student.get_submodule(part).parameters()]
        assert any(g is not None and g.abs().sum() > 0 for g in gradients) == learns, part


@pytest.mark.parametrize("name", ["vgg8", "wrn_16_1", "MobileNetV2"])
def test_the_losses_are_those_of_the_heads(name: str) -> None:
    method, batch = made(name, temperature=2.0, features=0.5).eval(), batch_of()
    with torch.no_grad():
        heads = method.classifier_logits(batch.images)
        student = method.student(batch.images)
        branches = method.branch_outputs(student.stages)
        expected = byot_terms(
            heads.pop("student"),
            batch.labels,
            list(heads.values()),
            [branch.map for branch in branches],
            student.stages[-1],
            features=0.5,
            temperature=2.0,
        )
        torch.testing.assert_close(method(batch, None).losses, expected)


def test_the_pure_function_and_the_method_have_the_same_defaults() -> None:
    method = signature_settings(BYOT.__init__).model_fields
    parameters = inspect.signature(byot).parameters.values()
    pure = {p.name: p.default for p in parameters if p.default is not p.empty}
    assert {name: method[name].default for name in pure} == pure
