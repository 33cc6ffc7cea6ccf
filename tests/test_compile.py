"""Compiled steps: whole runs that go on after a stop to the byte, and files as ever."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from conftest import stop_at
from dskd import compiling, recipe, run
from dskd.build import Given
from dskd.errors import InputError
from dskd.interrupt import Stopped


def plan(out: Path, *changes: str) -> recipe.Recipe:
    """Seven steps an epoch, the last of them of ten pictures."""
    short = ("data.share=0.1", "teacher.name=resnet8", "train.epochs=2", "train.batch_size=20")
    return recipe.load("digits", [*short, "train.compile=true", f"out={out}", *changes])


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("teacher") / "run"
    changes = ["teacher=null", "method={name: ce}", "student.name=resnet8", "train.epochs=1"]
    run.distill(plan(out, *changes, "train.compile=false"))
    return f"teacher.checkpoint={out / 'student.safetensors'}"


def losses(out: Path) -> list[float]:
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["train_loss"] for line in lines]


def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *changes: str) -> None:
    run.distill(plan(tmp_path / "plain", *changes, "train.compile=false"))
    run.distill(plan(tmp_path / "whole", *changes))
    with monkeypatch.context() as patch:
        stop_at(patch, 1, 5)
        with pytest.raises(Stopped):
            run.distill(plan(tmp_path / "parts", *changes))
    torch._dynamo.reset()
    run.distill(plan(tmp_path / "parts", *changes), resume=True)
    plain, whole, parts = (tmp_path / part for part in ("plain", "whole", "parts"))
    name = "student.safetensors"
    assert (whole / name).read_bytes() == (parts / name).read_bytes()
    # Rounding decides about activations next to zero, and so about a gradient here and there.
    assert losses(whole) == pytest.approx(losses(plain), rel=1e-2)
    keys = safetensors.torch.load_file(plain / name).keys()
    assert safetensors.torch.load_file(whole / name).keys() == keys


@pytest.mark.parametrize("name", ["kd", "dskd", "dkd"])
def test_a_run_of_traced_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teacher: str, name: str
) -> None:
    """All but the making of code: that takes minutes."""
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    warmup = ["method.warmup=2"] if name == "dkd" else []
    check(tmp_path, monkeypatch, teacher, f"method={{name: {name}}}", *warmup)


@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler")
def test_a_run_of_compiled_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teacher: str
) -> None:
    check(tmp_path, monkeypatch, teacher, "method={name: kd}")


def test_what_cannot_be_compiled_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="torch cannot compile the method 'crd'"):
        run.distill(plan(tmp_path / "run", "method={name: crd}"))
    with pytest.raises(InputError, match="exclude each other"):
        plan(tmp_path / "run", "train.graph=true")
    own = Given(student=torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)))
    alone = plan(tmp_path / "run", "method={name: ce}", "teacher=null")
    with pytest.raises(InputError, match="the student Sequential does not give its stages"):
        run.distill(alone, given=own)
    assert not (tmp_path / "run").exists()


def test_a_machine_without_a_compiler_is_told_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teacher: str
) -> None:
    def refuse(*_: object, **__: object) -> object:
        raise RuntimeError("no compiler\nand more lines")

    monkeypatch.setattr(torch, "compile", refuse)
    with pytest.raises(InputError, match=r"torch cannot compile here \(no compiler\)"):
        run.distill(plan(tmp_path / "run", teacher))
    assert not (tmp_path / "run").exists()
