"""An untrusted file that names a model larger than its weights is refused before it is built."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from torchvision import models

import dskd
from dskd.deploy.student import load_deployed
from dskd.errors import InputError
from dskd.models.factory import load_model
from dskd.storage.weights import write_weights
from tests.builders import make_dataset

VIT = "timm/vit_tiny_patch16_224"
SMALL = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
FACTS = {
    "classes": ["a", "b"],
    "shape": [3, 32, 32],
    "method": "ce",
    "deploy_config": {},
    "mean": [0.5] * 3,
    "std": [0.5] * 3,
}


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The devices on which models of timm and torchvision were built."""
    made: list[str] = []

    def watch(library: ModuleType, name: str) -> None:
        create = getattr(library, name)

        def noted(*arguments: Any, **options: Any) -> Any:
            made.append(torch.get_default_device().type)
            return create(*arguments, **options)

        monkeypatch.setattr(library, name, noted)

    watch(timm, "create_model")
    watch(models, "get_model")
    return made


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (VIT, {"depth": 900}),
        (VIT, {"depth": 10**9}),
        (VIT, {"depth": 2, "img_size": 4096, "patch_size": 1}),
        (VIT, {"depth": 2, "embed_dim": 49_152}),
        ("timm/swin_tiny_patch4_window7_224", {"depths": [65_000, 65_000, 65_000, 65_000]}),
        ("timm/swin_tiny_patch4_window7_224", {"depths": [1, 1], "window_size": 60_000}),
        ("torchvision/vit_h_14", {}),
        ("torchvision/mobilenet_v2", {"width_mult": 5000.0}),
    ],
)
def test_a_model_larger_than_the_file_is_refused_without_memory_for_it(
    tmp_path: Path, devices: list[str], model: str, options: dict[str, Any]
) -> None:
    facts = {**FACTS, "model": model, "options": options}
    held = safetensors.torch.save({"x": torch.zeros(1)}, {"dskd": json.dumps(facts)})
    (tmp_path / "student.safetensors").write_bytes(held)
    with pytest.raises(InputError, match=r"student\.safetensors|cannot be built"):
        load_deployed(tmp_path)
    assert set(devices) <= {"meta"}


def test_buffers_that_are_not_in_the_file_count(
    tmp_path: Path, devices: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"window_size": 8, "patch_size": 2, "embed_dim": 12, "depths": [1], "num_heads": [2]}
    name = "timm/swin_tiny_patch4_window7_224"
    net = load_model(name, num_classes=2, size=32, options=options)
    facts = {**FACTS, "model": name, "options": options}
    (tmp_path / "student.safetensors").write_bytes(write_weights(net, facts))
    assert load_deployed(tmp_path).classes == ("a", "b")
    monkeypatch.setattr("dskd.models.size_check._MAX_COMPUTED", 1000)
    devices.clear()
    with pytest.raises(InputError, match="is larger than the weights that it holds"):
        load_deployed(tmp_path)
    assert devices == ["meta"]


STUDENTS: dict[str, dict[str, Any]] = {
    "named": {"name": VIT, "options": SMALL, "stages": ["blocks.0", "blocks.1"]},
    "chosen": {"name": VIT, "options": SMALL},
    "torchvision": {"name": "torchvision/shufflenet_v2_x0_5"},
}
"""Students with stages that are named or chosen."""


@pytest.mark.parametrize("student", STUDENTS)
@pytest.mark.parametrize("method", ["kd", "simkd"])
def test_a_student_of_a_library_is_loaded_as_it_was_written(
    tmp_path: Path, method: str, student: str
) -> None:
    data = make_dataset(classes=3, per_class=4, size=32, channels=3)
    result = dskd.distill(
        student=STUDENTS[student],
        teacher={"module": dskd.load_model("resnet8", num_classes=3), "trust": True},
        method=method,
        data=data,
        train={"epochs": 1, "batch_size": 8},
        out=tmp_path / "run",
    )
    loaded = load_deployed(tmp_path / "run").model.module.state_dict()
    for key, value in result.student.state_dict().items():
        assert torch.equal(loaded[key], value), key
