"""The moving average of the student: what it is, where it is saved, and who uses it."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import dskd
from dskd.cli.commands import cli
from dskd.config import recipe
from dskd.config.schema import Recipe
from dskd.data.loader import MemoryLoader
from dskd.deploy.student import load_deployed
from dskd.engine import run
from dskd.engine.average import StudentAverage
from dskd.engine.result import Result
from dskd.errors import InputError, NonFiniteError, Stopped, on_command_line
from dskd.methods.base import Method
from dskd.models.int8_rounding import Int8Rounding
from dskd.runtime.nonfinite import FiniteStateCheck
from tests.builders import make_dataset, stop_at
from tests.engine.test_targets import CPU, DATA, a_batch, made


def floats(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    state = module.state_dict()
    return {key: value.clone() for key, value in state.items() if value.is_floating_point()}


def change(method: Method) -> None:
    with torch.no_grad():
        for value in method.student.state_dict().values():
            if value.is_floating_point():
                value.add_(torch.randn_like(value).abs())
            else:
                value.add_(3)


def test_the_average_is_rounded_as_the_student_is() -> None:
    method, _ = made("ce")
    plain = StudentAverage(method, 0.5)
    method.student.int8 = Int8Rounding(method.student.module)
    average = StudentAverage(method, 0.5)
    images = DATA.test.images
    with torch.no_grad():
        method.eval()(a_batch(8), None)  # the ranges are measured
        expected = method.student(images).logits
        found, other = (one.model.eval()(images).logits for one in (average, plain))
    # A value that lies between two 8-bit numbers can be rounded to either.
    assert (found - expected).abs().mean() < 0.2 * (other - expected).abs().mean()


@pytest.mark.parametrize("decay", [0.5, 0.3, 0.0])
def test_weights_and_statistics_are_averaged_and_counters_copied(decay: float) -> None:
    method, _ = made("ce")
    average = StudentAverage(method, decay)
    average.update(method)
    expected = floats(method.deployed())
    for key, value in floats(average.module).items():
        assert torch.equal(value, expected[key]), key
    for update in range(1, 6):
        change(method)
        average.update(method)
        kept = min(decay, (1 + update) / (10 + update))
        for key, value in floats(method.deployed()).items():
            expected[key] = kept * expected[key] + (1 - kept) * value
    for key, value in floats(average.module).items():
        torch.testing.assert_close(value, expected[key])
    counters = {k: v for k, v in average.module.state_dict().items() if not v.is_floating_point()}
    assert counters
    assert all(value == 15 for value in counters.values())


@pytest.mark.parametrize("name", ["simkd", "norm"])
def test_the_average_is_that_of_what_a_method_deploys(name: str) -> None:
    method, _ = made(name)
    average = StudentAverage(method, 0.5)
    for _ in range(2):
        average.update(method)
    loader = MemoryLoader(DATA.test, CPU)
    images = next(loader.in_order(8))[0]
    with torch.no_grad():
        method.eval()
        expected = method.classifier_logits(images)["student"]
        found = average.model.eval()(images).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert average.evaluate(loader).finite


class Masked(torch.nn.Module):
    """A classifier with a mask that is no average, as attention has."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = torch.nn.Linear(3 * 16 * 16, 4)
        self.register_buffer("mask", torch.zeros(4, 4).masked_fill_(torch.eye(4) == 0, -torch.inf))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.mix(images.flatten(1))
        return scores @ self.get_buffer("mask").softmax(1)


def test_a_mask_of_infinite_numbers_is_copied_and_the_run_ends(tmp_path: Path) -> None:
    train = {"epochs": 2, "batch_size": 16, "ema": 0.5}
    out = tmp_path / "run"
    result = dskd.train(Masked(), data=make_dataset(), train=train, out=out, verbose=0)
    assert result.ema_student is not None
    assert torch.equal(result.ema_student.get_buffer("mask"), Masked().get_buffer("mask"))
    assert result.ema_test_accuracy is not None


def test_an_average_that_is_not_finite_is_not_saved() -> None:
    method, _ = made("ce")
    average = StudentAverage(method, 0.5)
    optimizer = torch.optim.SGD(method.parameters(), 0.1)
    check = FiniteStateCheck(method, optimizer, average.module)
    check.require(0, 1)
    next(average.module.parameters()).data.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match=r"not finite after step 1 .* the average of "):
        check.require(0, 1)


