"""Early exits in a report: the curve, the policies, where the images leave, other students."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

import dskd
from dskd.cli import commands as cli
from dskd.deploy.early_exits import ExitEvaluation, ExitResult
from dskd.engine.tasks.graphs.recipe import RECIPES
from dskd.errors import InputError
from dskd.models.early_exits import NEVER
from dskd.report.analysis import Unavailable
from dskd.report.build import make_report
from dskd.report.exit_section import section, tables
from dskd.report.exits import CalibratedExit, MeasuredExits, OtherStudent
from dskd.report.sections import Section
from dskd.report.styles import styles_of
from tests.report.report_runs import distilled, reported

Refused = Callable[..., str]
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

OTHERS = (
    OtherStudent("runs/a", "resnet14", "kd", 0, 88.25, 3_000_000, 3.5),
    OtherStudent("runs/b", "my<b>net", "ce", 1, 80.0, 5_000_000, 6.25),
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


def test_other_students_are_points_with_markers_of_their_own() -> None:
    found = section(replace(MEASURED, others=OTHERS), STYLES)
    assert isinstance(found, Section)
    assert "students of other runs on the same images" in found.text
    assert "other runs" not in section(MEASURED, STYLES).text  # type: ignore[union-attr]
    adds, latency, _ = found.groups[0].charts
    for figure, costs in ((adds.figure, [3e6, 5e6]), (latency.figure, [3.5, 6.25])):
        points = figure.data[2:]
        assert [point.name for point in points] == ["resnet14, seed 0", "my&lt;b&gt;net, seed 1"]
        assert [*(point.x[0] for point in points)] == costs
        assert [*(point.y[0] for point in points)] == [88.25, 80.0]
        assert len({one.marker.symbol for one in figure.data}) == 4
        assert len({one.marker.color for one in figure.data}) == 4


def test_students_of_the_same_name_are_told_apart_by_their_folders() -> None:
    twice = (OTHERS[0], replace(OTHERS[0], run="runs/c", method="at"))
    _, table, _ = tables(replace(MEASURED, others=twice))
    assert [row[0] for row in table.rows] == [
        "resnet14, seed 0, runs/a",
        "resnet14, seed 0, runs/c",
    ]


def test_a_table_lists_other_students() -> None:
    policies, others, exits = tables(replace(MEASURED, others=OTHERS))
    assert (policies, exits) == tables(MEASURED)
    assert others.title == "Other students"
    assert all(len(row) == len(others.columns) for row in others.rows)
    assert others.rows == (
        ("resnet14, seed 0", "kd", "88.25", "3.000", "75.0", "3.5", "runs/a"),
        ("my<b>net, seed 1", "ce", "80.00", "5.000", "125.0", "6.25", "runs/b"),
    )


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


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with early exits."""
    changes = ["train.exits=true", "data.val_fraction=0.3", "method.feature_target=last"]
    return distilled(tmp_path_factory.mktemp("exits") / "run", *changes)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of another student on the same images."""
    return dskd.train(
        "resnet14",
        data={"name": "digits", "fraction": 0.1, "val_fraction": 0.3, "crop_padding": 1},
        train={"epochs": 1, "batch_size": 32},
        out=tmp_path_factory.mktemp("other") / "run",
    ).path


@pytest.fixture
def refused(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Refused:
    """The line with which ``dskd report RUN --beside ...`` refuses."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])

    def call(*beside: Path, reported: Path = run) -> str:
        flags = [part for path in beside for part in ("--beside", str(path))]
        page = tmp_path / "refused.html"
        with pytest.raises(SystemExit) as stopped:
            cli.main(["report", str(reported), "--out", str(page), *flags])
        out, err = capsys.readouterr()
        assert (stopped.value.code, out, page.exists()) == (2, "", False)
        (line,) = err.splitlines()
        return line.removeprefix("dskd: ")

    return call


