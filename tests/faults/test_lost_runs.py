"""No run is lost: a sample of what ``make torture`` does to it."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from dskd import methods
from dskd.storage.checkpoint import HEADER_BYTES
from tests.faults import clocks, damaged, kills, saves


@pytest.mark.parametrize("family", [kills, saves, damaged, clocks], ids=lambda one: one.__name__)
def test_a_run_outlives(family: ModuleType, tmp_path: Path) -> None:
    held: list[str] = []
    for number, (name, case) in enumerate(family.cases(whole=False)):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        assert family.check(case, folder), name
        held.append(name)
    assert len(held) >= {kills: 15, saves: 27, damaged: 200, clocks: 4}[family]


def test_every_byte_of_the_header_and_every_field_is_among_the_damaged() -> None:
    changed = dict(damaged.cases())
    assert len(changed) == damaged.COUNT
    flips = [case.at for case in changed.values() if case.kind == "flip"]
    assert set(range(HEADER_BYTES)) <= set(flips)
    for name, begin, end in damaged._layout()[1]:
        assert any(begin <= at < end for at in flips), name


def test_every_method_is_among_the_killed() -> None:
    killed = {name for _, case in kills.cases() for name in case.method.split(",")}
    assert killed == set(methods.names())
    assert sum("," in case.method for _, case in kills.cases(whole=False)) >= 2
