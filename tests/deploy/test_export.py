"""Exported files run without this package, predict as `evaluate` does, and say what they expect."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import openvino
import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors import safe_open

import dskd
from dskd.config.recipe import resolve
from dskd.deploy import executorch, latency, torch_export
from dskd.deploy.caller import caller
from dskd.deploy.export import default_path, export_file
from dskd.deploy.formats import FORMATS, find_format
from dskd.deploy.input_contract import InputContract
from dskd.deploy.latency import measure_latency
from dskd.deploy.measure import Measurements
from dskd.deploy.student_graph import in_batches, student_graph
from dskd.errors import InputError
from tests.builders import make_dataset

CLASSES = ["cat", "dog", "owl"]
GRAPHS = ["onnx", "openvino", "torch-export"]
OPTIONS: dict[str, Any] = {"layers": [1, 1, 0, 0], "channels": [32, 96, 96, 96]}
"""Of the student: two stages in place of four, as the time goes to the layers of the graphs."""


def write_images(root: Path) -> None:
    """Photos of three tints in sizes that must be cropped and resized; the tints overlap."""
    draw = np.random.RandomState(0)
    for split, count in (("train", 8), ("val", 12)):
        for label, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for k in range(count):
                pixels = 90 + 20 * label + draw.normal(0, 12) + 60 * draw.randn(40 + k, 52, 3)
                image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
                image.save(folder / f"{k}.png")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dskd.Result:
    """A model of timm that was distilled from a network of the zoo."""
    root = tmp_path_factory.mktemp("export")
    write_images(root / "photos")
    return dskd.distill(
        {"name": "timm/test_resnet", "options": OPTIONS},
        teacher={"name": "resnet8", "epochs": 2},
        data={"name": "folder", "root": root / "photos", "size": 32},
        method="kd",
        train={"epochs": 3, "batch_size": 4, "lr": 0.05},
        out=root / "run",
    )


@pytest.fixture(scope="module")
def exported(run: dskd.Result) -> Iterator[dict[str, Any]]:
    """The student in every format whose library is a part of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "SECONDS", 0.0)
        yield {
            form: dskd.export(run.path, format=form, measure=form == "onnx", license="mit")
            for form in [*GRAPHS, "safetensors"]
        }


def program_of(card: Path) -> str:
    found = re.search(r"```python\n(.*?)```", card.read_text(), re.DOTALL)
    assert found
    return found[1]


