"""Models by name: from the zoo, from timm, and by functions of the user."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from dskd.errors import InputError
from dskd.models.factory import load_model, pretrained_statistics
from dskd.models.resnet import ResNet

VIT: dict[str, Any] = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}

OWN = """
import torch

table = {}

def net(num_classes, in_channels, width=4):
    return torch.nn.Sequential(
        torch.nn.Conv2d(in_channels, width, 3),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(width, num_classes),
    )

def nothing(**settings):
    return settings

def bare():
    return net(2, 3)

def fails(num_classes, in_channels):
    raise TypeError("a mistake inside")
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of an importable module with functions that build models."""
    name = f"own_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def logits_shape(model: nn.Module, channels: int, size: int = 32) -> tuple[int, ...]:
    with torch.no_grad():
        return tuple(model.eval()(torch.zeros(2, channels, size, size)).shape)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_zoo_model(channels: int) -> None:
    model = load_model("resnet8", num_classes=7, in_channels=channels)
    assert isinstance(model, ResNet)
    assert logits_shape(model, channels) == (2, 7)


def test_a_zoo_model_takes_no_options() -> None:
    with pytest.raises(InputError, match="'resnet8' takes no options, got width, depth"):
        load_model("resnet8", num_classes=7, options={"width": 2, "depth": 3})


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match=r"unknown model 'resnet20x'; did you mean 'resnet20'"):
        load_model("resnet20x", num_classes=7)


# timm


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [None, 32])
def test_a_timm_network(channels: int, size: int | None) -> None:
    model = load_model("timm/test_resnet", num_classes=7, in_channels=channels, size=size)
    assert logits_shape(model, channels) == (2, 7)


def test_a_timm_network_with_options() -> None:
    model = load_model(
        "timm/resnet18", num_classes=7, size=32, options={"channels": (4, 8, 12, 16)}
    )
    assert model.get_submodule("layer4.1.conv2").out_channels == 16
    assert logits_shape(model, 3) == (2, 7)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_timm_transformer_is_made_for_the_size_of_the_images(channels: int) -> None:
    name = "timm/vit_tiny_patch16_224"
    model = load_model(name, num_classes=7, in_channels=channels, size=32, options=VIT)
    assert logits_shape(model, channels) == (2, 7)
    assert model.state_dict()["pos_embed"].shape == (1, 1 + 4 * 4, 24)


def test_an_img_size_among_the_options_is_taken() -> None:
    options = VIT | {"img_size": [16, 24]}
    model = load_model("timm/vit_tiny_patch16_224", num_classes=7, size=32, options=options)
    assert model.state_dict()["pos_embed"].shape == (1, 1 + 2 * 3, 24)


def test_a_timm_name_may_carry_the_tag_of_its_weights() -> None:
    name = next(name for name in timm.list_pretrained() if name.startswith("test_resnet."))
    assert logits_shape(load_model(f"timm/{name}", num_classes=7), 3) == (2, 7)
    with pytest.raises(InputError, match=r"timm/test_resnet\.zzz cannot be built .*zzz"):
        load_model("timm/test_resnet.zzz", num_classes=7)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resnet81", "nearest: resnet18"),
        ("vit_tiny_patch16", "vit_tiny_patch16_224"),
        ("Resnet18", "resnet18"),
        ("", r"timm\.list_models"),
        ("qqqqq", r"timm\.list_models\(\) names them$"),
    ],
)
def test_an_unknown_timm_name_suggests_a_few_near_ones(name: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        load_model(f"timm/{name}", num_classes=7)
    assert str(caught.value).startswith(f"unknown timm model {name!r}; ")
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("size", [None, 32])
@pytest.mark.parametrize("name", ["test_resnet", "vit_tiny_patch16_224"])
def test_a_wrong_option_of_timm_is_named(name: str, size: int | None) -> None:
    with pytest.raises(InputError, match="unexpected keyword argument 'widht'") as caught:
        load_model(f"timm/{name}", num_classes=7, size=size, options={"widht": 2})
    assert "img_size" not in str(caught.value)
    assert str(caught.value).startswith(f"timm/{name} cannot be built with options {{'widht': 2}}")


@pytest.mark.parametrize("options", [{"num_heads": 5}, {"patch_size": "x"}, {"depth": -1.5}])
def test_a_wrong_value_of_an_option_of_timm_is_one_line(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"^timm/vit_tiny_patch16_224 cannot be built with"):
        load_model("timm/vit_tiny_patch16_224", num_classes=7, size=32, options=options)


def test_an_img_size_that_a_model_does_not_take_is_named() -> None:
    with pytest.raises(InputError, match="unexpected keyword argument 'img_size'"):
        load_model("timm/test_resnet", num_classes=7, size=32, options={"img_size": 64})


# torchvision


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        ("resnet18", 32, {"zero_init_residual": True}),
        ("mobilenet_v3_small", 32, {"dropout": 0.0}),
        ("googlenet", 32, {"init_weights": False}),
    ],
)
def test_a_torchvision_network(name: str, size: int, options: dict[str, Any]) -> None:
    model = load_model(f"torchvision/{name}", num_classes=7, size=size, options=options)
    assert logits_shape(model, 3) == (2, 7)
    assert logits_shape(model.train(), 3) == (2, 7), "no logits of auxiliary classifiers"


@pytest.mark.slow
def test_a_torchvision_transformer_is_made_for_the_size_of_the_images() -> None:
    model = load_model("torchvision/vit_b_32", num_classes=7, size=64)
    assert logits_shape(model, 3, size=64) == (2, 7)


def test_torchvision_takes_rgb_images_only() -> None:
    with pytest.raises(
        InputError, match=r"take RGB images, .* 1 channels; .*data={..., \"channels\": 3}"
    ):
        load_model("torchvision/resnet18", num_classes=7, in_channels=1)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resnet81", "nearest: resnet18"),
        ("fcn_resnet50", "nearest: "),  # it makes a map for each class, no classification
        ("qqqqq", r"torchvision\.models\.list_models\(\) names them$"),
    ],
)
def test_an_unknown_torchvision_name_suggests_a_few_near_ones(name: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        load_model(f"torchvision/{name}", num_classes=7)
    assert str(caught.value).startswith(f"unknown torchvision model {name!r}; ")


def test_a_wrong_option_of_torchvision_is_named() -> None:
    with pytest.raises(InputError, match=r"^torchvision/resnet18 cannot be built with .*'widht'"):
        load_model("torchvision/resnet18", num_classes=7, options={"widht": 2})


@pytest.mark.parametrize("option", ["weights", "weights_backbone"])
def test_options_of_torchvision_that_read_other_files_are_refused(option: str) -> None:
    with pytest.raises(InputError, match=f"the option '{option}' of torchvision is not allowed"):
        load_model("torchvision/resnet18", num_classes=3, options={option: "DEFAULT"})


# Functions of the user


def test_ones_own_function(own: str) -> None:
    model = load_model(f"{own}:net", num_classes=7, in_channels=1, allow_code=True)
    assert logits_shape(model, 1) == (2, 7)
    wide = load_model(f"{own}:net", num_classes=7, options={"width": 9}, allow_code=True)
    assert wide.state_dict()["3.weight"].shape == (7, 9)


def test_nothing_is_imported_without_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_touches.py").write_text(
        "import pathlib; pathlib.Path(__file__).with_suffix('.ran').touch()"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="allow_code=True"):
        load_model("own_touches:net", num_classes=7)
    assert not list(tmp_path.glob("*.ran"))


@pytest.mark.parametrize(
    ("function", "options", "said"),
    [
        ("nett", {}, "cannot import the model '.*:nett': .* has no attribute 'nett'"),
        ("table", {}, "not a callable"),
        ("nothing", {}, "gives a dict, not an nn.Module"),
        ("bare", {}, "cannot be called with num_classes, in_channels: .*'num_classes'"),
        ("net", {"widht": 3}, "cannot be called with num_classes, in_channels, widht: .*'widht'"),
    ],
)
def test_a_function_that_does_not_fit(
    own: str, function: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        load_model(f"{own}:{function}", num_classes=7, options=options, allow_code=True)


@pytest.mark.parametrize("name", ["no_such_module_here:net", ":net", "json:"])
def test_a_function_that_is_not_there(name: str) -> None:
    with pytest.raises(InputError, match="cannot import the model"):
        load_model(name, num_classes=7, allow_code=True)


def test_a_mistake_inside_the_function_keeps_its_traceback(own: str) -> None:
    with pytest.raises(TypeError, match="a mistake inside"):
        load_model(f"{own}:fails", num_classes=7, allow_code=True)


# Mean and std


def test_a_timm_model_has_its_own_mean_and_std() -> None:
    model = load_model("timm/resnet18", num_classes=7)
    assert pretrained_statistics(model, 3) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert pretrained_statistics(model, 1) is None
    vit = timm.create_model("test_vit")
    assert pretrained_statistics(vit, 3) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def test_other_models_have_none() -> None:
    assert pretrained_statistics(load_model("resnet8", num_classes=7), 3) is None
    assert pretrained_statistics(nn.Linear(2, 2), 3) is None


@pytest.mark.parametrize("option", ["checkpoint_path", "pretrained_cfg", "cache_dir"])
def test_options_that_read_other_files_are_refused(option: str) -> None:
    with pytest.raises(InputError, match=f"the option '{option}' of timm is not allowed"):
        load_model("timm/resnet10t", num_classes=3, options={option: "evil.pth"})


def test_the_five_nearest_models_of_timm_are_named() -> None:
    with pytest.raises(InputError, match="unknown timm model 'resnet5'; the nearest: ") as refused:
        load_model("timm/resnet5", num_classes=4)
    assert str(refused.value).count(",") == 4


@pytest.mark.parametrize("library", ["", "timm/"])
def test_a_repository_as_timm_names_it_is_refused_with_our_name(library: str) -> None:
    with pytest.raises(InputError, match=r"is named hf/timm/resnet18\.a1_in1k here"):
        load_model(f"{library}hf-hub:timm/resnet18.a1_in1k", num_classes=3, allow_code=True)
    with pytest.raises(InputError, match="is named hf/someone/flowers here"):
        load_model(f"{library}hf_hub:someone/flowers", num_classes=3)
