"""Published weights: those of timm and torchvision, from a stand-in for their servers."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm.models._builder
import torch
from huggingface_hub import constants
from torch import Tensor
from torchvision import models

import dskd
from dskd import methods
from dskd.config.recipe import resolve
from dskd.config.schema import MethodSettings
from dskd.engine.prepare import label_method, prepare
from dskd.engine.user_objects import UserObjects
from dskd.errors import InputError
from dskd.models import pretrained
from dskd.models.factory import load_model, pretrained_classes, pretrained_statistics
from tests.builders import make_dataset

CPU = torch.device("cpu")
WEIGHTS = models.ResNet18_Weights.DEFAULT


@pytest.fixture(scope="module")
def published() -> dict[str, dict[str, Tensor]]:
    """State dicts of 1000 classes."""
    torch.manual_seed(5)
    return {
        "timm/test_resnet": load_model("timm/test_resnet", num_classes=1000).state_dict(),
        "torchvision/resnet18": load_model("torchvision/resnet18", num_classes=1000).state_dict(),
    }


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch, published: dict[str, dict[str, Tensor]]) -> None:
    """Both libraries get their weights."""

    def of_timm(*_: object, **__: object) -> dict[str, Tensor]:
        return dict(published["timm/test_resnet"])

    def of_torchvision(*_: object, **__: object) -> dict[str, Tensor]:
        return dict(published["torchvision/resnet18"])

    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", of_timm)
    monkeypatch.setattr(models.ResNet18_Weights, "get_state_dict", of_torchvision)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: object, **__: object) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setattr(pretrained, "getproxies", dict)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))


CONV = "layer1.0.conv1.weight"
NAMES = ["timm/test_resnet", "torchvision/resnet18"]


@pytest.mark.usefixtures("servers")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("classes", [3, 1000])
def test_all_but_a_classifier_of_other_classes_is_loaded(
    name: str, classes: int, published: dict[str, dict[str, Tensor]]
) -> None:
    torch.manual_seed(0)
    fresh = load_model(name, num_classes=classes).state_dict()
    torch.manual_seed(0)
    model = load_model(name, num_classes=classes, pretrained=True)
    for key, value in model.state_dict().items():
        own_classifier = key.startswith("fc.") and classes == 3
        expected = fresh[key] if own_classifier else published[name][key]
        assert torch.equal(value, expected), key
    assert pretrained_classes(model) == 1000
    assert pretrained_statistics(model, 3) is not None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "weights", "options", "new"),
    [
        (
            "googlenet",
            models.GoogLeNet_Weights,
            {"init_weights": False, "aux_logits": True},
            {"fc.weight", "fc.bias"},
        ),
        (
            "squeezenet1_1",
            models.SqueezeNet1_1_Weights,
            {},
            {"classifier.1.weight", "classifier.1.bias"},
        ),
    ],
)
def test_other_parts_of_torchvision_s_weights_are_loaded_or_left_out(
    name: str, weights: Any, options: dict[str, Any], new: set[str], monkeypatch: Any
) -> None:
    theirs = models.get_model(name, **options).state_dict()
    monkeypatch.setattr(weights, "get_state_dict", lambda *_, **__: dict(theirs))
    module = load_model(f"torchvision/{name}", num_classes=3, pretrained=True)
    for key, value in module.state_dict().items():
        assert (key in new) != (
            value.shape == theirs[key].shape and torch.equal(value, theirs[key])
        )
    again = load_model(f"torchvision/{name}", num_classes=3)
    again.load_state_dict(module.state_dict())
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again.eval()(images), module.eval()(images))


@pytest.mark.slow
def test_a_position_embedding_is_resized_to_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = models.vit_b_32().state_dict()
    monkeypatch.setattr(models.ViT_B_32_Weights, "get_state_dict", lambda *_, **__: dict(theirs))
    module = load_model("torchvision/vit_b_32", num_classes=3, size=64, pretrained=True)
    positions = module.state_dict()["encoder.pos_embedding"]
    assert positions.shape == (1, 1 + 2 * 2, 768)
    assert torch.equal(positions[:, 0], theirs["encoder.pos_embedding"][:, 0])


@pytest.mark.usefixtures("servers")
def test_gray_images_get_the_summed_filters_of_timm(
    published: dict[str, dict[str, Tensor]],
) -> None:
    model = load_model("timm/test_resnet", num_classes=3, in_channels=1, pretrained=True)
    first = model.state_dict()["conv1.0.weight"]
    torch.testing.assert_close(
        first, published["timm/test_resnet"]["conv1.0.weight"].sum(1, keepdim=True)
    )


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("timm/test_resnet", "timm/test_resnet.r160_in1k of the Hugging Face Hub"),
        ("torchvision/resnet18", "https://download.pytorch.org/models/resnet18-f37072fd.pth"),
    ],
)
def test_without_a_network_one_line_names_the_weights_and_the_way_out(
    name: str, weights: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError) as refused:
        load_model(name, num_classes=3, pretrained=True)
    said = str(refused.value)
    assert said.startswith(f"the pretrained weights {weights} are not in the cache and cannot be")
    assert said.endswith(
        'the file with student={..., "pretrained": "FILE"} or teacher={..., "pretrained": "FILE"}'
    )
    assert "Retrying" not in capfd.readouterr().err
    assert constants.HF_HUB_OFFLINE is False


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resnet8", "no pretrained weights of resnet8; give a file, or take a model of timm"),
        ("timm/resnet10t_", "unknown timm model 'resnet10t_'"),
        ("timm/test_resnet.zzz", "zzz"),
        ("timm/vgg11_", "unknown timm model"),
        ("timm/vit_base_patch32_plus_256", "no pretrained weights of timm/vit_base_patch32_plus"),
        ("torchvision/mnasnet0_55", "unknown torchvision model"),
    ],
)
def test_what_has_no_weights_is_refused(name: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_model(name, num_classes=3, pretrained=True)


def test_the_option_of_the_library_is_a_setting_here() -> None:
    with pytest.raises(InputError, match=r"set student={..., \"pretrained\": True}"):
        load_model("timm/test_resnet", num_classes=3, options={"pretrained": True})


Recipe = Callable[..., Any]


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    def build(student: dict[str, Any], teacher: dict[str, Any] | None = None) -> Any:
        values = {
            "data": {"name": "<Dataset>"},
            "student": {"name": "timm/test_resnet", **student},
            "teacher": {"name": "torchvision/resnet18", **teacher} if teacher else None,
            "method": {"name": "kd" if teacher else "ce"},
            "train": {"epochs": 1, "batch_size": 8, "device": "cpu"},
        }
        return resolve(values, tmp_path)

    return build


@pytest.mark.usefixtures("servers")
def test_a_run_starts_from_published_weights(
    recipe: Recipe, published: dict[str, dict[str, Tensor]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dskd")
    data = make_dataset(3, per_class=6, size=32)
    made = prepare(recipe({"pretrained": True}, {"pretrained": True}), data, UserObjects(), CPU)
    assert made.teacher is not None
    assert made.teacher.training is not None, "its classifier is new"
    for name, model in zip(NAMES, (made.student, made.teacher.model), strict=True):
        weights = model.module.state_dict()
        assert torch.equal(
            weights["layer1.0.conv1.weight"], published[name]["layer1.0.conv1.weight"]
        )
    assert made.teacher.model.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert "teacher.epochs=0" not in caplog.text


@pytest.mark.usefixtures("servers")
def test_a_published_teacher_of_the_same_classes_needs_no_training(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_dataset(3, per_class=6, size=32)
    as_it_is = recipe({}, {"pretrained": True, "epochs": 0})
    with pytest.raises(InputError, match="the 1000 classes of the teacher ResNet are not the 3 of"):
        prepare(as_it_is, data, UserObjects(), CPU)
    monkeypatch.setattr("dskd.engine.build_model.published_classes", lambda _: 3)
    made = prepare(as_it_is, data, UserObjects(), CPU)
    assert made.teacher is not None
    assert made.teacher.training is None


@pytest.mark.usefixtures("servers")
def test_a_published_teacher_of_other_classes_keeps_them(recipe: Recipe) -> None:
    data = make_dataset(3, per_class=6, size=32)
    for own in ({"epochs": 0}, {"head": "fit"}):
        plan = recipe({}, {"pretrained": True, **own}).changed(
            method=MethodSettings(name="fitnet", **methods.resolve("fitnet", {}))
        )
        made = prepare(plan, data, UserObjects(), CPU)
        assert made.teacher is not None
        assert made.teacher.training is None
        model = made.teacher.model
        assert model.module(model.normalize(data.test.images[:2])).shape == (2, 1000)
        assert model(data.test.images[:2]).logits.shape == (2, 3)
        assert model.other_classes == (1000 if "epochs" in own else None)


@pytest.mark.usefixtures("no_network")
def test_nothing_is_downloaded_for_a_teacher_that_is_not_needed(recipe: Recipe) -> None:
    plan = recipe({}, {"pretrained": True})
    made = prepare(
        plan.changed(method=label_method()),
        make_dataset(3, per_class=6, size=32),
        UserObjects(),
        CPU,
    )
    assert made.teacher is not None
    assert made.teacher.training is None


@pytest.mark.usefixtures("servers")
def test_a_run_says_when_the_published_classifier_may_fit(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dskd")
    monkeypatch.setattr("dskd.engine.prepare.pretrained_classes", lambda _: 3)
    data = make_dataset(3, per_class=6, size=32)
    prepare(recipe({}, {"pretrained": True}), data, UserObjects(), CPU)
    assert "torchvision/resnet18 have 3 classes, as the images have; if they are" in caplog.text


@pytest.mark.slow
def test_a_file_takes_the_place_of_the_download(
    recipe: Recipe, tmp_path: Path, published: dict[str, dict[str, Tensor]]
) -> None:
    for name in NAMES:
        torch.save(published[name], tmp_path / f"{name.partition('/')[2]}.pth")
    data = make_dataset(3, per_class=6, size=32)
    made = prepare(
        recipe(
            {"pretrained": tmp_path / "test_resnet.pth"}, {"pretrained": tmp_path / "resnet18.pth"}
        ),
        data,
        UserObjects(),
        CPU,
    )
    assert made.teacher is not None
    assert made.teacher.training is not None
    for name, model in zip(NAMES, (made.student, made.teacher.model), strict=True):
        weights = model.module.state_dict()
        assert torch.equal(
            weights["layer1.0.conv1.weight"], published[name]["layer1.0.conv1.weight"]
        )
        assert len(weights["fc.weight"]) == 3


@pytest.mark.slow
@pytest.mark.usefixtures("servers")
def test_a_finished_run_needs_no_published_weights(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = recipe({"pretrained": True}, {"pretrained": True, "epochs": 1})
    objects = UserObjects(data=make_dataset(3, per_class=6, size=32))
    result = dskd.engine.run.distill(plan, objects=objects)

    def fail(*_: object, **__: object) -> Any:
        raise AssertionError("a download")

    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", fail)
    monkeypatch.setattr(models.ResNet18_Weights, "get_state_dict", fail)
    deployed = dskd.load_deployed(result.path)
    for key, value in deployed.model.module.state_dict().items():
        assert torch.equal(value, result.student.state_dict()[key])


@pytest.mark.parametrize(
    ("student", "teacher", "said"),
    [
        ({"pretrained": 1}, None, r"student\.pretrained: true, false or a file is needed, got 1"),
        ({"pretrained": True, "checkpoint": "x.pth"}, None, "are two sources; drop one"),
        (
            {},
            {"epochs": 0},
            r'teacher={..., "epochs": 0} is for a teacher with teacher={..., "pretrained": True}',
        ),
        ({}, {"epochs": 0, "pretrained": "x.pth"}, r"give the file as teacher\.checkpoint"),
    ],
)
def test_settings_that_contradict_are_refused(
    recipe: Recipe, student: dict[str, Any], teacher: dict[str, Any] | None, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        recipe(student, teacher)


def test_a_module_of_the_user_has_no_published_weights(recipe: Recipe) -> None:
    module = load_model("resnet8", num_classes=3)
    with pytest.raises(InputError, match="pretrained does not apply to a module"):
        prepare(
            recipe({"pretrained": True}),
            make_dataset(3, per_class=6, size=32),
            UserObjects(student=module),
            CPU,
        )