def without(modules: list[str], programs: dict[str, Any], folder: Path, images: list[Path]) -> Any:
    """Runs the programs of model cards in one process that cannot import some modules."""
    texts = {form: program_of(one.card) for form, one in programs.items()}
    code = (
        "import contextlib, io, json, os, sys\n"
        f"for name in {modules!r}: sys.modules[name] = None\n"
        f"os.chdir({str(folder)!r}); sys.argv = ['caller', *{[str(p) for p in images]!r}]\n"
        "found = {}\n"
        f"for form, text in {texts!r}.items():\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as out: exec(text, {})\n"
        "    found[form] = [line.split()[-1] for line in out.getvalue().splitlines()]\n"
        "print(json.dumps(found))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def images_of(run: dskd.Result) -> list[Path]:
    return sorted((run.path.parent / "photos/val").rglob("*.png"))


@pytest.fixture(scope="module")
def predicted(
    run: dskd.Result, exported: dict[str, Any], in_int8: dict[str, Any]
) -> dict[str, list[str]]:
    """What the programs of the cards say, in float32 and in 8 bits, without this package.

    Those that need no torch run in a process that has none.
    """
    programs = exported | {f"{form} in int8": one for form, one in in_int8.items()}
    plain = {name: one for name, one in programs.items() if name.startswith(("onnx", "openvino"))}
    others = {name: one for name, one in programs.items() if name not in plain}
    folder, images = run.path / "export", images_of(run)
    found: dict[str, list[str]] = without(["dskd", "torch"], plain, folder, images)
    found.update(without(["dskd"], others, folder, images))
    return found


@pytest.mark.slow(seconds=35)
def test_the_programs_of_the_cards_reach_the_accuracy_of_evaluate_without_this_package(
    run: dskd.Result, predicted: dict[str, list[str]]
) -> None:
    images = images_of(run)
    expected = [CLASSES[k] for k in dskd.predict(run.path, images).argmax(1).tolist()]
    truth = [path.parent.name for path in images]
    accuracy = 100 * np.mean([a == b for a, b in zip(expected, truth, strict=True)])
    assert accuracy == pytest.approx(run.test_accuracy, abs=1e-3)
    assert len(set(expected)) > 1, "a student that always says the same shows nothing"
    for form in [*GRAPHS, "safetensors"]:
        assert predicted[form] == expected, form


@pytest.mark.slow
def test_every_file_says_what_it_expects(run: dskd.Result, exported: dict[str, Any]) -> None:
    import onnxruntime

    paths = {form: one.path for form, one in exported.items()}
    session = onnxruntime.InferenceSession(paths["onnx"], providers=["CPUExecutionProvider"])
    extra = {"expects.json": ""}
    torch.export.load(paths["torch-export"], extra_files=extra)
    with safe_open(paths["safetensors"], "pt") as file:
        weights = file.metadata()["expects"]
    found = {
        "onnx": session.get_modelmeta().custom_metadata_map["expects"],
        "torch-export": extra["expects.json"],
        "openvino": openvino.Core()
        .read_model(paths["openvino"])
        .get_rt_info(["expects"])
        .astype(str),
        "safetensors": weights,
    }
    plain = {form: json.loads(text) for form, text in found.items()}
    for form, facts in plain.items():
        assert facts["classes"] == CLASSES
        assert facts["input"]["shape"] == ["dynamic", 3, 32, 32]
        assert facts["normalization"]["inside"] == (form != "safetensors")
        assert "largest centred square" in facts["resize"]["rule"]
    assert plain["onnx"] == plain["openvino"] == plain["torch-export"]


@pytest.mark.slow
def test_no_file_tells_a_folder_of_this_machine(exported: dict[str, Any]) -> None:
    for one in exported.values():
        content = one.path.read_bytes()
        if one.path.suffix == ".pt2":
            with zipfile.ZipFile(one.path) as archive:
                content = b"".join(archive.read(name) for name in archive.namelist())
        for package in (dskd, timm, torch):
            assert str(Path(str(package.__file__)).parent).encode() not in content, one.form


@pytest.mark.slow
def test_the_weights_load_in_timm_as_they_are(run: dskd.Result, exported: dict[str, Any]) -> None:
    for path in (exported["safetensors"].path, run.path / "student.safetensors"):
        model = timm.create_model(
            "test_resnet", num_classes=3, checkpoint_path=str(path), **OPTIONS
        ).eval()
        images = torch.rand(2, 3, 32, 32)
        with torch.no_grad():
            torch.testing.assert_close(model(images), run.student(images))
    again = dskd.load_deployed(exported["safetensors"].path)
    assert (again.classes, again.name) == (tuple(CLASSES), "timm/test_resnet")
    with pytest.raises(InputError, match="give the folder of a run"):
        dskd.evaluate(exported["safetensors"].path)


@pytest.mark.slow
def test_accuracy_and_latency_are_measured(run: dskd.Result, exported: dict[str, Any]) -> None:
    measured = exported["onnx"].measured
    assert measured.missing == {}
    assert {name: found.top1 for name, found in measured.accuracy.items()} == {
        "student": run.test_accuracy,
        "exported": run.test_accuracy,
    }
    assert exported["onnx"].teacher_accuracy == run.teacher_accuracy
    assert measured.latency.keys() == {1, 64}
    for times in measured.latency.values():
        assert list(times) == ["teacher", "student", "exported"]
        assert all(0 < time.low <= time.median <= time.high for time in times.values())
    assert measured.parameters["student"] == run.parameters
    assert exported["openvino"].size == sum(
        exported["openvino"].path.with_suffix(end).stat().st_size for end in (".xml", ".bin")
    )


def test_other_programs_that_disturb_the_latencies_are_told() -> None:
    assert Measurements(waiting=0.1).busy == ""
    assert "waited for 62 % of this time. Export again" in Measurements(waiting=0.62).busy


@pytest.mark.slow
def test_the_card_says_how_good_the_student_is_and_tells_no_path(
    run: dskd.Result, exported: dict[str, Any]
) -> None:
    from huggingface_hub import ModelCard

    card = ModelCard.load(exported["onnx"].card)
    assert card.data.license == "mit"
    (result,) = card.data.eval_results
    images = yaml.safe_load((run.path / "recipe.yaml").read_text())["data"]["root"]
    assert (result.dataset_name, result.metric_type) == (Path(images).name, "accuracy")
    assert result.metric_value == pytest.approx(run.test_accuracy / 100, abs=1e-6)
    assert f"{run.test_accuracy:.2f} % (95 % interval" in card.text
    assert "epochs: 3" in card.text
    assert str(run.path.parent) not in card.content


@pytest.mark.slow
def test_the_recipe_of_a_card_makes_the_student_again_without_paths_of_the_machine(
    run: dskd.Result, exported: dict[str, Any], tmp_path: Path
) -> None:
    text = re.search(r"```yaml\n(.*?)```", exported["onnx"].card.read_text(), re.DOTALL)
    assert text
    card = yaml.safe_load(text[1])
    assert "out" not in card
    before = resolve(yaml.safe_load((run.path / "recipe.yaml").read_text()), run.path)
    assert before.data.root is not None
    assert card["data"]["root"] == before.data.root.name
    again = resolve(card, tmp_path)
    plain, other = before.plain(), again.plain()
    for section, key in (("data", "root"), ("data", "cache_dir")):
        del plain[section][key], other[section][key]
    del plain["out"], other["out"]
    assert other == plain


@pytest.mark.slow(seconds=2)
@pytest.mark.parametrize("form", GRAPHS)
def test_a_fixed_batch_serves_any_number_of_images(
    run: dskd.Result, form: str, tmp_path: Path
) -> None:
    path = tmp_path / f"three{find_format(form).suffix}"
    found = dskd.export(run.path, path, batch=3, measure=False)
    assert found.form == form
    assert found.difference < 1e-4
    assert "| [3, 3, 32, 32] (NCHW) |" in found.card.read_text().replace("`images`, float32, ", "")


def test_batches_of_one_size_are_padded() -> None:
    sizes = []

    def double(images: Any) -> Any:
        sizes.append(len(images))
        return images[:, 0, 0] * 2

    images = np.arange(5, dtype=np.float32).reshape(5, 1, 1, 1)
    assert in_batches(double, 2)(images).flatten().tolist() == [0, 2, 4, 6, 8]
    assert sizes == [2, 2, 2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"format": "onxn"}, "unknown format 'onxn'; did you mean 'onnx'"),
        ({"batch": 0}, "batch: a number from 1 or dynamic is needed, got 0"),
        ({"batch": 2, "format": "safetensors"}, "safetensors holds weights, .* drop batch=2"),
        ({"out": "a.pt2", "format": "onnx"}, r"a.pt2: a file of onnx is named \*.onnx"),
    ],
)
def test_arguments_that_do_not_fit(run: dskd.Result, arguments: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        dskd.export(run.path, **arguments)


def test_nothing_is_written_through_a_link(run: dskd.Result, tmp_path: Path) -> None:
    copied, outside = tmp_path / "run", tmp_path / "outside"
    copied.mkdir()
    outside.mkdir()
    for name in ("recipe.yaml", "result.json", "student.safetensors"):
        (copied / name).write_bytes((run.path / name).read_bytes())
    (copied / "export").symlink_to(outside)
    with pytest.raises(InputError, match="is a link"):
        default_path(dskd.load_deployed(copied), find_format("onnx"))


@pytest.mark.slow
def test_what_cannot_be_measured_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "SECONDS", 0.0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(784, 4))
    data = make_dataset(4, per_class=3)
    done = dskd.train(net, data=data, train={"epochs": 1, "batch_size": 4}, out=tmp_path / "run")
    found = dskd.export(done.path, format="torch-export", student=net)
    assert "images were given in Python" in found.measured.missing["accuracy"]
    assert "not measured" in found.card.read_text()
    again = dskd.export(done.path, format="torch-export", student=net, data=data)
    assert again.measured.accuracy["exported"].top1 == done.test_accuracy


