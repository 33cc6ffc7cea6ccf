"""Comparisons on graphs: the runs are those of single commands, and the table fits the task."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dskd.cli.commands import run_command
from dskd.compare import grid
from dskd.compare.reader import read_comparison
from dskd.compare.runner import run_grid
from dskd.compare.summary import summarize
from dskd.compare.table import notes, summary_table
from dskd.config.overrides import overridden
from dskd.engine.tasks.graphs.recipe import RECIPES
from dskd.engine.tasks.graphs.sources import load_graphs
from dskd.engine.tasks.graphs.student import evaluate
from dskd.errors import InputError
from dskd.report.build import make_report
from tests.compare.small_comparison import Here, Silent
from tests.graphs.small_graphs import OF_TEACHER, SMALL, arrays, write

NAMES = "alone,alignahead,alignahead++:features=0,dskd"


def command(graph: Path, out: Path, seeds: int, *changes: str) -> list[str]:
    data = ["data.name=npz", f"data.root={graph}"]
    options = ["--methods", NAMES, "--seeds", str(seeds), "--out", str(out)]
    return ["graphs", "compare", *SMALL, *OF_TEACHER, *data, *changes, *options]


@pytest.fixture(scope="module")
def compared(graph: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compared") / "ring"
    for seeds in (1, 2):  # the second command extends the comparison
        assert run_command(command(graph, out, seeds)) == 0
    return out


def test_the_students_are_those_of_single_runs(compared: Path, finished: Path) -> None:
    name = "student.safetensors"
    for method in ("alone", "alignahead", "dskd"):
        own = compared / method / "seed0" / name
        assert own.read_bytes() == (finished / method / name).read_bytes()
    assert (compared / "alignahead+features=0/seed1/result.json").is_file()


def test_differences_are_paired_with_the_student_alone(compared: Path) -> None:
    comparison = read_comparison(compared)
    summaries = summarize(comparison.variants, comparison.test_images, comparison.baseline)
    assert comparison.baseline == "alone"
    assert [one.label for one in summaries] == NAMES.split(",")
    assert summaries[0].difference is None
    gaps = [
        after - before
        for after, before in zip(
            *(
                one.test_accuracy.values
                for one in (summaries[1], summaries[0])
                if one.test_accuracy
            ),
            strict=True,
        )
    ]
    assert summaries[1].difference is not None
    assert summaries[1].difference.interval.values == pytest.approx(gaps)
    names, rows = summary_table(summaries, baseline=comparison.baseline)
    assert "vs. alone" in names
    assert not any("kd" in name for name in names)
    assert len(rows) == 4
    assert not any("kd" in line.split() or "ARI" in line for line in notes(comparison, summaries))


def test_jobs_train_the_teacher_and_the_same_students(
    compared: Path, graph: Path, tmp_path: Path
) -> None:
    data = ["data.name=npz", f"data.root={graph}"]
    recipe = RECIPES.load_shared(None, [*SMALL, *OF_TEACHER, *data])
    plan = grid.plan(recipe, [NAMES], tmp_path / "jobs", seeds=1)
    launcher = Here(2)
    assert all(one.results for one in run_grid(plan, Silent(), launcher=launcher).variants)
    assert len(launcher.groups) == 2
    for folder in (*(one.folder for one in plan.variants), "teacher"):
        path = Path(folder, "" if folder == "teacher" else "seed0", "student.safetensors")
        assert (plan.path / path).read_bytes() == (compared / path).read_bytes()


def test_each_seed_may_have_a_split_of_its_own(tmp_path: Path) -> None:
    data = write(tmp_path / "ring.npz", train=None, val=None, test=None)
    few = ["data.train_per_class=3", "data.val_per_class=2", "data.split_seed=null"]
    recipe = RECIPES.load_shared(None, [*SMALL, "data.name=npz", f"data.root={data}", *few])
    plan = grid.plan(recipe, ["alone"], tmp_path / "here", seeds=2)
    (alone,) = run_grid(plan, Silent()).variants
    prints = [alone.results[seed]["fingerprints"]["data"] for seed in (0, 1)]
    fixed = [recipe.data.model_copy(update={"split_seed": seed}) for seed in (0, 1)]
    assert prints == [load_graphs(settings).fingerprint() for settings in fixed]
    assert prints[0] != prints[1]
    for seed in (0, 1):  # evaluated on the split of its run
        found = evaluate(plan.path / f"alone/seed{seed}").accuracy
        assert found == pytest.approx(alone.results[seed]["test_accuracy"], abs=1e-3)
    in_jobs = grid.plan(recipe, ["alone"], tmp_path / "jobs", seeds=2)
    run_grid(in_jobs, Silent(), launcher=Here(2))
    for seed in (0, 1):
        name = f"alone/seed{seed}/student.safetensors"
        assert (in_jobs.path / name).read_bytes() == (plan.path / name).read_bytes()
    later = grid.plan(recipe.changed(seed=2), ["alone"], plan.path, seeds=1)
    assert len(run_grid(later, Silent()).variants[0].results) == 3
    changed = {"features": 2 * arrays()["features"]}
    other = write(tmp_path / "other.npz", train=None, val=None, test=None, **changed)
    mixed = [*SMALL, "data.name=npz", f"data.root={other}", *few, "seed=3"]
    plan_of_others = grid.plan(RECIPES.load_shared(None, mixed), ["alone"], plan.path, seeds=1)
    with pytest.raises(InputError, match="a comparison on other images"):
        run_grid(plan_of_others, Silent())
    make_report([plan.path])
    make_report([plan.path / "alone/seed0", plan.path / "alone/seed1"], tmp_path / "both.html")


def test_a_teacher_of_one_split_is_refused_for_others(graph: Path, tmp_path: Path) -> None:
    data = ["data.name=generated", "data.split_seed=null"]
    recipe = RECIPES.load_shared(None, [*SMALL, *OF_TEACHER, *data])
    plan = grid.plan(recipe, ["alone,dskd"], tmp_path / "x", seeds=2)
    with pytest.raises(InputError, match="dskd learns from a teacher, which would know test data"):
        run_grid(plan, Silent())
    assert not plan.path.exists()


def test_another_graph_or_recipe_is_refused(
    compared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write(tmp_path / "other.npz", val=None)
    for graph, changes in ((other, []), (other, ["student.hidden=9"])):
        assert run_command(command(graph, compared, 2, *changes)) == 2
        assert "another folder" in capsys.readouterr().err


def test_the_weights_of_a_recipe_stay(graph: Path, tmp_path: Path) -> None:
    changes = [*SMALL, *OF_TEACHER, "data.name=npz", f"data.root={graph}"]
    method = {"name": "dskd", "ce": 2.0, "kd": 0.5, "beta": 3.0}
    recipe = RECIPES.resolve(overridden({"method": method}, changes, RECIPES.model), tmp_path)
    (variant,) = grid.plan(recipe, ["dskd"], tmp_path / "x", seeds=1).variants
    options = variant.method.options
    assert [options[key] for key in ("ce", "kd", "beta")] == [2.0, 0.5, 3.0]


def test_a_method_that_does_not_exist_is_named_by_its_short_name(
    graph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*command(graph, tmp_path / "x", 1), "--methods", "alignahaed"]
    assert run_command(words) == 2
    assert "alignahead" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_several_labels_are_compared_by_micro_f1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["data.name=generated-multilabel", "student.hidden=4", "train.epochs=1"]
    options = ["--methods", "alone,alignahead", "--seeds", "2", "--out", str(tmp_path / "x")]
    for _ in range(2):  # the second reads the results of the first
        assert run_command(["graphs", "compare", "ppi", *settings, *options]) == 0
        said = capsys.readouterr().out
        assert "test micro-F1, %" in said
        assert "accuracy" not in said
    rows = (tmp_path / "x/results.jsonl").read_text().splitlines()
    assert all("test_micro_f1" in row and "test_accuracy" not in row for row in rows)


def test_the_report_of_a_comparison_has_the_table_and_the_confused_classes(
    compared: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    assert run_command(["graphs", "report", str(compared), "--out", str(page)]) == 0
    numbers = json.loads(page.with_suffix(".json").read_text())
    assert sorted(row["method"] for row in numbers["methods"]) == sorted(NAMES.split(","))
    gaps = {row["method"]: row["difference_to_alone_seeds"] for row in numbers["methods"]}
    assert gaps["alone"] == []
    assert len(gaps["dskd"]) == 2
    rows = (json.loads(line) for line in (compared / "results.jsonl").read_text().splitlines())
    accuracies = {(row["label"], row["seed"]): row["test_accuracy"] for row in rows}
    expected = [accuracies["dskd", seed] - accuracies["alone", seed] for seed in (0, 1)]
    assert gaps["dskd"] == pytest.approx(expected)
    found = numbers["mistakes"]
    assert found["label"] == "dskd"
    assert sum(map(sum, found["matrix"])) == 12
    right = sum(row[number] for number, row in enumerate(found["matrix"]))
    assert 100 * right / 12 == pytest.approx(accuracies["dskd", 0], abs=1e-3)
    text = page.read_text()
    assert "12 test nodes" in text
    for absent in ("test images", "vs. kd", 'id="layers"', 'id="cost"', 'id="disagreements"'):
        assert absent not in text
    assert '<section id="stages">' in text  # of dskd


def test_the_report_of_a_run_with_several_labels_has_the_f1_score_of_each(tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = ["data.name=generated-multilabel", "student.hidden=4", "train.epochs=1"]
    assert run_command(["graphs", "train", "ppi", *settings, f"out={run}"]) == 0
    assert run_command(["report", str(run)]) == 0
    numbers = json.loads((run / "report.json").read_text())
    (row,) = numbers["methods"]
    scores = numbers["class_scores"]
    assert row["test_micro_f1"] == json.loads((run / "result.json").read_text())["test_micro_f1"]
    assert [name for _, name, _ in scores["rows"]] == [f"label {n}" for n in range(1, 6)]
    assert all(0 <= value <= 100 for _, _, (value,) in scores["rows"] if value is not None)
    assert "Test micro-F1 over epochs" in (run / "report.html").read_text()


def test_a_report_of_another_task_is_refused_in_one_line(
    compared: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in (compared, finished / "alone"):
        out = tmp_path / "page.html"
        assert run_command(["segment", "report", str(folder), "--out", str(out)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"dskd report {folder}" in line
        assert not out.exists()


def test_the_demo_takes_generated_graphs_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dskd.engine.tasks.graphs import sources

    def offline(*_: object) -> object:
        raise OSError("no network")

    monkeypatch.setattr(sources, "_read_published", offline)
    monkeypatch.setenv("DSKD_CACHE", str(tmp_path))
    assert run_command(["graphs", "demo", "--epochs", "1", "--out", str(tmp_path / "demo")]) == 0
    said = capsys.readouterr()
    assert "alignahead++" in said.out
    assert (tmp_path / "demo/comparison.json").is_file()
