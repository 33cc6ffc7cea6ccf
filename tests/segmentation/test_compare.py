"""Comparisons of segmentation: runs equal to those made alone, and a table of Dice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from dskd.cli.commands import cli
from dskd.compare import grid
from dskd.compare.reader import read_comparison
from dskd.compare.runner import run_grid
from dskd.engine.run import run_job
from dskd.engine.tasks.segmentation.job import SegmentationJob
from dskd.engine.tasks.segmentation.recipe import RECIPES
from dskd.engine.tasks.segmentation.sources import load_images
from dskd.engine.tasks.segmentation.student import evaluate
from dskd.errors import InputError
from dskd.report.build import make_report
from tests.compare.small_comparison import Here, Silent

TINY = ["data.size=16", "student.width=2", "train.epochs=1", "train.lr=0.01"]
TEACHER = "teacher.width=2"


@pytest.mark.slow
def test_a_comparison_has_the_runs_that_are_made_alone(tmp_path: Path) -> None:
    out = tmp_path / "compared"
    methods = "masks,mixed:kl=0,kd,dskd"
    arguments = [
        "segment",
        "compare",
        "shapes",
        *TINY,
        TEACHER,
        "--methods",
        methods,
        "--seeds",
        "1",
    ]
    found = CliRunner().invoke(cli, [*arguments, "--out", str(out)])
    assert found.exit_code == 0, found.output
    assert "Dice" in found.output
    assert "vs. masks" in found.output
    comparison = read_comparison(out)
    labels = [variant.label for variant in comparison.variants]
    assert labels == methods.split(",")
    assert all(variant.results for variant in comparison.variants)
    alone = tmp_path / "alone"
    changes = [*TINY, "method.name=mixed", "method.kl=0", f"out={alone}"]
    run_job(SegmentationJob(RECIPES.load("shapes", changes)))
    name = "student.safetensors"
    assert (out / "mixed+kl=0/seed0" / name).read_bytes() == (alone / name).read_bytes()
    again = CliRunner().invoke(cli, [*arguments, "--out", str(out)])
    assert again.exit_code == 0, again.output
    _check_report(out)
    _check_jobs(out, tmp_path / "jobs")


def _check_jobs(compared: Path, out: Path) -> None:
    """A comparison in jobs, of which one trains the teacher, has the same student."""
    plan = grid.plan(RECIPES.load_shared("shapes", [*TINY, TEACHER]), ["kd"], out, seeds=1)
    (kd,) = run_grid(plan, Silent(), launcher=Here(1)).variants
    assert kd.results
    name = "kd/seed0/student.safetensors"
    assert (out / name).read_bytes() == (compared / name).read_bytes()


def _check_report(compared: Path) -> None:
    """The report draws the predictions, and scores the classes as `dskd segment evaluate` does."""
    found = CliRunner().invoke(cli, ["segment", "report", str(compared)])
    assert found.exit_code == 0, found.output
    text = (compared / "report.html").read_text()
    assert text.count('<img src="data:image/png;base64,') == 4 * (2 + 4)  # image, mask, 4 methods
    assert "Test Dice over epochs" in text
    assert "test accuracy" not in text.lower()
    assert "multiply-adds" in text
    numbers = json.loads((compared / "report.json").read_text())
    rows = [
        (name, values) for label, name, values in numbers["class_scores"]["rows"] if label == "dskd"
    ]
    expected = evaluate(compared / "dskd/seed0")
    assert rows == [(one.name, [one.dice, one.hd95]) for one in expected]


@pytest.mark.slow
def test_each_seed_may_have_a_split_of_its_own(tmp_path: Path) -> None:
    recipe = RECIPES.load_shared("shapes", [*TINY, "data.split_seed=null"])
    plan = grid.plan(recipe, ["masks"], tmp_path / "here", seeds=2)
    (masks,) = run_grid(plan, Silent()).variants
    prints = [masks.results[seed]["fingerprints"]["data"] for seed in (0, 1)]
    fixed = [recipe.data.model_copy(update={"split_seed": seed}) for seed in (0, 1)]
    assert prints == [load_images(settings).fingerprint() for settings in fixed]
    assert prints[0] != prints[1]
    for seed in (0, 1):  # evaluated on the split of its run
        scores = evaluate(plan.path / f"masks/seed{seed}", "last")
        found = sum(score.dice for score in scores) / len(scores)
        assert found == pytest.approx(masks.results[seed]["test_accuracy"], abs=1e-3)
    in_jobs = grid.plan(recipe, ["masks"], tmp_path / "jobs", seeds=2)
    run_grid(in_jobs, Silent(), launcher=Here(2))
    for seed in (0, 1):
        name = f"masks/seed{seed}/student.safetensors"
        assert (in_jobs.path / name).read_bytes() == (plan.path / name).read_bytes()
    make_report([plan.path])
    others = [plan.path / "masks/seed0", tmp_path / "kl/seed1"]
    changes = [*TINY, "data.split_seed=null", "method.kl=0", "seed=1", f"out={others[1]}"]
    run_job(SegmentationJob(RECIPES.load("shapes", changes)))
    make_report(others, tmp_path / "both.html")  # their patients differ: one of them is measured
    scores = json.loads((tmp_path / "both.json").read_text())["class_scores"]
    assert len({label for label, *_ in scores["rows"]}) == 1
    learning = grid.plan(recipe, ["masks,kd"], tmp_path / "x", seeds=2)
    with pytest.raises(InputError, match="kd learns from a teacher, which would know test data"):
        run_grid(learning, Silent())
    assert not learning.path.exists()


def test_a_comparison_names_its_folder_by_an_option() -> None:
    with pytest.raises(InputError, match="out has no effect on a comparison"):
        RECIPES.load_shared("shapes", ["out=x"])
