"""Compiled steps: whole runs that go on after a stop to the byte, and files as ever."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from dskd import methods
from dskd.compare.grid import plan as comparison
from dskd.compare.progress import LogLines
from dskd.compare.runner import run_grid
from dskd.config import recipe
from dskd.config.schema import Recipe
from dskd.deploy.early_exits import load_early
from dskd.engine import run
from dskd.engine.user_objects import UserObjects
from dskd.errors import InputError, Stopped
from dskd.models.output import ModelOutput
from dskd.models.staged_model import StagedModel
from dskd.models.staged_net import StagedNet
from dskd.runtime import compile as compiling
from dskd.storage.exit_file import read_exits
from dskd.storage.run_files import EXITS
from tests import processes
from tests.builders import stop_at
from tests.trainers import assert_same_state, trainer

EQUAL = "train.batch_size=26"
"""Makes all batches of a run equal: each size is compiled for itself, which takes seconds."""


def plan(out: Path, *changes: str) -> Recipe:
    """Seven steps an epoch, the last of them of ten images."""
    few = ("data.fraction=0.1", "data.test_fraction=0.1", "train.epochs=2", "train.batch_size=20")
    compiled = ("teacher.name=resnet8", "train.compile=true")
    return recipe.load("digits", [*few, *compiled, f"out={out}", *changes])


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("teacher") / "run"
    changes = ["teacher=null", "method={name: ce}", "student.name=resnet8", "train.epochs=1"]
    run.distill(plan(out, *changes, "train.compile=false"))
    # Of few test images, a teacher after one epoch knows no more than a guess.
    checkpoint = out / "student.safetensors"
    return f"teacher={{name: resnet8, checkpoint: {checkpoint}, trust: true}}"


def losses(out: Path) -> list[float]:
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["train_loss"] for line in lines]


def check(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *changes: str,
    given: Callable[[], UserObjects | None] = lambda: None,
) -> None:
    run.distill(plan(tmp_path / "plain", *changes, "train.compile=false"), objects=given())
    run.distill(plan(tmp_path / "whole", *changes), objects=given())
    with monkeypatch.context() as patch:
        stop_at(patch, 1, 3)
        with pytest.raises(Stopped):
            run.distill(plan(tmp_path / "parts", *changes), objects=given())
    torch._dynamo.reset()
    run.distill(plan(tmp_path / "parts", *changes), resume=True, objects=given())
    plain, whole, parts = (tmp_path / part for part in ("plain", "whole", "parts"))
    name = "student.safetensors"
    assert (whole / name).read_bytes() == (parts / name).read_bytes()
    # Rounding decides about activations next to zero, and so about a gradient here and there.
    assert losses(whole) == pytest.approx(losses(plain), rel=1e-2)
    keys = safetensors.torch.load_file(plain / name).keys()
    assert safetensors.torch.load_file(whole / name).keys() == keys


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the making of code: that takes minutes."""
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")


@pytest.mark.slow(seconds=12)
@pytest.mark.usefixtures("traced")
def test_a_run_of_traced_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def given() -> UserObjects:
        torch.manual_seed(0)
        return UserObjects(student=Small(1, 10), teacher=Small(1, 10))

    models = ("student.name=<Small>", "teacher.name=<Small>", "teacher.trust=true")
    check(tmp_path, monkeypatch, *models, "method={name: dskd}", given=given)


class Small(StagedNet):
    """A network that torch traces quickly: three layers, each one a stage."""

    stage_names = ("layer1", "layer2", "layer3")
    classifier_name = "fc"

    def __init__(self, in_channels: int = 3, classes: int = 4) -> None:
        super().__init__()
        for number, channels in enumerate((8, 16, 32), start=1):
            inner = in_channels if number == 1 else channels // 2
            conv = nn.Conv2d(inner, channels, 3, min(number, 2), 1, bias=False)
            self.add_module(
                f"layer{number}", nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU())
            )
        self.fc = nn.Linear(32, classes)

    def forward_stages(self, x: Tensor) -> ModelOutput:
        stages = self._run_stages(x)
        return self._classify(stages, stages[-1])


