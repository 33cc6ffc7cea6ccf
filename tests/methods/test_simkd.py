"""The reused teacher classifier: what it sees, what is deployed, and any pair of models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dskd.data.loader import Batch
from dskd.deploy.onnx import export_onnx
from dskd.deploy.student import DeployedStudent
from dskd.errors import InputError
from dskd.losses.feature_maps import pool_to
from dskd.methods.base import Pair, StepOutput
from dskd.methods.simkd import LARGEST, ReusedStudent, SimKD
from dskd.models.catalog import ZOO
from dskd.models.output import ModelOutput
from dskd.models.spec import ModelSpec, StageSpec, describe
from dskd.models.staged_model import StagedModel
from dskd.teacher.frozen import FrozenTeacher
from tests.conftest import make_dataset, make_pair, staged
from tests.published import CASES, check, given, parameters

DATA = make_dataset(size=32)


def batch_of(images: Tensor) -> Batch:
    count = torch.arange(len(images))
    return Batch(images, count % 4, count, count, count, epoch=0, step=0)


def unsettled(model: StagedModel) -> StagedModel:
    """A model whose BatchNorms and classifier are not those of a fresh one."""
    for part in model.module.modules():
        if isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None
            part.running_mean.uniform_(-0.2, 0.2)
            nn.init.uniform_(part.bias, -0.5, 0.5)
    if model.linear_classifier is not None and model.linear_classifier.bias is not None:
        nn.init.uniform_(model.linear_classifier.bias)
    return model


def made(
    student: str | StagedModel = "resnet8", teacher: str | StagedModel = "resnet14", **settings: Any
) -> tuple[SimKD, FrozenTeacher]:
    models = [staged(m) if isinstance(m, str) else m for m in (student, teacher)]
    pair, frozen = make_pair(models[0], unsettled(models[1]), DATA)
    assert frozen is not None
    return SimKD(pair, **settings), frozen


class Net(nn.Module):
    """A classifier of somebody's own; its vector is the average of its last map, or not."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(6, 8, 3, 4, 1), nn.ReLU())
        self.norm = nn.LayerNorm(8) if norm else nn.Identity()
        self.head = nn.Linear(8, 4, bias=not norm)

    def forward(self, images: Tensor) -> Tensor:
        vector = self.norm(self.two(self.one(images)).mean((2, 3)))
        logits: Tensor = self.head(vector)
        return logits


def own(norm: bool = False, stages: list[str] | None = None) -> StagedModel:
    return StagedModel(Net(norm), stages or ["one", "two"], mean=(0.5,) * 3, std=(0.25,) * 3)


# The published values


def published_method() -> SimKD:
    classifier = nn.Linear(64, 100).double()
    classifier.load_state_dict(parameters("simkd_cls"))
    last = StageSpec(64, 8, 8, True)
    student = ModelSpec(100, (last,), 64, last=last)
    teacher = ModelSpec(100, (last,), 64, last=last, average_pooled=True, linear_logits=True)
    method = SimKD(Pair(staged(), student, teacher, classifier)).double()
    method.reused.take(classifier)  # in double precision
    projector = method.reused.projector
    counts = {k: v for k, v in projector.state_dict().items() if k.endswith("_tracked")}
    weights = parameters("simkd")
    projector.load_state_dict({k.removeprefix("transfer."): w for k, w in weights.items()} | counts)
    return method


def test_value_and_gradient_are_the_published_ones() -> None:
    method = published_method()

    def loss(last: Tensor, target: Tensor) -> Tensor:
        given_map = ModelOutput(last, (last,), None, last)
        method.student.register_forward_hook(lambda *_: given_map)
        teacher_output = ModelOutput(torch.zeros(32, 100), (target,), target.mean((2, 3)), target)
        output: StepOutput = method(batch_of(torch.zeros(32, 3, 2, 2)), teacher_output)
        return output.losses["simkd"]

    check("simkd", loss)


def test_logits_are_the_published_ones() -> None:
    _, logits = published_method().reused(given("f3"))
    expected = torch.tensor(CASES["simkd"]["further"]["pred_row0_first10"]).double()
    torch.testing.assert_close(logits[0, :10].detach(), expected, rtol=1e-5, atol=1e-6)


