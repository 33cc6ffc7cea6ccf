"""No run is lost: a sample of the faults that ``make torture`` injects."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from dskd import methods
from dskd.storage.checkpoint import HEADER_BYTES
from tests.faults import clocks, damaged_checkpoints, disk_faults, kills

SAMPLES = {kills: 15, disk_faults: 27, damaged_checkpoints: 200, clocks: 4}
"""The families, and how many cases the sample of each has at least."""


@pytest.mark.slow(seconds=8)
@pytest.mark.parametrize("family", SAMPLES, ids=lambda one: one.__name__)
def test_a_run_survives(family: ModuleType, tmp_path: Path) -> None:
    checked: list[str] = []
    for number, (name, case) in enumerate(family.cases(whole=False)):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        assert family.check(case, folder), name
        checked.append(name)
    assert len(checked) >= SAMPLES[family]


def test_every_byte_of_the_header_and_every_field_is_damaged() -> None:
    changed = dict(damaged_checkpoints.cases())
    assert len(changed) == damaged_checkpoints.COUNT
    flips = [case.at for case in changed.values() if case.kind == "flip"]
    assert set(range(HEADER_BYTES)) <= set(flips)
    for name, begin, end in damaged_checkpoints._layout()[1]:
        assert any(begin <= at < end for at in flips), name


def test_every_method_is_killed() -> None:
    killed = {name for _, case in kills.cases() for name in case.method.split(",")}
    assert killed == set(methods.names())
    assert sum("," in case.method for _, case in kills.cases(whole=False)) >= 2
