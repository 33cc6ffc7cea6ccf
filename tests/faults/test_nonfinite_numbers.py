"""NaN or Inf ends a run before anything is changed or saved."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import nonfinite_numbers
from tests.faults.nonfinite_numbers import FOR_TWO_PROCESSES, Case, Overflow
from tests.runtime.test_distributed import together


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [pytest.param(case, id=name) for name, case in nonfinite_numbers.cases(whole=False)]
)
def test_a_nonfinite_number_ends_a_run_before_it_changes_anything(
    case: Case | Overflow, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert nonfinite_numbers.check(case, tmp_path) == "stopped"
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dskd: ")]
    assert len(lines) == 1
    assert lines[0].endswith("; see " + str(tmp_path / "run/nonfinite.json"))


def _check_two_processes(out: Path) -> None:
    for number, case in enumerate(FOR_TWO_PROCESSES):
        assert nonfinite_numbers.check(case, out / str(number)) == "stopped"


@pytest.mark.distributed(seconds=8)
def test_a_nonfinite_number_in_one_process_ends_both(tmp_path: Path) -> None:
    together(2, _check_two_processes, tmp_path)
