"""The compact list of file names."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dskd.data import path_list
from dskd.data.path_list import PathList

NAMES = ["a/1.png", "", "blüte/ä.jpg", "bad\udcff.png", "b/2.png"]


def test_it_holds_its_names() -> None:
    paths = PathList(NAMES)
    assert list(paths) == NAMES
    assert (len(paths), paths[-1], paths[2:4][1]) == (5, "b/2.png", "bad\udcff.png")
    assert list(pickle.loads(pickle.dumps(paths))) == NAMES
    with pytest.raises(IndexError):
        paths[5]


@given(st.lists(st.integers(0, 4), max_size=9))
def test_a_part_has_the_names_at_the_indices(indices: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(path_list, "_PIECE", 2)
        found = PathList(NAMES).take(np.array(indices, np.int64))
    assert list(found) == [NAMES[index] for index in indices]
