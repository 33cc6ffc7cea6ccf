"""Reports about what ships: the student's own keys, parts that came frozen, export, prediction."""

from __future__ import annotations

import contextlib
import copy
import csv
import io
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn
from torch.nn.utils import parametrizations
from torch.optim.swa_utils import AveragedModel

import dskd
from dskd.cli.commands import run_command
from dskd.deploy.predict import Skipped, predict_batches
from dskd.errors import InputError
from dskd.models.plain_copy import plain_copy
from dskd.storage import checkpoint
from tests.builders import make_dataset, trusted


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 4),
    )


def compiled(module: nn.Module) -> nn.Module:
    wrapped = torch.compile(module, backend="eager")
    assert isinstance(wrapped, nn.Module)
    return wrapped


def compiled_parts() -> nn.Module:
    whole = net()
    whole[0] = compiled(whole[0])
    whole[1] = nn.DataParallel(compiled(whole[1]))
    return whole


WRAPPED: dict[str, Callable[[], nn.Module]] = {
    "compiled": lambda: compiled(net()),
    "DataParallel": lambda: nn.DataParallel(net()),
    "averaged": lambda: AveragedModel(net()),
    "nested": lambda: nn.DataParallel(compiled(nn.DataParallel(compiled_parts()))),
    "parts": compiled_parts,
}


def train(student: nn.Module, out: Path, **more: object) -> dskd.Result:
    return dskd.train(
        student=student,
        data=make_dataset(4, per_class=3),
        train={"epochs": 1, "batch_size": 4, "lr": 0.1} | more,
        out=out,
    )


@pytest.mark.parametrize("kind", WRAPPED)
def test_a_wrapped_student_ships_the_keys_of_the_plain_network(kind: str, tmp_path: Path) -> None:
    student = WRAPPED[kind]()
    before = copy.deepcopy(dict(student.state_dict()))
    train(student, tmp_path / "run")
    for name in ("student", "student_best"):
        weights = safetensors.torch.load_file(tmp_path / "run" / f"{name}.safetensors")
        net().load_state_dict(weights, strict=True)
    after = student.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert student.training
    recipe = (tmp_path / "run" / "recipe.yaml").read_text()
    assert "<Sequential>" in recipe
    again = dskd.load_deployed(tmp_path / "run", student=student)
    assert list(again.model.module.state_dict()) == list(net().state_dict())
    (path, *_) = (tmp_path / "run" / "checkpoints").iterdir()
    keys = checkpoint.read(path)["trainer"]["method"]
    assert {key for key in keys if key.startswith("student.")} == {
        f"student.module.{key}" for key in net().state_dict()
    }


def test_a_student_in_distributed_data_parallel_ships_plain_keys(tmp_path: Path) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        wrapped = nn.parallel.DistributedDataParallel(net())
        inside = nn.Sequential(wrapped)
    finally:
        torch.distributed.destroy_process_group()
    assert list(plain_copy(wrapped).state_dict()) == list(net().state_dict())
    assert list(plain_copy(inside).state_dict()) == [f"0.{key}" for key in net().state_dict()]
    train(wrapped, tmp_path / "run")
    net().load_state_dict(
        safetensors.torch.load_file(tmp_path / "run" / "student.safetensors"), strict=True
    )


@pytest.mark.parametrize("kind", WRAPPED)
def test_a_wrapped_teacher_teaches_as_the_plain_one(kind: str, tmp_path: Path) -> None:
    data = make_dataset(4, per_class=3)
    teacher = WRAPPED[kind]()
    students = []
    for name, given in (("wrapped", teacher), ("plain", plain_copy(teacher))):
        dskd.distill(
            student="resnet8",
            teacher=trusted(given),
            data=data,
            method="kd",
            train={"epochs": 1, "batch_size": 4},
            out=tmp_path / name,
        )
        students.append((tmp_path / name / "student.safetensors").read_bytes())
    assert students[0] == students[1]


NORMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "old_weight_norm": nn.utils.weight_norm,
    "old_spectral_norm": nn.utils.spectral_norm,
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", NORMS)
def test_a_parametrized_student_ships_what_loads_into_it(kind: str, tmp_path: Path) -> None:
    def parametrized() -> nn.Module:
        module = net()
        NORMS[kind](module[0])
        module(torch.zeros(2, 3, 8, 8))  # old weight_norm could not be copied after a forward pass
        return module

    student = parametrized()
    result = train(student, tmp_path / "run")
    weights = safetensors.torch.load_file(tmp_path / "run" / "student.safetensors")
    other = parametrized()
    other.load_state_dict(weights, strict=True)
    images = torch.rand(3, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(other.eval()(images), result.student(images))
    loaded = dskd.load_deployed(tmp_path / "run", student=student).model.module
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), result.student(images))


def test_parts_that_came_frozen_or_in_eval_mode_stay_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    student = net()
    student[0].requires_grad_(False)
    student[1].eval()
    frozen, norm = student[0], student[1]
    before = copy.deepcopy(student.state_dict())
    with caplog.at_level(logging.INFO, "dskd"):
        result = train(student, tmp_path / "run")
    trained = result.student.state_dict()
    kept = ["0.weight", "0.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked"]
    changed = {key for key in before if not torch.equal(before[key], trained[key])}
    assert changed == set(before) - set(kept)
    assert "112 of 140 parameters came frozen and stay so" in caplog.text
    assert "1 submodules stay in evaluation mode (1)" in caplog.text
    assert not any(p.requires_grad for p in frozen.parameters())
    assert not norm.training
    assert student.training


def test_a_frozen_norm_keeps_its_running_statistics(tmp_path: Path) -> None:
    student = net()
    student[:2].requires_grad_(False)
    before = copy.deepcopy(student.state_dict())
    trained = train(student, tmp_path / "run").student.state_dict()
    changed = {key for key in before if not torch.equal(before[key], trained[key])}
    assert changed == {"5.weight", "5.bias"}


def test_a_student_that_came_in_eval_mode_as_a_whole_is_trained_and_this_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    student = net().eval()
    with caplog.at_level(logging.INFO, "dskd"):
        result = train(student, tmp_path / "run")
    assert result.student.get_buffer("1.num_batches_tracked") > 0
    assert "it came in evaluation mode as a whole, and is trained in training mode" in caplog.text
    assert not student.training


def test_nothing_is_said_of_a_student_that_is_trained_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "dskd"):
        train(net(), tmp_path / "run")
    assert "evaluation mode" not in caplog.text
    assert "frozen" not in caplog.text


def test_shards_are_refused() -> None:
    class FullyShardedDataParallel(nn.Module):
        """Named as torch's, which needs several processes."""

    FullyShardedDataParallel.__qualname__ = "FullyShardedDataParallel"
    FullyShardedDataParallel.__module__ = "torch.distributed.fsdp.fully_sharded_data_parallel"
    with pytest.raises(InputError, match="holds only a part of its weights"):
        plain_copy(FullyShardedDataParallel())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of four classes."""
    out = tmp_path_factory.mktemp("shipping") / "run"
    dskd.train(
        student="resnet8",
        data=make_dataset(4, per_class=3),
        train={"epochs": 1, "batch_size": 4},
        out=out,
    )
    return out


def image(path: Path, level: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 9), (level, 0, 255 - level)).save(path, "PNG")
    return path


def predict(run: Path, *arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command."""
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8", newline=""), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run_command(["predict", str(run), *map(str, arguments)])
    out.flush()
    binary = out.buffer
    assert isinstance(binary, io.BytesIO)
    return code, binary.getvalue().decode("utf-8", "surrogateescape"), err.getvalue()


