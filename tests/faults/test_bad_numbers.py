"""A NaN or an infinite number ends a run, and nothing of it is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import bad_numbers
from tests.faults.bad_numbers import Case, Overflow
from tests.runtime.test_distributed import together


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=name) for name, case in bad_numbers.cases(whole=False)]
)
def test_a_bad_number_ends_a_run_before_it_changes_anything(
    case: Case | Overflow, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bad_numbers.check(case, tmp_path) == "stopped"
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dskd: ")]
    assert len(said) == 1
    assert said[0].endswith("; see " + str(tmp_path / "run/nonfinite.json"))


def _met_by_two(out: Path) -> None:
    for number, case in enumerate(bad_numbers.OF_TWO):
        assert bad_numbers.check(case, out / str(number)) == "stopped"


def test_a_bad_number_in_one_process_ends_both(tmp_path: Path) -> None:
    together(2, _met_by_two, tmp_path)
