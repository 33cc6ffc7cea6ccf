"""Correlation congruence: its three forms, and which of the two sides its embeddings train."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dskd.errors import InputError
from dskd.methods.cc import CC, Congruence, cc_loss
from dskd.methods.contracts import Pair
from dskd.models.output import ModelOutput
from dskd.models.spec import ModelSpec
from tests.builders import make_dataset, make_pair, staged
from tests.losses.misfits import Arguments
from tests.methods.edge_cases import (
    VECTORS,
    PairLoss,
    check_finite,
    check_full_precision,
    check_lone_image,
    check_relations,
)
from tests.reference_values import cases, check, given, parameters

ARGUMENTS = Arguments(
    {"student": "B D", "teacher": "B D"}, numbers={"gamma": -1.0, "order": -1}, choices=("form",)
)
DEFAULTS = {"form": "neighbours", "gamma": 0.4, "order": 2}
PRESETS = {"literature": {"ce": 1.0, "kd": 0.0, "weight": 0.02}}


def _norm(form: Congruence) -> PairLoss:
    """torchdistill's value, the norm over B^2, from ours, its square over B^2."""
    return lambda s, t: cc_loss(s, t, form, gamma=0.4, order=2).sqrt() / len(s)


REFERENCE: dict[str, Callable[..., Tensor]] = {
    "cc_plain": lambda s, t: cc_loss(s, t[:, :64]),
    "cc_torchdistill_gaussian": _norm("gaussian"),
    "cc_torchdistill_bilinear": _norm("bilinear"),
}
OTHER = {"cc_embed": "with the embeddings, see below"}

LOSSES: dict[str, PairLoss] = {
    "neighbours": cc_loss,
    "gaussian": partial(cc_loss, form="gaussian"),
    "bilinear": partial(cc_loss, form="bilinear"),
}
every_form = pytest.mark.parametrize("form", LOSSES)


@pytest.mark.parametrize("case", REFERENCE)
def test_value_and_gradient_are_those_of_the_reference(case: str) -> None:
    check(case, REFERENCE[case])


def test_no_reference_value_is_left_out() -> None:
    assert cases("cc") == REFERENCE.keys() | OTHER.keys()


def test_the_loss_of_neighbours_is_the_naive_loop() -> None:
    s, t = torch.randn(4, 3).double(), torch.randn(4, 3).double()
    terms = []
    for i in range(len(s) - 1):
        pairs = zip(s[i] - t[i], s[i + 1] - t[i + 1], strict=True)
        terms.append(sum(abs(float(a)) * abs(float(b)) for a, b in pairs))
    assert cc_loss(s, t).item() == pytest.approx(sum(terms) / len(terms), rel=1e-6)


def test_the_series_of_the_gaussian_approaches_the_gaussian() -> None:
    s, t = torch.randn(4, 3).double(), torch.randn(4, 5).double()
    total = 0.0
    for i in range(len(s)):
        for j in range(len(s)):
            kernels = []
            for x in (s, t):
                away = x[i] / x[i].norm() - x[j] / x[j].norm()
                kernels.append(math.exp(-0.4 * float((away**2).sum())))
            total += (kernels[0] - kernels[1]) ** 2
    value = cc_loss(s, t, form="gaussian", order=20).item()
    assert value == pytest.approx(total / len(s) ** 2, rel=1e-6)


@pytest.mark.parametrize("kind", VECTORS)
@every_form
def test_values_and_gradients_are_finite(form: str, kind: str) -> None:
    check_finite(LOSSES[form], VECTORS[kind], largest_gradient=1e6)


@every_form
def test_a_lone_image_has_no_relations(form: str) -> None:
    check_lone_image(LOSSES[form])


@pytest.mark.parametrize("form", ["gaussian", "bilinear"])
def test_scale_rotation_and_order_do_not_matter_to_the_kernels(form: str) -> None:
    check_relations(LOSSES[form])


@every_form
def test_half_precision_is_computed_in_full(form: str) -> None:
    check_full_precision(LOSSES[form], torch.randn(4, 3), torch.randn(4, 3))


@every_form
def test_other_images_are_refused(form: str) -> None:
    with pytest.raises(InputError, match="of the same images are needed"):
        LOSSES[form](torch.zeros(4, 3), torch.zeros(5, 3))


def test_other_lengths_and_forms_are_refused() -> None:
    with pytest.raises(InputError, match="of one shape are needed"):
        cc_loss(torch.zeros(4, 3), torch.zeros(4, 2))
    with pytest.raises(InputError, match="unknown form 'gausian'; did you mean 'gaussian'"):
        cc_loss(torch.zeros(4, 3), torch.zeros(4, 3), form="gausian")  # type: ignore[arg-type]


def of_lengths(student: int | None, teacher: int | None, **settings: Any) -> CC:
    pair = Pair(staged(), ModelSpec(4, (), student), ModelSpec(4, (), teacher))
    return CC(pair, **settings)


def own(method: CC, student: Tensor, teacher: Tensor) -> Tensor:
    outputs = [ModelOutput(torch.zeros(len(x), 4), (), x) for x in (student, teacher)]
    return method.extra_losses(None, *outputs)["cc"]  # type: ignore[arg-type]


def load(embedding: nn.Linear, side: str) -> None:
    prefix = f"{side}/linear."
    weights = parameters("cc_embed")
    embedding.load_state_dict(
        {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    )


def test_value_and_gradient_with_the_embeddings_are_those_of_the_reference() -> None:
    method = of_lengths(given("s").shape[1], given("t").shape[1], weight=1.0).double()
    load(method.student_embedding, "s")
    load(method.teacher_embedding, "t")
    check("cc_embed", lambda s, t: own(method, s, t))


def test_both_embeddings_learn_and_the_teacher_does_not() -> None:
    pair, teacher = make_pair(staged(), staged("resnet14"), make_dataset())
    assert teacher is not None
    method = CC(pair)
    images = make_dataset().train.images[:4]
    student: ModelOutput = method.student(images)
    method.extra_losses(None, student, teacher(images))["cc"].backward()  # type: ignore
    for embedding in (method.student_embedding, method.teacher_embedding):
        assert embedding.weight.grad is not None
        assert embedding.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_every_option_changes_the_loss() -> None:
    def value(**settings: Any) -> float:
        torch.manual_seed(0)
        method = of_lengths(6, 8, weight=1.0, **settings)
        return own(method, torch.rand(5, 6), torch.rand(5, 8)).item()

    settings: list[dict[str, Any]] = [
        {},
        {"dim": 4},
        {"form": "bilinear"},
        {"form": "gaussian"},
        {"form": "gaussian", "gamma": 1.0},
        {"form": "gaussian", "order": 3},
    ]
    assert len({value(**given) for given in settings}) == len(settings)


@pytest.mark.parametrize("lengths", [(None, 8), (8, None)])
def test_a_model_without_a_pooled_vector_is_refused(lengths: tuple[int | None, int | None]) -> None:
    with pytest.raises(InputError, match=r"the vector that the (student|teacher)'s"):
        of_lengths(*lengths)


def test_misfits_are_told_of_student_and_teacher() -> None:
    with pytest.raises(InputError, match=r"got \[4, 3\] of the student, \[4, 5\] of the teacher"):
        cc_loss(torch.ones(4, 3), torch.ones(4, 5))
