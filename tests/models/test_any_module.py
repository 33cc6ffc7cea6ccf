"""Modules of all kinds as student and as teacher, through the public functions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torchvision import models

import dskd
from dskd.data import Dataset, Split
from dskd.engine.result import Result
from dskd.errors import InputError, NonFiniteError
from dskd.models.staged_model import StagedModel
from tests.builders import make_dataset, trusted

CLASSES = 3
QUICK = {"epochs": 1, "batch_size": 8, "lr": 0.01, "device": "cpu"}
VIT = {
    "name": "timm/vit_tiny_patch16_224",
    "options": {"patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2, "reg_tokens": 1},
    "stages": ["blocks.0", "blocks.1", "blocks.2"],
}
RESNET = {
    "name": "timm/resnet10t",
    "options": {"channels": [8, 16, 24, 32]},
    "stages": ["layer1", "layer2", "layer3", "layer4"],
}
SWIN = {
    "name": "timm/swin_tiny_patch4_window7_224",
    "options": {
        "window_size": 4,
        "patch_size": 2,
        "embed_dim": 12,
        "depths": [1, 1],
        "num_heads": [2, 2],
    },
    "stages": ["layers.0", "layers.1"],
}


class Own(nn.Module):
    """A user's own classifier."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width))
        self.second = nn.Sequential(nn.Conv2d(width, 2 * width, 3, stride=2), nn.ReLU())
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(2 * width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(torch.relu(self.first(x)))
        logits: Tensor = self.head(self.drop(x.mean((2, 3))))
        return logits


class MLP(nn.Module):
    """A classifier without maps."""

    def __init__(self) -> None:
        super().__init__()
        self.flat = nn.Flatten()
        self.fc = nn.Linear(3 * 32 * 32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.flat(x))
        return logits


OWN_STAGES = ["first", "second"]


@pytest.fixture
def data() -> Dataset:
    return make_dataset(CLASSES, per_class=6, size=32)


def own(stages: list[str] | None = None, **settings: Any) -> dict[str, Any]:
    return {"module": Own(), "stages": stages or OWN_STAGES, **settings}


def distill(out: Path, data: Dataset, student: Any, teacher: Any, **settings: Any) -> Result:
    return dskd.distill(
        student=student,
        teacher=trusted(teacher),
        data=data,
        method={"name": "dskd", **settings},
        train=QUICK,
        out=out,
    )


def check(result: Result, stages: int) -> dict[str, float]:
    """Check metrics and student of a run; return the metrics of the last epoch."""
    lines = (result.path / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 1
    text = lines[0]
    for stage in range(1, stages + 1):
        for metric in ("prediction", "feature", "weight"):
            assert f"stage{stage}/{metric}" in text
    assert f"stage{stages + 1}/weight" not in text
    assert "NaN" not in text
    shipped = safetensors.torch.load_file(result.path / "student.safetensors")
    state = result.student.state_dict()
    assert shipped.keys() == state.keys()
    assert all(torch.equal(value, shipped[key]) for key, value in state.items())
    metrics: dict[str, float] = json.loads(text)
    return metrics


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, other[key]) for key, value in one.items())


@pytest.mark.slow
@pytest.mark.parametrize("feature_target", ["last", "matched"])
@pytest.mark.parametrize(
    ("student", "teacher", "branches"),
    [(RESNET, VIT, 3), (VIT, RESNET, 2), (SWIN, VIT, 1), (VIT, SWIN, 2)],
    ids=["resnet from vit", "vit from resnet", "swin from vit", "vit from swin"],
)
def test_timm_in_both_roles(
    tmp_path: Path,
    data: Dataset,
    student: dict[str, Any],
    teacher: dict[str, Any],
    branches: int,
    feature_target: str,
) -> None:
    result = distill(tmp_path / "run", data, student, teacher, feature_target=feature_target)
    check(result, branches)
    assert (tmp_path / "run" / "teacher" / "student.safetensors").is_file()


def test_ones_own_modules_in_both_roles(tmp_path: Path, data: Dataset) -> None:
    student, teacher = Own(4), Own(8)
    before = [{k: v.clone() for k, v in net.state_dict().items()} for net in (student, teacher)]
    result = distill(
        tmp_path / "run",
        data,
        {"module": student},  # its stages are found
        {"module": teacher, "mean": [0.1, 0.2, 0.3], "std": [1, 2, 3]},
    )
    check(result, 1)
    rows = json.loads((result.path / "stages.json").read_text())
    for role in ("student", "teacher"):
        assert [row["name"] for row in rows[role]] == OWN_STAGES
    assert isinstance(result.student, Own)
    assert result.student is not student
    for net, state in zip((student, teacher), before, strict=True):
        assert same(net.state_dict(), state)
        assert all(parameter.requires_grad for parameter in net.parameters())
        assert net.training
        assert not any(part._forward_hooks for part in net.modules())
    assert not same(result.student.state_dict(), before[0])
    assert not any(part._forward_hooks for part in result.student.modules())


