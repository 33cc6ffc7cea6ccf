"""Quantization-aware training: rounding to 8 bits, and an export that is finished by it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import dskd
from dskd.cli.commands import run_command
from dskd.config.recipe import resolve
from dskd.config.schema import MethodSettings
from dskd.deploy import latency, ship
from dskd.deploy.model_card import RunFacts
from dskd.deploy.qat import QATOptions, qat_recipe, quantization_aware
from dskd.errors import InputError
from dskd.models.int8_rounding import Int8Rounding, rounded_weight
from tests.builders import stop_at


def test_weights_are_rounded_by_channel_and_pass_gradients() -> None:
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    weight[1] *= 100
    weight.requires_grad_()
    rounded = rounded_weight(weight)
    scales = weight.detach().flatten(1).abs().amax(1) / 127
    assert ((rounded - weight).flatten(1).abs().amax(1) <= scales * 0.5001).all()
    levels = rounded.detach().flatten(1) / scales[:, None]
    torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0)
    (gradient,) = torch.autograd.grad(rounded.sum(), weight)
    assert torch.equal(gradient, torch.ones_like(weight))


def test_ranges_follow_training_and_stay_in_evaluation() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 3))
    rounding = Int8Rounding(net)
    images = torch.rand(4, 1, 8, 8)
    with rounding.rounding(net):
        first = net(images)
        lows, highs = rounding.low.clone(), rounding.high.clone()
        assert highs[0] == images.max()
        net(2 * images)
        assert highs[0] < rounding.high[0] < 2 * images.max()
        rounding.eval()
        before = rounding.high.clone()
        net(3 * images)
        assert torch.equal(rounding.high, before)
    assert lows.isfinite().all()
    plain = net(images)
    assert not torch.equal(first, plain)
    torch.testing.assert_close(first, plain, atol=0.05, rtol=0.05)


@pytest.mark.slow(seconds=8)
def test_an_export_is_finished_by_training_and_the_run_stays(tmp_path: Path) -> None:
    run = dskd.distill(
        "resnet8",
        teacher={"name": "resnet14", "epochs": 1},
        data={"name": "digits", "fraction": 0.3},
        train={"epochs": 2},
        out=tmp_path / "run",
        verbose=0,
    )
    before = {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()}
    found = dskd.export(run.path, int8=True, qat=1, format="onnx")
    assert {p: p.read_bytes() for p in before} == before
    assert found.path == run.path / "export/student_int8.onnx"
    accuracy = found.measured.accuracy
    assert accuracy.keys() == {"student", "exported", "quantized"}
    assert accuracy["student"].top1 == run.test_accuracy
    assert accuracy["exported"].top1 > run.test_accuracy - 10
    assert "in int8 after 1 epochs of quantization-aware training" in found.card.read_text()


@pytest.mark.slow(seconds=4)
def test_a_module_of_the_users_own_is_finished_by_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "SECONDS", 0.0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    data = {"name": "digits", "fraction": 0.3}
    run = dskd.train(net, data=data, epochs=1, out=tmp_path / "run", verbose=0)
    found = dskd.export(run.path, student=net, int8=True, qat=1, format="onnx")
    assert found.measured.accuracy.keys() == {"student", "exported", "quantized"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dskd.Result:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DSKD_CACHE", str(tmp_path_factory.mktemp("cache")))
        data = {"name": "digits", "fraction": 0.3}
        out = tmp_path_factory.mktemp("qat") / "run"
        train = {"epochs": 1, "batch_size": 16, "lr": 0.05}
        return dskd.train("resnet8", data=data, train=train, out=out, verbose=0)


@pytest.mark.slow(seconds=4)
@pytest.mark.parametrize("form", ["openvino", "torch-export"])
def test_other_formats_with_8_bits_are_finished_by_training_too(
    trained: dskd.Result, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "SECONDS", 0.0)
    found = dskd.export(trained.path, int8=True, qat=1, qat_lr=0.05, format=form)
    accuracy = found.measured.accuracy
    assert accuracy["student"].top1 == trained.test_accuracy
    # The training goes on, so it shows that the file has the finished student.
    assert accuracy["exported"].top1 > accuracy["quantized"].top1 + 2
    assert "in int8 after 1 epochs of quantization-aware training" in found.card.read_text()


def test_what_is_missing_is_reported_before_the_training(
    trained: dskd.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ship, "quantization_aware", None)
    missing = tmp_path / "missing/student.onnx"
    with pytest.raises(InputError, match=r"there is no folder .*missing; create it first"):
        dskd.export(trained.path, missing, int8=True, qat=1, measure=False)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(InputError, match="exporting to openvino needs openvino"):
        dskd.export(trained.path, int8=True, qat=1, measure=False, format="openvino")
    with pytest.raises(InputError, match="safetensors holds weights in float32; for 8 bits"):
        dskd.export(trained.path, int8=True, qat=1, format="safetensors")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"qat": 1}, "quantization-aware training is for 8 bits; add int8=True"),
        ({"int8": True, "qat_lr": 0.1}, "a learning rate is for training; add qat=3"),
        ({"int8": True, "qat": 0}, "qat: a number of epochs of at least 1 is needed, got 0"),
        (
            {"int8": True, "qat": 1, "qat_lr": -0.1},
            "qat_lr: a learning rate above 0 is needed, got -0.1",
        ),
    ],
)
def test_options_that_do_nothing_are_refused(
    options: dict[str, float], message: str, trained: dskd.Result
) -> None:
    with pytest.raises(InputError) as caught:
        dskd.export(trained.path, **options)  # type: ignore[arg-type]
    assert str(caught.value) == message


def test_a_stopped_training_speaks_of_the_export(
    trained: dskd.Result, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", str(trained.path), "--int8", "--qat", "1", "--no-measure"]
    stop_at(monkeypatch, 0, 0)
    assert run_command(command) == 130
    said = capsys.readouterr().err
    assert "dskd: stopped; nothing was exported, and the run is as it was; export it again" in said
    assert "--resume" not in said


def test_a_training_that_breaks_speaks_of_the_export(
    trained: dskd.Result, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", str(trained.path), "--int8", "--qat", "1", "--no-measure"]
    assert run_command([*command, "--qat-lr", "1e6"]) == 3
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("dskd: quantization-aware training: ")
    assert last.endswith("nothing was exported; give a smaller rate with --qat-lr 0.0001")
    assert "nonfinite.json" not in last
    assert "train.lr" not in last


def test_methods_that_ship_another_module_are_refused(trained: dskd.Result) -> None:
    recipe = RunFacts.read(trained.path).recipe.changed(method=MethodSettings(name="norm"))
    finishing = quantization_aware(dskd.load_deployed(trained.path), recipe, QATOptions(1))
    with pytest.raises(InputError, match="the method norm ships another module"), finishing:
        pass


def test_a_method_that_is_not_here_is_named(trained: dskd.Result) -> None:
    recipe = RunFacts.read(trained.path).recipe.changed(method=MethodSettings(name="<Gone>"))
    finishing = quantization_aware(dskd.load_deployed(trained.path), recipe, QATOptions(1))
    with pytest.raises(InputError, match=r"needs the method Gone, .*, or drop qat=3"), finishing:
        pass


def test_the_milestones_of_the_run_do_not_hold_for_the_training(
    trained: dskd.Result, tmp_path: Path
) -> None:
    recipe = RunFacts.read(trained.path).recipe
    steps = {"schedule": "step", "milestones": (0.5,), "gamma": 0.2}
    recipe = recipe.changed(train=recipe.train.model_copy(update=steps))
    plan = qat_recipe(dskd.load_deployed(trained.path), recipe, QATOptions(1), tmp_path)
    assert resolve(plan.plain(), tmp_path).train.schedule == "cosine"