def small() -> StagedModel:
    return StagedModel(Small(), mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", methods.names())
def test_torch_sees_the_whole_of_every_method(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does the same operations then, so the numbers are the same to the byte."""
    monkeypatch.setattr(compiling, "BACKEND", "eager")
    torch._dynamo.reset()
    counters.clear()
    settings: dict[str, Any] = {"warmup": 0.0} if name in ("dkd", "reviewkd") else {}
    plain, seen = (trainer(name, student=small, **settings) for _ in range(2))
    compiling.compile_in_place(seen.method)
    for one in (plain, seen):
        for _ in islice(one.train_epoch(), 3):
            pass
    assert plain.metrics.means() == seen.metrics.means()
    assert_same_state(plain, seen)
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.slow
@pytest.mark.usefixtures("traced")
def test_cached_outputs_are_those_of_the_uncompiled_teacher(tmp_path: Path, teacher: str) -> None:
    """So runs share them, compiled or not."""
    keep = ("method={name: kd}", "teacher.cache=logits", f"teacher.cache_dir={tmp_path / 'store'}")
    run.distill(plan(tmp_path / "plain", teacher, EQUAL, *keep, "train.compile=false"))
    result = run.distill(plan(tmp_path / "run", teacher, EQUAL, *keep))
    assert result.teacher_cache_hit_rate == 1
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "plain"), rel=1e-2)


@pytest.mark.slow
@pytest.mark.usefixtures("traced")
def test_a_student_of_a_comparison_is_that_of_a_run_of_its_own(
    tmp_path: Path, teacher: str
) -> None:
    grid = comparison(plan(tmp_path, teacher, EQUAL), ["ce,kd"], tmp_path / "grid", seeds=1)
    run_grid(grid, LogLines())
    torch._dynamo.reset()
    run.distill(plan(tmp_path / "alone", teacher, EQUAL, "method={name: kd}"))
    name = "student.safetensors"
    together = (tmp_path / "grid/kd/seed0" / name).read_bytes()
    assert together == (tmp_path / "alone" / name).read_bytes()


@pytest.mark.slow(seconds=5)
@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler")
def test_a_run_of_compiled_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teacher: str
) -> None:
    check(tmp_path, monkeypatch, teacher, EQUAL, "method={name: kd}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("method={name: crd}", "the method crd is not compiled: torch's code .* crashes; drop it"),
        ("method={name: dkd, warmup: 2}", r"the method dkd is .* method\.warmup changes a weight"),
        ("method={name: reviewkd, warmup: 2}", r"the method reviewkd is not compiled: .*warmup"),
    ],
)
def test_a_method_that_cannot_be_compiled_is_refused(
    tmp_path: Path, teacher: str, change: str, why: str
) -> None:
    with pytest.raises(InputError, match=why):
        run.distill(plan(tmp_path / "run", teacher, change))
    assert not (tmp_path / "run").exists()


def convolutional(width: int) -> torch.nn.Module:
    convs = (torch.nn.Conv2d(a, b, 3, 2, 1) for a, b in ((1, width), (width, width)))
    end = torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(width, 10)
    return torch.nn.Sequential(*convs, *end)


@pytest.mark.slow
@pytest.mark.usefixtures("traced")
def test_models_whose_stages_are_read_by_hooks_are_compiled_once(tmp_path: Path) -> None:
    results = []
    for name in ("plain", "compiled"):
        torch._dynamo.reset()
        counters.clear()
        torch.manual_seed(0)
        own = UserObjects(student=convolutional(8), teacher=convolutional(16))
        compile = f"train.compile={str(name == 'compiled').lower()}"
        exits = ["train.exits=true", "data.val_fraction=0.2"]
        changes = ["teacher.name=<Sequential>", "teacher.trust=true", compile, *exits]
        results.append(run.distill(plan(tmp_path / name, *changes), objects=own))
    # The check of the compiler; method and teacher, for full batches and the last of an epoch.
    assert counters["stats"]["unique_graphs"] == 5
    assert not counters["graph_break"]
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), rel=1e-2)
    for part in results[1].student.modules():
        assert not part._forward_hooks
        assert not part._forward_pre_hooks
    # The branches of a compiled run are kept as those of any other.
    (plain, weights), (seen, compiled) = (read_exits(one.path / EXITS) for one in results)
    assert [one.submodule for one in seen.exits] == [one.submodule for one in plain.exits] == ["0"]
    assert compiled.keys() == weights.keys()
    early = load_early(results[1].path, student=results[1].student)
    assert early.names == ["stage1", "student"]


@pytest.mark.slow(seconds=7)
def test_a_machine_without_a_compiler_is_told_before_any_work(tmp_path: Path, teacher: str) -> None:
    run_folder = tmp_path / "run"
    words = ["data.fraction=0.1", "teacher.name=resnet8", teacher, "train.compile=true"]
    # torch has read the variable CXX before the process is forked.
    code = (
        "import torch._inductor.config\n"
        f"torch._inductor.config.cpp.cxx = ({str(tmp_path / 'no-compiler')!r},)\n"
        "from dskd.cli.commands import main\n"
        f"main(['distill', 'digits', *{words!r}, 'out={run_folder}'])"
    )
    said = processes.run(["-c", code])
    assert said.returncode == 2
    (line,) = (line for line in said.stderr.splitlines() if line.startswith("dskd: "))
    assert "train.compile=true: torch cannot compile here (InvalidCxxCompiler: " in line
    assert "Traceback" not in said.stderr
    assert not run_folder.exists()


@pytest.mark.parametrize(
    ("backend", "gpu", "mode"),
    [
        ("inductor", True, "reduce-overhead"),
        ("inductor", False, None),
        ("aot_eager", True, None),
    ],
)
def test_cuda_graphs_are_for_inductor_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, backend: str, gpu: bool, mode: str | None
) -> None:
    monkeypatch.setattr(compiling, "BACKEND", backend)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert compiling._options() == {"backend": backend, "mode": mode}


def test_torch_raises_where_it_would_stop_compiling() -> None:
    config = torch._dynamo.config
    names = "recompile_limit", "accumulated_recompile_limit", "fail_on_recompile_limit_hit"
    with config.patch({name: getattr(config, name) for name in names}):  # restores all of them
        compiling._fail_rather_than_fall_back()
        assert config.recompile_limit == config.accumulated_recompile_limit == 10_000
        assert config.fail_on_recompile_limit_hit is True