# What the classifier sees


@pytest.mark.parametrize("name", ZOO)
def test_the_teacher_s_features_give_the_teacher_s_logits(name: str) -> None:
    """For every network of the zoo, whatever lies between its last stage and its classifier."""
    method, teacher = made("resnet8", name)
    teacher_output = teacher(DATA.test.images[:3])
    target = method.target(teacher_output)
    assert (method.needs.last, method.needs.pooled) == (True, False)
    seen = method.reused.classifier(target.mean((2, 3)))
    torch.testing.assert_close(seen, teacher_output.logits, rtol=1e-4, atol=1e-5)
    assert method.plan.nonnegative


@pytest.mark.parametrize("name", ["wrn_16_1", "vgg8", "MobileNetV2"])
@pytest.mark.parametrize("size", [28, 48])
def test_a_perfect_projection_has_the_teacher_s_logits_at_any_size(name: str, size: int) -> None:
    """Also where the two maps' sizes do not divide."""
    data = make_dataset(size=size)
    pair, teacher = make_pair(staged("ShuffleV2"), unsettled(staged(name)), data)
    assert teacher is not None
    method = SimKD(pair)
    teacher_output = teacher(data.test.images[:3])
    projected = pool_to(method.target(teacher_output), *method.plan.size)
    seen = method.reused.classifier(projected.mean((2, 3)))
    torch.testing.assert_close(seen, teacher_output.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "teacher",
    [
        lambda: own(norm=True),
        lambda: own(stages=["one"]),
        lambda: StagedModel(Net(), [], mean=(0,) * 3, std=(1,) * 3),
    ],
    ids=["norm", "shallow", "no stages"],
)
def test_a_vector_that_is_no_average_of_a_map_is_learned_itself(
    teacher: Callable[[], StagedModel],
) -> None:
    method, frozen = made("resnet8", teacher())
    assert (method.needs.last, method.needs.pooled) == (False, True)
    assert not method.plan.nonnegative
    teacher_output = frozen(DATA.test.images[:3])
    target = method.target(teacher_output)
    assert target.shape == (3, 8, 1, 1)
    torch.testing.assert_close(method.reused.classifier(target.flatten(1)), teacher_output.logits)
    assert method(batch_of(DATA.test.images[:3]), teacher_output).objective.isfinite()
    projected, _ = method.reused(method.student(DATA.test.images[:3]).last)
    assert projected.shape == (3, 8, 8, 8)
    assert (projected < 0).any()


def test_a_wrapped_teacher_s_last_stage_is_taken_where_its_average_is_the_vector() -> None:
    method, frozen = made("resnet8", own())
    assert method.needs.last
    teacher_output = frozen(DATA.test.images[:3])
    assert method.target(teacher_output) is teacher_output.stages[-1]
    assert method.plan.size == (4, 4)


def test_a_model_says_whether_its_vector_is_the_average_of_its_last_map() -> None:
    images = DATA.test.images[:4]
    last = describe(staged("wrn_16_2"), images).last
    assert last == StageSpec(128, 8, 8, nonnegative=True)  # its last stage has negative values
    assert describe(own(), images).pooled_nonnegative
    assert not describe(own(norm=True), images).average_pooled
    assert describe(own(stages=["one"]), images).last == StageSpec(6, 16, 16, True)


# What is learned


def test_all_but_the_classifier_learns_from_the_features() -> None:
    method, teacher = made(ce=0.0, kd=0.0)
    batch = batch_of(DATA.train.images[:8])
    before = {k: v.clone() for k, v in method.reused.classifier.state_dict().items()}
    output = method(batch, teacher(batch.images))
    output.objective.backward()
    assert torch.equal(before["weight"], method.reused.classifier.weight)
    for name, parameter in method.named_parameters():
        frozen = name.startswith("reused.classifier")
        assert parameter.requires_grad is not frozen
        assert frozen or (parameter.grad is not None and parameter.grad.any()), name


