"""Every model of these libraries is a student and a teacher of DSKD, without named stages.

The smallest model of each family runs on the smallest images that it takes, with random weights:
one step as student and one as teacher, and its weights through a file. `EXPORTED` are exported to
ONNX, too: that takes seconds for each. Whole runs that resume are those of auxiliary logits.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision import models

import dskd
from dskd.config.recipe import resolve
from dskd.config.schema import ModelSettings, Recipe
from dskd.data import Dataset
from dskd.data.loader import MemoryLoader
from dskd.deploy.export import export_file
from dskd.deploy.student import DeployedStudent
from dskd.engine.build import build_method, build_trainer
from dskd.engine.build_model import build_model
from dskd.engine.trainer import Trainer
from dskd.errors import Stopped
from dskd.methods.base import BranchedMethod
from dskd.models.staged_model import StagedModel
from dskd.storage.weights import load_weights, read_weights, write_weights
from dskd.teacher.frozen import FrozenTeacher
from dskd.teacher.outputs import TeacherOutputs
from tests.builders import make_dataset, stop_at, trusted

CLASSES, BATCH = 3, 4
VIT = {"patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 2}
SWIN = {"window_size": 4, "patch_size": 2, "embed_dim": 12, "depths": [1, 2, 1]}
SMALL: dict[str, dict[str, Any]] = {
    "timm/vit_tiny_patch16_224": VIT | {"reg_tokens": 4},
    "timm/deit_tiny_distilled_patch16_224": VIT,
    "timm/swin_tiny_patch4_window7_224": SWIN | {"num_heads": [2, 2, 2]},
    "torchvision/googlenet": {"aux_logits": True, "init_weights": False},
    "timm/coat_lite_tiny": {"serial_depths": [1, 1, 1, 1]},
    "timm/convit_tiny": {"depth": 4, "local_up_to_layer": 2},
    "timm/dpn48b": {"k_sec": [1, 1, 1, 1]},
    "timm/efficientformerv2_s0": {"depths": [1, 1, 2, 2], "num_vit": 1},
    "timm/pit_ti_224": {"depth": [1, 1, 1]},
    "timm/rexnet_100": {"depth_mult": 0.5},
    "timm/visformer_tiny": {"depth": [2, 1, 1]},
    **{
        f"timm/{name}": {option: depth}
        for option, depth, names in (
            ("depth", 4, "cait_xxs24_224 eva02_tiny_patch14_224 test_vit_relpos"),
            ("depth", 4, "vit_tiny_r_s16_p8_224 xcit_nano_12_p16_224"),
            ("depth", [1, 1, 1], "efficientvit_m0 levit_128s shvit_s1"),
            ("depth", [1, 1, 2, 1], "repvit_m1"),
            ("depths", [1, 1, 1], "efficientvim_m1"),
            ("depths", [1, 1, 2, 1], "convnext_atto edgenext_xx_small fasternet_t0"),
            ("depths", [1, 1, 2, 1], "inception_next_atto mambaout_femto tiny_vit_5m_224"),
            ("layers", [1, 1, 1, 1], "fastvit_t8 resnetv2_18 skresnet18 swiftformer_xs"),
        )
        for name in names.split()
    },
}
"""Options that make a model smaller, such as fewer of its equal blocks, or give it auxiliary
logits.
"""
TIMM = """
    botnet26t_256@64 cait_xxs24_224 coat_lite_tiny@64 convit_tiny convnext_atto
    cpubone_b0_bfrobust cs3darknet_s cspnext_tiny deit_tiny_distilled_patch16_224 dla46_c dpn48b
    eca_resnext26ts@48 edgenext_xx_small efficientformerv2_s0@64 efficientnet_lite0
    efficientvim_m1@64 efficientvit_b0 efficientvit_m0@64 ese_vovnet19b_slim
    eva02_tiny_patch14_224@28 fasternet_t0 fastvit_t8 ghostnet_050 gmlp_ti16_224 hardcorenas_a
    hgnetv2_b0 inception_next_atto lcnetv2_small levit_128s@64 mambaout_femto
    mobilenetv3_small_050 mobilenetv4_conv_small mobilevit_xxs mobilevitv2_050 pit_ti_224@64
    pvt_v2_b0 regnetx_002 repghostnet_050 repvgg_a0 repvit_m1 resmlp_12_224 resnest14d resnet10t
    resnetv2_18 rexnet_100 shvit_s1@64 skresnet18 starnet_s050 swiftformer_xs
    swin_tiny_patch4_window7_224 test_vit_relpos tiny_vit_5m_224@64 visformer_tiny
    vit_tiny_patch16_224 vit_tiny_r_s16_p8_224@64 xcit_nano_12_p16_224
