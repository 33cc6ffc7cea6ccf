"""Messages lead somewhere: what they tell the user to do exists, and does what they say."""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import dskd
from dskd.cli.commands import cli, run_command
from dskd.cli.results import evaluation_rows, result_rows
from dskd.errors import InputError, call, on_command_line, option
from dskd.methods.checks import check_stages
from dskd.models.staged_model import StagedModel
from tests.builders import make_dataset, make_pair, stop_at
from tests.compare.small_comparison import SMALL

SOURCE = Path(dskd.__file__).parent
TINY = ["data.fraction=0.1", "student.name=resnet8", "train.epochs=1", "train.device=cpu"]


class Net(nn.Module):
    """A network of the user's own."""

    def __init__(self, classes: int = 10, depth: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, 2, 1)
        self.blocks = nn.Sequential(*(nn.Conv2d(4, 4, 3, 1, 1) for _ in range(depth)))
        self.head = nn.Linear(4, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.blocks(self.stem(images)).mean((2, 3)))
        return logits


def _texts_of_errors() -> list[tuple[Path, str]]:
    """Every text in a ``raise`` of the package, outside the command line."""
    found = []
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise):
                found += [
                    (path, text.value)
                    for text in ast.walk(node)
                    if isinstance(text, ast.Constant) and isinstance(text.value, str)
                ]
    return found


@pytest.mark.slow
def test_errors_take_the_names_of_options_from_one_place() -> None:
    """`dskd.errors.option` gives the name that the command line, or Python, has for it."""
    texts = _texts_of_errors()
    assert len(texts) > 300
    shared = [(path.name, text) for path, text in texts if path.parent.name != "cli"]
    flags = {name: text for name, text in shared if re.search(r"(^|[ (])--[a-z]", text)}
    assert flags.keys() == {"device.py", "ray_cluster.py"}
    assert "--nproc-per-node=" in flags["device.py"]  # an option of torchrun
    assert "`ray start --head`" in flags["ray_cluster.py"]  # a command of Ray


@pytest.mark.slow
def test_every_option_that_a_message_names_exists() -> None:
    flags = {flag for command in cli.commands.values() for p in command.params for flag in p.opts}
    named = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "option":
                (name, *_) = node.args
                if isinstance(name, ast.Constant):
                    named.add(str(name.value))
    with on_command_line():
        assert named >= {"resume", "overwrite", "root", "out", "allow_code"}
        assert {option(name) for name in named} <= flags
    assert call("evaluate", "a b") == "dskd.evaluate('a b')"
    with on_command_line():
        assert call("evaluate", "a b") == "`dskd evaluate 'a b'`"


@pytest.mark.slow
def test_a_run_that_is_there_is_named_in_the_words_of_the_caller(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    command = ["train", "digits", *TINY, f"out={out}"]
    assert run_command(command) == 0
    capsys.readouterr()
    assert run_command(command) == 2
    said = capsys.readouterr().err
    assert "continue it (--resume), replace it (--overwrite)" in said
    assert run_command([*command, "--resume"]) == 2
    line = capsys.readouterr().err
    assert f"look at it with `dskd evaluate {out}`" in line
    assert run_command(["evaluate", str(out)]) == 0  # the message, followed
    assert run_command([*command, "--overwrite"]) == 0
    data = {"name": "digits", "fraction": 0.1}
    train = {"epochs": 1, "device": "cpu"}
    out = tmp_path / "from Python"
    dskd.train(student="resnet8", data=data, train=train, out=out)
    with pytest.raises(InputError, match=r"continue it \(resume=True\), .* \(overwrite=True\)"):
        dskd.train(student="resnet8", data=data, train=train, out=out)
    with pytest.raises(InputError, match=r"holds a finished run; look at it with dskd\.evaluate"):
        dskd.train(student="resnet8", data=data, train=train, out=out, resume=True)
    dskd.train(student="resnet8", data=data, train=train, out=out, overwrite=True)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["evaluate", "export", "predict"])