def changed(run: Path, copy: Path, data: str | None = None, **changes: Any) -> Path:
    """A copy of a run with another fingerprint of its images, or other settings."""
    shutil.copytree(run, copy)
    recipe = yaml.safe_load((copy / "recipe.yaml").read_text())
    for key, value in changes.items():
        (recipe if key == "seed" else recipe["data"])[key] = value
    (copy / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    if data is not None:
        result = json.loads((copy / "result.json").read_text())
        result["fingerprints"]["data"] = data
        (copy / "result.json").write_text(json.dumps(result))
    return copy


@pytest.mark.slow
def test_the_report_of_a_run_with_exits_has_their_section(run: Path, tmp_path: Path) -> None:
    text = reported([run], tmp_path / "report.html").read_text()
    assert '<section id="exits">' in text
    assert '<a href="#exits">' in text
    assert "<h3>Policies</h3>" in text
    assert "Other students" not in text
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


@pytest.mark.slow
def test_a_report_shows_other_students_beside_the_exits(
    run: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dskd.deploy.latency.SECONDS", 0.0)
    again = changed(other, tmp_path / "again", seed=7)
    page = tmp_path / "page.html"
    flags = ["--out", page, "--beside", other, "--beside", again]
    with pytest.raises(SystemExit) as stopped:
        cli.main(["report", *map(str, [run, *flags])])
    assert stopped.value.code == 0
    text = page.read_text()
    assert "<h3>Other students</h3>" in text
    assert "resnet14, seed 7" in text
    early = json.loads(page.with_suffix(".json").read_text())["early_exits"]
    accuracy = json.loads((other / "result.json").read_text())["test_accuracy"]
    shown = [(str(other), 0), (str(again), 7)]
    assert [(one["run"], one["seed"]) for one in early["others"]] == shown
    for one in early["others"]:
        assert (one["student"], one["method"]) == ("resnet14", "ce")
        assert one["accuracy"] == pytest.approx(accuracy, abs=0.01)
        assert one["multiply_adds"] > early["found"]["multiply_adds"]
        assert one["latency"] > 0
    make_report([run], page, beside=[other])
    assert "resnet14, seed 7" not in page.read_text()


@pytest.mark.slow
def test_a_run_beside_that_cannot_be_shown_is_refused(
    other: Path, tmp_path: Path, refused: Refused
) -> None:
    gone, empty, comparison = (tmp_path / name for name in ("gone", "empty", "compared"))
    empty.mkdir()
    comparison.mkdir()
    (comparison / "comparison.json").touch()
    names = "stopped", "failed", "lost", "graphs"
    stopped, failed, lost, graphs = (changed(other, tmp_path / name) for name in names)
    for folder in (stopped, failed):
        (folder / "result.json").unlink()
    (failed / "failed.txt").write_text("the loss is not finite")
    (lost / "student.safetensors").unlink()
    plain = RECIPES.load("generated", []).plain()
    (graphs / "recipe.yaml").write_text(yaml.safe_dump(plain))
    for beside, line in (
        (gone, f"there is no run {gone}; check the path"),
        (
            empty,
            f"{empty} holds neither a run nor a comparison; give folders that `dskd train`, "
            "`distill` or `compare` wrote",
        ),
        (comparison, f"{comparison} is a comparison; give the folder of one of its runs"),
        (
            stopped,
            f"{stopped} is no finished run: not finished, 1 of 1 epochs are done; give one that is",
        ),
        (failed, f"{failed} is no finished run: the loss is not finite; give one that is"),
        (
            graphs,
            f"{graphs} is a run of `dskd graphs`; only a student of images can be shown beside "
            "early exits",
        ),
    ):
        assert refused(beside) == line
    assert "student.safetensors is gone; remove" in refused(lost)


@pytest.mark.slow
def test_a_run_beside_on_other_images_is_refused(
    run: Path, other: Path, tmp_path: Path, refused: Refused
) -> None:
    images = changed(other, tmp_path / "images", data="0" * 64)
    split = changed(other, tmp_path / "split", data="0" * 64, val_fraction=0.2)
    classes = changed(other, tmp_path / "classes")
    student = classes / "student.safetensors"
    student.write_bytes(student.read_bytes().replace(b'\\"9\\"', b'\\"8\\"'))
    fix = f"give a student that was trained on those of {run}"
    assert refused(images) == f"{run} and {images} used different images; {fix}"
    assert refused(classes) == f"{run} and {classes} used different images; {fix}"
    assert refused(split) == (
        f"{run} and {split} used different images: data.val_fraction is 0.3 there, 0.2 here; {fix}"
    )


@pytest.mark.slow
def test_a_run_beside_is_refused_twice_and_without_exits(
    run: Path, other: Path, tmp_path: Path, refused: Refused
) -> None:
    copied = changed(other, tmp_path / "copied")
    assert refused(other, copied) == f"{other} and {copied} are the same run; give it once"
    assert refused(run) == f"{run} and {run} are the same run; give it once"
    assert refused(run, reported=other) == (
        f"no reported run kept early exits to show {run} beside; report a run that was trained "
        "with train.exits=true"
    )
    with pytest.raises(InputError, match=r'trained with train=\{"exits": True\}$'):
        make_report([other], tmp_path / "x.html", beside=[run])


@pytest.mark.parametrize("task", ["graphs", "segment"])
def test_no_other_task_shows_runs_beside(task: str) -> None:
    group = cli.cli.commands[task]
    assert isinstance(group, click.Group)
    assert "beside" not in {option.name for option in group.commands["report"].params}
    assert "beside" in {option.name for option in cli.cli.commands["report"].params}
