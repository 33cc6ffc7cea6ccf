"""The results table in the terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from dskd.cli.commands import main
from tests.compare.small_comparison import NAMES, SMALL


@pytest.mark.slow
def test_the_command_prints_the_table_and_its_notes(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["compare", "digits", *SMALL, "--methods", NAMES, "--seeds", "2"]
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--out", str(finished)])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()[:4]] == ["method", "ce", "kd", "dskd"]
    assert "ce=1 kd=1 alpha=1 beta=10 gamma=0" in printed
    assert "the noise of training" in printed
    assert "The sampling error of the 500 test images is" in printed