def test_an_unfinished_run_is_continued_by_the_command_in_the_message(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    out, image = tmp_path / "a run", tmp_path / "image.png"
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(image)
    arguments = [command, str(out), *([str(image)] if command == "predict" else [])]
    with monkeypatch.context() as patch:
        stop_at(patch, 1, 0)
        given = ["train", "digits", *TINY, "train.epochs=2", f"out={out}"]
        assert run_command(given) == 130
    capsys.readouterr()
    assert run_command(arguments) == 2
    line = capsys.readouterr().err
    found = re.search(
        r"is not finished; to continue it, `dskd (.*)`, or take its best .*--best", line
    )
    assert found, line
    assert run_command([*arguments, "--best"]) == 0
    assert run_command(shlex.split(found[1])) == 0
    assert len(json.loads((out / "result.json").read_text())) > 5
    assert run_command(arguments) == 0


@pytest.mark.slow
def test_a_student_that_is_not_there_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(folder: Path) -> str:
        with pytest.raises(InputError) as error:
            dskd.evaluate(folder)
        return str(error.value)

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(patch, 0, 0)
        with pytest.raises(dskd.Stopped):
            dskd.train(
                student=Net(),
                data={"name": "digits", "fraction": 0.1},
                train={"epochs": 1},
                out=out,
            )
    again = "make the same call in Python again with resume=True"
    assert said(out) == f"the run in {out} is not finished; to continue it, {again}"
    (out / "failed.txt").write_text("NaN")
    assert said(out) == f"the run in {out} failed, and {out / 'failed.txt'} says why"
    (tmp_path / "empty").mkdir()
    assert said(tmp_path / "empty").endswith("empty holds no run; check the path")
    compared = tmp_path / "compared"
    (compared / "kd").mkdir(parents=True)
    (compared / "comparison.json").touch()
    assert said(compared).endswith("is a comparison; give the folder of one of its runs")
    shutil.copytree(out, compared / "kd/seed0", ignore=shutil.ignore_patterns("failed.txt"))
    assert said(compared / "kd/seed0").endswith("start its comparison again in the same way")


@pytest.mark.slow
def test_a_comparison_that_was_stopped_says_how_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It named ``--resume``, an option that it does not have."""
    out = tmp_path / "comparison"
    command = ["compare", "digits", *SMALL, "--methods", "ce", "--seeds", "1", "--out", str(out)]
    with monkeypatch.context() as patched:
        stop_at(patched, 0, 1)
        assert run_command(command) == 130
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == "dskd: stopped; start the comparison again in the same way, and it goes on"
    assert run_command(command) == 0
    assert (out / "ce/seed0/result.json").is_file()


def test_a_run_that_was_stopped_says_how_it_goes_on_in_the_words_of_the_caller() -> None:
    assert "go on with resume=True" in dskd.Stopped(2).message
    with on_command_line():
        assert "go on with --resume" in dskd.Stopped(2).message


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> dskd.Result:
    return dskd.train(
        student=Net(),
        data={"name": "digits", "fraction": 0.1},
        train={"epochs": 1, "device": "cpu"},
        out=tmp_path_factory.mktemp("own") / "run",
    )


@pytest.mark.slow
@pytest.mark.parametrize("command", ["evaluate", "predict", "export"])
def test_commands_for_a_module_of_the_user_s_own_name_calls_that_work(
    own: dskd.Result, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "a.png"
    Image.fromarray(np.full((8, 8), 100, np.uint8)).save(image)
    assert (
        run_command([command, str(own.path), *([str(image)] if command == "predict" else [])]) == 2
    )
    said = capsys.readouterr().err
    assert "was given in Python as <Net>" in said
    assert f"dskd.{command}" in said
    with pytest.raises(InputError, match="was given in Python as <Net>"):
        dskd.load_deployed(own.path)
    if command == "evaluate":
        assert dskd.evaluate(own.path, student=Net()).accuracy == own.test_accuracy
    elif command == "predict":
        found = dskd.predict(own.path, [image, str(image)], student=Net())
        deployed = dskd.load_deployed(own.path, student=Net())
        assert torch.equal(found, dskd.predict(deployed, [image, image]))
    else:
        pytest.importorskip("onnxscript")
        exported = dskd.export(own.path, student=Net(), measure=False)
        assert exported.path == own.path / "export/student.onnx"
        out = tmp_path / "b.onnx"
        best = dskd.export(str(own.path), out, "best", student=Net(), measure=False)
        assert best.path.is_file()
        with pytest.raises(InputError, match="unknown format 'onxn'"):
            dskd.export(own.path, student=Net(), format="onxn")


def test_the_error_about_missing_stages_names_the_blocks(tmp_path: Path) -> None:
    data = make_dataset(channels=1)
    student = StagedModel(Net(4, depth=6), mean=(0.5,), std=(0.25,))
    pair, _ = make_pair(student, student, data)
    with pytest.raises(
        InputError, match=r"student={\"module\": net, \"stages\": \[\"a\"\]}"
    ) as refusal:
        check_stages(pair)
    assert "parts: stem, blocks, blocks.0 ... blocks.5, head" in str(refusal.value)
    with pytest.raises(InputError, match=r"parts: stem, blocks, blocks\.0 \.\.\. blocks\.5, head"):
        StagedModel(Net(4, depth=6), ["xyz"], mean=(0.5,), std=(0.25,))
    named = StagedModel(Net(4, depth=6), ["blocks.0", "blocks.5"], mean=(0.5,), std=(0.25,))
    pair, _ = make_pair(named, named, data)  # the message, followed
    assert len(check_stages(pair)[0]) == 2


@pytest.mark.parametrize(("classes", "shown"), [(5, False), (6, True)])
def test_top_5_is_shown_where_it_says_something(tmp_path: Path, classes: int, shown: bool) -> None:
    result = dskd.train(
        student=Net(classes),
        data={"name": "digits", "fraction": 0.1, "classes": classes},
        train={"epochs": 1, "device": "cpu"},
        out=tmp_path / "run",
    )
    evaluated = dskd.evaluate(tmp_path / "run", student=Net(classes))
    assert result.test_accuracy_top5 == evaluated.accuracy_top5
    assert (result.test_accuracy_top5 is not None) == shown
    for rows in result_rows(result), evaluation_rows(evaluated):
        assert any("top-5" in name for name, _ in rows) == shown
    metrics = (tmp_path / "run/metrics.jsonl").read_text()
    assert ("test_accuracy_top5" in metrics) == shown


def test_a_report_says_seed_0() -> None:
    """``seeds 0`` read as none."""
    from types import SimpleNamespace

    from dskd.config import recipe
    from dskd.report.html_page import _facts
    from dskd.report.images import IMAGE_REPORT

    for seeds, expected in (((0,), ("seed", "0")), ((0, 1), ("seeds", "0, 1"))):
        report = SimpleNamespace(
            collected=SimpleNamespace(recipe=recipe.load("digits"), task=IMAGE_REPORT),
            summaries=[SimpleNamespace(label="kd", seeds=seeds)],
            test_images=1,
            teacher_accuracies=list,
        )
        assert expected in _facts(report)  # type: ignore[arg-type]


def test_a_name_that_is_a_number_in_a_file_is_taken_in_the_quotes_that_the_message_shows(
    tmp_path: Path,
) -> None:
    from dskd.config import recipe

    path = tmp_path / "r.yaml"
    text = "data: {name: digits}\nstudent: {name: resnet8}\nmethod: {name: ce}\nout: 2024\n"
    path.write_text(text)
    with pytest.raises(InputError, match=r"as in out: '2024'$"):
        recipe.load(str(path))
    path.write_text(text.replace("out: 2024", "out: '2024'"))
    assert recipe.load(str(path)).out == Path("2024")


def test_arguments_in_python_that_contradict_or_have_another_form(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"data": {"name": "digits", "fraction": 0.1}, "out": tmp_path}
    with pytest.raises(InputError, match=r"epochs=1 and train=\{'epochs': 2\} contradict"):
        dskd.train("resnet8", epochs=1, train={"epochs": 2}, **settings)
    with pytest.raises(InputError, match=r"seeds: a number of at least 1 is needed, got \[0, 1\]"):
        dskd.compare_methods("resnet8", methods=["ce"], seeds=cast(Any, [0, 1]), **settings)
    with pytest.raises(InputError, match="unknown method 'kdd'"):
        dskd.compare_methods("resnet8", methods="ce,kdd", seeds=1, **settings)
    assert not list(tmp_path.iterdir())
