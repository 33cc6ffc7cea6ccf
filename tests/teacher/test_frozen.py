"""The teacher gives outputs and never changes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from dskd.models.staged_model import StagedModel
from dskd.teacher.frozen import FrozenTeacher


@pytest.fixture
def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    )


@pytest.fixture
def teacher(net: nn.Module) -> FrozenTeacher:
    return FrozenTeacher(StagedModel(net, ["1"], mean=(0.5,) * 3, std=(0.5,) * 3))


@pytest.fixture
def images() -> Tensor:
    return torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)


def test_it_is_frozen(teacher: FrozenTeacher, images: Tensor) -> None:
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    output = teacher(images)
    assert not output.logits.requires_grad
    assert not output.stages[0].requires_grad
    assert not output.pooled.requires_grad


def test_it_stays_in_eval_mode(teacher: FrozenTeacher) -> None:
    class Owner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.teacher = teacher

    for trained in (teacher.train(), teacher.train(True), Owner().train()):
        assert isinstance(trained, nn.Module)
        assert not any(part.training for part in teacher.modules())


def test_dropout_and_batch_norm_are_inert(teacher: FrozenTeacher, images: Tensor) -> None:
    before = copy.deepcopy(teacher.state_dict())
    teacher.train()
    first = teacher(images).logits
    assert torch.equal(teacher(images).logits, first)
    torch.testing.assert_close(teacher(images[:2]).logits, first[:2])
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())


def test_its_outputs_are_those_of_the_model_in_eval_mode(
    teacher: FrozenTeacher, net: nn.Module, images: Tensor
) -> None:
    assert torch.equal(teacher(images).logits, net.eval()((images / 255 - 0.5) / 0.5))


def test_a_student_learns_through_the_outputs_without_changing_it(
    teacher: FrozenTeacher, images: Tensor
) -> None:
    student = nn.Linear(3 * 8 * 8, 5)
    loss = (student(images.flatten(1) / 255) - teacher(images).logits).square().mean()
    loss.backward()
    assert student.weight.grad is not None
    assert all(parameter.grad is None for parameter in teacher.parameters())
