"""Runs of segmentation: whole, resumed to the byte, from a teacher, and refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import dskd
from dskd.cli.commands import cli
from dskd.compare.grid import plan
from dskd.config.overrides import overridden
from dskd.engine.result import Result
from dskd.engine.run import run_job
from dskd.engine.tasks.segmentation.job import SegmentationJob, freeze
from dskd.engine.tasks.segmentation.recipe import RECIPES, data_settings
from dskd.engine.tasks.segmentation.sources import load_images
from dskd.engine.tasks.segmentation.student import evaluate, load_student
from dskd.engine.tasks.segmentation.unet import SegmentationModel
from dskd.engine.training_run import TrainingRun
from dskd.errors import InputError
from dskd.report.build import make_report
from dskd.storage.run_directory import RunDirectory
from tests.segmentation.test_folders import write

TINY = ["data.size=16", "student.width=2", "train.epochs=2", "train.lr=0.01"]


def run(out: Path, *changes: str, resume: bool = False) -> Result:
    recipe = RECIPES.load("shapes", [*TINY, *changes, f"out={out}"])
    return run_job(SegmentationJob(recipe), resume=resume)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixed") / "run"
    run(folder)
    return folder


@pytest.mark.slow
def test_a_run_records_dice_and_ships_b(mixed: Path) -> None:
    rows = RunDirectory(mixed).rows()
    assert [row["epoch"] for row in rows] == [1, 2]
    expected = {"loss/ce", "loss/seeds", "loss/kl", "loss/entropy", "masks/test_accuracy"}
    assert expected <= rows[0].keys()
    student = load_student(mixed)
    assert student.classes == ("background", "disc", "ring")
    assert {score.name for score in evaluate(mixed)} == {"disc", "ring"}
    with pytest.raises(InputError, match="unknown choice of weights 'Last'; did you mean 'last'"):
        load_student(mixed, "Last")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"there is no file nope\.png"):
        dskd.segment.predict(mixed, "nope.png")
    best = max(rows, key=lambda row: row["val_accuracy"])
    dice = [score.dice for score in evaluate(mixed, "best")]
    assert sum(dice) / 2 == pytest.approx(best["test_accuracy"], abs=1e-3)


@pytest.mark.slow
def test_bfloat16_is_close_to_float32(mixed: Path, tmp_path: Path) -> None:
    run(tmp_path / "run", "train.precision=bfloat16", "train.epochs=1")
    (found,), (expected, _) = RunDirectory(tmp_path / "run").rows(), RunDirectory(mixed).rows()
    for key in ("loss/ce", "loss/seeds", "loss/entropy"):
        assert found[key] == pytest.approx(expected[key], rel=0.05)
        assert found[key] != expected[key]


class Killed(BaseException):
    """A kill behind a checkpoint."""


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bytes(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is killed within an epoch, after a step that was saved."""
    folder = tmp_path / "run"
    steps = TrainingRun.steps

    def killed(self: TrainingRun) -> Any:
        for number, row in enumerate(steps(self), 1):
            yield row
            if number == 5:
                self.save()
                raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(TrainingRun, "steps", killed)
        with pytest.raises(Killed):
            run(folder)
    assert not (folder / "result.json").exists()
    run(folder, resume=True)
    for name in ("student.safetensors", "student_best.safetensors", "auxiliary.safetensors"):
        assert (folder / name).read_bytes() == (mixed / name).read_bytes(), name


@pytest.mark.slow
@pytest.mark.parametrize(("method", "precision"), [("kd", "float32"), ("dskd", "bfloat16")])
def test_a_small_student_learns_from_a_teacher(tmp_path: Path, method: str, precision: str) -> None:
    changes = [f"method.name={method}", "teacher.width=3", f"train.precision={precision}"]
    result = run(tmp_path / "run", *changes, "train.epochs=1")
    assert result.teacher_accuracy is not None
    assert (tmp_path / "run" / "teacher" / "student.safetensors").is_file()
    checkpoint = f"teacher.checkpoint={tmp_path}/run/teacher/student.safetensors"
    again = run(tmp_path / "again", *changes, checkpoint, "train.epochs=1")
    first, second = (r.path / "student.safetensors" for r in (result, again))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.slow
def test_student_and_teacher_keep_the_normalisation_that_they_were_trained_with(
    tmp_path: Path,
) -> None:
    teacher = ("method.name=masks", "teacher=null", "student.width=3", "train.epochs=1")
    run(tmp_path / "teacher", *teacher, "data.normalize=image")
    weights = tmp_path / "teacher" / "student.safetensors"
    assert load_student(tmp_path / "teacher").model.by_image
    changes = ("method.name=kd", "teacher.width=3", f"teacher.checkpoint={weights}")
    recipe = RECIPES.load("shapes", [*TINY, *changes, f"out={tmp_path / 'run'}"])
    data = load_images(recipe.split_data)
    model = freeze(recipe, data, weights, torch.device("cpu")).model
    assert isinstance(model, SegmentationModel)
    assert model.by_image
    other = replace(data, classes=("background", "ring", "disc"))
    with pytest.raises(InputError, match=r"has the classes \['background', 'disc', 'ring'\], and"):
        freeze(recipe, other, weights, torch.device("cpu"))


@pytest.mark.slow
def test_masks_are_learned(tmp_path: Path) -> None:
    """A student that sees all masks finds the disc and the ring of other patients."""
    result = run(
        tmp_path / "run",
        *("method={name: masks, all_images: true}", "teacher=null", "data.size=32"),
        *("student.width=4", "student.dropout=0", "train.epochs=15"),
    )
    first = RunDirectory(result.path).rows()[0]["test_accuracy"]
    assert result.best_test_accuracy > max(30, 2 * first)


