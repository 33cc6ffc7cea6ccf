"""From settings, or from a module given in Python, to the model of a run."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dskd.config.schema import ModelSettings
from dskd.engine.build_model import build_model
from tests.builders import make_dataset

DATA = make_dataset()


def test_layers_that_a_given_module_builds_late_are_drawn_from_the_seed() -> None:
    found: list[dict[str, Tensor]] = []
    for noise, seed in ((1, 0), (2, 0), (1, 1)):
        torch.manual_seed(noise)  # whatever the process did before
        net = nn.Sequential(nn.Flatten(), nn.LazyLinear(4))
        model = build_model(ModelSettings(name="<Sequential>"), DATA, seed, net)
        model(DATA.train.images[:2])
        found.append(model.module.state_dict())
    first, again, other = (state["1.weight"] for state in found)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