@pytest.mark.slow
def test_a_teacher_sees_the_images_by_its_own_mean_and_std(tmp_path: Path, data: Dataset) -> None:
    """Weights that compensate another mean and std give the same run."""
    torch.manual_seed(5)
    student, teacher = Own(), Own()
    shifted = nn.Sequential(Undo(scale=4.0), teacher)
    stages = [f"1.{name}" for name in OWN_STAGES]
    mean, std = [0.5, 0.25, 0.0], [0.5, 0.5, 0.5]
    plain = {"module": teacher, "stages": OWN_STAGES, "mean": mean, "std": std}
    moved = {"module": shifted, "stages": stages, "mean": mean, "std": [4 * s for s in std]}
    asked = {"module": student, "stages": OWN_STAGES}
    one = distill(tmp_path / "one", data, asked, plain)
    two = distill(tmp_path / "two", data, asked, moved)
    other = distill(tmp_path / "other", data, asked, {**plain, "std": [4 * s for s in std]})
    assert same(one.student.state_dict(), two.student.state_dict())
    assert not same(one.student.state_dict(), other.student.state_dict())


class Undo(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


@pytest.mark.slow
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_torchvision_model(tmp_path: Path, data: Dataset, role: str) -> None:
    resnet = models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=CLASSES)
    theirs = {"module": resnet, "stages": ["layer1", "layer2", "layer3", "layer4"]}
    if role == "student":
        result = distill(tmp_path / "run", data, theirs, own())
        check(result, 3)
        assert type(result.student) is models.ResNet
    else:
        check(distill(tmp_path / "run", data, own(), theirs), 1)


def test_a_torchvision_transformer_teaches(tmp_path: Path, data: Dataset) -> None:
    vit = models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=CLASSES)
    stages = [f"encoder.layers.encoder_layer_{layer}" for layer in (0, 1)]
    check(distill(tmp_path / "run", data, own(), {"module": vit, "stages": stages}), 1)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(40, 40), (16, 24)])
def test_zoo_models_on_images_of_other_shapes(tmp_path: Path, shape: tuple[int, int]) -> None:
    square = make_dataset(CLASSES, per_class=4, size=max(shape))
    train, test = (
        Split(split.images[:, :, : shape[0], : shape[1]].contiguous(), split.labels)
        for split in (square.train, square.test)
    )
    data = Dataset("made", train, test, square.classes, square.mean, square.std)
    teacher = {"module": dskd.load_model("resnet8x4", num_classes=CLASSES)}
    check(distill(tmp_path / "run", data, "resnet8", teacher), 2)


# What does not fit is said before any work


@pytest.mark.parametrize(
    ("student", "teacher", "said"),
    [
        ({}, own(["fist", "second"]), r"Own has no submodule 'fist'; did you mean 'first'\?"),
        ({}, own(["second", "first"]), r"name them as \['first', 'second'\]"),
        ({}, own(mean=[0.5] * 2, std=[0.5]), "have 2 and 3 channels, the images 3"),
        ({}, own(std=[0.5, 0, 0.5]), r"teacher\.std\[1\]: .*greater than 0"),
        (
            {},
            {"module": MLP()},
            r'one or more with teacher={"module": net, "stages": \["a"\]}; the teacher.s parts: '
            "flat, fc",
        ),
        (
            {"module": MLP()},
            own(),
            r'two or more with student={"module": net, "stages": \["a", "b"\]}; .*: '
            "flat, fc",
        ),
        ({}, {"module": nn.Flatten()}, "this method needs a feature map of the teacher"),
        ({"module": nn.Flatten()}, own(), "the student has 3072 classes, the data set 'made' has"),
        ({}, {"module": nn.Linear(3, 3)}, r"Linear does not run on images \[3, 32, 32\]"),
        ({}, {**RESNET, "stages": ["layer9"]}, r"no submodule 'layer9'; did you mean 'layer\d'"),
        ({}, {**VIT, "stages": ["blocks.7"]}, r"no submodule 'blocks.7'; did you mean 'blocks"),
    ],
)
def test_what_does_not_fit_leaves_nothing_behind(
    tmp_path: Path, data: Dataset, student: dict[str, Any], teacher: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said) as caught:
        distill(tmp_path / "run", data, student or own(), teacher)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


