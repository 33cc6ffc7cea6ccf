"""Evaluation mode for a while: every submodule gets its own mode back."""

from __future__ import annotations

import pytest
from torch import nn

from dskd.models.eval_mode import eval_mode
from dskd.models.zoo import build


def test_each_submodule_gets_its_own_mode_back() -> None:
    net = build("resnet8", num_classes=2)
    net.get_submodule("layer2").eval()
    modes = [part.training for part in net.modules()]
    assert len(set(modes)) == 2
    with eval_mode(net):
        assert not any(part.training for part in net.modules())
    assert [part.training for part in net.modules()] == modes


def test_the_mode_comes_back_after_an_error() -> None:
    net = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    with pytest.raises(ZeroDivisionError), eval_mode(net):
        raise ZeroDivisionError
    assert [part.training for part in net] == [True, False]
