"""Commands without a recipe: options for models and data, and the file that they stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from dskd.cli import commands as cli
from dskd.config.recipe import Composed
from dskd.config.schema import Recipe
from dskd.engine import run
from tests.data.file_writers import write_folder

QUICK = ["train.batch_size=4", "train.device=cpu", "data.size=32"]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Class folders without a split, in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DSKD_CACHE", str(tmp_path / "cache"))
    write_folder(tmp_path / "all", per_class=10)
    (tmp_path / "all/train").rename(tmp_path / "photos")
    return "photos/"


def call(*arguments: str) -> object:
    with pytest.raises(SystemExit) as stopped:
        cli.main(list(arguments))
    return stopped.value.code


@pytest.mark.slow
def test_a_bare_folder_of_photos_is_distilled(
    photos: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    models = ["--teacher", "timm/test_resnet", "--student", "timm/test_efficientnet"]
    parts = ["--data", photos, *models, "--epochs", "1"]
    assert call("distill", *parts, "--out", "first", *QUICK) == 0
    assert "run saved in first" in capsys.readouterr().out
    (chosen,) = [line for line in caplog.messages if line.startswith("chosen: ")]
    assert "data.test_split=0.2" in chosen
    assert "train.schedule=cosine" in chosen
    for name in models[1::2]:
        assert f"{name}: these stages are chosen" in caplog.text
    assert "6 of the 30 " in caplog.text
    assert call("evaluate", "first") == 0
    assert call("init", *parts, *QUICK, "--out", "mine.yaml") == 0
    assert call("distill", "mine.yaml", "out=second") == 0
    first = (tmp_path / "first/student.safetensors").read_bytes()
    assert (tmp_path / "second/student.safetensors").read_bytes() == first


@pytest.mark.slow
def test_train_and_compare_take_the_same_options(
    photos: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    alone = ["--data", photos, "--student", "resnet8", "--epochs", "1", *QUICK]
    assert call("train", *alone) == 0
    assert (tmp_path / "runs/resnet8-photos/ce-seed0/result.json").is_file()
    both = [*alone, "--teacher", "resnet8", "--methods", "ce,kd", "--seeds", "1"]
    assert call("compare", *both) == 0
    assert (tmp_path / "runs/compare/resnet8-resnet8-photos/comparison.json").is_file()
    assert len([line for line in caplog.messages if line.startswith("chosen: ")]) == 2


@pytest.fixture
def recipes(monkeypatch: pytest.MonkeyPatch) -> list[Recipe]:
    """The recipes of runs, which are not trained."""
    seen: list[Recipe] = []

    def note(recipe: Recipe, **_: Any) -> None:
        seen.append(recipe)

    monkeypatch.setattr(run, "distill", note)
    monkeypatch.setattr("dskd.cli.training.print_result", lambda _: None)
    return seen


def test_options_change_a_recipe_and_settings_come_last(recipes: list[Recipe]) -> None:
    options = ["--method", "kd", "--epochs", "2", "--student", "resnet14", "--out", "there"]
    assert call("distill", "digits", *options, "train.epochs=2", "student={name: resnet14}") == 0
    (recipe,) = recipes
    assert (recipe.method.name, recipe.student.name) == ("kd", "resnet14")
    assert (recipe.train.epochs, recipe.out) == (2, Path("there"))
    assert recipe.data.crop_padding == 1, "the recipe's"


@pytest.mark.parametrize("place", [0, 1])
def test_a_recipe_may_stand_behind_the_options(recipes: list[Recipe], place: int) -> None:
    arguments = ["--epochs", "2", "--method", "kd"]
    arguments.insert(2 * place, "digits")
    assert call("distill", *arguments) == 0
    assert recipes[0].data.name == "digits"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["distill"], "without a recipe, student and data are needed: give --student"),
        (["distill"], "and --data photos/, or a recipe such as digits"),
        (["train", "--student", "resnet8"], "give --data photos/"),
        (["distill", "."], ". is a folder and no recipe; for data, give --data ."),
        (["train", "--data", "pohtos", "--student", "resnet8"], "no folder or file 'pohtos' here"),
        (["distill", "--data", "digits", "--student", "resnet8"], "needs a teacher; give one"),
        (["distill", "--data", "gone/", "--student", "resnet8"], "data: gone is not there"),
        (["distill", "--data", "digits", "--student", "resnet8", "--epochs", "0"], "--epochs"),
        (["train", "digits", "--teacher", "resnet8"], "--teacher"),
        (["init", "digits", "--out", "x.json"], "x.json needs the suffix .yaml"),
        (["compare", "--data", "digits", "--student", "resnet8"], "needs a teacher"),
        (
            ["distill", "digits", "--epochs", "5", "train.epochs=10"],
            "--epochs 5 and train.epochs=10 contradict each other; give one of them",
        ),
        (["check", "digits", "--exits", "train.exits=false"], "--exits and train.exits=false con"),
        (
            ["graphs", "train", "generated", "--epochs", "5", "train.epochs=10"],
            "--epochs 5 and train.epochs=10 contradict",
        ),
        (["segment", "demo", "--out", "."], "a folder of its own; name it, as in --out demo"),
    ],
)
def test_what_cannot_be_used_is_one_line(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(*arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not list(tmp_path.iterdir())


def test_init_prints_how_to_run_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    parts = ["--data", "digits", "--student", "resnet8", "--teacher", "resnet20", "--method", "kd"]
    assert call("init", *parts) == 0
    name = "resnet8-resnet20-digits.yaml"
    assert capsys.readouterr().out == f"{name}  (run it with: dskd distill {name})\n"
    assert yaml.safe_load((tmp_path / name).read_text()) == {
        "data": {"name": "digits"},
        "student": {"name": "resnet8"},
        "teacher": {"name": "resnet20"},
        "method": {"name": "kd"},
        "train": {"epochs": 240},
        "seed": 0,
    }


def test_init_and_check_take_the_options_of_distill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("init", "digits", "--exits", "--out", "mine.yaml") == 0
    assert yaml.safe_load((tmp_path / "mine.yaml").read_text())["train"]["exits"] is True
    options = {
        name: {one.name for one in cli.cli.commands[name].params}
        for name in ("distill", "check", "init")
    }
    assert options["distill"] - options["check"] == {"resume", "overwrite"}
    assert options["distill"] - options["init"] == {"resume", "overwrite", "allow_code"}


def test_a_composed_recipe_without_choices_says_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    values = {"data": {"name": "digits"}, "student": {"name": "resnet8"}, "method": {"name": "ce"}}
    assert Composed(values, Path("runs")).resolved().student.name == "resnet8"
    assert capsys.readouterr().err == ""