class Flat(nn.Module):
    """Flattens the feature map with a view, as many networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.fc = nn.Linear(8 * 4 * 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.conv2(torch.relu(self.conv1(x))))
        logits: torch.Tensor = self.fc(x.view(x.size(0), -1))
        return logits


@pytest.mark.parametrize("channels", [1, 3])
def test_a_module_that_views_its_maps_works_in_both_roles(tmp_path: Path, channels: int) -> None:
    data = make_dataset(classes=3, per_class=4, size=8, channels=channels)

    def flat() -> nn.Module:
        module = Flat()
        module.conv1 = nn.Conv2d(channels, 4, 3, padding=1)
        return module

    result = dskd.distill(
        student={"module": flat(), "stages": ["conv1", "conv2"]},
        teacher=trusted({"module": flat(), "stages": ["conv2"]}),
        data=data,
        train={"epochs": 1, "batch_size": 4},
        out=tmp_path / "run",
    )
    assert result.agreement is not None


class Odd(Flat):
    """Returns a tuple in training mode."""

    def forward(self, x: torch.Tensor) -> Any:
        logits = super().forward(x)
        return (logits, logits) if self.training else logits


def frozen() -> nn.Module:
    return Flat().requires_grad_(False)


def uncopied() -> nn.Module:
    module = Flat()
    module.cached = module.fc.weight * 2
    return module


@pytest.mark.parametrize(
    ("student", "says"),
    [
        (Odd, "not logits"),
        (frozen, "nothing of the model can learn"),
        (uncopied, "cannot be copied"),
    ],
)
def test_what_cannot_be_trained_is_said_before_anything_is_written(
    tmp_path: Path, student: Callable[[], nn.Module], says: str
) -> None:
    data = make_dataset(classes=3, per_class=4, size=8, channels=1)
    with pytest.raises(InputError, match=says):
        dskd.train(student=student(), data=data, train={"epochs": 1}, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_teacher_of_nan_is_named(tmp_path: Path) -> None:
    teacher = Flat()
    nn.init.constant_(teacher.fc.bias, float("nan"))
    data = make_dataset(classes=3, per_class=4, size=8, channels=1)
    with pytest.raises(NonFiniteError, match="the teacher's logits are not finite"):
        dskd.distill(student=Flat(), teacher=teacher, data=data, method="kd", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Masked(Flat):
    """Has an infinite buffer, such as an attention mask."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.tensor([0.0, 0.0, -torch.inf]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + cast(Tensor, self.mask).softmax(0)


def test_a_buffer_that_is_infinite_from_the_start_may_stay_so(tmp_path: Path) -> None:
    data = make_dataset(classes=3, per_class=4, size=8, channels=1)
    result = dskd.train(student=Masked(), data=data, train=QUICK, out=tmp_path / "run")
    assert result.student.state_dict()["mask"].isinf().any()


def test_settings_next_to_objects_apply_or_are_refused(tmp_path: Path) -> None:
    data = make_dataset(classes=4, per_class=10, size=8, channels=1)
    result = dskd.train(
        student="resnet8",
        data={"dataset": data, "classes": 2, "val_fraction": 0.2},
        train={"epochs": 1, "batch_size": 8},
        out=tmp_path / "run",
    )
    assert result.best_chosen_on == "validation"
    fc = cast(nn.Linear, result.student.get_submodule("fc"))
    assert fc.out_features == 2
    module = {"module": Flat()}
    for wrong, says in (
        ({"data": {"dataset": data, "size": 16}}, r"data\.size does not apply"),
        ({"student": module | {"options": {"a": 1}}}, "options do not apply"),
        ({"teacher": module | {"epochs": 3}}, r"teacher\.epochs does not apply"),
    ):
        arguments: dict[str, Any] = {"student": Flat(), "teacher": Flat(), "data": data} | wrong
        with pytest.raises(InputError, match=says):
            dskd.distill(method="kd", out=tmp_path / "other", **arguments)


def test_naming_a_zoo_model_s_own_stages_changes_nothing() -> None:
    """VGG's stages are taken after their ReLU, which hooks on its blocks would not see."""
    net = dskd.load_model("vgg8", num_classes=3).eval()
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    names = [f"block{i}" for i in range(5)]
    statistics: dict[str, Any] = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    own, named = (StagedModel(net, stages, **statistics)(images) for stages in (None, names))
    for one, other in zip(own.stages, named.stages, strict=True):
        assert torch.equal(one, other)


def test_a_teacher_that_cannot_be_trained_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine_to_train.py").write_text(
        "from torch import nn\n"
        "def make(num_classes, in_channels):\n"
        "    net = nn.Sequential(nn.Flatten(), nn.Linear(64 * in_channels, num_classes))\n"
        "    return net.requires_grad_(False)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    data = make_dataset(classes=3, per_class=4, size=8, channels=1)
    with pytest.raises(InputError, match="nothing of the model can learn"):
        dskd.distill(
            student=Flat(),
            teacher="mine_to_train:make",
            data=data,
            method="kd",
            out=tmp_path / "run",
            allow_code=True,
        )
    assert not (tmp_path / "run").exists()


def test_a_method_that_needs_no_teacher_is_given_none(tmp_path: Path, data: Dataset) -> None:
    result = dskd.distill(
        student="resnet8", data=data, method="byot", train={"epochs": 1}, out=tmp_path / "run"
    )
    assert (result.teacher_accuracy, result.agreement) == (None, None)
    with pytest.raises(InputError, match="the method 'kd' needs a teacher"):
        dskd.distill(student="resnet8", data=data, method="kd", out=tmp_path / "other")