def invoke(*arguments: str | Path) -> Any:
    return CliRunner().invoke(cli, ["segment", *map(str, arguments)])


@pytest.mark.slow
def test_masks_are_predicted_at_the_size_of_the_image(mixed: Path, tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    Image.fromarray(np.full((20, 40), 90, np.uint8)).save(tmp_path / "scans" / "one.png")
    (tmp_path / "scans" / "bad.png").write_bytes(b"no image")
    out = tmp_path / "out"
    found = invoke("predict", mixed, tmp_path / "scans", "--out", out)
    assert found.exit_code == 0, found.output
    assert "1 damaged" in found.stderr
    mask = np.asarray(Image.open(out / "one_mask.png"))
    assert mask.shape == (20, 40)
    assert mask.max() <= 2
    assert Image.open(out / "one_overlay.png").size == (40, 20)
    nothing = invoke("predict", mixed, tmp_path / "nowhere", "--out", out)
    assert isinstance(nothing.exception, InputError)


@pytest.mark.slow
def test_commands_train_and_evaluate(tmp_path: Path) -> None:
    out = tmp_path / "run"
    trained = invoke("train", "shapes", *TINY[:2], "--epochs", "1", "--out", out)
    assert trained.exit_code == 0, trained.output
    assert "test Dice, last epoch, %" in trained.output
    evaluated = invoke("evaluate", out, "--last")
    assert evaluated.exit_code == 0, evaluated.output
    assert "disc" in evaluated.output
    again = invoke("train", "shapes", *TINY[:2], "--epochs", "1", "--out", out)
    assert isinstance(again.exception, InputError)
    assert "--overwrite" in str(again.exception) or "overwrite" in str(again.exception)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["method.name=mixd"], "unknown method 'segment/mixd'"),
        (
            ["method.name=kd", "teacher=null"],
            "the method 'kd' needs a teacher; give one, as in teacher.*width",
        ),
        (["teacher.width=64"], "'mixed' learns from no teacher; set method.*dskd.*, or drop it"),
        (["data.value_range=[0,499]"], "value_range is a setting of folder, not of shapes"),
        (["method.kl=-1"], "kl"),
        (["data.root=x"], "root is a setting of folder, not of shapes"),
        (["train.mixup=0.2"], "mixup is a setting of images"),
        (["data.patient=("], "regular expression"),
        (["data.name=folder"], "root is needed"),
        (["student.depth=3"], "depth"),
    ],
)
def test_faults_of_recipes_are_one_line(changes: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message.replace("(", r"\(")) as caught:
        RECIPES.load("shapes", changes)
    assert "\n" not in str(caught.value)


def test_training_by_masks_takes_no_method() -> None:
    with pytest.raises(InputError, match="has no effect on training by labels"):
        RECIPES.load_alone("shapes", ["method.name=mixed"])


def test_a_teacher_that_is_asked_for_is_not_dropped(tmp_path: Path) -> None:
    given: dict[str, Any] = {"recipe": "shapes", "out": tmp_path / "run"}
    with pytest.raises(InputError, match="teacher has no effect: the method 'mixed'"):
        dskd.segment.distill(teacher={"width": 64}, **given)
    assert RECIPES.load("shapes", ["teacher=null"]).teacher is None
    shared = RECIPES.load_shared("shapes", ["teacher.width=3"])
    assert shared.plain()["teacher"]["width"] == 3
    with pytest.raises(InputError, match=r"give one, as in teacher.*width"):
        plan(RECIPES.load("shapes", ["teacher=null"]), ["kd"], tmp_path / "compared", seeds=1)


@pytest.mark.slow
def test_images_that_changed_since_the_training_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scans, out = tmp_path / "scans", tmp_path / "run"
    for patient in range(8):
        write(scans, f"patient{patient}_1", size=(16, 16))
    data = ["data.name=folder", f"data.root={scans}", "data.patients=2", "method.name=masks"]
    run(out, *data, "data.size=16", "train.epochs=1")
    evaluate(out)
    assert "is not what it was" not in caplog.text
    write(scans, "patient9_1", size=(16, 16))
    evaluate(out)
    (line,) = [one for one in caplog.messages if "is not what it was" in one]
    assert "may have learned from what is the test split now" in line
    make_report([out], tmp_path / "report.html")
    assert "may have learned from what is the test split now" in (
        tmp_path / "report.html"
    ).read_text(encoding="utf-8")


def test_a_named_set_of_augmentations_replaces_those_of_the_recipe() -> None:
    values = {"data": {"name": "shapes", "flip": False, "rotate": 10, "size": 32}}
    recipe = RECIPES.resolve(
        overridden(values, ["data.augment=standard"], RECIPES.model), Path("runs")
    )
    assert (recipe.data.flip, recipe.data.rotate, recipe.data.size) == (None, None, 32)
    assert recipe.data.augmentation.flip


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run"):
        load_student(tmp_path)
    (tmp_path / "recipe.yaml").write_text("data: {name: digits}\n")
    with pytest.raises(InputError, match="a run of another task"):
        load_student(tmp_path)


def test_the_data_of_a_command_is_a_folder_or_shapes(tmp_path: Path) -> None:
    expected = ["data.name=folder", f"data.root={tmp_path}"]
    assert data_settings(str(tmp_path)) == expected
    assert data_settings(tmp_path) == expected
    assert data_settings("shapes") == ["data.name=shapes"]
    with pytest.raises(InputError, match="no such folder"):
        data_settings(Path("shapes"))  # a path is never the name of a data set
    with pytest.raises(InputError, match="no such folder"):
        data_settings(str(tmp_path / "nowhere"))
