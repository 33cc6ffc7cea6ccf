"""The model card states only what was measured of the weights that it describes."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import ExifTags, Image

import dskd
from dskd.deploy.caller import caller
from dskd.deploy.formats import FORMATS
from dskd.deploy.input_contract import InputContract
from dskd.deploy.latency import Latency
from dskd.deploy.measure import Accuracy, Measurements
from dskd.deploy.model_card import CardParts, RunFacts, model_card, saved_card
from dskd.deploy.predict import read_image
from dskd.deploy.student import Which
from dskd.errors import InputError
from dskd.methods import outside


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without a validation split."""
    out = tmp_path_factory.mktemp("card") / "run"
    data = {"name": "digits", "fraction": 0.1}
    train = {"epochs": 1, "ema": 0.9}
    return dskd.train("resnet8", data=data, train=train, out=out, verbose=0).path


def parts(run: Path, which: Which = "last", *, int8: bool = False, **more: Any) -> CardParts:
    contract = InputContract(dskd.load_deployed(run, which), None, normalizes=True, int8=int8)
    facts = more.pop("facts", RunFacts.read(run))
    return CardParts(contract, "print()", "student.onnx", "ONNX Runtime", facts, **more)


def results(card: ModelCard) -> Any:
    """What the Hub reads."""
    data: Any = card.data
    return data.eval_results


def rounded(facts: RunFacts) -> RunFacts:
    train = facts.recipe.train.model_copy(update={"int8_rounding": True})
    return replace(facts, recipe=facts.recipe.changed(train=train))


def test_a_file_that_computes_as_the_run_did_has_its_accuracy(run: Path) -> None:
    card, facts = model_card(parts(run)), RunFacts.read(run)
    (result,) = results(card)
    assert result.metric_value == round(facts.result["test_accuracy"] / 100, 6)
    assert f"in its run: {facts.result['test_accuracy']:.2f} %" in card.text


@pytest.mark.parametrize("change", ["int8", "qat", "rounded"])
def test_a_file_that_computes_otherwise_has_no_accuracy_unless_measured(
    run: Path, change: str
) -> None:
    options: dict[str, dict[str, Any]] = {
        "int8": {"int8": True},
        "qat": {"qat": 3},
        "rounded": {"facts": rounded(RunFacts.read(run))},
    }
    card = model_card(parts(run, **options[change]))
    assert not results(card)
    assert "in its run" not in card.text
    assert "- Accuracy of this file: not measured" in card.text


def test_the_card_names_the_weights(run: Path) -> None:
    assert "- Weights: of the last epoch\n" in model_card(parts(run)).text
    assert "- Weights: the moving average (`train.ema`)" in model_card(parts(run, "ema")).text
    best = model_card(parts(run, "best"))
    assert (
        "- Weights: of the best epoch, 1, which was chosen on the test images, so the accuracy on "
        "them is too optimistic"
    ) in best.text
    (result,) = results(best)
    assert result.metric_name == "accuracy, epoch chosen on the test split"
    facts = RunFacts.read(run)
    chosen = replace(facts, result={**facts.result, "best_chosen_on": "validation"})
    card = model_card(parts(run, "best", facts=chosen))
    assert "of the best epoch, 1, which was chosen on the validation images\n" in card.text
    assert results(card)[0].metric_name is None


def test_a_runtime_that_takes_no_number_of_threads_is_named(run: Path) -> None:
    assert [name for name, form in FORMATS.items() if not form.takes_threads] == ["executorch"]
    times = {1: {"student": Latency(1, 1, 1), "exported": Latency(1, 1, 1)}}
    measured = Measurements(latency=times, all_cores=True)
    assert "ONNX Runtime on all cores |" in model_card(parts(run, measured=measured)).text
    measured = Measurements(latency=times)
    assert "on all cores" not in model_card(parts(run, measured=measured)).text


def test_why_something_was_not_measured_stays_on_the_machine(run: Path) -> None:
    measured = Measurements(missing={"accuracy": "there is no folder /home/me/photos"})
    card = model_card(parts(run, measured=measured))
    assert "- accuracy: not measured\n" in f"{card.text}\n"
    assert "/home/me" not in card.content


CODE = "from dskd.methods.kd import KD\nclass Mine(KD): pass\n"


@pytest.mark.slow(seconds=4)
@pytest.mark.parametrize("given", [True, False], ids=["class", "name"])
def test_a_student_of_ones_own_method_is_shipped_without_the_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: bool
) -> None:
    (tmp_path / "method_of_card.py").write_text(CODE)
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        method: Any = "method_of_card:Mine"
        if given:
            import method_of_card  # type: ignore[import-not-found]

            method = method_of_card.Mine
        trained = dskd.distill(
            "resnet8",
            teacher={"name": "resnet8", "epochs": 1},
            data={"name": "digits", "fraction": 0.1},
            method=method,
            train={"epochs": 1},
            out=tmp_path / "run",
            allow_code=True,
            verbose=0,
        )
    monkeypatch.delitem(sys.modules, "method_of_card", raising=False)  # as in another process
    monkeypatch.delitem(outside._GIVEN, "<Mine>", raising=False)
    found = dskd.export(trained.path, format="safetensors", measure=False)
    assert f"by the method `{'<Mine>' if given else method}`" in found.card.read_text()
    dskd.load_deployed(trained.path).save_pretrained(tmp_path / "saved")
    assert dskd.load_deployed(tmp_path / "saved").name == "resnet8"
    said = "needs the method Mine, a class" if given else "add allow_code=True"
    with pytest.raises(InputError, match=said):  # this trains by the method
        dskd.export(trained.path, format="onnx", int8=True, qat=1, measure=False)
    if not given:
        monkeypatch.syspath_prepend(tmp_path)
        options: dict[str, Any] = {"int8": True, "qat": 1, "measure": False}
        assert dskd.export(trained.path, format="onnx", allow_code=True, **options).path.is_file()


