"""Checks of the arguments of losses."""

from __future__ import annotations

import math

import pytest
import torch

from dskd.errors import InputError
from dskd.losses.checks import (
    check_same_batch,
    check_same_channels,
    check_same_shape,
    check_temperature,
)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_a_temperature_out_of_range_is_refused(temperature: float) -> None:
    check_temperature(0.5)
    with pytest.raises(InputError, match="temperature must be above 0, got"):
        check_temperature(temperature)


def test_shapes_that_differ_are_refused_with_both_shapes() -> None:
    check_same_shape(torch.zeros(2, 3), torch.zeros(2, 3), "vectors [B, D]")
    says = r"vectors \[B, D\] of one shape are needed, got \[2, 3\] of the student, \[2, 4\] of"
    with pytest.raises(InputError, match=says):
        check_same_shape(torch.zeros(2, 3), torch.zeros(2, 4), "vectors [B, D]")


@pytest.mark.parametrize("teacher", [torch.zeros(3, 5), torch.zeros(2, 5, 1)], ids=str)
def test_another_batch_or_number_of_dimensions_is_refused(teacher: torch.Tensor) -> None:
    check_same_batch(torch.zeros(2, 3), torch.zeros(2, 5), 2, "vectors [B, D]")
    with pytest.raises(InputError, match=r"vectors \[B, D\] of the same images are needed"):
        check_same_batch(torch.zeros(2, 3), teacher, 2, "vectors [B, D]")


def test_other_channels_are_refused() -> None:
    check_same_channels(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 2, 2))
    with pytest.raises(InputError, match="got 3 of the student, 5 of the teacher; project"):
        check_same_channels(torch.zeros(2, 3, 4, 4), torch.zeros(2, 5, 4, 4))
