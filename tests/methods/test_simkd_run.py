"""A whole run of simkd, whose deployed student is more than the student."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor, nn

import dskd
from dskd.config import recipe
from dskd.config.schema import ModelSettings, Recipe
from dskd.deploy.export import export_file
from dskd.engine import run
from dskd.engine.build_model import build_model
from dskd.errors import InputError, Stopped
from dskd.storage.run_files import LAST
from dskd.storage.weights import read_metadata
from tests import trainers
from tests.builders import make_dataset

SMALL = [
    "data.fraction=0.1",
    "method={name: simkd}",
    "teacher.name=wrn_16_1",
    "teacher.epochs=1",
    "train.epochs=2",
    "train.batch_size=32",
]


def plan(out: Path, *overrides: str) -> Recipe:
    return recipe.load("digits", [*SMALL, f"out={out}", *overrides])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dskd.Result:
    return run.distill(plan(tmp_path_factory.mktemp("simkd") / "run"))


def rows(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.endswith("seconds")} for line in lines]


def images() -> Tensor:
    return torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)


@pytest.mark.slow
def test_the_result_is_that_of_all_that_is_deployed(finished: dskd.Result) -> None:
    plain = sum(p.numel() for p in dskd.load_model("resnet8", num_classes=10).parameters())
    assert finished.parameters > plain
    weights = safetensors.torch.load_file(finished.path / "student.safetensors")
    trained = dict(finished.student.named_parameters())
    assert sum(weights[key].numel() for key in trained) == finished.parameters
    assert not (finished.path / "auxiliary.safetensors").exists()
    assert rows(finished.path)[-1]["test_accuracy"] == finished.test_accuracy


@torch.no_grad()
def test_it_is_loaded_and_evaluated_like_any_student(finished: dskd.Result) -> None:
    assert dskd.evaluate(finished.path).accuracy == finished.test_accuracy
    assert dskd.evaluate(finished.path, "best").accuracy == finished.best_test_accuracy
    student = dskd.load_deployed(finished.path)
    samples = images()
    output = student.model(samples)
    expected = finished.student(student.model.normalize(samples))
    torch.testing.assert_close(output.logits, expected, rtol=1e-4, atol=1e-5)
    teacher = safetensors.torch.load_file(finished.path / "teacher/student.safetensors")
    assert student.model.linear_classifier is not None
    assert torch.equal(student.model.linear_classifier.weight, teacher["fc.weight"])


def test_its_classifier_is_the_teacher_s_to_the_byte(finished: dskd.Result) -> None:
    student = safetensors.torch.load_file(finished.path / "student.safetensors")
    teacher = safetensors.torch.load_file(finished.path / "teacher/student.safetensors")
    for part in ("weight", "bias"):
        assert torch.equal(student[f"reused.classifier.{part}"], teacher[f"fc.{part}"])


@pytest.mark.slow
@torch.no_grad()
def test_it_is_exported(finished: dskd.Result, tmp_path: Path) -> None:
    student = dskd.load_deployed(finished.path)
    assert export_file(student, tmp_path / "student.onnx") < 1e-4
    runtime = onnxruntime.InferenceSession(tmp_path / "student.onnx")
    samples = images()
    (logits,) = runtime.run(["logits"], {"images": (samples / 255).numpy()})
    expected = student.model(samples).logits
    torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", [2, 5])
def test_a_stopped_run_goes_on_to_the_same_end(
    finished: dskd.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    teacher = f"teacher.checkpoint={finished.path / 'teacher/student.safetensors'}"
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        trainers.stop_at(patch, stop_at)
        with pytest.raises(Stopped):
            run.distill(plan(out, teacher))
    run.distill(plan(out, teacher), resume=True)
    for name in ("student.safetensors", "student_best.safetensors"):
        assert (out / name).read_bytes() == (finished.path / name).read_bytes()
    assert rows(out) == rows(finished.path)


def test_a_file_from_anywhere_is_read_with_care(finished: dskd.Result, tmp_path: Path) -> None:
    name = "student.safetensors"
    weights = safetensors.torch.load_file(finished.path / name)
    facts = read_metadata(finished.path / name)

    def refusal(**changes: Any) -> str:
        deploy_config = facts["deploy_config"] | changes
        metadata = {"dskd": json.dumps(facts | {"deploy_config": deploy_config})}
        safetensors.torch.save_file(weights, tmp_path / name, metadata)
        with pytest.raises(InputError) as refused:
            dskd.load_deployed(tmp_path)
        return str(refused.value)

    assert "deploy_config.width" in refusal(width=-1)
    assert "numbers" in refusal(width=10**9)
    assert "does not fit ReusedStudent" in refusal(features=65)
    assert "no submodule 'gone'" in refusal(stages=["gone"])
    with safe_open(finished.path / name, "pt") as file:
        assert file.metadata().keys() == {"dskd"}


class Net(nn.Module):
    """A user's network."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(width, 8, 3, 2, 1), nn.ReLU())
        self.head = nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.two(self.one(images)).mean((2, 3)))
        return logits