class Viewing(torch.nn.Module):
    """Flattens its map with a view, as many networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(784, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(self.conv(x).view(x.size(0), -1))
        return logits


@pytest.mark.slow
def test_images_whose_channels_come_last_in_memory_are_taken(tmp_path: Path) -> None:
    net, data = Viewing(), make_dataset(4, per_class=3)
    done = dskd.train(net, data=data, train={"epochs": 1, "batch_size": 4}, out=tmp_path / "run")
    found = dskd.export(done.path, format="torch-export", student=net, measure=False)
    student = dskd.load_deployed(done.path, student=net)
    graph = student_graph(InputContract(student, None, True))
    images = np.random.default_rng(0).random((2, 16, 16, 3), np.float32).transpose(0, 3, 1, 2)
    run = torch_export.runner(found.path, graph)
    np.testing.assert_array_equal(run(images), run(np.ascontiguousarray(images)))
    program = caller(InputContract(student, None, True), FORMATS["torch-export"], "a.pt2")
    assert "torch.from_numpy(np.ascontiguousarray(pixels))" in program


def test_calls_are_timed_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "SECONDS", 0.0)
    order: list[str] = []
    found = measure_latency({name: lambda name=name: order.append(name) for name in "ab"})  # type: ignore[misc]
    assert order == ["a", "b"] * 6
    assert found.keys() == {"a", "b"}


@pytest.mark.slow
def test_executorch(run: dskd.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("executorch")
    monkeypatch.setattr(latency, "SECONDS", 0.0)
    found = dskd.export(run.path, tmp_path / "student.pte")
    assert found.measured.accuracy["exported"].top1 == run.test_accuracy
    images = images_of(run)
    predicted = without(["dskd"], {"executorch": found}, tmp_path, images)["executorch"]
    assert predicted == [CLASSES[k] for k in dskd.predict(run.path, images).argmax(1).tolist()]


def test_executorch_takes_whole_batches_of_a_fixed_size(
    run: dskd.Result, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sizes: list[int] = []

    class Program:
        @staticmethod
        def get() -> Program:
            return Program()

        def load_program(self, _: Path) -> Program:
            return self

        def load_method(self, _: str) -> Program:
            return self

        def execute(self, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
            sizes.append(len(inputs[0]))
            return [inputs[0].mean((2, 3))]

    monkeypatch.setitem(sys.modules, "executorch", ModuleType("executorch"))
    runtime = ModuleType("executorch.runtime")
    monkeypatch.setattr(runtime, "Runtime", Program, raising=False)
    monkeypatch.setitem(sys.modules, "executorch.runtime", runtime)
    images = np.zeros((130, 3, 32, 32), np.float32)
    student = dskd.load_deployed(run.path)
    for batch in (128, None):
        graph = student_graph(InputContract(student, batch, True))
        in_batches(executorch.runner(tmp_path / "a.pte", graph), batch)(images)
    assert sizes == [128, 128, 64, 64, 2]


def test_an_export_leaves_the_student_as_it_was(run: dskd.Result, tmp_path: Path) -> None:
    student = dskd.load_deployed(run.path)
    student.model.train()
    state = {key: value.clone() for key, value in student.model.state_dict().items()}
    export_file(student, tmp_path / "student.pt2", "torch-export")
    assert all(parameter.requires_grad for parameter in student.model.parameters())
    assert all(part.training for part in student.model.modules())
    assert all(torch.equal(value, state[k]) for k, value in student.model.state_dict().items())


@pytest.mark.parametrize(("crop_pct", "interpolation"), [(0.875, "bilinear"), (1.0, "bicubic")])
def test_the_program_reads_images_as_the_run_did(
    run: dskd.Result, crop_pct: float, interpolation: Any, tmp_path: Path
) -> None:
    from dataclasses import replace

    from dskd.deploy.predict import read_image

    student = dskd.load_deployed(run.path)
    levels = (10.0, 200.0)
    form = replace(student.form, crop_pct=crop_pct, interpolation=interpolation, value_range=levels)
    student = replace(student, form=form)
    program = caller(InputContract(student, None, True), FORMATS["torch-export"], "a.pt2")
    body = program[program.index("    image = ") : program.index("    logits")]
    path = images_of(run)[-1]
    space: dict[str, Any] = {"path": path}
    code = "import numpy as np\nfrom PIL import Image, ImageOps\nif True:\n" + body
    exec(code, space)
    expected = read_image(path, student).float().numpy() / 255
    np.testing.assert_allclose(space["pixels"], expected, atol=1e-6)


def test_a_file_without_its_run_needs_a_name(run: dskd.Result, tmp_path: Path) -> None:
    student = dskd.load_deployed(run.path / "student.safetensors")
    with pytest.raises(InputError, match='name the file to write, with out="FILE"'):
        dskd.export(student)
    path = tmp_path / "weights.safetensors"
    assert export_file(student, path, "safetensors") == 0
    assert path.is_file()


@pytest.fixture(scope="module")
def in_int8(run: dskd.Result) -> dict[str, Any]:
    """The student in 8 bits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "SECONDS", 0.0)
        return {
            form: dskd.export(
                run.path, format=form, int8=True, calibration_images=20, measure=form == "onnx"
            )
            for form in GRAPHS
        }


