"""Losses between feature maps: against published values and naive loops."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dskd.errors import InputError
from dskd.losses import at
from published import check

PUBLISHED: dict[str, Callable[..., Tensor]] = {
    "at_mdistiller": lambda f1, f2, f3, g1, g2, g3: at([f1, f2, f3], [g1, g2, g3]),
    "at_pool_student": lambda f1, g2: at([f1], [g2]),
    "at_pool_teacher": lambda f2, g1: at([f2], [g1]),
    "at_torchdistill_code": lambda f3, g3: at([f3], [g3]),
}


@pytest.mark.parametrize("case", PUBLISHED)
def test_value_and_gradient_are_the_published_ones(case: str) -> None:
    check(case, PUBLISHED[case])


def test_attention_does_not_depend_on_scale_or_the_order_of_channels() -> None:
    maps = torch.rand(2, 3, 4, 4)
    assert at([maps], [3 * maps[:, [2, 0, 1]]]).item() == pytest.approx(0, abs=1e-12)


def test_maps_of_other_pictures_are_refused() -> None:
    with pytest.raises(InputError, match="of the same pictures are needed"):
        at([torch.zeros(2, 3, 4, 4)], [torch.zeros(3, 3, 4, 4)])
