"""The command line: every verb on a tiny run, and one line for whatever cannot be used."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import safetensors.torch
import torch
import yaml
from PIL import Image
from rich.console import Console

from dskd import methods
from dskd.cli import commands as cli
from dskd.cli import console, demo
from dskd.cli.listing import LISTS, Table
from dskd.config.recipe import shipped
from dskd.data.catalog import DATASETS
from dskd.engine import run
from dskd.models.catalog import ZOO
from dskd.models.zoo import build
from tests import processes
from tests.data.file_writers import write_cifar100, write_folder

VERBS = [
    "train",
    "distill",
    "check",
    "compare",
    "tune",
    "init",
    "evaluate",
    "predict",
    "export",
    "report",
    "list",
    "stages",
    "demo",
    "graphs",
    "segment",
]
TINY = ["data.fraction=0.1", "teacher.name=resnet8", "train.epochs=1", "train.batch_size=64"]
"""The digits on a diet: 130 images, 3 steps."""


class Outcome(NamedTuple):
    code: object
    out: str
    err: str


Command = Callable[..., Outcome]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs a command in this process, its log on stderr as in a process of its own."""

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(logging.getLogger(), "handlers", [])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main([str(argument) for argument in arguments])
        return Outcome(stopped.value.code, *capsys.readouterr())

    return call


