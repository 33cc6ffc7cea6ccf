"""The cost of models: parameters and multiply-adds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dskd.models.catalog import ZOO
from dskd.models.cost import ModelCost, model_cost
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