def averaged_run(out: Path, *changes: str) -> Recipe:
    settings = ["data.fraction=0.1", "train.epochs=3", "train.batch_size=32", "train.ema=0.8"]
    small = ["student.name=resnet8", "method={name: ce}", "teacher=null", f"out={out}"]
    return recipe.load("digits", [*settings, *small, *changes])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return run.distill(averaged_run(tmp_path_factory.mktemp("runs") / "run"))


def test_a_run_evaluates_and_saves_the_average_next_to_the_student(finished: Result) -> None:
    student, averaged = (
        load_file(finished.path / f"student{suffix}.safetensors") for suffix in ("", "_ema")
    )
    assert student.keys() == averaged.keys()
    assert not all(torch.equal(student[key], averaged[key]) for key in student)
    lines = (finished.path / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert rows[-1]["ema_test_accuracy"] == finished.ema_test_accuracy
    assert json.loads((finished.path / "result.json").read_text())["ema_test_accuracy"] == (
        finished.ema_test_accuracy
    )
    assert finished.ema_student is not None
    for key, value in finished.ema_student.state_dict().items():
        assert torch.equal(value, averaged[key])
    assert dskd.evaluate(finished.path, "ema").accuracy == finished.ema_test_accuracy
    assert dskd.evaluate(finished.path, "last").accuracy == finished.test_accuracy


def test_the_average_is_taken_if_no_weights_are_asked_for_and_a_line_says_so(
    finished: Result, caplog: pytest.LogCaptureFixture
) -> None:
    def weights(which: dskd.deploy.student.Which | None) -> dict[str, torch.Tensor]:
        return load_deployed(finished.path, which).model.module.state_dict()

    caplog.set_level(logging.INFO, "dskd")
    chosen = weights(None)
    assert "using the averaged weights of" in caplog.text
    caplog.clear()
    for which in ("ema", "last"):
        asked = weights(which)
        same = all(torch.equal(chosen[key], value) for key, value in asked.items())
        assert same == (which == "ema")
    assert not caplog.text


def test_the_command_line_takes_the_average_or_what_is_asked_for(
    finished: Result, capsys: pytest.CaptureFixture[str]
) -> None:
    path, found = str(finished.path), []
    for flags in ([], ["--last"], ["--best"]):
        cli.main(["evaluate", path, *flags], standalone_mode=False)
        found.append(capsys.readouterr().out)
    assert f"{finished.ema_test_accuracy:.2f}" in found[0]
    assert f"{finished.test_accuracy:.2f}" in found[1]
    assert f"{finished.best_test_accuracy:.2f}" in found[2]
    with pytest.raises(InputError, match="--best and --last"):
        cli.main(["evaluate", path, "--best", "--last"], standalone_mode=False)


@pytest.mark.slow
def test_a_run_with_an_average_resumes_to_the_byte(
    tmp_path: Path, finished: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, 1, 1)
        with pytest.raises(Stopped):
            run.distill(averaged_run(tmp_path / "parts"))
    run.distill(averaged_run(tmp_path / "parts"), resume=True)
    for name in ("student.safetensors", "student_ema.safetensors"):
        assert (tmp_path / "parts" / name).read_bytes() == (finished.path / name).read_bytes()


def test_a_run_without_an_average_trains_the_same_student(tmp_path: Path, finished: Result) -> None:
    plain = run.distill(averaged_run(tmp_path / "plain", "train.ema=null"))
    names = [result.path / "student.safetensors" for result in (plain, finished)]
    one, other = map(load_file, names)
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert plain.ema_student is None
    assert finished.ema_student is not None
    averaged = sum(value.nbytes for value in finished.ema_student.state_dict().values())
    assert finished.memory == plain.memory + averaged
    assert not (plain.path / "student_ema.safetensors").exists()
    averaged = r"has no averaged weights; train with train\.ema"
    with on_command_line(), pytest.raises(InputError, match=averaged):
        load_deployed(plain.path, "ema")
    assert "ema_test_accuracy" not in json.loads((plain.path / "result.json").read_text())
