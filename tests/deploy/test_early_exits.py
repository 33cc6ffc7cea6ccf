"""Students that predict early: thresholds, calibration, files, and what is refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner
from PIL import Image
from torch import Tensor

import dskd
from dskd.cli.commands import cli
from dskd.deploy import latency
from dskd.deploy.early_exits import EarlyExits, evaluate_exits, load_early
from dskd.deploy.onnx_exits import exit_runner
from dskd.deploy.ship import Exported
from dskd.engine.exit_calibration import (
    ExitPredictions,
    calibration_error,
    chosen_exits,
    find_policies,
    fit_temperature,
)
from dskd.engine.keep_exits import check_exits
from dskd.errors import InputError
from dskd.methods.dskd import DSKD
from dskd.models.cost import model_cost
from dskd.models.early_exits import NEVER, EarlyExitStudent, ExitCosts
from dskd.storage.exit_file import read_exits
from tests.builders import make_dataset, make_pair, staged, stop_at, trusted

METHOD = {"name": "dskd", "feature_target": "last", "alpha": 0, "beta": 0.1, "gamma": 1, "kd": 0}
LOSS = 3.0
"""Of accuracy, in percentage points, at which every exit predicts for some images."""
DATA = {"name": "digits", "val_fraction": 0.3}


def distil(out: Path, *, exits: bool = True, **more: Any) -> dskd.Result:
    """Distils with branches that learn the labels."""
    train = {"epochs": 2, "batch_size": 32, "lr": 0.05, "exits": exits}
    torch.manual_seed(0)
    values: dict[str, Any] = {
        "teacher": trusted(dskd.load_model("resnet8", num_classes=10, in_channels=1)),
        "data": DATA,
        "method": METHOD,
        "train": train,
        "out": out,
    }
    return dskd.distill("resnet8", verbose=0, **{**values, **more})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dskd.Result:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DSKD_CACHE", str(tmp_path_factory.mktemp("cache")))
        return distil(tmp_path_factory.mktemp("exits") / "run")


@pytest.fixture(scope="module")
def early(run: dskd.Result) -> EarlyExits:
    """Exits that predict for part of the images."""
    found = load_early(run.path, max_loss=LOSS)
    assert found.running
    return found


@pytest.fixture(scope="module")
def images() -> Tensor:
    return dskd.load_dataset("digits").test.images_at(torch.arange(100))


def with_thresholds(early: EarlyExits, *thresholds: float) -> EarlyExitStudent:
    own = early.student
    exits = dict(zip(own.stages, own.branches, strict=True))
    return EarlyExitStudent(own.model, exits, own.temperatures, thresholds).eval()


@torch.no_grad()
def test_thresholds_choose_the_exit(early: EarlyExits, images: Tensor) -> None:
    plain = early.deployed.model(images).logits
    everyone = with_thresholds(early, 0.0, 0.0)
    first = everyone(images)
    assert first.exits.tolist() == [0] * len(images)
    torch.testing.assert_close(first.logits, everyone.all_logits(images)[0], rtol=0, atol=0)
    for never in (1.001, NEVER):
        last = with_thresholds(early, never, never)(images)
        assert last.exits.tolist() == [2] * len(images)
        assert torch.equal(last.logits, plain)
    before, seen = first.exits, set[int]()
    for threshold in (0.2, 0.4, 0.6, 0.8, 0.9, 1.0):
        exits = with_thresholds(early, threshold, threshold)(images).exits
        assert (exits >= before).all()
        before, seen = exits, seen | set(exits.tolist())
    assert seen == {0, 1, 2}


@torch.no_grad()
def test_later_layers_run_only_for_images_that_need_them(early: EarlyExits, images: Tensor) -> None:
    ran: list[str] = []
    module = early.deployed.model.module
    handles = [
        module.get_submodule(name).register_forward_pre_hook(
            lambda _module, _inputs, name=name: ran.append(name)
        )
        for name in ("layer1", "layer2", "layer3")
    ]
    handles.append(
        early.student.branches[0].register_forward_pre_hook(lambda *_: ran.append("branch1"))
    )
    with_thresholds(early, 0.0, 0.0)(images)
    assert ran == ["layer1", "branch1"]
    ran.clear()
    with_thresholds(early, NEVER, 0.0)(images[:1])
    assert ran == ["layer1", "layer2"]
    ran.clear()
    with_thresholds(early, 1.5, NEVER)(images[:1])
    assert ran == ["layer1", "branch1", "layer2", "layer3"]
    for handle in handles:
        handle.remove()


def test_the_temperature_has_the_least_cross_entropy() -> None:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(500, 5, generator=draw)
    labels = (3 * logits).softmax(1).multinomial(1, generator=draw)[:, 0]
    temperature = fit_temperature(logits, labels)
    assert temperature == pytest.approx(1 / 3, rel=0.2)
    assert fit_temperature(10 * logits, labels) == pytest.approx(10 * temperature, rel=1e-3)
    calibrated = (logits / temperature).double()
    mean = (calibrated.softmax(1) * logits).sum(1).mean()  # the derivative is 0
    chosen = logits.gather(1, labels[:, None]).double().mean()
    assert mean.item() == pytest.approx(chosen.item(), abs=1e-4)
    assert calibration_error(logits / temperature, labels) < calibration_error(logits, labels)
    right = torch.eye(3)
    assert fit_temperature(right, torch.arange(3)) == pytest.approx(0.05, rel=1e-3)
    assert fit_temperature(right, torch.tensor([1, 2, 0])) == pytest.approx(20, rel=1e-3)


def test_policies_are_ever_cheaper() -> None:
    draw = torch.Generator().manual_seed(0)
    confidences = torch.rand(400, 3, generator=draw)
    rights = torch.rand(400, 4, generator=draw)
    correct = torch.cat([rights[:, :3] < confidences, rights[:, 3:] < 0.97], 1)
    predictions = ExitPredictions(
        confidences, correct, ExitCosts((100, 200, 300), (10, 10, 500), 1000)
    )
    policies = find_policies(predictions)
    assert policies[0].thresholds == (NEVER,) * 3
    assert policies[0].multiply_adds == 1000
    costs = [policy.multiply_adds for policy in policies]
    accuracies = [policy.val_accuracy for policy in policies]
    assert costs == sorted(costs, reverse=True)
    assert accuracies[1:] == sorted(accuracies[1:], reverse=True)
    assert costs[-1] == 110, "the first exit predicts for every image"
    for policy in policies:
        exits = chosen_exits(confidences, policy.thresholds)
        assert 100 * correct.gather(1, exits[:, None]).double().mean() == pytest.approx(
            policy.val_accuracy
        )
        if policy.thresholds[2] < NEVER:
            assert policy.multiply_adds < 1000


def test_the_file_says_what_the_validation_images_give(run: dskd.Result, early: EarlyExits) -> None:
    facts, _ = read_exits(run.path / "exits.safetensors")
    validation = dskd.load_dataset("digits", val_fraction=0.3).validation
    assert validation is not None
    assert facts.val_images == len(validation)
    shape = early.deployed.shape
    assert facts.multiply_adds == model_cost(early.deployed.model.module, shape).multiply_adds
    every = torch.arange(len(validation))
    for policy in (facts.policies[0], early.policy, facts.policies[-1]):
        with torch.no_grad():
            output = with_thresholds(early, *policy.thresholds)(validation.images_at(every))
        right = (output.logits.argmax(1) == validation.labels).double().mean()
        assert 100 * right.item() == pytest.approx(policy.val_accuracy, abs=0.3)
        paths = torch.tensor(early.costs.paths(policy.thresholds), dtype=torch.float64)
        found = paths[output.exits].mean().item()
        assert found == pytest.approx(policy.multiply_adds, rel=0.01)
    plain = facts.policies[0].val_accuracy
    for loss in (0.0, 0.5, 10.0, 100.0):
        chosen = facts.choose(loss)
        assert chosen.val_accuracy >= plain - loss - 1e-6
        cheaper = [p for p in facts.policies if p.multiply_adds < chosen.multiply_adds]
        assert all(policy.val_accuracy < plain - loss for policy in cheaper)


@pytest.mark.slow(seconds=3)
def test_the_student_stays_the_same_and_a_stop_changes_nothing(
    run: dskd.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = distil(tmp_path / "plain", exits=False)
    assert not (plain.path / "exits.safetensors").exists()
    for name in ("student.safetensors", "student_best.safetensors", "auxiliary.safetensors"):
        assert (plain.path / name).read_bytes() == (run.path / name).read_bytes()
    branches = safetensors.torch.load_file(run.path / "exits.safetensors")
    auxiliary = safetensors.torch.load_file(run.path / "auxiliary.safetensors")
    assert {f"branches.{key}" for key in branches} == auxiliary.keys()
    assert all(torch.equal(value, auxiliary[f"branches.{k}"]) for k, value in branches.items())
    with monkeypatch.context() as patch:
        stop_at(patch, 1, 3)
        with pytest.raises(dskd.Stopped):
            distil(tmp_path / "stopped")
    assert not (tmp_path / "stopped/exits.safetensors").exists()
    distil(tmp_path / "stopped", resume=True)
    for name in ("exits.safetensors", "student.safetensors"):
        assert (tmp_path / "stopped" / name).read_bytes() == (run.path / name).read_bytes()


@pytest.fixture(scope="module")
def exported(run: dskd.Result, early: EarlyExits) -> Exported:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "SECONDS", 0.0)
        return dskd.export(run.path, max_loss=LOSS)


def test_exits_leave_the_student_as_it_was(early: EarlyExits) -> None:
    assert all(parameter.requires_grad for parameter in early.deployed.model.parameters())
    assert not any(parameter.requires_grad for parameter in early.student.branches.parameters())


@pytest.mark.slow(seconds=4)
@torch.no_grad()
def test_the_exported_file_predicts_as_the_student_does(
    exported: Exported, early: EarlyExits, images: Tensor
) -> None:
    session = onnxruntime.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
    exits = []
    for image in images.float() / 255:
        logits, exit_ = session.run(["logits", "exit"], {"images": image[None].numpy()})
        assert logits.shape == (1, 10)
        expected = early.student(image[None])
        names = [*(early.names[number] for number in early.running), "student"]
        assert names[int(exit_[0])] == early.names[int(expected.exits)]
        torch.testing.assert_close(torch.from_numpy(logits), expected.logits, rtol=1e-3, atol=1e-3)
        exits.append(int(exit_[0]))
    assert len(set(exits)) > 1
    for number in range(len(early.running) + 1):
        thresholds = [1.5] * number + [0.0] * (len(early.running) - number)
        _, exit_ = exit_runner(exported.path, thresholds)((images[:1].float() / 255).numpy())
        assert exit_ == number
    assert exported.difference < 1e-4
    accuracy = exported.measured.accuracy
    assert accuracy["exported"].top1 < accuracy["student"].top1 + 5
    assert exported.measured.latency.keys() == {1}
    assert "plain" in exported.measured.latency[1]
    expects = json.loads(session.get_modelmeta().custom_metadata_map["expects"])
    assert expects["input"]["shape"] == [1, 1, 8, 8]
    assert expects["exits"]["names"][-1] == "student"
    np.testing.assert_allclose(
        expects["exits"]["thresholds"],
        [early.policy.thresholds[number] for number in early.running],
    )


@pytest.mark.slow(seconds=2)
def test_the_exported_file_runs_without_torch_and_this_package(
    exported: Exported, early: EarlyExits, images: Tensor, tmp_path: Path
) -> None:
    paths = []
    for number, image in enumerate(images[:5]):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(image[0].numpy()).save(paths[-1])
    card = exported.card.read_text()
    assert "## Early exits" in card
    program = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert program
    code = "import sys\nfor name in ('torch', 'dskd'): sys.modules[name] = None\n" + program[1]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, paths)],
        cwd=exported.path.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    with torch.no_grad():
        expected = [
            early.deployed.classes[int(early.student(image[None]).logits.argmax())]
            for image in images[:5]
        ]
    assert [line.split()[-1] for line in done.stdout.splitlines()] == expected


@pytest.mark.slow(seconds=5)
def test_a_transformer_of_timm_has_exits(tmp_path: Path) -> None:
    data = replace(make_dataset(size=32), validation=make_dataset(size=32, seed=1).train)
    run = dskd.distill(
        {"name": "timm/test_vit", "options": {"img_size": 32, "patch_size": 4}},
        data=data,
        method="dsn",
        train={"epochs": 1, "batch_size": 20, "exits": True},
        out=tmp_path / "run",
        verbose=0,
    )
    early = load_early(run.path, max_loss=100)
    assert [one.submodule for one in early.facts.exits] == ["blocks.1", "blocks.2", "blocks.4"]
    images = data.test.images_at(torch.arange(len(data.test)))
    with torch.no_grad():
        *_, own = with_thresholds(early, 0.0, 0.0, 0.0).all_logits(images)
        assert torch.equal(own, early.deployed.model(images).logits)
        assert with_thresholds(early, 0.0, 0.0, 0.0)(images).exits.tolist() == [0] * len(images)
    assert dskd.export(run.path, max_loss=100, data=data, measure=False).difference < 1e-4


def test_commands_predict_early(
    run: dskd.Result,
    early: EarlyExits,
    images: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(latency, "SECONDS", 0.0)
    found = CliRunner().invoke(
        cli, ["evaluate", str(run.path), "--exits", "--max-loss", str(LOSS), "--json"]
    )
    assert found.exit_code == 0, found.output
    numbers = json.loads(found.output)
    assert numbers["names"] == ["stage1", "stage2", "student"]
    rows = {row["max_loss"]: row for row in numbers["rows"]}
    assert rows.keys() == {0.0, 0.25, 0.5, 1.0, 2.0, LOSS, 4.0}
    assert rows[LOSS]["multiply_adds"] < numbers["multiply_adds"]
    assert rows[LOSS]["thresholds"] == list(early.policy.thresholds)
    assert sum(rows[LOSS]["shares"]) == pytest.approx(100)
    assert numbers["curve"][0]["accuracy"] == run.test_accuracy == numbers["accuracies"][-1]
    assert rows[LOSS]["accuracy"] > run.test_accuracy - 15
    found = CliRunner().invoke(cli, ["evaluate", str(run.path), "--json"])
    assert json.loads(found.output)["test_accuracy"] == run.test_accuracy
    path = tmp_path / "digit.png"
    Image.fromarray(images[0, 0].numpy()).save(path)
    done = CliRunner().invoke(
        cli,
        [
            "predict",
            str(run.path),
            str(path),
            "--exits",
            "--max-loss",
            str(LOSS),
            "--format",
            "json",
        ],
    )
    assert done.exit_code == 0, done.output
    with torch.no_grad():
        expected = early.student(images[:1])
    assert f"{early.names[int(expected.exits)]} 100.0 %" in done.stderr
    probabilities = dskd.predict(run.path, [path], max_loss=LOSS)
    torch.testing.assert_close(probabilities, expected.logits.softmax(1))
    likely = json.loads(done.stdout)[0]["classes"][0]
    assert likely["probability"] == pytest.approx(probabilities.max().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "kd"}, "the method kd has no branches that could predict early; take dskd"),
        ({"method": {"name": "dskd", "fuse": True}}, "makes each branch need the deeper stages"),
        ({"data": "digits"}, "there are none; hold some training images out with data"),
    ],
)
def test_a_run_that_cannot_keep_exits_is_refused_before_it_starts(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        distil(tmp_path / "run", **changes)
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_vgg_of_the_zoo_can_keep_exits() -> None:
    data = make_dataset(size=32)
    data = replace(data, validation=data.test)
    pair, _ = make_pair(staged("vgg8"), staged("resnet14"), data)
    check_exits("dskd", DSKD(pair), data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "openvino"}, "without early exits; choose format="),
        ({"batch": 8}, "an early exit predicts for one image at a time; drop batch=8"),
        ({"int8": True}, "early exits are exported in float32; drop int8=True"),
        ({"which": "best"}, "early exits are those of the last epoch's student"),
        ({"max_loss": -1.0}, "max_loss: a number of 0 or more is needed, got -1.0"),
    ],
)
def test_an_export_that_has_no_exits_is_refused(
    run: dskd.Result, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        dskd.export(run.path, **{"max_loss": LOSS, **options})
    assert message in str(caught.value)


def test_files_that_were_not_written_by_a_run_are_refused(
    run: dskd.Result, early: EarlyExits, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = run.path / "exits.safetensors"
    content, plain = path.read_bytes(), early.facts.model_dump(mode="json")
    weights = safetensors.torch.load_file(path)

    def refused(changes: dict[str, Any], message: str) -> None:
        metadata = {"dskd": json.dumps({**plain, **changes})}
        path.write_bytes(safetensors.torch.save(weights, metadata))
        with pytest.raises(InputError, match=message):
            load_early(run.path)

    huge, missing, elsewhere = (json.loads(json.dumps(plain))["exits"] for _ in range(3))
    huge[0]["branch"]["target"] |= {"channels": 65536}
    del missing[0]["temperature"]
    elsewhere[0]["submodule"] = "layer9"
    try:
        refused({"exits": huge}, "does not fit")
        refused({"exits": missing}, r"damaged: exits\[0\].temperature is missing")
        refused({"exits": elsewhere}, "does not fit the student: it has no 'layer9'")
        refused({"exits": plain["exits"][:1]}, "a threshold is missing")
        path.unlink()
        with pytest.raises(InputError, match="kept no early exits; train with"):
            evaluate_exits(run.path)
    finally:
        path.write_bytes(content)


def test_a_loss_without_exits_is_refused(run: dskd.Result) -> None:
    found = CliRunner().invoke(cli, ["evaluate", str(run.path), "--max-loss", "1"])
    assert isinstance(found.exception, InputError)
    assert str(found.exception) == "--max-loss chooses among early exits; add --exits"
