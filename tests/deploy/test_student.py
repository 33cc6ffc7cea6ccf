"""The deployed student: its file, its predictions, and independence of the training code."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn

import dskd
from dskd.deploy.predict import Skipped, predict_batches
from dskd.errors import InputError, on_command_line
from dskd.storage.weights import read_metadata
from tests.builders import make_dataset, trusted

FILES = ["student.safetensors", "student_best.safetensors"]


class Net(nn.Module):
    """A network of the user's own, with stages."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(4, 8, 3, 2, 1), nn.ReLU())
        self.head = nn.Linear(8, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.two(self.one(images)).mean((2, 3)))
        return logits


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dskd.Result:
    """A student with auxiliary branches, distilled for one epoch."""
    return dskd.distill(
        student="resnet8",
        teacher=trusted(dskd.load_model("resnet8", num_classes=10, in_channels=1)),
        data={"name": "digits", "fraction": 0.1},
        train={"epochs": 1},
        out=tmp_path_factory.mktemp("deployed") / "run",
    )


@pytest.mark.parametrize("name", FILES)
def test_the_file_has_the_student_s_own_keys_and_no_others(
    finished: dskd.Result, name: str
) -> None:
    model = dskd.load_model("resnet8", num_classes=10, in_channels=1)
    weights = safetensors.torch.load_file(finished.path / name)
    assert weights.keys() == model.state_dict().keys()
    model.load_state_dict(weights, strict=True)


def test_the_file_is_the_trained_student_bit_for_bit(finished: dskd.Result) -> None:
    weights = safetensors.torch.load_file(finished.path / "student.safetensors")
    trained = finished.student.state_dict()
    assert all(torch.equal(weights[key], trained[key]) for key in trained)
    student = dskd.load_deployed(finished.path)
    images = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
    with torch.no_grad():  # the trained one is in another memory format
        expected = finished.student(student.model.normalize(images))
        torch.testing.assert_close(student.model(images).logits, expected)


@pytest.mark.parametrize("name", FILES)
def test_the_file_tells_no_time_host_or_path(finished: dskd.Result, name: str) -> None:
    path = finished.path / name
    expected = ["model", "options", "classes", "shape", "method", "deploy_config", "mean", "std"]
    assert read_metadata(path).keys() == {*expected, "pixels"}
    content = path.read_bytes()
    header = content[8 : 8 + int.from_bytes(content[:8], "little")].decode()
    for word in (socket.gethostname(), str(Path.home()), str(finished.path), time.strftime("%Y-")):
        assert word not in header
    assert json.loads(header)["__metadata__"].keys() == {"dskd"}


@pytest.mark.slow
def test_the_file_loads_without_this_package(finished: dskd.Result) -> None:
    code = (
        "import sys; sys.modules['dskd'] = None\n"
        "from safetensors.torch import load_file\n"
        f"weights = load_file({os.fspath(finished.path / FILES[0])!r})\n"
        "print(sum(tensor.numel() for tensor in weights.values()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) >= finished.parameters


@pytest.mark.slow
def test_the_student_needs_none_of_the_training_code(finished: dskd.Result) -> None:
    """The zoo builds it from the file alone: no methods, losses, data or trainer are imported."""
    code = (
        "import importlib.util, sys, types\n"
        "spec = importlib.util.find_spec('dskd')\n"
        "package = types.ModuleType('dskd'); package.__path__ = spec.submodule_search_locations\n"
        "sys.modules['dskd'] = package\n"
        "from pathlib import Path\n"
        "from dskd.storage.weights import load_weights, read_metadata, read_weights\n"
        "from dskd.models.factory import load_model\n"
        f"path = Path({os.fspath(finished.path / FILES[0])!r})\n"
        "facts = read_metadata(path)\n"
        "model = load_model(facts['model'], num_classes=len(facts['classes']),"
        " in_channels=facts['shape'][0])\n"
        "load_weights(model, read_weights(path), 'student')\n"
        "print(*sorted({m.split('.')[1] for m in sys.modules if m.startswith('dskd.')}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["errors", "models", "storage"]


def test_evaluate_and_predict_from_python(finished: dskd.Result, tmp_path: Path) -> None:
    assert dskd.evaluate(str(finished.path)).accuracy == finished.test_accuracy
    assert dskd.evaluate(finished.path, "best").accuracy == finished.best_test_accuracy
    student = dskd.load_deployed(str(finished.path))
    assert (student.name, student.shape, len(student.classes)) == ("resnet8", (1, 8, 8), 10)
    levels = np.random.RandomState(0).randint(0, 256, (8, 8)).astype(np.uint8)
    Image.fromarray(levels).save(tmp_path / "gray.png")
    with torch.no_grad():
        expected = student.model(torch.from_numpy(levels)[None, None]).logits.softmax(1)
    twice = dskd.predict(student, [str(tmp_path / "gray.png"), tmp_path / "gray.png"])
    assert twice.shape == (2, 10)
    torch.testing.assert_close(twice, expected.expand(2, -1))
    for one in (str(tmp_path / "gray.png"), tmp_path / "gray.png"):
        torch.testing.assert_close(dskd.predict(student, one), expected)


def which_one() -> Any:
    """A value that the types do not allow."""
    return "first"


LOADED = ["no effect on a student that is loaded", "load_deployed"]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda path: dskd.load_deployed(path / "gone"), ["gone", "no run"]),
        (lambda path: dskd.load_deployed(path, which_one()), ["'first'", "best, ema, last"]),
        (lambda path: dskd.evaluate(path, root="gone"), ["data.root", "drop it"]),
        (lambda path: dskd.evaluate(path, data=path), ["data:", 'root="FOLDER"', "drop it"]),
        (lambda path: dskd.evaluate(path, data="digits"), ["data:", 'root="FOLDER"']),
        (lambda path: dskd.evaluate(path, data={"fraction": 1}), ["data:", 'root="FOLDER"']),
        (lambda path: dskd.export(path, data="digits"), ["data:", 'root="FOLDER"']),
        (lambda path: dskd.predict(dskd.load_deployed(path), []), ["no image"]),
        (
            lambda path: dskd.predict(dskd.load_deployed(path), ["a.png"], "best"),
            ["which", *LOADED],
        ),
        (lambda path: dskd.export(dskd.load_deployed(path), which="ema"), ["which", *LOADED]),
        (
            lambda path: dskd.export(dskd.load_deployed(path), student=nn.Identity()),
            ["student has", *LOADED],
        ),
        (lambda path: dskd.predict(dskd.load_deployed(path), ["gone.png"]), ["gone.png"]),
    ],
)
def test_bad_calls_are_refused(finished: dskd.Result, call: Any, words: list[str]) -> None:
    with pytest.raises(InputError) as refused:
        call(finished.path)
    assert all(word in str(refused.value) for word in words), refused.value


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("student: {name: resnet8}", "--resume`"),
        ("method: {name: 'mine:Method'}", "--resume --allow-code`"),
        ("student: {name: 'mine:make'}", "--resume --allow-code`"),
        ("method: {name: <Method>}", "the same call in Python again"),
    ],
)
def test_an_unfinished_run_says_how_it_goes_on(tmp_path: Path, names: str, words: str) -> None:
    (tmp_path / "recipe.yaml").write_text(f"data: {{name: digits}}\n{names}\n")
    with on_command_line(), pytest.raises(InputError, match=words):
        dskd.load_deployed(tmp_path)


