"""The results table in the terminal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dskd.cli.commands import main, run_command
from dskd.compare.notes import EQUAL
from dskd.compare.reader import Comparison, read_comparison
from dskd.compare.summary import summarize
from dskd.compare.table import notes, summary_table
from tests.compare.small_comparison import NAMES, SMALL

DIVERGES = "kd:ce=0:kd=1.0e+25"


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
    assert "what changes with the seed" in printed
    assert "The sampling error of the 500 test images is" in printed
    assert "The best epoch is chosen on the test split, which makes" in printed


@pytest.mark.slow
@pytest.mark.parametrize(("names", "code"), [(DIVERGES, 2), (f"ce,{DIVERGES}", 0)])
def test_a_comparison_of_which_every_run_failed_exits_with_2(
    names: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [*SMALL, "train.epochs=1", "train.batch_size=130"]
    options = ["--methods", names, "--seeds", "1", "--out", str(tmp_path / "out")]
    assert run_command(["compare", "digits", *settings, *options]) == code
    printed = capsys.readouterr()
    assert f"{DIVERGES}, seed 0: failed; the logits are not finite" in printed.out
    assert ("every run in" in printed.err) is (code == 2)


def table_of(comparison: Comparison, kd: list[float], dskd: list[float]) -> tuple[str, list[str]]:
    """The row of dskd and the notes, if the two methods had these accuracies."""
    accuracies = {"kd": kd, "dskd": dskd}
    variants = [
        replace(
            one,
            results={
                seed: {**result, "test_accuracy": accuracies[one.label][seed]}
                for seed, result in one.results.items()
            },
        )
        for one in comparison.variants
        if one.label in accuracies
    ]
    summaries = summarize(variants, comparison.test_images)
    rows = summary_table(summaries)[1]
    row = next(row for row in rows if row[0] == "dskd")
    return " | ".join(row), notes(comparison, summaries)


@pytest.mark.slow
def test_equal_differences_have_no_interval_and_a_note_says_so(finished: Path) -> None:
    comparison = read_comparison(finished)
    row, said = table_of(comparison, [90.2, 89.4], [91.2, 90.4])
    assert "| +1.00 | - |" in row
    assert EQUAL in said
    row, said = table_of(comparison, [90.2, 89.4], [91.2, 90.5])
    assert "| +1.05 ± 0.64 |" in row
    assert EQUAL not in said
