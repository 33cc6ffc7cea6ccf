"""Early exits in a report: the curve, the policies, and where the images leave."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dskd.deploy.early_exits import ExitEvaluation, ExitResult
from dskd.models.early_exits import NEVER
from dskd.report.analysis import Unavailable
from dskd.report.exit_section import section, tables
from dskd.report.exits import CalibratedExit, MeasuredExits
from dskd.report.sections import Section
from dskd.report.styles import styles_of
from tests.report.report_runs import distilled, reported

STYLES = styles_of(["dskd"])


def point(loss: float | None, thresholds: tuple[float, float], cost: float) -> ExitResult:
    share = 100 * (4e6 - cost) / 4e6
    return ExitResult(loss, thresholds, 91.0, 90.0, cost, cost / 1e6, (share, 0.0, 100 - share))


MEASURED = MeasuredExits(
    label="dskd",
    seed=3,
    exits=(
        CalibratedExit("stage1", 1.5, 9.5, 2.5, 1_050_000),
        CalibratedExit("stage2", 0.75, 9.5, 2.5, 2_050_000),
    ),
    val_images=250,
    found=ExitEvaluation(
        names=("stage1", "stage2", "student"),
        accuracies=(70.0, 80.0, 90.5),
        multiply_adds=4_000_000,
        latency=4.5,
        images=500,
        rows=(point(0.0, (0.9, NEVER), 3e6), point(1.0, (0.5, NEVER), 2e6)),
        curve=(point(None, (NEVER, NEVER), 4e6), point(None, (0.5, NEVER), 2e6)),
    ),
)


def test_the_charts_show_accuracy_against_cost_and_where_images_leave() -> None:
    found = section(MEASURED, STYLES)
    assert isinstance(found, Section)
    assert "dskd, seed 3, kept the branches" in found.text
    assert "250 validation images" in found.text
    ((adds, latency, shares),) = [group.charts for group in found.groups]
    curve, plain = adds.figure.data
    assert (list(curve.x), list(plain.x), list(plain.y)) == ([2e6], [4e6], [90.5])
    assert [list(trace.x) for trace in latency.figure.data] == [[2.0], [4.5]]
    bars = {bar.name: list(bar.x) for bar in shares.figure.data}
    assert bars == {"stage1": [25.0, 50.0], "stage2": [0.0, 0.0], "student": [75.0, 50.0]}
    assert all(list(bar.y) == ["0", "1"] for bar in shares.figure.data)


def test_the_tables_list_policies_and_exits() -> None:
    policies, exits = tables(MEASURED)
    assert all(len(row) == len(table.columns) for table in (policies, exits) for row in table.rows)
    plain, strict, loose = policies.rows
    assert plain[0] == "no exits"
    assert plain[6:] == ("off", "off", "0.0", "0.0")
    assert strict[0] == "0"
    assert loose == (
        *("1", "91.00", "90.00", "2.000", "50.0", "2"),
        *("0.500", "off", "50.0", "0.0"),
    )
    assert exits.rows == (
        ("stage1", "1.50", "9.5", "2.5", "70.00", "1.050"),
        ("stage2", "0.75", "9.5", "2.5", "80.00", "2.050"),
        ("student", "", "", "", "90.50", "4.000"),
    )


def test_what_is_not_measured_has_no_tables() -> None:
    left_out = Unavailable("The file is damaged.")
    assert section(left_out, STYLES) is left_out
    assert tables(left_out) == tables(None) == ()


@pytest.mark.slow
def test_the_report_of_a_run_with_exits_has_their_section(tmp_path: Path) -> None:
    changes = ["train.exits=true", "data.val_fraction=0.3", "method.feature_target=last"]
    run = distilled(tmp_path / "run", *changes)
    text = reported([run], tmp_path / "report.html").read_text()
    assert '<section id="exits">' in text
    assert '<a href="#exits">' in text
    assert "<h3>Policies</h3>" in text
    assert "Early exits" not in text.partition('<section id="exits">')[0].partition("<nav")[0]
    found = json.loads((tmp_path / "report.json").read_text())["early_exits"]
    assert found["label"] == "dskd"
    assert found["found"]["images"] == 500
    costs = [one["multiply_adds"] for one in found["found"]["curve"]]
    assert costs[0] == found["found"]["multiply_adds"]
    assert min(costs) < costs[0]

    damaged = tmp_path / "damaged"
    shutil.copytree(run, damaged)
    (damaged / "exits.safetensors").write_bytes(b"x")
    page = reported([damaged], tmp_path / "damaged.html").read_text()
    assert '<p class="left-out">' in page.partition('<section id="exits">')[2][:200]
    (damaged / "exits.safetensors").unlink()
    page = reported([damaged], tmp_path / "plain.html").read_text()
    assert 'id="exits"' not in page
    assert json.loads((tmp_path / "plain.json").read_text())["early_exits"] is None