@pytest.fixture
def refused(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Runs a command that must say what is wrong in one line and leave nothing; that line."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> str:
        before = sorted(tmp_path.rglob("*"))
        code, out, err = command(*arguments)
        assert (code, out, sorted(tmp_path.rglob("*"))) == (2, "", before), err
        assert re.fullmatch(r"dskd: [^\n]+\n", err), err
        assert len(err) < 600
        return err.removeprefix("dskd: ").rstrip("\n")

    return call


Refused = Callable[..., str]


def write_recipe(path: Path, root: Path, **sections: Any) -> Path:
    """A recipe of coloured images in folders: 12 of them, 3 steps an epoch."""
    recipe = {
        "data": {"name": "folder", "root": str(root), "size": 16},
        "student": {"name": "resnet8"},
        "teacher": {"name": "resnet14"},
        "train": {"epochs": 1, "batch_size": 4, "lr": 0.01},
    }
    path.write_text(yaml.safe_dump(recipe | sections))
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def finished(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished DSKD run on the coloured images, its teacher trained first."""
    top = tmp_path_factory.mktemp("finished")
    mine = write_recipe(top / "mine.yaml", images)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["distill", str(mine), f"data.cache_dir={top / 'cache'}", f"out={top / 'run'}"])
    assert stopped.value.code == 0
    return top / "run"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished student of the digits, by labels."""
    out = tmp_path_factory.mktemp("digits") / "run"
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", "digits", *(o for o in TINY if "teacher" not in o), f"out={out}"])
    assert stopped.value.code == 0
    return out


# ---- what works


def test_train_teaches_by_labels(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = command("train", "digits", "data.fraction=0.1", "train.epochs=1", "seed=3")
    assert code == 0
    saved = yaml.safe_load(Path("runs/digits/ce-seed3/recipe.yaml").read_text())
    assert (saved["method"]["name"], saved["teacher"], saved["seed"]) == ("ce", None, 3)
    assert out.splitlines()[-1] == "run saved in runs/digits/ce-seed3"
    assert "agreement" not in out


@pytest.mark.slow
def test_distill_trains_the_teacher_first_and_says_what_came_of_it(
    command: Command, images: Path, tmp_path: Path
) -> None:
    mine = write_recipe(tmp_path / "mine.yaml", images)
    code, out, err = command("distill", mine, f"out={tmp_path / 'run'}")
    assert code == 0
    assert f"training the teacher resnet14 first, in {tmp_path / 'run' / 'teacher'}" in err
    for words in ("accuracy, last epoch", "chosen on the test split", "agreement with the teacher"):
        assert words in out
    assert (tmp_path / "run/teacher/student.safetensors").is_file()


@pytest.mark.slow
def test_a_teacher_s_checkpoint_is_taken_as_it_is(
    command: Command, finished: Path, images: Path, tmp_path: Path
) -> None:
    mine = write_recipe(tmp_path / "mine.yaml", images)
    teacher = finished / "teacher/student.safetensors"
    overrides = [f"teacher.checkpoint={teacher}", "method.name=kd", "method.temperature=2"]
    code, _, err = command("distill", mine, *overrides, f"out={tmp_path / 'run'}")
    assert (code, "training the teacher" in err) == (0, False)
    assert not (tmp_path / "run/teacher").exists()


@pytest.mark.parametrize("flags", [[], ["--best"]])
def test_evaluate_gives_the_accuracy_of_the_run(
    command: Command, finished: Path, flags: list[str]
) -> None:
    result = yaml.safe_load((finished / "result.json").read_text())
    accuracy = result["best_test_accuracy" if flags else "test_accuracy"]
    code, out, err = command("evaluate", finished, *flags)
    assert (code, err) == (0, "")
    assert re.search(rf"^test accuracy, % +{accuracy:.2f}$", out, re.MULTILINE)


def test_evaluate_finds_images_that_have_moved(
    command: Command, finished: Path, images: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(images, tmp_path / "moved")
    run_there = shutil.copytree(finished, tmp_path / "run")
    recipe = yaml.safe_load((run_there / "recipe.yaml").read_text())
    recipe["data"]["root"] = str(tmp_path / "gone")
    (run_there / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert command("evaluate", run_there).code == 2
    assert command("evaluate", run_there, "--root", moved) == command("evaluate", finished)


def test_predict_names_what_is_in_images(command: Command, finished: Path, images: Path) -> None:
    paths = [images / "val/cat/0.png", images / "val/owl/1.png"]
    code, out, err = command("predict", finished, *paths, "--top", "2")
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()[1:]]
    assert [line[0] for line in lines] == [str(path) for path in paths for _ in range(2)]
    assert all(line[1] in ("cat", "dog", "owl") for line in lines)
    for first, second in (lines[:2], lines[2:]):
        assert float(first[2]) >= float(second[2]) >= 0


def test_predict_says_where_it_wrote_how_many_predictions(
    command: Command, finished: Path, images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "classes.csv"
    done = command("predict", finished, images / "val", "--out", out)
    rows = len(out.read_text().splitlines()) - 1
    assert rows > 1
    assert done == (0, f"predictions for {rows} images written to {out}\n", "")
    one = command("predict", finished, images / "val/cat/0.png", "--out", tmp_path / "one.json")
    assert one.out == f"predictions for 1 image written to {tmp_path / 'one.json'}\n"


def test_predict_shows_every_class_if_there_are_fewer_than_top(
    command: Command, finished: Path, images: Path
) -> None:
    out = command("predict", finished, images / "val/cat/0.png", "--top", "9").out
    chances = [float(line.split()[2]) for line in out.splitlines()[1:]]
    assert len(chances) == 3
    assert sum(chances) == pytest.approx(100, abs=0.02)


def test_a_student_of_gray_images_looks_at_coloured_ones(
    command: Command, digits: Path, tmp_path: Path
) -> None:
    path = tmp_path / "large.jpg"
    Image.new("RGB", (90, 60), (200, 30, 90)).save(path)
    code, out, _ = command("predict", digits, path)
    assert (code, len(out.splitlines())) == (0, 6)


@pytest.mark.slow
def test_export_says_where_and_how_exactly(
    command: Command, finished: Path, tmp_path: Path
) -> None:
    path = tmp_path / "a.onnx"
    code, out, err = command("export", finished, "--out", path, "--no-measure")
    assert (code, err) == (0, "")
    found = re.fullmatch(
        rf"{tmp_path}/a.onnx  \(largest relative difference from the student: (\S+)\)\n"
        rf"model card: {tmp_path}/a.onnx.md\n",
        out,
    )
    assert found
    assert float(found[1]) < 1e-4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "a.onnx.md"]


@pytest.mark.slow
def test_the_best_student_is_exported_under_its_own_name(
    command: Command, finished: Path, tmp_path: Path
) -> None:
    there = shutil.copytree(finished, tmp_path / "run")
    path = there / "export/student_best.onnx"
    assert command("export", there, "--best", "--no-measure").out.startswith(f"{path} ")
    assert command("distill", "digits", *TINY, f"out={there}", "--overwrite").code == 0
    assert not path.exists()


@pytest.fixture(scope="module")
def tables() -> dict[str, Table]:
    """What the lists hold; the models take a second to measure."""
    return {what: rows() for what, rows in LISTS.items()}


NAMES = {
    "models": [*ZOO, "timm/<name>", "torchvision/<name>", "transformers/<name>", "hf/<name>"],
    "methods": methods.names(),
    "recipes": shipped(),
    "datasets": list(DATASETS),
}


@pytest.mark.parametrize("what", list(LISTS))
def test_lists_outside_a_terminal_are_plain_and_whole(
    command: Command, tables: dict[str, Table], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    code, out, err = command("list", what)
    assert (code, err) == (0, "")
    header, *lines = out.splitlines()
    assert [line.split()[0] for line in lines] == NAMES[what]
    assert not header.startswith(" ")
    assert "\x1b" not in out
    assert "…" not in out
    columns, rows = tables[what]
    for line, row in zip(lines, rows, strict=True):
        assert all(cell in line for cell in row)
    assert all(column in header for column in columns)


@pytest.mark.parametrize("width", [40, 80])
@pytest.mark.parametrize("what", list(LISTS))
def test_tables_in_a_terminal_lose_nothing(
    capsys: pytest.CaptureFixture[str],
    tables: dict[str, Table],
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    width: int,
) -> None:
    monkeypatch.setattr(
        console, "Console", lambda **options: Console(force_terminal=True, width=width, **options)
    )
    columns, rows = tables[what]
    console.table(columns, rows)
    out = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert max(map(len, out.splitlines())) <= width
    letters = sorted(re.sub(r"[\s─]", "", out))
    assert letters == sorted(re.sub(r"\s", "", "".join([*columns, *map("".join, rows)])))


def test_a_terminal_shows_names_with_brackets_and_colons_as_they_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        console, "Console", lambda **options: Console(force_terminal=True, width=80, **options)
    )
    console.table(["image", "class"], [["[red]a[/red].png", ":cat:"], ["[/]", "1"]])
    out = capsys.readouterr().out
    assert all(cell in out for cell in ("[red]a[/red].png", ":cat:", "[/]"))


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_verb_explains_itself(command: Command, verb: str, flag: str) -> None:
    code, out, err = command(verb, flag)
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: dskd {verb}")


def test_help_names_every_verb_and_so_does_no_verb_at_all(command: Command) -> None:
    code, out, _ = command("--help")
    assert code == 0
    assert re.findall(r"^  ([a-z]+) {2,}\S", out, re.MULTILINE) == sorted(VERBS)
    assert command() == (0, out, "")


@pytest.mark.slow
def test_demo_compares_three_students_of_one_teacher(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_demo = demo.run_demo
    monkeypatch.setattr(demo, "run_demo", lambda out: run_demo(out, TINY))
    code, out, _ = command("demo", "--out", tmp_path / "demo")
    assert code == 0
    lines = out.splitlines()
    for line, label in zip(lines[1:5], ("teacher", "alone", "KD", "DSKD"), strict=True):
        assert label in line
        assert "77,754" in line
    assert lines[-1] == f"runs saved in {tmp_path / 'demo'}"
    assert {path.name for path in (tmp_path / "demo").iterdir()} == {"teacher", "ce", "kd", "dskd"}
    teachers = {
        yaml.safe_load((tmp_path / "demo" / name / "recipe.yaml").read_text())["teacher"][
            "checkpoint"
        ]
        for name in ("kd", "dskd")
    }
    assert teachers == {str(tmp_path / "demo/teacher/student.safetensors")}


def test_a_second_demo_leaves_the_first_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo-2").mkdir()
    seen: list[Path | None] = []

    def only_look(plan: Any, **_: object) -> None:
        seen.append(plan.out)
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "train", only_look)
    with pytest.raises(KeyboardInterrupt):
        demo.run_demo(tmp_path / "demo", TINY)
    assert seen == [tmp_path / "demo-3" / "teacher"]


# ---- in processes of their own


def shell(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "dskd", *map(str, arguments)]
    return subprocess.run(
        line, cwd=cwd, capture_output=True, text=True, env=os.environ | {"COLUMNS": "20"}
    )


@pytest.mark.slow
def test_a_process_refuses_in_one_line(tmp_path: Path) -> None:
    done = shell("distill", "digits", "train.epoch=3", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ("dskd: unknown setting 'train.epoch'; did you mean 'train.epochs'?\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_process_distils_and_prints_lines_where_there_is_no_terminal(tmp_path: Path) -> None:
    words = ["-m", "dskd", "distill", "digits", *TINY, "out=run"]
    done = processes.run(words, folder=tmp_path, environment=os.environ | {"COLUMNS": "20"})
    assert done.returncode == 0, done.stderr
    twin, first, *teachers, accuracy, student = done.stderr.splitlines()
    assert twin.startswith("the teacher that is trained first is a twin of the student: ")
    assert first == "training the teacher resnet8 first, in run/teacher"
    assert [line.partition(":")[0] for line in teachers] == [
        f"ce resnet8, epoch {epoch}/20" for epoch in range(1, 21)
    ]
    assert accuracy.startswith("the teacher resnet8 has a test accuracy of ")
    assert accuracy.endswith(" % (500 images)")
    assert student.startswith("dskd resnet8, epoch 1/1: loss ")
    assert done.stdout.splitlines()[-1] == "run saved in run"
    assert "test accuracy, best epoch (1, chosen on the test split), %" in done.stdout


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    line = f"{sys.executable} -m dskd list datasets | true"
    done = subprocess.run(line, shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_are_no_error(tmp_path: Path, closed: str) -> None:
    line = f"{sys.executable} -m dskd list methods {closed}"
    done = subprocess.run(line, shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert ("dskd" in done.stdout) is (">&-" not in closed.split())


@pytest.mark.parametrize("verb", ["graphs", "segment"])
def test_a_task_alone_prints_its_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([verb])
    assert not ended.value.code
    printed = capsys.readouterr()
    assert "distill" in printed.out
    assert len(printed.out.splitlines()) > 10
    assert not printed.err


# ---- what cannot be used


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], ["'trian'", "'train'", "dskd --help"]),
        (["train"], ["--student", "recipe"]),
        (["train", "digits", "--resum"], ["'--resum'", "'--resume'"]),
        (["list", "model"], ["'model'", "'models'"]),
        (["export", "x", "--format", "onx"], ["'onx'", "'onnx'"]),
        (["predict", "x"], ["IMAGE"]),
        (["predict", "x", "y", "--top", "0"], ["--top", "0"]),
        (["train", "digtis"], ["'digtis'", "did you mean 'digits'?"]),
        (["distill", "digits.yml"], ["digits.yml", "No such file"]),
        (["distill", "digits", "train.epochs"], ["'train.epochs'", "train.epochs=10"]),
        (["distill", "digits", "=3"], ["'=3'", "key=value"]),
        (["distill", "train.epochs=10", "digits"], ["'digits'", "the recipe", "before"]),
        (
            ["distill", "digits", "--method", "dskd:beta=3:gamma=1"],
            ["stand apart", "method.name=dskd method.beta=3 method.gamma=1"],
        ),
        (["distill", "digits", "teacher.checkpoint=."], [". is a folder", "student.safetensors"]),
        (["segment", "train", "shapes", "data.patient=x"], ["data: patient", "of folder"]),
        (["distill", "digits", "trian.lr=1"], ["'trian'", "'train'"]),
        (["distill", "digits", "method.temprature=1"], ["'method.temperature'"]),
        (["distill", "digits", "temperature=1"], ["'method.temperature'"]),
        (["distill", "digits", "method.name=dksd"], ["'dksd'", "'dskd'"]),
        (["distill", "digits", "method.name=kd", "method.beta=1"], ["'method.beta'"]),
        (["distill", "digits", "method.preset=papr"], ["'papr'", "'paper'"]),
        (["distill", "digits", "data.name=digts"], ["'digts'", "'digits'"]),
        (["distill", "digits", "data.name=folder"], ["data.root"]),
        (["distill", "digits", "data.name=cifar100", "data.root=gone"], ["gone", "data.root"]),
        (["distill", "digits", "data.classes=11"], ["11", "10"]),
        (["distill", "digits", "data.classes=[1,x]"], ["'x'", "known: 0, 1, 2"]),
        (["distill", "digits", "student.name=resnet9"], ["'resnet9'", "'resnet8'"]),
        (["distill", "digits", "student.stages=[layer1,layer9]"], ["'layer9'", "layer1, layer2"]),
        (["distill", "digits", "teacher.stages=[layr2]"], ["'layr2'", "'layer2'"]),
        (["distill", "digits", "student.stages=[layer1]"], ["student.stages=[a,b]", "layer1"]),
        (["distill", "digits", "student.mean=[0.5,0.5]", "student.std=[1,1]"], ["2", "1"]),
        (["distill", "digits", "method.supervise=[3]"], ["[3]", "1 to 2"]),
        (["distill", "digits", "method.deep_loss=dk"], ["'dk'", "'dkd'"]),
        (["distill", "digits", "teacher=null"], ["needs a teacher", "teacher.name"]),
        (["distill", "digits", "teacher.checkpoint=gone.pth"], ["gone.pth"]),
        (["distill", "digits", "train.epochs=[1"], ["train.epochs", "'[1'", "whole number"]),
        (["distill", "digits", "student.stages=[1"], ["student.stages", "'[1'", "not YAML"]),
        (["distill", "digits", "--resume", "--overwrite"], ["--resume", "--overwrite"]),
        (["distill", "digits", "out="], ["out", "a path is needed"]),
        (["train", "digits", "method.name=kd"], ["method.name", "dskd distill digits"]),
        (["evaluate", "gone"], ["gone", "no run"]),
        (["predict", "gone", "a.png"], ["gone", "no run"]),
        (["export", "gone"], ["gone", "no run"]),
        (["distill", "digits", "train.lr=1e39"], ["train.lr", "1000000"]),
        (["distill", "digits", "teacher.lr=1e39"], ["teacher.lr", "1000000"]),
        (["demo", "--out", "."], ["folder of its own", "--out demo"]),
        (["demo", "--out", "/"], ["folder of its own", "--out /demo"]),
        (["demo", "--out", "a/.."], ["folder of its own", "--out a/../demo"]),
    ],
    ids=repr,
)
def test_the_error_of_a_wrong_word_suggests_the_right_one(
    refused: Refused, arguments: list[str], words: list[str]
) -> None:
    line = refused(*arguments)
    assert all(word in line for word in words), line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["Is a directory"]),
        (bytes(range(256)), ["not text"]),
        (b"data: {name: [}", ["not YAML", "line 1"]),
        (b"- 1\n- 2", ["[1, 2]", "settings"]),
        (b"", ["settings"]),
        (b"[" * 3000, ["nested too deeply"]),
        (b"data: {name: digits}\nstudent: {name: a}\nseed: 2020-13-45", ["seed", "2020-13-45"]),
        (b"seed: !!python/object/apply:os.getcwd []", ["could not determine a constructor"]),
        (b"data: {name: digits}", ["student is missing"]),
        (b"data: {name: digits}\nstudnet: {name: resnet8}", ["'studnet'", "'student'"]),
        (b"data: {name: digits}\nstudent: {name: resnet8}\n1: 2", ["text"]),
        (b"data: {nam: digits}\nstudent: {name: resnet8}", ["data.name"]),
    ],
)
def test_a_recipe_that_is_none(
    refused: Refused, tmp_path: Path, content: bytes | None, words: list[str]
) -> None:
    path = tmp_path / "mine.yaml"
    path.mkdir() if content is None else path.write_bytes(content)
    line = refused("distill", path)
    assert all(word in line for word in words), line


def test_damaged_images_are_named(refused: Refused, tmp_path: Path) -> None:
    root = write_folder(tmp_path / "images")
    mine = write_recipe(tmp_path / "mine.yaml", root)
    broken = root / "train/dog/1.png"
    broken.write_bytes(broken.read_bytes()[:200])
    assert str(broken) in refused("distill", mine)
    broken.write_text("no image")
    assert str(broken) in refused("train", mine)
    shutil.rmtree(root / "train/owl")
    (root / "train/owl").mkdir()
    line = refused("distill", mine)
    assert str(root / "train/owl") in line
    assert "no image" in line


def test_truncated_files_and_labels_out_of_range(refused: Refused, tmp_path: Path) -> None:
    folder = write_cifar100(tmp_path)
    arguments = ["distill", "cifar100/resnet56-resnet20", f"data.root={tmp_path}"]
    whole = (folder / "train").read_bytes()
    (folder / "train").write_bytes(whole[: len(whole) // 2])
    assert str(folder / "train") in refused(*arguments)
    more = write_cifar100(tmp_path / "more", classes=6)
    (folder / "train").write_bytes((more / "train").read_bytes())
    line = refused(*arguments)
    assert all(word in line for word in (str(folder / "train"), "0 to 5", "4 class names")), line
    (folder / "train").unlink()
    assert str(folder / "train") in refused(*arguments)


def test_a_teacher_that_does_not_fit(refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "teacher.pth"
    torch.save(build("resnet8", num_classes=7, in_channels=1).state_dict(), path)
    line = refused("distill", "digits", *TINY, f"teacher.checkpoint={path}", "method={name: kd}")
    assert all(word in line for word in ("7 classes", "10", "teacher.head=fit")), line
    torch.save(build("resnet14", num_classes=10, in_channels=1).state_dict(), path)
    assert "keys left over" in refused("distill", "digits", *TINY, f"teacher.checkpoint={path}")
    torch.save({"run": print}, path)
    line = refused("distill", "digits", *TINY, f"teacher.checkpoint={path}")
    assert "print" in line
    assert str(path) in line
    path.write_bytes(b"nothing of the kind")
    assert str(path) in refused("distill", "digits", *TINY, f"teacher.checkpoint={path}")


def test_an_output_folder_that_is_taken(refused: Refused, tmp_path: Path, digits: Path) -> None:
    there = shutil.copytree(digits, tmp_path / "run")
    for word in ("--resume", "--overwrite", "--out FOLDER"):
        assert word in refused("train", "digits", f"out={there}")
    changed = ["data.fraction=0.1", "train.epochs=2", "train.batch_size=64", f"out={there}"]
    line = refused("train", "digits", *changed, "--resume")
    assert "cannot go on to train.epochs=2: the schedule 'cosine' depends on the number" in line
    changed[1] = "train.epochs=1"
    line = refused("train", "digits", *changed, "train.lr=0.02", "--resume")
    assert re.search(r"another recipe: train\.lr is [0-9.]+ there, 0\.02 here", line)
    assert "dskd evaluate" in refused("train", "digits", *changed, "--resume")
    (there / "recipe.yaml").write_text("[")
    assert "not YAML" in refused("train", "digits", *changed, "--resume")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/letter.txt").write_text("dear")
    for flags in ([], ["--resume"], ["--overwrite"]):
        assert "other files" in refused("train", "digits", f"out={tmp_path / 'other'}", *flags)
    for path in ("other/letter.txt", "other/letter.txt/run"):
        line = refused("train", "digits", f"out={tmp_path / path}")
        assert f"{tmp_path / 'other/letter.txt'} is a file" in line


def test_an_output_folder_that_cannot_be_written(
    refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "TemporaryFile", read_only)
        line = refused("train", "digits", "out=a/b")
        assert f"cannot write to {tmp_path}: Read-only file system, 4,096 bytes" in line

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "a/b/metrics.jsonl")

    monkeypatch.setattr(run, "train", full)
    line = refused("train", "digits")
    assert line == "cannot read or write a/b/metrics.jsonl: No space left on device"


def test_a_gpu_that_is_too_small(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    def large(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(run, "train", large)
    assert "train.batch_size" in refused("train", "digits")


@pytest.mark.parametrize("verb", ["evaluate", "predict", "export"])
def test_a_folder_that_holds_no_finished_run(
    refused: Refused, finished: Path, tmp_path: Path, verb: str
) -> None:
    there = shutil.copytree(finished, tmp_path / "run")
    more = ["a.png"] if verb == "predict" else []
    student = there / "student.safetensors"
    whole = student.read_bytes()
    student.unlink()
    result = there / "result.json"
    line = refused(verb, there, *more)
    assert f"{student} is gone; remove {result}; then, to have it written again, `dskd di" in line
    numbers = result.read_bytes()
    result.unlink()
    assert f"is not finished; to continue it, `dskd distill {there}" in refused(verb, there, *more)
    student.write_bytes(whole)  # of fewer epochs: the run is taking more
    assert f"is not finished; to continue it, `dskd distill {there}" in refused(verb, there, *more)
    result.write_bytes(numbers)
    for damaged in (whole[: len(whole) // 2], b"", bytes(100)):
        student.write_bytes(damaged)
        assert str(student) in refused(verb, there, *more)
    tensors = safetensors.torch.load(whole)
    for metadata in (None, {"dskd": "[]"}, {"dskd": '{"model": 5}'}, {"dskd": "{"}):
        student.write_bytes(safetensors.torch.save(tensors, metadata))
        assert str(student) in refused(verb, there, *more)


def test_evaluate_without_the_recipe_or_its_images(
    refused: Refused, finished: Path, tmp_path: Path
) -> None:
    there = shutil.copytree(finished, tmp_path / "run")
    other = write_folder(tmp_path / "other", classes=("ant", "bee", "fly"))
    line = refused("evaluate", there, "--root", other)
    assert all(word in line for word in ("'ant'", "'cat'", "--root")), line
    assert "gone" in refused("evaluate", there, "--root", "gone")
    for content in ("[", "5", "data: 5", "student: {name: resnet8}"):
        (there / "recipe.yaml").write_text(content)
        line = refused("evaluate", there)
        assert "recipe.yaml" in line or "data" in line, line
    (there / "recipe.yaml").unlink()
    assert str(there / "recipe.yaml") in refused("evaluate", there)


def test_predict_on_what_is_no_image(refused: Refused, finished: Path, tmp_path: Path) -> None:
    assert "gone.png" in refused("predict", finished, tmp_path / "gone.png")
    (tmp_path / "text.png").write_text("no image")
    assert "text.png" in refused("predict", finished, tmp_path / "text.png")
    assert str(tmp_path) in refused("predict", finished, tmp_path)


def test_export_to_where_nothing_can_be_written(
    refused: Refused, finished: Path, tmp_path: Path
) -> None:
    assert "gone" in refused("export", finished, "--out", tmp_path / "gone/a.onnx")
    (tmp_path / "folder").mkdir()
    assert "is a folder" in refused("export", finished, "--out", tmp_path / "folder")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["time=60"], "time is an option of the launchers ray and slurm; add --launcher slurm"),
        (["time", "--launcher", "slurm"], "'time' is not key=value"),
        (["time=1h", "--launcher", "slurm"], "launcher option time: a whole number is needed"),
        (["cpu=2", "--launcher", "ray"], "unknown launcher option 'cpu'; did you mean 'cpus'?"),
    ],
)
def test_launcher_options_that_cannot_be_used(
    refused: Callable[..., str], options: list[str], message: str
) -> None:
    assert message in refused("compare", "digits", "--launcher-option", *options)


def test_stages_of_a_model_are_shown_without_a_run(command: Command) -> None:
    code, out, _ = command("stages", "timm/test_resnet", "--size", "32", "--classes", "3")
    header, *rows = out.splitlines()
    assert code == 0
    assert header.split()[:3] == ["stage", "name", "shape"]
    assert [row.split()[:3] for row in rows] == [
        ["1", "layer1", "32x8x8"],
        ["2", "layer2", "48x4x4"],
        ["3", "layer3", "192x2x2"],
        ["4", "layer4", "96x1x1"],
    ]
    _, every, _ = command("stages", "timm/test_resnet", "--size", "32", "--all")
    assert len(every.splitlines()) > 20
    assert command("stages", "resnet9")[0] == 2
