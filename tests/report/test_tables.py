"""Rows of plain values, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
from pathlib import Path

import pytest

from dskd.report.cost import Cost
from dskd.report.tables import as_csv, as_latex, latex, plain_row
from tests.report.test_conclusions import BETTER, KD, WORSE, summaries

COST = Cost(10, 20, 1.0, 2.0)
COSTS = dict.fromkeys(("ce", "kd", "dskd"), COST)


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
    assert (row["test_accuracy"], row["seeds"], row["latency_ms"]) == (None, 0, None)
    assert row["seed_numbers"] == []


HOSTILE = r"50 % of $x_1$ & {#~^\} <a|b> -1"


def test_latex_escapes_what_means_something_to_it() -> None:
    assert latex(HOSTILE) == (
        r"50 \% of \$x\_1\$ \& \{\#\textasciitilde{}\textasciicircum{}\textbackslash{}\} "
        r"\textless{}a\textbar{}b\textgreater{} $-$1"
    )


def test_the_caption_of_the_costs_describes_the_columns_that_are_shown() -> None:
    found = summaries(kd=KD, dskd=BETTER)
    measured = as_latex(found, COSTS, 1000)
    assert "multiply-adds (multiply-adds for one image, of the deployed student)" in measured
    assert "extra (parameters trained with the student and not deployed)" in measured
    assert "agreement" not in measured  # no method has a value
    assert "multiply-adds" not in as_latex(found, {}, 1000)
    assert "multiply-adds" not in as_latex(found, None, 1000)


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
