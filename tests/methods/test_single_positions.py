"""Maps of a single position: what compares positions is refused or told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from dskd import methods
from dskd.errors import InputError
from dskd.methods.at import at_loss
from dskd.methods.catkd import CATKD, catkd_loss
from dskd.methods.contracts import Pair
from dskd.methods.nst import nst_loss
from dskd.methods.sdd import SDD
from tests.builders import make_dataset, make_pair, staged


def pair_of(size: int) -> Pair:
    """Of resnet8 and resnet14, whose last maps have a quarter of the size."""
    return make_pair(staged(), staged("resnet14"), make_dataset(size=size))[0]


def test_a_single_position_has_no_gradient() -> None:
    """The reason for the refusal and the lines."""
    student = torch.randn(4, 3, 1, 1, requires_grad=True)
    teacher = torch.randn(4, 3, 1, 1)
    for value in (
        catkd_loss(student, teacher),
        at_loss([student], [teacher]),
        nst_loss([student], [teacher]),
    ):
        (gradient,) = torch.autograd.grad(value, student)
        assert gradient.abs().max() < 1e-5


def test_catkd_refuses_scaled_maps_of_a_single_position() -> None:
    small, large = pair_of(4), pair_of(16)
    with pytest.raises(InputError, match=r"last map has a single .*\"normalize\": False"):
        CATKD(small)
    with pytest.raises(InputError, match=r"\"size\": 1} leaves a single .*\"size\": 2"):
        CATKD(large, size=1)
    assert CATKD(large)
    assert CATKD(small, normalize=False)
    assert CATKD(large, size=1, normalize=False)


@pytest.mark.parametrize("name", ["at", "nst"])
def test_stages_of_a_single_position_are_told(name: str) -> None:
    kind: Any = methods.find(name)
    (line,) = kind(pair_of(4)).warnings
    assert line.startswith(f"{name} compares the positions of maps, and the student or its teacher")
    assert "has one in stage 3, which teaches nothing" in line
    assert not kind(pair_of(4), weight=0.0).warnings
    assert not kind(pair_of(16)).warnings


def test_all_such_stages_are_named() -> None:
    pair = pair_of(16)
    stages = tuple(replace(stage, height=1, width=1) for stage in pair.student_spec.stages)
    tiny = replace(pair, student_spec=replace(pair.student_spec, stages=stages))
    assert "has one in stages 1, 2, 3," in methods.find("at")(tiny).warnings[0]


def test_sdd_tells_that_it_has_no_parts_of_the_map() -> None:
    (line,) = SDD(pair_of(4), base="dkd").warnings
    assert line.startswith("sdd compares the whole last map alone, as method")
    assert SDD(pair_of(16), scales=[1]).warnings
    assert not SDD(pair_of(16)).warnings
    assert not SDD(pair_of(4), kd=0.0).warnings
