"""The deployed student of simkd: rebuilt from a plain one, exported, refused if it does not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dskd.deploy.export import export_file
from dskd.deploy.student import DeployedStudent
from dskd.errors import InputError
from dskd.methods.simkd import LARGEST, ReusedStudent, SimKD
from dskd.models.staged_model import StagedModel
from tests.builders import make_dataset, make_pair, staged
from tests.methods.inputs import batch_of
from tests.methods.test_simkd import DATA, Net, made, own, unsettled


@pytest.mark.parametrize("student", ["resnet8", "MobileNetV2", "vgg8", "wrn_16_1"])
def test_the_deployed_student_is_rebuilt_from_a_plain_one(student: str) -> None:
    method, _ = made(student, "ShuffleV1")
    method.eval()
    deployed = method.deployed()
    plain = staged(student).module
    rebuilt = SimKD.assemble(plain, method.deploy_config()).eval()
    rebuilt.load_state_dict(deployed.state_dict())
    images = DATA.test.images[:3]
    expected = method.classifier_logits(images)["student"]
    assert torch.equal(deployed(method.student.normalize(images)), expected)
    torch.testing.assert_close(rebuilt(method.student.normalize(images)), expected)


def test_its_parameters_are_those_that_are_used() -> None:
    """It has projector and the teacher's classifier instead of the student's own."""
    plain = sum(p.numel() for p in staged("resnet8").module.parameters())
    method, _ = made("resnet8", "resnet14")
    projector = 64 * 32 + 9 * 32 * 32 + 32 * 64 + 2 * (32 + 32 + 64)
    classifier = 64 * 4 + 4  # of student and teacher alike
    count = sum(p.numel() for p in method.deployed().parameters())
    assert count == plain - classifier + projector + classifier
    assert method.auxiliary_state_dict() == {}


@pytest.mark.parametrize("stages", [["one", "two"], ["one"]])
def test_a_user_s_module_is_deployed_with_its_stages(stages: list[str]) -> None:
    method, teacher = made(own(stages=stages), "resnet14")
    batch = batch_of(DATA.train.images[:8])
    method(batch, teacher(batch.images)).objective.backward()
    method.eval()
    rebuilt = SimKD.assemble(Net(), method.deploy_config()).eval()
    rebuilt.load_state_dict(method.deployed().state_dict())
    images = method.student.normalize(DATA.test.images[:3])
    torch.testing.assert_close(
        rebuilt(images), method.classifier_logits(DATA.test.images[:3])["student"]
    )
    assert isinstance(rebuilt, ReusedStudent)
    assert isinstance(rebuilt.student.module, Net)
    assert isinstance(rebuilt.student.module.head, nn.Linear)  # the module may need it


def test_a_stage_of_a_zoo_student_may_be_named() -> None:
    short = StagedModel(staged().module, ["layer1", "layer2"], mean=(0.5,) * 3, std=(0.25,) * 3)
    method, _ = made(short, "resnet14")
    assert (method.plan.stages, method.plan.channels) == (("layer1", "layer2"), 32)
    rebuilt = SimKD.assemble(staged().module, method.deploy_config()).eval()
    rebuilt.load_state_dict(method.eval().deployed().state_dict())
    images = method.student.normalize(DATA.test.images[:3])
    torch.testing.assert_close(
        rebuilt(images), method.classifier_logits(DATA.test.images[:3])["student"]
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("student", "teacher", "size"),
    [("wrn_16_1", "resnet8", 32), ("resnet8", "vgg8", 28)],
)
def test_it_is_exported(student: str, teacher: str, size: int, tmp_path: Path) -> None:
    data = make_dataset(size=size)
    pair, _ = make_pair(staged(student), unsettled(staged(teacher)), data)
    module = SimKD(pair).eval().deployed()
    model = StagedModel(module, mean=(0.5,) * 3, std=(0.25,) * 3).eval()
    deployed = DeployedStudent(model, student, data.classes, data.shape)
    assert export_file(deployed, tmp_path / "student.onnx") < 1e-4


class Tokens(nn.Module):
    """A class token and 16 patches, as a transformer's."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 6, 8, 8)
        self.block = nn.Linear(6, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patch(images).flatten(2).transpose(1, 2)
        tokens = self.block(torch.cat([patches.mean(1, keepdim=True), patches], 1))
        logits: Tensor = self.head(tokens[:, 0])
        return logits


@pytest.mark.slow
def test_a_grid_of_tokens_is_projected_and_exported(tmp_path: Path) -> None:
    student = StagedModel(Tokens(), ["block"], mean=(0.5,) * 3, std=(0.25,) * 3)
    method, teacher = made(student, "resnet14")
    assert (method.plan.channels, method.plan.size) == (6, (4, 4))
    batch = batch_of(DATA.train.images[:8])
    assert method(batch, teacher(batch.images)).objective.isfinite()
    model = StagedModel(method.eval().deployed(), mean=(0.5,) * 3, std=(0.25,) * 3).eval()
    deployed = DeployedStudent(model, "Tokens", DATA.classes, DATA.shape)
    assert export_file(deployed, tmp_path / "student.onnx") < 1e-4


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"channels": 0}, "deploy_config.channels: input should be greater than or equal to 1"),
        ({"width": "many"}, "deploy_config.width: a whole number is needed"),
        ({"size": [4]}, "deploy_config.size"),
        ({"stages": "layer1"}, "deploy_config.stages: a list is needed"),
        ({"stages": ["gone"]}, "ResNet has no submodule 'gone'"),
        ({"more": 1}, "unknown setting 'deploy_config.more'"),
        ({"width": 10**6}, f"deploy_config: at most {LARGEST} numbers"),
        ({"features": 10**5, "classes": 10**5}, f"at most {LARGEST} numbers"),
        ({"nonnegative": None}, "deploy_config.nonnegative: true or false is needed"),
    ],
    ids=str,
)
def test_a_deploy_config_that_does_not_fit_is_refused(change: dict[str, Any], says: str) -> None:
    deploy_config = made()[0].deploy_config() | change
    with pytest.raises(InputError) as refused:
        SimKD.assemble(staged().module, deploy_config)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_empty_deploy_config_is_refused() -> None:
    with pytest.raises(InputError, match="is missing; set it"):
        SimKD.assemble(staged().module, {})


def test_a_deploy_config_for_another_student_is_refused() -> None:
    deploy_config = made()[0].deploy_config()
    with pytest.raises(InputError, match="names no map of the student"):
        SimKD.assemble(Net(), deploy_config)
    other = SimKD.assemble(staged("vgg8").module, deploy_config)
    with pytest.raises(InputError, match="a last map of 64 channels, got 512"):
        other(torch.zeros(2, 3, 32, 32))


def test_models_that_do_not_fit_are_refused() -> None:
    with pytest.raises(
        InputError, match=r"name it with student={.*\"stages\": \[\"a\"\]}; .* one, .*two, .*norm"
    ):
        made(StagedModel(Net(), [], mean=(0,) * 3, std=(1,) * 3))
    pair, _ = make_pair(staged(), staged("resnet14"), DATA)
    with pytest.raises(InputError, match="logits are not those of a linear layer"):
        SimKD(replace(pair, teacher_classifier=None))