@pytest.mark.slow
def test_modules_of_the_user(tmp_path: Path) -> None:
    data = make_dataset(4, per_class=4)
    result = dskd.distill(
        student={"module": Net(), "stages": ["one", "two"]},
        teacher={"module": Net(12), "stages": ["two"]},
        data=data,
        method="simkd",
        train={"epochs": 1, "batch_size": 8},
        out=tmp_path / "run",
    )
    again = dskd.evaluate(tmp_path / "run", data=data, student=Net())
    assert again.accuracy == result.test_accuracy
    student = dskd.load_deployed(tmp_path / "run", student=Net())
    assert export_file(student, tmp_path / "student.onnx") < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dskd", "simkd", "kd"])
def test_its_student_teaches_another(finished: dskd.Result, tmp_path: Path, method: str) -> None:
    teacher = {"name": "resnet8", "checkpoint": finished.path / LAST, "trust": True}
    result = dskd.distill(
        student="resnet8",
        teacher=teacher,
        data={"name": "digits", "fraction": 0.1},
        method=method,
        train={"epochs": 1, "batch_size": 32},
        out=tmp_path / "run",
    )
    assert result.teacher_accuracy == finished.test_accuracy
    assert dskd.evaluate(result.path).accuracy == result.test_accuracy


@pytest.mark.slow
def test_a_student_of_timm_teaches_by_the_stages_that_it_was_trained_with(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    model = {"name": "timm/resnet10t", "options": {"channels": [8, 8, 16, 16]}}
    data = make_dataset(classes=3, per_class=4, size=32)
    own = {"epochs": 1, "batch_size": 4}
    first = dskd.distill(
        student=model | {"stages": ["layer3", "layer4"]},
        teacher={"name": "resnet8"},
        data=data,
        method="simkd",
        train=own,
        out=tmp_path / "first",
    )
    teacher = model | {"checkpoint": first.path / LAST, "trust": True}
    second = dskd.distill(
        student="resnet8", teacher=teacher, data=data, train=own, out=tmp_path / "second"
    )
    assert second.teacher_accuracy == first.test_accuracy
    line = json.loads((second.path / "metrics.jsonl").read_text())
    assert "stage1/feature" in line


def test_a_student_starts_from_its_student(
    finished: dskd.Result, caplog: pytest.LogCaptureFixture
) -> None:
    path = finished.path / LAST
    data = dskd.load_dataset("digits", fraction=0.1)
    with caplog.at_level(logging.INFO, "dskd"):
        model = build_model(ModelSettings(name="resnet8", checkpoint=path), data, 0)
    weights = safetensors.torch.load_file(path)
    for key, value in model.module.state_dict().items():
        if not key.startswith("fc."):
            assert torch.equal(value, weights[f"student.module.{key}"])
    assert "the classifier (fc.bias, fc.weight) is left out" in caplog.text