@pytest.mark.parametrize(
    ("name", "own"),
    [("mine:make", ", allow_code=True"), ("<Net>", ", student=module"), ("resnet8", "")],
)
def test_the_programs_load_a_model_of_ones_own(run: Path, name: str, own: str) -> None:
    student = replace(dskd.load_deployed(run), name=name)
    program = caller(InputContract(student, None, False), FORMATS["safetensors"], "a.safetensors")
    assert f"dskd.load_deployed('a.safetensors'{own})\n" in program
    assert f'from_pretrained("."{own})' in saved_card(student).text


def test_a_part_of_ones_own_method_needs_its_code(run: Path) -> None:
    student = dskd.load_deployed(run)
    own = {"method": "mine:Method", "deploy_config": {"width": 3}}
    for name, said in (("resnet8", ", allow_code=True"), ("<Net>", ", student=module, allow_code")):
        changed = replace(student, name=name, metadata={**student.metadata, **own})
        program = caller(
            InputContract(changed, None, False), FORMATS["safetensors"], "a.safetensors"
        )
        assert f"dskd.load_deployed('a.safetensors'{said}" in program


def test_a_method_without_a_teacher_names_none(tmp_path: Path) -> None:
    """A recipe may hold a teacher that the method does not use."""
    run = dskd.distill(
        recipe="digits",
        data={"fraction": 0.1},
        method="byot",
        train={"epochs": 1},
        out=tmp_path / "run",
        verbose=0,
    ).path
    facts = RunFacts.read(run)
    assert facts.recipe.teacher is None
    card = model_card(parts(run, facts=facts)).text
    assert "Trained on labels by the method `byot`" in card
    assert "resnet20" not in card


def test_agreement_is_not_called_accuracy(run: Path) -> None:
    facts = RunFacts.read(run)
    data = facts.recipe.data.model_copy(update={"labels": "none"})
    without = replace(facts, recipe=facts.recipe.model_copy(update={"data": data}))
    accuracy = {"student": Accuracy(80.0, None, 50), "exported": Accuracy(82.0, None, 50)}
    card = model_card(
        parts(run, facts=without, qat=3, int8=True, measured=Measurements(accuracy=accuracy))
    )
    assert "- Agreement with the teacher of the student: 80.00 % as trained" in card.text


def images_of_all_modes(folder: Path) -> list[Path]:
    """Small images whose mode or orientation decides what their pixels become."""
    draw = np.random.default_rng(0)
    color = draw.integers(256, size=(8, 10, 4), dtype=np.uint8)
    deep = draw.integers(65536, size=(8, 10)).astype(np.uint16)
    rgb = Image.fromarray(color[..., :3])
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    palette = rgb.convert("P", palette=Image.Palette.ADAPTIVE)
    images: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "rgb.png": (rgb, {}),
        "rgba.png": (Image.fromarray(color), {}),
        "gray.png": (Image.fromarray(color[..., 0]), {}),
        "gray-alpha.png": (Image.fromarray(color[..., :2].copy(), "LA"), {}),
        "one-bit.png": (Image.fromarray(color[..., 0]).convert("1"), {}),
        "palette.png": (palette, {}),
        "palette-clear.png": (palette, {"transparency": 3}),
        "16-bit.png": (Image.fromarray(deep), {}),
        "32-bit.tif": (Image.fromarray(deep.astype(np.int32)), {}),
        "cmyk.tif": (rgb.convert("CMYK"), {}),
        "turned.png": (rgb, {"exif": turned}),
    }
    for name, (image, options) in images.items():
        image.save(folder / name, **options)
    return [folder / name for name in images]


@pytest.mark.parametrize("value_range", [None, (10.0, 200.0), (100.0, 40000.5)])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_program_reads_every_kind_of_image_as_the_run_did(
    run: Path, tmp_path: Path, channels: int, value_range: tuple[float, float] | None
) -> None:
    student = dskd.load_deployed(run)
    form = replace(student.form, value_range=value_range)
    student = replace(student, shape=(channels, 8, 8), form=form)
    program = caller(InputContract(student, None, True), FORMATS["torch-export"], "a.pt2")
    body = program[program.index("    image = ") : program.index("    logits")]
    for path in images_of_all_modes(tmp_path):
        space: dict[str, Any] = {"path": path}
        exec(f"import numpy as np\nfrom PIL import Image, ImageOps\nif True:\n{body}", space)
        expected = read_image(path, student).float().numpy() / 255
        np.testing.assert_allclose(space["pixels"], expected, atol=1e-6, err_msg=path.name)


def test_the_contract_says_what_becomes_of_pixels(run: Path) -> None:
    found = parts(run)
    assert found.contract.plain()["pixels"] == (
        "turned upright by EXIF, transparency becomes white, of 16 bits the upper 8 count"
    )
    assert "| pixels | turned upright by EXIF" in model_card(found).text