def test_files_folders_and_patterns_are_predicted_in_order(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    names = ["b.png", "a/deep/er/c.png", "a/d.PNG", "no suffix", "x[1].png", 'quo"te\nline,.png']
    for level, name in enumerate(names):
        image(folder / name, 40 * level)
    for other in ("notes.txt", ".hidden.png", ".folder/x.png"):
        image(folder / other)
    (folder / "a" / "loop").symlink_to(folder)
    given = [
        f"{folder}/./b.png",
        f"{folder}/no suffix",
        f"{folder}/x[1].png",
        f"{folder}/**/d.*",
        str(folder),
    ]
    inside = ["a/d.PNG", "a/deep/er/c.png", "b.png", 'quo"te\nline,.png', "x[1].png"]
    expected = [*given[:3], f"{folder}/a/d.PNG", *(f"{folder}/{name}" for name in inside)]
    code, text, said = predict(run, *given, "--format", "csv", "--top", "2")
    assert (code, said) == (0, "")
    header, *lines = csv.reader(io.StringIO(text, newline=""))
    assert header == ["image", "class_1", "probability_1", "class_2", "probability_2"]
    assert [line[0] for line in lines] == expected
    code, text, _ = predict(run, *given, "--format", "json", "--top", "9")
    rows = json.loads(text)
    assert [row["image"] for row in rows] == expected
    student = dskd.load_deployed(run)
    probabilities = dskd.predict(student, expected)
    for row, line, values in zip(rows, lines, probabilities.tolist(), strict=True):
        found = {one["class"]: one["probability"] for one in row["classes"]}
        assert found == pytest.approx(dict(zip(student.classes, values, strict=True)), abs=1e-5)
        assert line[1] == max(found, key=lambda name: found[name])
    _, text, _ = predict(run, *given, "--format", "jsonl", "--top", "9")
    assert [json.loads(line) for line in text.splitlines()] == rows


def test_bad_files_are_skipped_counted_and_named(run: Path, tmp_path: Path) -> None:
    good = image(tmp_path / "in" / "good.png")
    for index in range(4):
        (tmp_path / "in" / f"bad{index}.png").write_bytes(b"no image")
    (tmp_path / "in" / "empty.png").touch()
    (tmp_path / "in" / "link.png").symlink_to("gone.png")
    (tmp_path / "none").mkdir()
    out = tmp_path / "out.csv"
    inputs: list[str | Path] = [
        tmp_path / "in",
        tmp_path / "none",
        tmp_path / "gone.png",
        f"{tmp_path}/*.jpg",
    ]
    code, text, said = predict(run, *inputs, "--out", out)
    assert (code, text) == (0, f"predictions for 1 image written to {out}\n")
    first, *named = said.splitlines()
    assert first == (
        "skipped 9: 4 damaged, 2 missing, 1 dangling links, 1 empty, 1 folders without images"
    )
    assert len(named) == 6
    assert "bad0.png: cannot decode" in named[0]
    assert named[-1] == "  and 4 more"
    (_, row) = csv.reader(out.read_text().splitlines())
    assert row[0] == str(good)


def test_nothing_is_written_if_no_image_can_be_used(run: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    out = tmp_path / "out.json"
    out.write_text("before")
    code, _, said = predict(run, tmp_path / "bad.png", "--out", out)
    assert code == 2
    assert "no image can be used: skipped 1: 1 damaged" in said
    assert out.read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.png", "out.json"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--out", "gone/x.csv"], "there is no folder gone"),
        (["--out", "x.txt"], "csv, json or jsonl, not txt"),
        (["--out", "x.csv", "--format", "table"], "csv, json or jsonl, not table"),
    ],
)
def test_a_file_of_predictions_that_cannot_be_written_is_refused(
    run: Path, tmp_path: Path, arguments: list[str], says: str
) -> None:
    code, _, said = predict(run, image(tmp_path / "a.png"), *arguments)
    assert code == 2
    assert says in said


def test_names_that_are_no_text_stay(run: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    path = image(tmp_path / name)
    code, text, _ = predict(run, path, "--format", "csv")
    assert code == 0
    assert os.fsencode(str(path)) in text.encode("utf-8", "surrogateescape")
    _, text, _ = predict(run, path, "--format", "jsonl")
    assert json.loads(text)["image"] == str(path)


def test_memory_does_not_grow_with_the_number_of_images(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = image(tmp_path / "a.png")
    sizes: list[int] = []
    student = dskd.load_deployed(run)
    student.model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    monkeypatch.setattr("dskd.deploy.predict.PIXELS", {"cpu": 4 * 16 * 16})
    batches = predict_batches(student, [path] * 30, Skipped())
    assert len(next(batches).images) == 4
    assert sizes == [4]  # the others are not read before they are asked for
    assert sum(len(batch.images) for batch in batches) == 26
    assert max(sizes) == 4
    sizes.clear()
    assert dskd.predict(student, [path] * 50).shape == (50, 4)
    assert max(sizes) == 16
