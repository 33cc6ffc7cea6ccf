"""Runs on a folder of images without labels."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import dskd
from dskd.cli.check_page import tables
from dskd.cli.results import evaluation_numbers, evaluation_rows, export_rows, result_rows
from dskd.compare import table
from dskd.compare.reader import read_comparison
from dskd.compare.tuning.results import notes
from dskd.config import recipe
from dskd.config.schema import Recipe
from dskd.data.class_folders import scan
from dskd.data.loader import NO_LABEL
from dskd.deploy.evaluate import evaluate
from dskd.deploy.student import load_deployed
from dskd.engine import run
from dskd.engine.check import steps
from dskd.engine.check.run import check
from dskd.engine.result import Result
from dskd.engine.teacher_labels import training_data
from dskd.engine.user_objects import UserObjects
from dskd.errors import InputError, Stopped
from dskd.models.factory import load_model
from dskd.report.build import make_report
from dskd.storage.weights import read_weights, write_weights
from tests.builders import stop_at
from tests.data.file_writers import random_images

CLASSES = ("bee", "cat", "dog", "elk", "fox", "gnu", "owl")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 images without labels, two of them in a folder."""
    root = tmp_path_factory.mktemp("photos")
    (root / "trip").mkdir()
    for number, image in enumerate(random_images(5, 4, 16)):
        Image.fromarray(image).save(root / ("trip" if number < 2 else ".") / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of seven classes that says which they are."""
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    torch.manual_seed(3)
    module = load_model("resnet8", num_classes=7, in_channels=3, size=16)
    facts = {"model": "resnet8", "options": {}, "classes": list(CLASSES), "shape": [3, 16, 16]}
    facts |= {"mean": [0.5] * 3, "std": [0.25] * 3, "method": "ce", "deploy_config": {}}
    path.write_bytes(write_weights(module, facts))
    return path


def plan(root: Path, out: Path, *settings: str) -> Recipe:
    return recipe.load(
        "digits",
        [
            *(
                "data.name=folder",
                f"data.root={root}",
                "data.labels=none",
                "data.size=16",
                "data.augment=none",
            ),
            *("student.name=resnet8", "teacher.name=resnet8", f"out={out}"),
            *("method.name=kd", "train.epochs=2", "train.batch_size=8", "train.lr=0.01"),
            *settings,
        ],
    )


@pytest.fixture(scope="module")
def trained(root: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    out = tmp_path_factory.mktemp("runs") / "run"
    return run.distill(plan(root, out, f"teacher.checkpoint={teacher}"))


def test_a_folder_without_labels_has_the_classes_of_the_teacher(root: Path, teacher: Path) -> None:
    data = training_data(plan(root, root, f"teacher.checkpoint={teacher}"), UserObjects())
    assert data.classes == CLASSES
    assert (len(data.train), len(data.test)) == (16, 4)
    assert not {*data.train.names} & {*data.test.names}
    assert {*data.train.labels.tolist(), *data.test.labels.tolist()} == {NO_LABEL}


def test_files_name_agreement_with_the_teacher(trained: Result) -> None:
    found = json.loads((trained.path / "result.json").read_text())
    assert found["metric"] == "agreement"
    assert found["test_agreement"] == found["agreement"] == trained.test_accuracy
    assert found["teacher_accuracy"] is None
    rows = [json.loads(row) for row in (trained.path / "metrics.jsonl").read_text().splitlines()]
    assert [row["loss/ce"] for row in rows] == [0, 0]
    for keys in (found, *rows):
        assert not [key for key in keys if "accuracy" in key and key != "teacher_accuracy"]


def test_the_teacher_labels_the_images_that_are_held_out(trained: Result, root: Path) -> None:
    stored = json.loads((trained.path / "teacher_labels.json").read_text())
    assert stored["classes"] == list(CLASSES)
    held_out = (trained.path / "test_images.txt").read_text().splitlines()
    assert len(stored["test"]) == len(held_out) == 4
    assert all((root / name).is_file() for name in held_out)


def test_evaluate_measures_agreement(trained: Result) -> None:
    found = evaluate(trained.path)
    assert found.accuracy == trained.test_accuracy
    assert found.metric == "agreement"
    assert evaluation_rows(found)[0][0] == "agreement with the teacher, %"
    assert evaluation_numbers(found)["test_agreement"] == found.accuracy
    assert not any("accuracy" in title for title, _ in result_rows(trained))


def test_labels_do_not_move_to_other_images(trained: Result, root: Path, tmp_path: Path) -> None:
    held_out = (trained.path / "test_images.txt").read_text().splitlines()
    copy = shutil.copytree(root, tmp_path / "photos")
    assert evaluate(trained.path, root=copy).accuracy == trained.test_accuracy
    (copy / held_out[0]).rename(copy / "zebra.png")
    with pytest.raises(InputError, match=r"labels for other images .* names in .*test_images\.txt"):
        evaluate(trained.path, root=copy)


def test_predict_names_the_classes_of_the_teacher(trained: Result, root: Path) -> None:
    assert dskd.predict(trained.path, [root / "5.png"]).shape == (1, 7)
    assert load_deployed(trained.path).classes == CLASSES


def test_a_stopped_run_goes_on_to_the_same_student(
    trained: Result,
    root: Path,
    teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = plan(root, tmp_path, f"teacher.checkpoint={teacher}")
    stop_at(monkeypatch, 1, 0)
    with pytest.raises(Stopped):
        run.distill(settings)
    monkeypatch.undo()
    run.distill(settings, resume=True)
    first, second = (read_weights(one / "student.safetensors") for one in (trained.path, tmp_path))
    assert all(torch.equal(first[key], second[key]) for key in first)
    rows = [json.loads(row) for row in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows if "test_agreement" in row] == [1, 2]


@pytest.mark.slow
def test_a_report_names_agreement(trained: Result) -> None:
    page, rows, plain, latex = make_report([trained.path])
    text = page.read_text()
    for words in ("est accuracy", "-1 accuracy"):
        assert words not in text + rows.read_text() + latex.read_text()
    assert "agreement with the teacher" in text
    assert "so ce is off" in text
    assert "nothing is known about errors" in text
    assert not re.search(r"\bAccuracy\b", text)
    assert "test_accuracy" not in plain.read_text()


def test_a_comparison_reads_its_runs_back(root: Path, teacher: Path, tmp_path: Path) -> None:
    shared = plan(root, tmp_path, f"teacher.checkpoint={teacher}", "train.epochs=1").plain()
    rows = dskd.compare_methods(
        recipe=shared | {"out": None}, methods=["kd", "at"], seeds=1, out=tmp_path / "comparison"
    )
    assert [row.method for row in rows] == ["kd", "at"]
    lines = (tmp_path / "comparison/results.jsonl").read_text().splitlines()
    assert all("test_agreement" in json.loads(line) for line in lines)
    found = read_comparison(tmp_path / "comparison")
    assert table.notes(found, rows)[0] == "The images have no labels, so ce is off."
    titles, _ = table.summary_table(rows, "agreement")
    assert "agreement with the teacher, %" in titles


def test_teacher_outputs_are_cached(root: Path, teacher: Path, tmp_path: Path) -> None:
    cache = "teacher.cache=logits", f"teacher.cache_dir={tmp_path / 'outputs'}"
    given = f"teacher.checkpoint={teacher}"
    run.distill(plan(root, tmp_path / "first", given, *cache))
    assert run.distill(plan(root, tmp_path / "second", given, *cache)).teacher_cache_hit_rate == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["teacher.checkpoint=null"], "no labels to train the teacher resnet8 by"),
        (["teacher={name: resnet8, head: fit, pretrained: x.pt}"], "fits a head by labels"),
        (["method.name=ce"], "the method 'ce' learns from labels alone"),
        (["method.name=dkd"], "the method 'dkd' needs one class for each image"),
        (["method.name=crd"], "the method 'crd' needs one class for each image"),
        (["method.name=wkd"], "the method 'wkd' remembers the label of each image"),
        (["train.label_smoothing=0.1"], "says that there are none; drop one of both"),
        (["train.class_weights=balanced"], "says that there are none; drop one of both"),
        (["data.classes=3"], "classes does not apply to .*none"),
        (["data.test_split=0.01"], "holds out no image of 20"),
        (["data.name=digits", "data.root=null"], "takes all images of a folder"),
    ],
)
def test_what_needs_labels_is_refused(
    settings: list[str], message: str, root: Path, teacher: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(InputError, match=message) as error:
        run.distill(plan(root, out, f"teacher.checkpoint={teacher}", *settings))
    assert "\n" not in str(error.value)
    assert not out.exists()


def test_a_module_gives_as_many_classes_as_it_has_logits(root: Path, tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 6))
    settings = plan(root, tmp_path, "teacher.name=<Sequential>")
    assert training_data(settings, UserObjects(teacher=module)).classes == tuple("012345")


def test_the_error_about_a_folder_without_classes_names_the_setting(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "0.png")
    with pytest.raises(InputError, match="to learn from the teacher alone") as error:
        scan(tmp_path)
    assert "labels" in str(error.value)


@pytest.mark.slow
def test_an_exported_student_has_a_card_that_names_agreement(trained: Result) -> None:
    found = dskd.export(trained.path, format="torch-export")
    text = found.card.read_text()
    assert "Agreement with the teacher on the 4 images held out" in text
    assert "type: agreement" in text
    assert not re.search(r"\bAccuracy\b", text)
    assert found.measured.accuracy["exported"].top1 == trained.test_accuracy
    titles = [row[0] for row in export_rows(found)[1]]
    assert titles[0] == "agreement with the teacher, %"


def test_the_line_of_an_epoch_and_the_notes_say_what_is_measured(
    root: Path, teacher: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "dskd")
    run.distill(plan(root, tmp_path / "run", f"teacher.checkpoint={teacher}", "train.epochs=1"))
    assert "agreement with the teacher" in next(
        line for line in caplog.messages if "epoch 1/1" in line
    )
    assert "4 of the 20 images are held out" in caplog.text
    assert "its terms for labels (method.ce) are off" in caplog.text
    assert "accuracy" not in caplog.text


@pytest.mark.slow
def test_a_check_finds_a_teacher_that_predicts_one_class(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "STEPS", 2)
    last = torch.nn.Linear(768, 6)
    with torch.no_grad():
        last.bias[4] = 1e3
    module = torch.nn.Sequential(torch.nn.Flatten(), last)
    settings = plan(root, tmp_path / "run", "teacher.name=<Sequential>")
    found = check(settings, UserObjects(teacher=module))
    assert not found.reasons
    assert any("predicts one class for all images" in warning for warning in found.warnings)
    assert found.teacher is not None
    assert (found.teacher.accuracy, found.teacher.note) == (None, "there are no labels")
    assert [(one.images, one.per_class) for one in found.data.splits] == [(16, {}), (4, {})]
    assert any("there are no labels" in " ".join(row) for _, rows in tables(found) for row in rows)


def test_labels_have_no_weight(root: Path, teacher: Path, tmp_path: Path, trained: Result) -> None:
    settings = f"teacher.checkpoint={teacher}", "method.ce=0"
    run.distill(plan(root, tmp_path / "run", *settings))
    first, second = (
        read_weights(one / "student.safetensors") for one in (trained.path, tmp_path / "run")
    )
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.slow
def test_settings_are_tuned_by_agreement(root: Path, teacher: Path, tmp_path: Path) -> None:
    shared = plan(
        root, tmp_path, f"teacher.checkpoint={teacher}", "train.epochs=1", "data.val_fraction=0.2"
    ).plain()
    result = dskd.tune(
        recipe=shared | {"out": None},
        space={"train.lr": "0.01..0.2:log"},
        trials=1,
        out=tmp_path / "study",
        verbose=0,
    )
    assert result.metric == "agreement"
    assert "agreement with the teacher" in notes(result)[0]
    assert "val_agreement" in (tmp_path / "study/trials.csv").read_text()
    assert "accurac" not in (tmp_path / "study/trials.json").read_text()


def test_a_module_teaches_a_folder_from_python(root: Path, tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 6))
    result = dskd.distill(
        "resnet8",
        teacher=module,
        data={"name": "folder", "root": root, "labels": "none", "size": 16, "test_split": 0.5},
        method="kd",
        epochs=1,
        train={"batch_size": 8},
        out=tmp_path / "run",
        verbose=0,
    )
    assert result.metric == "agreement"
    assert result.agreement == result.test_accuracy
    (result.path / "teacher_labels.json").unlink()
    with pytest.raises(InputError, match=r"teacher_labels\.json"):
        evaluate(result.path)
