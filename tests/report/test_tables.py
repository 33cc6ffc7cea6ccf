"""Rows, scales and LaTeX."""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dskd.compare.statistics import interval
from dskd.report.cost import Cost
from dskd.report.intervals import Scale, draw, lowest_inlier, scale_of
from dskd.report.tables import as_csv, as_latex, latex, plain_row
from tests.report.test_conclusions import BETTER, KD, WORSE, summaries

COST = Cost(10, 20, 1.0, 2.0)
COSTS = dict.fromkeys(("ce", "kd", "dskd"), COST)


def test_one_method_that_went_wrong_does_not_squeeze_the_others() -> None:
    scale = scale_of([interval([value]) for value in (70.0, 71.0, 72.0, 10.0)], 1.0)
    assert scale == Scale(69.0, 73.0)
    outside = draw(interval([10.0, 10.5]), scale)
    assert (outside.mean, outside.seeds, outside.low) == (None, (), 0.0)
    inside = draw(interval([70.5, 71.5]), scale, sampling_error=1.0)
    assert (inside.mean, inside.band, inside.zero) == (50.0, (25.0, 75.0), None)
    assert (inside.low, inside.high) == (0.0, 100.0)  # the interval is wider than the scale


def test_differences_are_drawn_about_zero() -> None:
    scale = scale_of([interval([1.0, 1.0]), interval([3.0, 3.0])], 1.0, zero=True)
    assert draw(interval([1.0, 1.0]), scale).zero == pytest.approx(20.0)


@given(st.lists(st.floats(-100, 100), min_size=1))
def test_the_best_is_always_usual(values: list[float]) -> None:
    lowest = lowest_inlier(values)
    assert min(values) <= lowest <= max(values)
    assert sum(value >= lowest for value in values) * 2 >= len(values)


def test_rows_read_back_from_csv() -> None:
    rows = [plain_row(summary, COSTS) for summary in summaries(ce=WORSE, kd=KD, dskd=BETTER)]
    back = list(csv.DictReader(io.StringIO(as_csv(rows))))
    assert [row["method"] for row in back] == ["ce", "kd", "dskd"]
    assert [float(value) for value in back[1]["test_accuracy_seeds"].split()] == KD
    assert float(back[2]["difference_to_kd"]) == pytest.approx(2.0125)
    assert float(back[2]["p_holm"]) < 0.05
    assert back[1]["difference_to_kd"] == ""
    assert back[0]["multiply_adds"] == "20"


def test_a_method_without_a_result_has_a_row_too() -> None:
    (row,) = (plain_row(summary, {}) for summary in summaries(kd=[]))
    assert (row["test_accuracy"], row["seeds"], row["latency_ms"]) == (None, [], None)


HOSTILE = r"50 % of $x_1$ & {#~^\} <a|b> -1"


def test_latex_escapes_what_means_something_to_it() -> None:
    assert latex(HOSTILE) == (
        r"50 \% of \$x\_1\$ \& \{\#\textasciitilde{}\textasciicircum{}\textbackslash{}\} "
        r"\textless{}a\textbar{}b\textgreater{} $-$1"
    )


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_the_tables_compile_in_an_article(tmp_path: Path) -> None:
    found = summaries(**{"ce": WORSE, "kd": KD, HOSTILE: BETTER, "empty": []})
    (tmp_path / "report.tex").write_text(as_latex(found, {"kd": COST}, 1000))
    (tmp_path / "article.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs}\n"
        "\\begin{document}\\input{report.tex}\\end{document}\n"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "article.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "article.pdf").is_file()