@pytest.mark.slow
def test_int8_files_are_small_and_close_to_the_student(
    run: dskd.Result, exported: dict[str, Any], in_int8: dict[str, Any]
) -> None:
    for form, found in in_int8.items():
        assert found.path.name == f"student_int8{find_format(form).suffix}"
        assert 1e-4 < found.difference < 0.5
        assert found.size < 0.6 * exported[form].size, form
        assert "weights and activations in int8" in found.card.read_text()
    accuracy = in_int8["onnx"].measured.accuracy
    assert accuracy["student"].top1 == run.test_accuracy
    assert accuracy["exported"].top1 == pytest.approx(run.test_accuracy, abs=12)


@pytest.mark.slow
def test_int8_files_run_without_this_package(
    run: dskd.Result, predicted: dict[str, list[str]]
) -> None:
    images = images_of(run)
    expected = [CLASSES[k] for k in dskd.predict(run.path, images).argmax(1).tolist()]
    for form in GRAPHS:
        found = predicted[f"{form} in int8"]
        same = np.mean([a == b for a, b in zip(found, expected, strict=True)])
        assert same > 0.8, form


@pytest.mark.slow(seconds=4)
def test_int8_serves_a_fixed_batch(run: dskd.Result, tmp_path: Path) -> None:
    path = tmp_path / "three.onnx"
    found = dskd.export(run.path, path, batch=3, int8=True, calibration_images=4, measure=False)
    assert found.difference < 0.5
    with pytest.raises(
        InputError, match=r"differs from the student by .* \(at most 1e-06 is allowed"
    ):
        dskd.export(run.path, path, int8=True, calibration_images=4, measure=False, tolerance=1e-6)


def test_int8_needs_operations_and_images(run: dskd.Result) -> None:
    with pytest.raises(InputError, match="safetensors holds weights in float32"):
        dskd.export(run.path, format="safetensors", int8=True)
    student = dskd.load_deployed(run.path / "student.safetensors")
    with pytest.raises(InputError, match="names no images; give the folder of a run"):
        dskd.export(student, "a.onnx", int8=True)
    with pytest.raises(InputError, match="calibration are for 8 bits; add int8=True"):
        dskd.export(run.path, calibration_images=20)
    with pytest.raises(InputError, match="one image or more is needed"):
        dskd.export(run.path, int8=True, calibration_images=0)


@pytest.mark.slow
def test_executorch_in_int8(run: dskd.Result, tmp_path: Path) -> None:
    pytest.importorskip("executorch")
    found = dskd.export(run.path, tmp_path / "a.pte", int8=True, measure=False)
    assert 1e-4 < found.difference < 0.5
