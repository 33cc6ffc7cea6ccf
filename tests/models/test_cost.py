"""The cost of models: parameters and multiply-adds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dskd.models.catalog import ZOO
from dskd.models.cost import ModelCost, model_cost
from dskd.models.early_exits import EarlyExitStudent, exit_costs
from dskd.models.staged_model import StagedModel
from dskd.models.trace import trace
from dskd.models.zoo import build


def test_multiply_adds_of_resnet20_are_those_of_its_layers() -> None:
    # Stem; three stages of six 3x3 convolutions (the first of two of them narrower); shortcuts;
    # the classifier.
    stem = 3 * 16 * 9 * 32**2
    stages = 6 * 16 * 16 * 9 * 32**2
    for inner, outer, side in ((16, 32, 16), (32, 64, 8)):
        stages += (inner * outer + 5 * outer * outer) * 9 * side**2 + inner * outer * side**2
    assert ZOO["resnet20"].multiply_adds == stem + stages + 64 * 100


def test_cost_leaves_the_module_as_it_was() -> None:
    net = build("resnet8", num_classes=2).bfloat16()
    net.get_submodule("layer2").eval()
    modes = [module.training for module in net.modules()]
    state = {key: value.clone() for key, value in net.state_dict().items()}
    with torch.device("meta"):
        twin = build("resnet8", num_classes=2)
    assert model_cost(net, (3, 16, 16)) == model_cost(twin, (3, 16, 16))
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_cost_restores_the_mode_after_a_failure() -> None:
    net = build("resnet8", num_classes=2)
    with pytest.raises(RuntimeError):
        model_cost(net, (5, 16, 16))
    assert all(module.training for module in net.modules())


def test_cost_of_a_module_without_parameters() -> None:
    assert model_cost(nn.AvgPool2d(2), (3, 8, 8)) == ModelCost(0, 0)


def test_attention_of_torch_counts() -> None:
    """torch runs it as one fused operation in evaluation, of which its counter knows nothing."""
    from torchvision.models import VisionTransformer

    net = VisionTransformer(16, 4, 2, 2, 24, 48, num_classes=3)
    tokens, width = 17, 24
    attention = 4 * tokens * width**2 + 2 * tokens**2 * width
    blocks = 2 * (attention + 2 * tokens * width * 48)
    expected = 16 * (3 * 4 * 4) * width + blocks + width * 3
    assert model_cost(net, (3, 16, 16)).multiply_adds == expected
    assert trace(net, torch.zeros(2, 3, 16, 16)).multiply_adds == expected
    student = EarlyExitStudent(StagedModel(net, mean=[0.5] * 3, std=[0.5] * 3), {}, [], [])
    assert exit_costs(student, (3, 16, 16)).student == expected
    assert torch.backends.mha.get_fastpath_enabled()