"""
TORCHVISION = """
    densenet121 efficientnet_b0 googlenet mnasnet0_5 mobilenet_v2 mobilenet_v3_small
    regnet_x_400mf resnet18 shufflenet_v2_x0_5 squeezenet1_1
"""
NAMES = [f"timm/{name}" for name in TIMM.split()]
NAMES += [f"torchvision/{name}@48" for name in TORCHVISION.split()]
QUICK = ("timm/resnet10t", "timm/vit_tiny_patch16_224", "timm/mobilenetv3_small_050")


def transformer(name: str, **changes: Any) -> nn.Module:
    """A classifier of Hugging Face transformers with a small configuration, and changes to it."""
    block = {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2}
    grid = {"image_size": 32, "patch_size": 8, "intermediate_size": 48}
    wide = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
    heads = {"num_attention_heads": [1, 1, 2, 2]}
    options: dict[str, dict[str, Any]] = {
        "ViT": block | grid,
        "DeiT": block | grid,
        "Beit": block | grid,
        "Dinov2WithRegisters": block | {"image_size": 32, "patch_size": 8},
        "Swin": {k: v for k, v in SWIN.items() if k != "embed_dim"}
        | {"image_size": 32, "embed_dim": 8, "num_heads": [1, 2, 4]},
        "ResNet": wide | {"embedding_size": 8, "layer_type": "basic"},
        "ConvNext": wide,
        "Segformer": wide | heads,
    }
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{name}Config")(num_labels=CLASSES, **options[name] | changes)
    module: nn.Module = getattr(transformers, f"{name}ForImageClassification")(config)
    return module


TRANSFORMERS = (
    "ViT",
    "DeiT",
    "Beit",
    "Dinov2WithRegisters",
    "Swin",
    "ResNet",
    "ConvNext",
    "Segformer",
)


@functools.cache
def data(size: int) -> Dataset:
    return make_dataset(CLASSES, per_class=2, size=size)


def plan(size: int) -> Recipe:
    values = {
        "data": {"name": "<Dataset>"},
        "student": {"name": "resnet8"},
        "teacher": {"name": "resnet8"},
        "train": {"epochs": 1, "batch_size": BATCH, "lr": 1e-4, "device": "cpu"},
    }
    return resolve(values, Path("runs"))


def built(
    name: str, size: int, seed: int = 0, stages: tuple[str, ...] | None = None
) -> StagedModel:
    """The model, with the stages that a run chooses if none are given."""
    if name.startswith("transformers/"):
        torch.manual_seed(seed)
        module = transformer(name.removeprefix("transformers/"))
        return build_model(ModelSettings(name="<module>", stages=stages), data(size), seed, module)
    settings = ModelSettings(name=name, options=SMALL.get(name, {}), stages=stages)
    return build_model(settings, data(size), seed)


def step(student: StagedModel, teacher: StagedModel, size: int) -> Trainer:
    """One training step of DSKD."""
    recipe = plan(size)
    loader = MemoryLoader(data(size).train, torch.device("cpu"))
    frozen = FrozenTeacher(teacher, loader.probe(BATCH))
    method = build_method(recipe, data(size), student, frozen)
    trainer = build_trainer(recipe, method, TeacherOutputs(frozen), loader)
    method.train()
    batch = next(trainer.loader.batches(trainer.plan(0, BATCH), BATCH))
    trainer.take_step(trainer.with_targets(batch))
    return trainer


def check_both_roles(name: str, size: int, tmp_path: Path) -> None:
    model = built(name, size)
    assert model.stage_names is not None
    assert 2 <= len(model.stage_names) <= 5
    shares = [stage.multiply_adds for stage in model.chosen_stages]
    assert all(share is not None and share > 0 for share in shares)
    step(built("resnet8", size), model, size)  # as teacher
    assert all(parameter.grad is None for parameter in model.parameters())
    model.requires_grad_(True)
    before = {key: value.clone() for key, value in model.named_parameters()}
    trainer = step(model, built("resnet8", size, 1), size)  # as student
    assert isinstance(trainer.method, BranchedMethod)
    assert len(trainer.method.branches) == len(model.stage_names) - 1
    after = dict(model.named_parameters())
    assert all(value.isfinite().all() for value in after.values())
    changed = sum(not torch.equal(after[key], value) for key, value in before.items())
    assert changed > 0.5 * len(before), "the losses reach the model"
    path = tmp_path / "student.safetensors"
    path.write_bytes(write_weights(trainer.method.deployed(), {}))
    other = built(name, size, seed=2, stages=model.stage_names)
    load_weights(other.module, read_weights(path), str(path))
    images = data(size).train.images[:2]
    expected, found = (one.eval()(images).logits.detach() for one in (model, other))
    assert torch.equal(expected, found)


@pytest.mark.parametrize("name", QUICK)
def test_a_few_models_in_both_roles(name: str, tmp_path: Path) -> None:
    check_both_roles(name, 32, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("named", [name for name in NAMES if name not in QUICK])
def test_models_by_name_in_both_roles(named: str, tmp_path: Path) -> None:
    name, _, size = named.partition("@")
    check_both_roles(name, int(size or 32), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_classifiers_of_transformers_in_both_roles(name: str, tmp_path: Path) -> None:
    check_both_roles(f"transformers/{name}", 32, tmp_path)


PAIRS = [
    ("timm/vit_tiny_patch16_224", "torchvision/googlenet"),
    ("transformers/ResNet", "transformers/ViT"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("student", "teacher"), PAIRS, ids=["vit from cnn", "cnn from vit"])
def test_pairs_of_families(student: str, teacher: str) -> None:
    size = 64 if "googlenet" in teacher else 32
    step(built(student, size), built(teacher, size), size)


# The tutorial on photos, whose examples are run, exports timm/mobilenetv3_small_050.
EXPORTED: dict[str, dict[str, Any]] = {
    "ViT": {"num_hidden_layers": 2},
    "ConvNext": {"num_stages": 2, "hidden_sizes": [8, 16], "depths": [1, 1]},
}
"""And options for smaller graphs."""


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPORTED)
def test_students_are_exported(name: str, tmp_path: Path) -> None:
    module = transformer(name, **EXPORTED[name])
    deployed = DeployedStudent(
        StagedModel(module, mean=(0.5,) * 3, std=(0.2,) * 3).eval(),
        name,
        data(32).classes,
        (3, 32, 32),
    )
    assert export_file(deployed, tmp_path / "student.onnx") < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torchvision/inception_v3", "timm/inception_v3"])
def test_inception_with_auxiliary_logits(name: str) -> None:
    """Its auxiliary classifier needs images of this size."""
    size = 299
    options = {"aux_logits": True}
    settings = ModelSettings(name=name, options=options, stages=["Mixed_5d", "Mixed_7c"])
    model = build_model(settings, data(size), 0)
    model.module.eval() if name.startswith("timm") else model.train()
    with torch.no_grad():
        plain = model.module(model.normalize(data(size).train.images[:2]))
        assert isinstance(plain, tuple), "with the auxiliary logits"
        model.eval()
        logits = model(data(size).train.images[:2]).logits
    assert logits.shape == (2, CLASSES)


@pytest.mark.slow
def test_auxiliary_logits_in_a_run_that_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    net = models.get_model("googlenet", num_classes=CLASSES, aux_logits=True, init_weights=False)
    for name in ("inception4b", "inception4c", "inception5a"):
        setattr(net, name, nn.Identity())  # as many channels as without it
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 1.0  # running statistics that fit random weights at once
    images = torch.randn(8, 3, 32, 32)
    assert isinstance(net(images), tuple), "in training mode"
    arguments: dict[str, Any] = {
        "teacher": trusted({"module": net}),
        "data": data(32),
        "train": {"epochs": 1, "batch_size": 3, "lr": 1e-4, "device": "cpu"},
        "verbose": 0,
    }
    with monkeypatch.context() as patch:
        stop_at(patch, 0, 0)
        with pytest.raises(Stopped):
            dskd.distill({"module": net}, out=tmp_path / "run", **arguments)
    result = dskd.distill({"module": net}, out=tmp_path / "run", resume=True, **arguments)
    before = net.state_dict()
    assert any(not torch.equal(v, before[k]) for k, v in result.student.state_dict().items())
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1
