"""Teachers of other classes: their features alone are used, or they get a head."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

import dskd
from dskd import methods
from dskd.config.recipe import resolve
from dskd.config.schema import TeacherSettings
from dskd.data.loader import MemoryLoader
from dskd.engine.build_model import build_model
from dskd.engine.fit_head import FOLDER, fit_head
from dskd.engine.load_checkpoint import classes_in_file
from dskd.engine.other_classes import fit_classes
from dskd.engine.preflight import rehearse
from dskd.errors import InputError
from dskd.models.staged_model import StagedModel
from dskd.models.zoo import build
from dskd.report.collect import collect
from dskd.storage.weights import write_weights
from tests.builders import make_dataset, staged

DATA = make_dataset(classes=4, per_class=8)
OTHERS = 7
QUICK = {"epochs": 1, "batch_size": 16, "lr": 0.01, "device": "cpu"}
CPU = torch.device("cpu")
RESNET = TeacherSettings(name="resnet8")


@pytest.fixture
def others() -> nn.Module:
    """A teacher of seven classes."""
    torch.manual_seed(1)
    return build("resnet8", num_classes=OTHERS)


@pytest.fixture
def heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the cached heads, which is empty."""
    monkeypatch.setenv("DSKD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / FOLDER


def distill(out: Path, teacher: Any, method: Any, **settings: Any) -> dskd.Result:
    arguments: dict[str, Any] = {"data": DATA, "train": QUICK, "out": out} | settings
    return dskd.distill("resnet8", teacher=teacher, method=method, **arguments)


def test_a_teacher_of_other_classes_teaches_by_its_features(
    tmp_path: Path, others: nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dskd")
    result = distill(tmp_path / "run", others, "dskd")
    (line,) = [text for text in caplog.messages if "features alone" in text]
    assert line.startswith("the teacher has 7 classes, the data 4: dskd learns from its features")
    assert "off: method.kd, method.alpha" in line
    assert (result.teacher_accuracy, result.agreement) == (None, None)
    assert not (tmp_path / "run/teacher_accuracy.json").exists()
    row = json.loads((tmp_path / "run/metrics.jsonl").read_text())
    assert row["loss/kd"] == 0
    assert row["stage1/feature"] > 0
    assert "stage1/prediction" not in row
    (runs,) = collect([tmp_path / "run"]).methods
    assert runs.variant.weights == {"ce": 1, "kd": 0, "alpha": 0, "beta": 10, "gamma": 0}


@pytest.mark.parametrize("name", [n for n in methods.names() if methods.find(n).needs_teacher])
def test_a_method_learns_from_features_or_says_what_to_do(name: str, others: nn.Module) -> None:
    teacher = staged("resnet8")
    teacher.module = others
    fit_classes(teacher, TeacherSettings(name="<ResNet>"), DATA)
    assert teacher.other_classes == OTHERS
    values = {"data": {"name": "<Dataset>"}, "student": {"name": "resnet8"}, "train": QUICK}
    recipe = resolve(values | {"teacher": {"name": "<ResNet>"}, "method": {"name": name}}, Path())
    kind = methods.find(name)
    plain = dict(recipe.method.options) | dict.fromkeys(kind.prediction_weights, 0.0)
    if not kind.reads_classes(plain):
        rehearse(recipe, DATA, staged("resnet8"), teacher)
        return
    with pytest.raises(InputError, match=f"{name} learns the .* the 7 classes of .* not the 4 of"):
        rehearse(recipe, DATA, staged("resnet8"), teacher)


def test_features_are_enough_for_most_methods_that_compare_them() -> None:
    able = set()
    for name in methods.names():
        kind = methods.find(name)
        if not kind.needs_teacher:
            continue
        plain = methods.resolve(name, {}) | dict.fromkeys(kind.prediction_weights, 0.0)
        if not kind.reads_classes(plain):
            able.add(name)
    assert {"dskd", "fitnet", "at", "reviewkd", "crd", "rkd", "sskd", "vkd"} <= able
    assert not {"kd", "dkd", "dist", "simkd", "srrl", "catkd", "ofa"} & able


def test_a_fitted_head_is_good_and_is_cached(
    tmp_path: Path, others: nn.Module, heads: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dskd")
    teacher = {"module": others, "head": "fit"}
    first = distill(tmp_path / "first", teacher, "kd")
    assert first.teacher_accuracy is not None
    assert first.teacher_accuracy > 60, "a tint tells the class"
    assert "fitting the teacher's head on the features of 32 images" in caplog.text
    assert "the teacher <ResNet> has a test accuracy of" in caplog.text
    (file,) = heads.iterdir()
    caplog.clear()
    second = distill(tmp_path / "second", teacher, "simkd")
    assert f"the teacher's head is read from {file}" in caplog.text
    assert second.teacher_accuracy == first.teacher_accuracy
    content = file.read_bytes()
    file.write_bytes(content[:40])
    third = distill(tmp_path / "third", teacher, "kd")
    assert "is damaged; the head is fitted again" in caplog.text
    assert file.read_bytes() == content
    one, other = first.student.state_dict(), third.student.state_dict()
    assert all(torch.equal(value, other[key]) for key, value in one.items())


class NoClassifier(nn.Module):
    """Ends in a convolution, so that no linear layer sees a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 8, 3, 2, 1)
        self.two = nn.Conv2d(8, 12, 3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        vector: torch.Tensor = self.two(self.one(x).relu()).mean((2, 3))
        return vector


def test_a_head_fits_a_model_without_a_classifier_and_two_classes(heads: Path) -> None:
    data = make_dataset(classes=2, per_class=10)
    model = build_model(TeacherSettings(name="<N>", head="fit"), data, 0, NoClassifier())
    fit_classes(model, TeacherSettings(name="<N>", head="fit"), data)
    fit_head(model, TeacherSettings(name="<N>"), data, MemoryLoader(data.train, CPU))
    assert model.head is not None
    output = model(data.test.images)
    assert output.pooled is not None
    assert output.pooled.shape == (10, 12)
    torch.testing.assert_close(output.logits, model.head(output.pooled))
    assert (output.logits.argmax(1) == data.test.labels).float().mean() > 0.9
    (file,) = heads.iterdir()
    assert safetensors.torch.load_file(file)["weight"].shape == (2, 12)


def test_another_teacher_or_other_images_have_another_head(heads: Path) -> None:
    for seed, per_class in ((0, 8), (1, 8), (0, 9)):
        data = make_dataset(classes=4, per_class=per_class)
        model = staged_with_head(seed)
        fit_head(model, RESNET, data, MemoryLoader(data.train, CPU))
    assert len(list(heads.iterdir())) == 3


def test_options_that_change_the_features_alone_have_another_head(heads: Path) -> None:
    cases: list[dict[str, Any]] = [{}, {"global_pool": "max"}]
    for options in cases:
        settings = TeacherSettings(name="timm/resnet18", options=options)
        fit_head(staged_with_head(0), settings, DATA, MemoryLoader(DATA.train, CPU))
    fit_head(staged_with_head(0), RESNET, DATA, MemoryLoader(DATA.train, CPU))
    assert len(list(heads.iterdir())) == 3


def test_a_head_that_cannot_be_kept_is_used_and_a_line_says_so(
    heads: Path, caplog: pytest.LogCaptureFixture
) -> None:
    heads.parent.mkdir(parents=True, exist_ok=True)
    heads.write_text("a file in place of the folder")
    data = make_dataset(classes=4, per_class=8)
    model = staged_with_head(0)
    assert model.head is not None
    before = model.head.weight.detach().clone()
    fit_head(model, RESNET, data, MemoryLoader(data.train, CPU))
    assert not torch.equal(model.head.weight, before)
    (line,) = [one for one in caplog.messages if "is not kept for later runs" in one]
    assert line.endswith("File exists")


def staged_with_head(seed: int) -> StagedModel:
    torch.manual_seed(seed)
    model = staged("resnet8", classes=OTHERS)
    model.add_head(64, 4)
    return model


@pytest.mark.parametrize("told", [True, False], ids=["our file", "another program's file"])
def test_a_checkpoint_of_other_classes(
    tmp_path: Path, others: nn.Module, heads: Path, told: bool
) -> None:
    path = tmp_path / ("teacher.safetensors" if told else "teacher.pth")
    if told:
        names = [f"other{label}" for label in range(OTHERS)]
        facts = {"model": "resnet8", "options": {}, "method": "ce", "deploy_config": {}}
        shape = {"shape": [3, 16, 16], "mean": [0.5] * 3, "std": [0.25] * 3}
        path.write_bytes(write_weights(others, {**facts, **shape, "classes": names}))
    else:
        torch.save(others.state_dict(), path)
    teacher = {"name": "resnet8", "checkpoint": path}
    with pytest.raises(
        InputError, match="the 7 classes of the teacher ResNet are not the 4 of the data; set"
    ):
        distill(tmp_path / "kd", teacher, "kd")
    assert not (tmp_path / "kd").exists()
    assert distill(tmp_path / "fitnet", teacher, "fitnet").teacher_accuracy is None
    result = distill(tmp_path / "head", teacher | {"head": "fit"}, "kd")
    assert result.teacher_accuracy is not None
    assert result.teacher_accuracy > 60


class Headed(nn.Module):
    """Its classifier is no plain layer, as that of timm's RepViT."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.BatchNorm1d(12), nn.Linear(12, 4))

    def get_classifier(self) -> nn.Module:
        return self.head


def test_a_checkpoint_whose_classifier_is_no_plain_layer_has_the_classes_of_the_data(
    tmp_path: Path,
) -> None:
    path = tmp_path / "teacher.pth"
    torch.save(Headed().state_dict(), path)
    settings = TeacherSettings(name="<Headed>", checkpoint=path)
    assert classes_in_file(Headed(), settings, None, DATA) == 4


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"name": "resnet8"}, "fits a head to a trained teacher; set teacher=.*pretrained"),
        ({"name": "<N>", "epochs": 3}, "teacher.epochs does not apply with teacher=.*fit"),
        ({"name": "<N>", "lr": 0.1}, "teacher.lr does not apply with teacher=.*fit"),
    ],
)
def test_a_head_is_fitted_to_trained_teachers_only(settings: dict[str, Any], said: str) -> None:
    values = {"data": {"name": "<Dataset>"}, "student": {"name": "resnet8"}}
    with pytest.raises(InputError, match=said):
        resolve(values | {"teacher": settings | {"head": "fit"}}, Path())
