"""The stages that are chosen for models of timm and torchvision."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dskd
from dskd.config.recipe import resolve
from dskd.engine import run
from dskd.engine.user_objects import UserObjects
from dskd.errors import InputError
from dskd.models.default_stages import default_stages
from dskd.models.factory import load_model
from dskd.models.spec import describe
from dskd.models.staged_model import StagedModel
from tests.builders import make_dataset

VIT = {"patch_size": 8, "embed_dim": 24, "depth": 12, "num_heads": 2}


def chosen(name: str, size: int = 64, **options: Any) -> tuple[tuple[str, ...], list[int]]:
    """The stages, and the heights of their maps."""
    module = load_model(name, num_classes=5, size=size, options=options)
    stages = default_stages(module, torch.zeros(2, 3, size, size))
    assert stages is not None
    model = StagedModel(module, stages, mean=(0.5,) * 3, std=(0.2,) * 3)
    spec = describe(model, torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8))
    return stages, [stage.height for stage in spec.stages]


LAYERS = ("layer1", "layer2", "layer3", "layer4")


@pytest.mark.parametrize("name", ["timm/test_resnet", "torchvision/resnet18"])
def test_a_resnet_has_its_layers(name: str) -> None:
    assert chosen(name) == (LAYERS, [16, 8, 4, 2])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("timm/mobilenetv4_conv_small", ("blocks.0", "blocks.1", "blocks.2", "blocks.4")),
        ("timm/dla34", ("level2", "level3", "level4", "level5")),
        ("torchvision/mobilenet_v3_small", tuple(f"features.{n}" for n in (1, 3, 8, 12))),
        ("torchvision/swin_t", ("features.1", "features.3", "features.5", "permute")),
    ],
)
def test_a_stage_is_the_deepest_module_of_its_map_size(name: str, stages: tuple[str, ...]) -> None:
    assert chosen(name) == (stages, [16, 8, 4, 2])


@pytest.mark.slow
def test_map_sizes_that_hardly_differ_are_one_stage() -> None:
    stages, sizes = chosen("torchvision/inception_v3", 128)
    assert stages == ("Conv2d_4a_3x3", "Mixed_5d", "Mixed_6e", "Mixed_7c")
    assert sizes == [28, 13, 6, 2]


def test_the_blocks_of_a_transformer_are_evenly_spaced() -> None:
    stages, sizes = chosen("timm/vit_tiny_patch16_224", 32, **VIT)
    assert stages == ("blocks.2", "blocks.5", "blocks.8", "blocks.11")
    assert sizes == [4, 4, 4, 4]
    few = chosen("timm/vit_tiny_patch16_224", 32, **VIT | {"depth": 3})
    assert few[0] == ("blocks.0", "blocks.1", "blocks.2")


@pytest.mark.slow
def test_the_blocks_of_torchvision_s_transformer_are_evenly_spaced() -> None:
    stages, sizes = chosen("torchvision/vit_b_32")
    assert stages == tuple(f"encoder.layers.encoder_layer_{n}" for n in (2, 5, 8, 11))
    assert sizes == [2, 2, 2, 2]


def test_models_with_stages_of_their_own_and_without_maps_get_none() -> None:
    images = torch.zeros(2, 3, 32, 32)
    assert default_stages(load_model("resnet8", num_classes=5), images) is None
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3072, 8), nn.ReLU(), nn.Linear(8, 5))
    assert default_stages(flat, images) is None


def test_the_choice_changes_nothing_about_the_model() -> None:
    module = load_model("timm/test_resnet", num_classes=5).train()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    random = torch.get_rng_state()
    frozen = module.get_submodule("conv1").requires_grad_(False)
    for own in (module, nn.Sequential(module)):  # as a model of timm, and as any module
        assert default_stages(own, torch.zeros(2, 3, 32, 32))
    assert module.training
    assert {p for p in module.parameters() if not p.requires_grad} == {*frozen.parameters()}
    assert not any(part._forward_hooks for part in module.modules())
    assert torch.equal(torch.get_rng_state(), random)
    for key, value in module.state_dict().items():
        assert torch.equal(value, before[key])


class ChangedInPlace(nn.Module):
    """Its first map is changed in place by a later layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, stride=4)
        self.act = nn.ReLU(inplace=True)
        self.second = nn.Conv2d(4, 4, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        maps: Tensor = self.second(self.act(self.first(x)))
        return maps.mean((2, 3))


def test_a_map_that_is_changed_later_is_no_stage() -> None:
    assert default_stages(ChangedInPlace(), torch.zeros(2, 3, 64, 64)) == ("act", "second")


@pytest.mark.slow
def test_a_run_says_which_stages_it_chose(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dskd")
    recipe = resolve(
        {
            "data": {"name": "<Dataset>"},
            "student": {"name": "timm/test_resnet"},
            "teacher": {"name": "torchvision/resnet18"},
            "train": {"epochs": 1, "batch_size": 8, "device": "cpu"},
            "out": tmp_path / "run",
        },
        tmp_path,
    )
    data = make_dataset(3, per_class=6, size=32)
    result = run.distill(recipe, objects=UserObjects(data=data))
    assert result.extra_parameters > 0, "branches on the chosen stages"
    tables = [record.getMessage() for record in caplog.records if "are chosen" in record.message]
    assert len(tables) == 2
    rows = json.loads((tmp_path / "run" / "stages.json").read_text())
    for role, name in (("student", "timm/test_resnet"), ("teacher", "torchvision/resnet18")):
        (table,) = (text.splitlines() for text in tables if text.startswith(name))
        assert table[0] == f"{name}: these stages are chosen"
        assert [line.split()[1] for line in table[2:]] == list(LAYERS)
        assert [row["name"] for row in rows[role]] == list(LAYERS)
        assert [row["height"] for row in rows[role]] == [8, 4, 2, 1]
        assert 0.9 < sum(row["multiply_adds"] for row in rows[role]) <= 1
        assert rows[role][-1]["depth"] > 0.9
    assert dskd.load_deployed(tmp_path / "run").name == "timm/test_resnet"
    rows["student"][0]["name"] = "maxpool"
    (tmp_path / "run" / "stages.json").write_text(json.dumps(rows))
    longer = recipe.changed(train=recipe.train.model_copy(update={"epochs": 2}))
    with pytest.raises(
        InputError, match=r"started with the student's stages \['maxpool', 'layer2'"
    ):
        run.distill(longer, resume=True, objects=UserObjects(data=data))
