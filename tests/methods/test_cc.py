"""The embeddings of CC: published values through them, and which of the two sides they train."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dskd.errors import InputError
from dskd.methods.base import Pair
from dskd.methods.cc import CC
from dskd.models.output import ModelOutput
from dskd.models.spec import ModelSpec
from tests.conftest import make_dataset, make_pair, staged
from tests.published import check, given, parameters


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


def test_value_and_gradient_are_the_published_ones() -> None:
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
