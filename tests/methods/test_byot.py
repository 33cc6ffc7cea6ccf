"""BYOT: the student's deepest classifier teaches its branches and is not taught by them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dskd.errors import InputError
from dskd.methods.byot import BYOT, byot_loss, byot_terms
from dskd.methods.dsn import DSN
from dskd.settings import signature_settings
from tests.builders import make_pair, staged
from tests.losses.misfits import Arguments
from tests.methods.edge_cases import check_finite_with_gradient, check_full_precision
from tests.methods.inputs import DATA, first_batch

ARGUMENTS = Arguments(
    {
        "student_logits": "B K",
        "labels": "B",
        "branch_logits": "[B K]",
        "branch_maps": "[B C I* J*]",
        "student_map": "B C H W",
    },
    indices={"labels": "K"},
    numbers={"ce": -1.0, "weight": -1.0, "kd": -1.0, "features": -1.0, "temperature": 0.0},
)
DEFAULTS = {"ce": 1.0, "weight": 1.0, "kd": 1.0, "features": 0.03, "temperature": 3.0}
PRESETS = {
    "literature": {
        "ce": 1.0,
        "weight": 0.7,
        "kd": 0.3 / 3**2,
        "features": 0.03,
        "temperature": 3.0,
    }
}


def softmax(row: list[float], t: float = 1.0) -> list[float]:
    return [math.exp(v / t) / sum(math.exp(w / t) for w in row) for v in row]


def naive_ce(logits: Tensor, labels: Tensor) -> float:
    rows = zip(logits.tolist(), labels.tolist(), strict=True)
    return sum(-math.log(softmax(row)[label]) for row, label in rows) / len(labels)


def naive_kl(branch: Tensor, deepest: Tensor, t: float) -> float:
    total = 0.0
    for ours, theirs in zip(branch.tolist(), deepest.tolist(), strict=True):
        p, q = softmax(theirs, t), softmax(ours, t)
        total += t**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return total / len(branch)


def naive_square(a: Tensor, b: Tensor) -> float:
    pairs = zip(a.flatten().tolist(), b.flatten().tolist(), strict=True)
    return math.fsum((x - y) ** 2 for x, y in pairs) / a.numel()


def made(batch: int = 3, classes: int = 4) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    """Labels, the deepest logits, the branches' logits and maps."""
    labels = torch.randint(classes, (batch,))
    logits = [torch.randn(batch, classes).double() for _ in range(2)]
    maps = [torch.rand(batch, 2, 3, 3).double() for _ in range(2)]
    return labels, torch.randn(batch, classes).double(), logits, maps


WEIGHTS = {"ce": 0.5, "weight": 0.7, "kd": 0.3, "features": 0.2, "temperature": 2.0}


def test_the_loss_is_the_naive_sum() -> None:
    labels, deepest, logits, maps = made()
    last = torch.rand(3, 2, 3, 3).double()
    terms = byot_terms(deepest, labels, logits, maps, last, **WEIGHTS)
    expected = {
        "ce": 0.5 * naive_ce(deepest, labels),
        "shallow": 0.7 * sum(naive_ce(z, labels) for z in logits),
        "kd": 0.3 * sum(naive_kl(z, deepest, 2.0) for z in logits),
        "features": 0.2 * sum(naive_square(m, last) for m in maps),
    }
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected)
    value = byot_loss(deepest, labels, logits, maps, last, **WEIGHTS)
    assert value.item() == pytest.approx(sum(expected.values()))


def test_the_deepest_classifier_learns_from_labels_alone() -> None:
    labels, deepest, logits, maps = made()
    deepest.requires_grad_()
    last = torch.rand(3, 2, 3, 3).double().requires_grad_()
    terms = byot_terms(deepest, labels, logits, maps, last)
    assert not terms["kd"].requires_grad
    assert not terms["features"].requires_grad
    assert terms["ce"].requires_grad


def test_a_larger_last_map_is_pooled_to_the_size_of_the_branch() -> None:
    labels, deepest, logits, maps = made()
    large = maps[0].repeat_interleave(2, 2).repeat_interleave(2, 3)
    terms = byot_terms(deepest, labels, logits[:1], maps[:1], large)
    assert terms["features"].item() == pytest.approx(0, abs=1e-12)


def test_maps_of_other_channels_are_refused() -> None:
    labels, deepest, logits, maps = made()
    with pytest.raises(InputError, match="feature maps differ in shape"):
        byot_loss(deepest, labels, logits, maps, torch.zeros(3, 5, 3, 3))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("fill", [0.0, 100.0])
def test_values_and_gradients_are_finite(batch: int, fill: float) -> None:
    wide = torch.tensor([[fill, -fill]]).repeat(batch, 1)
    flat, last = torch.full((batch, 2, 1, 1), fill), torch.zeros(batch, 2, 1, 1)
    labels = torch.ones(batch, dtype=torch.long)
    check_finite_with_gradient(lambda z, m: byot_loss(-wide, labels, [z], [m], last), wide, flat)


def test_half_precision_is_computed_in_full() -> None:
    labels = torch.tensor([0, 1, 3])
    check_full_precision(
        lambda z, m: byot_loss(z, labels, [z.flip(0)], [m], m.flip(0)),
        torch.randn(3, 4),
        torch.rand(3, 2, 2, 2),
    )


def method_of(name: str = "resnet14", **settings: Any) -> BYOT:
    pair, _ = make_pair(staged(name), None, DATA)
    return BYOT(pair, **settings)


def test_without_its_own_terms_the_method_is_dsn() -> None:
    pair, _ = make_pair(staged(), None, DATA)
    torch.manual_seed(1)
    ours = BYOT(pair, ce=0.5, weight=2.0, kd=0.0, features=0.0)
    torch.manual_seed(1)
    theirs = DSN(pair, ce=0.5, weight=2.0)
    batch = first_batch()
    torch.testing.assert_close(ours(batch, None).objective, theirs(batch, None).objective)


@pytest.mark.parametrize("own", ["kd", "features"])
def test_the_gradient_of_its_own_terms_stops_at_the_deepest_stage(own: str) -> None:
    settings: dict[str, Any] = {"ce": 0.0, "weight": 0.0, "kd": 0.0, "features": 0.0, own: 1.0}
    method, batch = method_of(**settings), first_batch()
    method(batch, None).objective.backward()
    student = method.student.module
    for part, learns in (("layer1", True), ("layer2", True), ("layer3", False), ("fc", False)):
        gradients = [p.grad for p in student.get_submodule(part).parameters()]
        assert any(g is not None and g.abs().sum() > 0 for g in gradients) == learns, part


@pytest.mark.parametrize("name", ["vgg8", "wrn_16_1", "MobileNetV2"])
def test_the_losses_are_those_of_the_classifiers(name: str) -> None:
    method, batch = method_of(name, temperature=2.0, features=0.5).eval(), first_batch()
    with torch.no_grad():
        logits = method.classifier_logits(batch.images)
        student = method.student(batch.images)
        branches = method.branch_outputs(student.stages)
        expected = byot_terms(
            logits.pop("student"),
            batch.labels,
            list(logits.values()),
            [branch.map for branch in branches],
            student.stages[-1],
            features=0.5,
            temperature=2.0,
        )
        torch.testing.assert_close(method(batch, None).losses, expected)


def test_the_function_and_the_method_have_the_same_defaults() -> None:
    method = signature_settings(BYOT.__init__).model_fields
    function = signature_settings(byot_loss).model_fields
    assert {name: f.default for name, f in function.items()} == {
        name: method[name].default for name in function
    }