def test_the_losses_are_those_of_the_reused_classifier_s_logits() -> None:
    method, teacher = made(ce=2.0, kd=0.5)
    method.eval()
    batch = batch_of(DATA.train.images[:8])
    teacher_output = teacher(batch.images)
    output = method(batch, teacher_output)
    logits = method.classifier_logits(batch.images)["student"]
    assert torch.equal(output.logits, logits)
    torch.testing.assert_close(output.losses["ce"], 2 * F.cross_entropy(logits, batch.labels))
    assert output.losses.keys() == {"ce", "kd", "simkd"}


def test_the_factor_makes_the_projector_narrower() -> None:
    assert [made(factor=factor)[0].plan.width for factor in (1, 2, 8, 999)] == [64, 32, 8, 1]


# What is deployed


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
    """The student's own classifier is gone; projector and the teacher's classifier are there."""
    plain = sum(p.numel() for p in staged("resnet8").module.parameters())
    method, _ = made("resnet8", "resnet14")
    projector = 64 * 32 + 9 * 32 * 32 + 32 * 64 + 2 * (32 + 32 + 64)
    classifier = 64 * 4 + 4  # of student and teacher alike
    count = sum(p.numel() for p in method.deployed().parameters())
    assert count == plain - classifier + projector + classifier
    assert method.auxiliary_state_dict() == {}


@pytest.mark.parametrize("stages", [["one", "two"], ["one"]])
def test_a_module_of_one_s_own_is_seen_through_its_stages(stages: list[str]) -> None:
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
    assert isinstance(rebuilt.student.module.head, nn.Linear)  # nobody knows what it is for


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
    assert export_onnx(deployed, tmp_path / "student.onnx") < 1e-4


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


def test_a_grid_of_tokens_is_projected_and_exported(tmp_path: Path) -> None:
    student = StagedModel(Tokens(), ["block"], mean=(0.5,) * 3, std=(0.25,) * 3)
    method, teacher = made(student, "resnet14")
    assert (method.plan.channels, method.plan.size) == (6, (4, 4))
    batch = batch_of(DATA.train.images[:8])
    assert method(batch, teacher(batch.images)).objective.isfinite()
    model = StagedModel(method.eval().deployed(), mean=(0.5,) * 3, std=(0.25,) * 3).eval()
    deployed = DeployedStudent(model, "Tokens", DATA.classes, DATA.shape)
    assert export_onnx(deployed, tmp_path / "student.onnx") < 1e-4


# What is refused


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"channels": 0}, "addition.channels: input should be greater than or equal to 1"),
        ({"width": "many"}, "addition.width: a whole number is needed"),
        ({"size": [4]}, "addition.size"),
        ({"stages": "layer1"}, "addition.stages: a list is needed"),
        ({"stages": ["gone"]}, "ResNet has no submodule 'gone'"),
        ({"more": 1}, "unknown setting 'addition.more'"),
        ({"width": 10**6}, f"addition: at most {LARGEST} numbers"),
        ({"features": 10**5, "classes": 10**5}, f"at most {LARGEST} numbers"),
        ({"nonnegative": None}, "addition.nonnegative: true or false is needed"),
    ],
    ids=str,
)
def test_an_addition_that_does_not_fit_is_refused(change: dict[str, Any], says: str) -> None:
    deploy_config = made()[0].deploy_config() | change
    with pytest.raises(InputError) as refused:
        SimKD.assemble(staged().module, deploy_config)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_no_addition_at_all_is_refused() -> None:
    with pytest.raises(InputError, match="is missing; set it"):
        SimKD.assemble(staged().module, {})


def test_an_addition_for_another_student_is_refused() -> None:
    deploy_config = made()[0].deploy_config()
    with pytest.raises(InputError, match="names no map of the student"):
        SimKD.assemble(Net(), deploy_config)
    other = SimKD.assemble(staged("vgg8").module, deploy_config)
    with pytest.raises(InputError, match="a last map of 64 channels, got 512"):
        other(torch.zeros(2, 3, 32, 32))


def test_models_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match=r"name it with student.stages=\[a\]; .* one, two, norm"):
        made(StagedModel(Net(), [], mean=(0,) * 3, std=(1,) * 3))
    pair, _ = make_pair(staged(), staged("resnet14"), DATA)
    with pytest.raises(InputError, match="logits are not those of a linear layer"):
        SimKD(replace(pair, teacher_classifier=None))
