"""Softmax regression representation: two losses, a connector that learns, a frozen classifier."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dskd.errors import InputError
from dskd.methods.contracts import Pair
from dskd.methods.srrl import SRRL, srrl_loss
from dskd.models.output import ModelOutput
from dskd.models.spec import ModelSpec, StageSpec
from tests.builders import make_dataset, make_pair, staged
from tests.losses.misfits import Arguments
from tests.methods.edge_cases import check_finite_with_gradient, check_full_precision
from tests.methods.inputs import batch_of
from tests.reference_values import CASES, cases, check, given, parameters

ARGUMENTS = Arguments(
    {"student": "B D", "teacher": "B D", "student_logits": "B K", "teacher_logits": "B K"},
    numbers={"feature": float("nan"), "regression": float("nan")},
)
DEFAULTS = {"feature": 1.0, "regression": 1.0}
PRESETS = {"literature": {"ce": 1.0, "kd": 0.0, "feature": 1.0, "regression": 1.0}}


def test_the_loss_is_the_naive_loop() -> None:
    h, g, z, y = (torch.randn(3, length) for length in (4, 4, 2, 2))
    vectors = sum((h[b, d] - g[b, d]).item() ** 2 for b in range(3) for d in range(4)) / 12
    logits = sum((z[b, k] - y[b, k]).item() ** 2 for b in range(3) for k in range(2)) / 6
    assert srrl_loss(h, g, z, y).item() == pytest.approx(vectors + logits)
    assert srrl_loss(h, g, z, y, feature=0.5, regression=3.0).item() == pytest.approx(
        0.5 * vectors + 3 * logits
    )


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0])
def test_values_and_gradients_are_finite(batch: int, scale: float) -> None:
    vectors, logits = scale * torch.randn(2, batch, 3), scale * torch.randn(2, batch, 2)
    check_finite_with_gradient(srrl_loss, *vectors, *logits)


def test_half_precision_is_computed_in_full() -> None:
    check_full_precision(srrl_loss, *torch.randn(2, 4, 3), *torch.randn(2, 4, 2))


def test_shapes_that_differ_are_refused() -> None:
    vectors, logits = torch.ones(2, 3), torch.ones(2, 5)
    with pytest.raises(InputError, match=r"vectors \[B, D\] of one shape are needed"):
        srrl_loss(vectors, torch.ones(2, 4), logits, logits)
    with pytest.raises(InputError, match=r"logits \[B, K\] of one shape are needed"):
        srrl_loss(vectors, vectors, logits, torch.ones(2, 6))


def teacher_spec(nonnegative: bool) -> ModelSpec:
    return ModelSpec(
        100,
        (),
        128,
        last=StageSpec(128, 8, 8, nonnegative),
        average_pooled=True,
        linear_logits=True,
    )


def reference_loss(**settings: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The method's own loss with the weights of the facts, for both vectors and the logits."""
    classifier = nn.Linear(128, 100).double()
    classifier.load_state_dict(parameters("srrl_cls"))
    pair = Pair(staged(), ModelSpec(100, (), 64), teacher_spec(True), classifier)
    method = SRRL(pair, **settings).double()
    weights = parameters("srrl")
    weights["transfer.0.weight"] = weights["transfer.0.weight"].flatten(1)
    state = {key.removeprefix("transfer."): value for key, value in weights.items()}
    counts = {k: v for k, v in method.connector.state_dict().items() if k.endswith("_tracked")}
    method.connector.load_state_dict(state | counts)
    batch = batch_of(torch.zeros(32, 3, 2, 2))

    def loss(vector: Tensor, target: Tensor, logits: Tensor) -> Tensor:
        student, teacher = ModelOutput(logits, (), vector), ModelOutput(logits, (), target)
        return method.extra_losses(batch, student, teacher)["srrl"]

    return loss


def test_value_and_gradient_are_those_of_the_reference() -> None:
    check("srrl", reference_loss())
    assert cases("srrl") == {"srrl"}


@pytest.mark.parametrize(("feature", "regression"), [(1.0, 0.0), (0.0, 1.0), (2.0, 3.0)])
def test_each_of_the_two_terms_has_its_own_weight_and_the_value_of_the_reference(
    feature: float, regression: float
) -> None:
    loss = reference_loss(feature=feature, regression=regression)
    value = loss(*(given(name) for name in ("s", "t", "logits_t")))
    parts = CASES["srrl"]["further"]
    expected = feature * parts["feature_part"] + regression * parts["logit_part"]
    assert value.item() == pytest.approx(expected, rel=1e-5)


def test_the_connector_ends_in_relu_only_where_the_teacher_is_never_negative() -> None:
    for nonnegative in (True, False):
        spec = teacher_spec(nonnegative)
        pair = Pair(staged(), ModelSpec(100, (), 64), spec, nn.Linear(128, 100))
        connected = SRRL(pair).connector(torch.randn(16, 64))
        assert bool((connected >= 0).all()) is nonnegative


def made(**settings: Any) -> tuple[SRRL, Tensor, ModelOutput]:
    torch.manual_seed(0)
    data = make_dataset()
    pair, teacher = make_pair(staged("resnet8"), staged("vgg8"), data)
    assert teacher is not None
    images = data.train.images[:8]
    return SRRL(pair, **settings), images, teacher(images)


def test_the_classifier_never_learns_and_the_connector_does() -> None:
    method, images, teacher_output = made(ce=0.0, kd=0.0)
    method(batch_of(images), teacher_output).objective.backward()
    assert all(p.grad is None for p in method.classifier.parameters())
    assert all(p.grad is not None for p in method.connector.parameters())
    for name, parameter in method.student.module.named_parameters():
        assert parameter.grad is not None
        assert bool(parameter.grad.any()) is not name.startswith("fc."), name


def test_a_teacher_that_does_not_end_in_a_linear_layer_is_refused() -> None:
    pair, _ = make_pair(staged("resnet8"), staged("resnet14"), make_dataset())
    assert pair.teacher_spec is not None
    scaled = replace(pair.teacher_spec, linear_logits=False)
    for other in (replace(pair, teacher_classifier=None), replace(pair, teacher_spec=scaled)):
        with pytest.raises(InputError, match="logits are not those of a linear layer"):
            SRRL(other)