def test_a_module_of_one_s_own_is_loaded_where_it_is_built(tmp_path: Path) -> None:
    data = make_dataset(4, per_class=3)
    out = tmp_path / "run"
    result = dskd.train(student=Net(), data=data, train={"epochs": 1, "batch_size": 4}, out=out)
    weights = safetensors.torch.load_file(out / "student.safetensors")
    Net().load_state_dict(weights)
    assert result.path == out
    with pytest.raises(InputError, match=r"given in Python as <Net>; give it again"):
        dskd.load_deployed(out)
    with pytest.raises(InputError, match=r"given in Python as <Dataset>; give them again"):
        dskd.evaluate(out, student=Net())
    assert dskd.evaluate(out, data=data, student=Net()).accuracy == result.test_accuracy


def test_the_rule_of_random_crops_is_not_that_of_predictions(tmp_path: Path) -> None:
    """The digits are resized by a rule of their own, which evaluation uses, too."""
    crops = {"crop_scale": (0.5, 1.0), "interpolation": "bilinear"}
    data = {"name": "digits", "fraction": 0.1, **crops}
    result = dskd.train("resnet8", data=data, epochs=1, out=tmp_path / "run")
    assert dskd.load_deployed(result.path).form.interpolation is None


def test_a_function_of_one_s_own_runs_only_where_that_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine_for_deployed.py").write_text(
        "from dskd import load_model\n"
        "def make(num_classes, in_channels, width=1):\n"
        "    return load_model('resnet8', num_classes=num_classes, in_channels=in_channels)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    out = tmp_path / "run"
    dskd.train(
        student={"name": "mine_for_deployed:make", "options": {"width": 2}},
        data={"name": "digits", "fraction": 0.1},
        train={"epochs": 1},
        out=out,
        allow_code=True,
    )
    with pytest.raises(InputError, match="allow_code=True"):
        dskd.load_deployed(out)
    assert dskd.load_deployed(out, allow_code=True).name == "mine_for_deployed:make"


def test_wide_images_must_come_in_the_size_of_the_training(tmp_path: Path) -> None:
    data = make_dataset(2, per_class=4, size=16)
    train, test = (
        dskd.Split(torch.cat([part.images, part.images], dim=3), part.labels)
        for part in (data.train, data.test)
    )
    wide = dataclasses.replace(data, train=train, test=test)
    out = tmp_path / "run"
    dskd.train(student="resnet8", data=wide, train={"epochs": 1, "batch_size": 4}, out=out)
    student = dskd.load_deployed(out)
    Image.new("RGB", (32, 16)).save(tmp_path / "fits.png")
    assert dskd.predict(student, [tmp_path / "fits.png"]).shape == (1, 2)
    Image.new("RGB", (16, 32)).save(tmp_path / "tall.png")
    with pytest.raises(InputError, match=r"tall.png is 16x32, .* 32x16; resize it"):
        dskd.predict(student, [tmp_path / "tall.png"])
    with pytest.raises(InputError, match="images were given in Python as <Dataset>"):
        dskd.evaluate(out)


@pytest.mark.parametrize("channels", [2, 4])
def test_image_files_are_not_for_students_of_other_channels(
    finished: dskd.Result, tmp_path: Path, channels: int
) -> None:
    path = tmp_path / "gray.png"
    Image.new("L", (8, 8)).save(path)
    student = dataclasses.replace(dskd.load_deployed(finished.path), shape=(channels, 8, 8))
    said = f"image files have 1 or 3 channels, and resnet8 takes {channels}; give its images as"
    with pytest.raises(InputError, match=said):
        dskd.predict(student, [path])
    with pytest.raises(InputError, match=f"^{said}"):
        next(predict_batches(student, [path], Skipped()))
