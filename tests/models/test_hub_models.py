"""Models of the Hugging Face Hub, from a cache and folders in the published format."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import constants
from timm.models import save_for_hf
from torch import Tensor, nn

import dskd
from dskd.cli.commands import main
from dskd.config.recipe import resolve
from dskd.data import Dataset
from dskd.data.loader import NO_LABEL
from dskd.deploy.student import load_file
from dskd.engine import named_classes
from dskd.engine.build_model import build_model
from dskd.engine.prepare import prepare
from dskd.engine.teacher_labels import training_data
from dskd.engine.user_objects import UserObjects
from dskd.errors import InputError
from dskd.models import hub_files
from dskd.models.factory import load_model, pretrained_statistics
from dskd.models.hub_models import network, published
from dskd.models.native import native_size, published_classes, published_names
from dskd.storage.weights import read_metadata, write_weights
from tests.builders import make_dataset

CPU = torch.device("cpu")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAMES = ("class2", "class0", "class1")
"""Those of `make_dataset(3)` in another order."""
TIMM, VIT, OURS = "hf/someone/timm-net", "hf/someone/vit", "hf/someone/student"


def logits(module: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        output = module.eval()(images)
    found: Tensor = getattr(output, "logits", output)
    return found


def named(classes: tuple[str, ...]) -> Dataset:
    """Images of classes with these names."""
    return replace(make_dataset(3, per_class=6, size=32), classes=classes)


def add_repository(cache: Path, name: str) -> Path:
    """The folder of a new repository in a cache of the Hub."""
    root = cache / f"models--{name.removeprefix('hf/').replace('/', '--')}"
    folder = root / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with a network of timm, one of transformers, and a student of dskd."""
    # Not above: every worker of pytest-xdist imports all files, and this takes it a second.
    from transformers import AutoModelForImageClassification, ViTConfig, ViTImageProcessor

    cache = tmp_path_factory.mktemp("hub")
    torch.manual_seed(0)
    net = timm.create_model("test_resnet", num_classes=3)
    save_for_hf(
        net,
        str(add_repository(cache, TIMM)),
        model_config={"label_names": list(NAMES)},
        safe_serialization=True,
    )
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
        id2label=dict(enumerate(NAMES)),
        label2id={name: label for label, name in enumerate(NAMES)},
    )
    folder = add_repository(cache, VIT)
    AutoModelForImageClassification.from_config(config).save_pretrained(folder)  # type: ignore[no-untyped-call]
    ViTImageProcessor(
        size={"height": 40, "width": 40}, do_center_crop=True, crop_size=32, resample=3
    ).save_pretrained(folder)
    trained = dskd.train(
        "resnet8",
        data=make_dataset(3, per_class=6, size=32),
        epochs=1,
        out=cache / "run",
        verbose=0,
        train={"batch_size": 6},
    )
    dskd.load_deployed(trained.path).save_pretrained(add_repository(cache, OURS))
    return cache


@pytest.fixture(autouse=True)
def offline(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub_files._cached.cache_clear()
    yield
    hub_files._cached.cache_clear()


def folder_of(cache: Path, name: str) -> Path:
    return cache / f"models--{name.removeprefix('hf/').replace('/', '--')}" / "snapshots" / COMMIT


def original(cache: Path, name: str) -> nn.Module:
    """A model as its own library loads it."""
    folder = folder_of(cache, name)
    if name == TIMM:
        return timm.create_model(f"local-dir:{folder}", pretrained=True)
    if name == VIT:
        from transformers import AutoModelForImageClassification

        module: nn.Module = AutoModelForImageClassification.from_pretrained(folder)
        return module
    return dskd.DeployedStudent.from_pretrained(folder).model.module


@pytest.mark.parametrize("name", [TIMM, VIT, OURS])
def test_a_repository_and_its_folder_give_the_model_of_its_own_library(
    cache: Path, name: str
) -> None:
    images = torch.randn(2, 3, 32, 32)
    expected = logits(original(cache, name), images)
    for place in (name, f"{name}@main", f"hf/{folder_of(cache, name)}"):
        module = load_model(place, num_classes=3, size=32, pretrained=True)
        assert torch.equal(logits(module, images), expected), place


@pytest.mark.parametrize("name", [TIMM, VIT, OURS])
def test_a_classifier_of_other_classes_is_left_out(cache: Path, name: str) -> None:
    theirs = original(cache, name).state_dict()
    module = load_model(name, num_classes=5, size=32, pretrained=True)
    left_out = {key for key, v in module.state_dict().items() if v.shape != theirs[key].shape}
    assert {key.rpartition(".")[2] for key in left_out} == {"weight", "bias"}
    assert all(len(module.state_dict()[key]) == 5 for key in left_out)
    for key in theirs.keys() - left_out:
        assert torch.equal(module.state_dict()[key], theirs[key]), key


def test_random_weights_are_for_the_images_of_the_run() -> None:
    module = load_model(VIT, num_classes=5, in_channels=1, size=16)
    assert logits(module, torch.randn(2, 1, 16, 16)).shape == (2, 5)
    torch.manual_seed(1)
    one = load_model(TIMM, num_classes=5, in_channels=1).state_dict()
    torch.manual_seed(1)
    other = load_model("timm/test_resnet", num_classes=5, in_channels=1).state_dict()
    assert all(torch.equal(one[key], other[key]) for key in other)


def test_what_a_repository_says_about_its_images() -> None:
    assert published(VIT).crop_pct == pytest.approx(0.8)
    assert published(VIT).interpolation == "bicubic"
    assert published(TIMM).interpolation == "bilinear"
    assert [native_size(name) for name in (TIMM, VIT, OURS)] == [160, 32, 32]
    assert [published_classes(name) for name in (TIMM, VIT, OURS)] == [3, 3, 3]
    assert published_names(TIMM) == published_names(VIT) == NAMES
    assert published_names(OURS) == tuple(sorted(NAMES))
    for name in (TIMM, VIT):
        module = load_model(name, num_classes=3, size=32, pretrained=True)
        assert pretrained_statistics(module, 3) == ((0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize(
    ("processor", "mean", "std"),
    [
        ({"image_mean": [0.4] * 3, "image_std": [0.2] * 3}, 0.4, 0.2),
        ({"image_mean": [0.4] * 3, "image_std": [0.2] * 3, "do_normalize": False}, 0.0, 1.0),
        ({"image_mean": [0] * 3, "image_std": [1] * 3, "rescale_factor": 2 / 255}, 0.0, 0.5),
        (
            {
                "image_mean": [0] * 3,
                "image_std": [1] * 3,
                "rescale_factor": 1 / 127.5,
                "rescale_offset": True,
            },
            0.5,
            0.5,
        ),
        (
            {"image_mean": [0.4] * 3, "image_std": [0.2] * 3, "include_top": True},
            0.4,
            0.04,
        ),
        (
            {"image_mean": [51] * 3, "image_std": [25.5] * 3, "do_rescale": False},
            0.2,
            0.1,
        ),
    ],
)
def test_the_statistics_are_those_of_pixels_from_0_to_1(
    cache: Path, tmp_path: Path, processor: dict[str, Any], mean: float, std: float
) -> None:
    shutil.copy(folder_of(cache, VIT) / "config.json", tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    found = published(f"hf/{tmp_path}")
    assert found.mean == pytest.approx([mean] * 3)
    assert found.std == pytest.approx([std] * 3)


@pytest.mark.parametrize(
    ("processor", "crop"),
    [
        ({"size": {"shortest_edge": 256}, "crop_size": 224, "do_center_crop": True}, 0.875),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.9}, 0.9),
        ({"size": 224, "crop_pct": 0.9, "crop_size": 224, "do_center_crop": True}, 0.9),
        ({"size": 384, "crop_pct": 0.9, "image_processor_type": "ConvNextImageProcessor"}, 1.0),
        ({"size": 224, "feature_extractor_type": "LevitFeatureExtractor"}, 0.875),
        ({"size": {"height": 224, "width": 224}}, 1.0),
    ],
)
def test_the_crop_is_that_of_the_processor(
    cache: Path, tmp_path: Path, processor: dict[str, Any], crop: float
) -> None:
    shutil.copy(folder_of(cache, VIT) / "config.json", tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    assert published(f"hf/{tmp_path}").crop_pct == crop


def test_weights_for_another_order_of_channels_are_refused(cache: Path, tmp_path: Path) -> None:
    shutil.copytree(folder_of(cache, VIT), tmp_path / "vit")
    (tmp_path / "vit" / "preprocessor_config.json").write_text('{"do_flip_channel_order": true}')
    with pytest.raises(InputError, match="takes the channels in the order BGR"):
        load_model(f"hf/{tmp_path / 'vit'}", num_classes=3, pretrained=True)


def test_without_a_processor_or_names_nothing_is_said(cache: Path, tmp_path: Path) -> None:
    config = json.loads((folder_of(cache, VIT) / "config.json").read_text())
    config["id2label"] = {str(label): f"LABEL_{label}" for label in range(3)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = published(f"hf/{tmp_path}")
    assert (found.mean, found.std, found.names, found.classes) == (None, None, None, 3)
    assert found.size == 32
    config["id2label"] = {"0": "crane", "1": "crane", "2": "tench"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert published(f"hf/{tmp_path}").names == ("crane (0)", "crane (1)", "tench")


Recipe = Callable[..., Any]


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    def build(teacher: dict[str, Any], student: dict[str, Any] | None = None, **data: Any) -> Any:
        values = {
            "data": {"name": "<Dataset>", **data},
            "student": student or {"name": "resnet8"},
            "teacher": teacher,
            "method": {"name": "kd"},
            "train": {"epochs": 1, "batch_size": 6, "device": "cpu"},
        }
        return resolve(values, tmp_path / "run")

    return build


@pytest.mark.parametrize("name", [TIMM, VIT, OURS])
def test_a_published_teacher_has_its_classes_by_name(
    cache: Path, recipe: Recipe, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dskd")
    data = make_dataset(3, per_class=6, size=32)
    if name == OURS:
        data = named(NAMES)
    plan = recipe({"name": name, "pretrained": True, "epochs": 0, "trust": True})
    made = prepare(plan, data, UserObjects(), CPU)
    assert made.teacher is not None
    assert made.teacher.training is None
    model = made.teacher.model
    images = data.test.images[:4]
    model.eval()
    own = logits(original(cache, name), model.normalize(images))
    names = published_names(name)
    assert names is not None
    for label, one in enumerate(data.classes):
        torch.testing.assert_close(model(images).logits[:, label], own[:, names.index(one)])
    assert "its logits are mapped by name" in caplog.text


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (("n01", "n02", "n03"), "no name is the same, so the same order is assumed"),
        (("CLASS2, second", "class0", "Class1"), ""),
    ],
)
def test_names_of_another_kind_are_taken_in_order(
    recipe: Recipe, caplog: pytest.LogCaptureFixture, classes: tuple[str, ...], said: str
) -> None:
    caplog.set_level(logging.WARNING, "dskd")
    data = named(classes)
    plan = recipe({"name": VIT, "pretrained": True, "epochs": 0, "trust": True})
    made = prepare(plan, data, UserObjects(), CPU)
    assert made.teacher is not None
    assert made.teacher.model.class_order is None
    assert said in caplog.text
    assert bool(said) == bool(caplog.text)


@pytest.mark.parametrize(
    ("classes", "order", "said"),
    [
        (("a fish", "maillot", "maillot, tank suit"), [2, 0, 1], "mapped by name"),
        (
            ("maillot", "maillot_tank_suit", "a fish"),
            None,
            "names occur twice and are not the same",
        ),
        (("Maillot", "maillot, swimsuit", "a fish, fish"), None, ""),
    ],
)
def test_names_with_the_same_first_synonym_are_compared_as_a_whole(
    recipe: Recipe,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    classes: tuple[str, ...],
    order: list[int] | None,
    said: str,
) -> None:
    caplog.set_level(logging.INFO, "dskd")
    names = ("maillot", "maillot, tank suit", "a fish")
    monkeypatch.setattr(named_classes, "published_names", lambda _: names)
    plan = recipe({"name": VIT, "pretrained": True, "epochs": 0, "trust": True})
    made = prepare(plan, named(classes), UserObjects(), CPU)
    assert made.teacher is not None
    found = made.teacher.model.class_order
    assert (found if found is None else found.tolist()) == order
    assert said in caplog.text
    assert bool(said) == bool("mapped by name" in caplog.text or "is assumed" in caplog.text)


def test_a_teacher_that_shares_some_names_is_of_other_classes(recipe: Recipe) -> None:
    data = named(("class0", "class1", "a bird"))
    plan = recipe({"name": VIT, "pretrained": True, "epochs": 0, "trust": True})
    with pytest.raises(InputError, match="are not the 3 of the data"):
        prepare(plan, data, UserObjects(), CPU)


@pytest.mark.slow
def test_a_student_from_the_hub_needs_no_hub_afterwards(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data = make_dataset(3, per_class=6, size=32)
    plan = recipe({"name": OURS, "pretrained": True}, {"name": VIT, "pretrained": True})
    result = dskd.engine.run.distill(plan, objects=UserObjects(data=data))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "none"))
    hub_files._cached.cache_clear()
    file = result.path / "student.safetensors"
    assert read_metadata(file)["model"] == "transformers/vit"
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    model = dskd.load_deployed(result.path).model
    expected = logits(result.student, model.normalize(images))
    assert torch.equal(logits(model, images), expected)


def test_a_file_that_names_a_repository_is_refused(cache: Path, tmp_path: Path) -> None:
    metadata = read_metadata(folder_of(cache, OURS) / "model.safetensors") | {"model": OURS}
    (tmp_path / "x.safetensors").write_bytes(write_weights(nn.Linear(1, 1), metadata))
    with pytest.raises(InputError, match="is damaged: it names a model of the Hub"):
        load_file(tmp_path / "x.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"dskd": metadata}))
    with pytest.raises(InputError, match="it names another repository"):
        network(f"hf/{tmp_path}", {})


def test_a_file_may_not_name_a_network_larger_than_its_weights(cache: Path, tmp_path: Path) -> None:
    metadata = read_metadata(folder_of(cache, OURS) / "model.safetensors") | {
        "model": "transformers/vit",
        "options": {"hidden_size": 2**15, "num_hidden_layers": 999, "num_attention_heads": 8},
    }
    (tmp_path / "x.safetensors").write_bytes(write_weights(nn.Linear(1, 1), metadata))
    with pytest.raises(InputError, match="is larger than the weights that it holds"):
        load_file(tmp_path / "x.safetensors")


def test_images_without_labels_get_the_names_of_a_published_teacher(recipe: Recipe) -> None:
    images = make_dataset(3, per_class=6, size=32).train
    unknown = images.relabelled(torch.full((len(images),), NO_LABEL))
    data = replace(
        make_dataset(3, per_class=6, size=32),
        train=unknown,
        test=unknown,
        classes=(),
        without_labels=True,
    )
    plan = recipe({"name": VIT, "pretrained": True, "epochs": 0, "trust": True})
    assert training_data(plan, UserObjects(data=data)).classes == NAMES


def test_a_published_teacher_without_a_classifier_teaches_features_alone(
    cache: Path, tmp_path: Path, recipe: Recipe
) -> None:
    shutil.copytree(folder_of(cache, VIT), tmp_path / "vit")
    config = json.loads((tmp_path / "vit" / "config.json").read_text())
    del config["id2label"], config["label2id"]
    name = write(tmp_path / "vit", config | {"architectures": ["ViTModel"]})
    assert published_classes(name) == 0
    data = make_dataset(3, per_class=6, size=32)
    plan = recipe({"name": name, "pretrained": True, "epochs": 0})
    model = build_model(plan.teacher, data, 0)
    assert model.other_classes == 0
    assert not model(data.train.images[:2]).logits.any()
    unknown = data.train.relabelled(torch.full((len(data.train),), NO_LABEL))
    without = replace(data, train=unknown, test=unknown, classes=(), without_labels=True)
    with pytest.raises(InputError, match="have no classifier, so the teacher predicts no classes"):
        training_data(plan, UserObjects(data=without))


def write(folder: Path, config: Any) -> str:
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return f"hf/{folder}"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            {"model_type": "mine", "auto_map": {"AutoConfig": "code.Mine"}},
            "needs code of its own, and dskd runs no code of a repository; load it in Python",
        ),
        ({"model_type": "bert"}, "unknown image classifier of transformers 'bert'"),
        ({"model_type": "vit", "quantization_config": {}}, "is quantized; take the repository of"),
        ({"architecture": "no_net", "num_classes": 2}, "is damaged"),
        ({"sizes": 3}, "was saved by neither timm, transformers nor dskd"),
        ("{", "is damaged"),
        ({"dskd": {"model": "resnet8"}}, "is damaged"),
        (
            {
                "architecture": "test_resnet",
                "num_classes": 2,
                "model_args": {"checkpoint_path": "x.pth"},
                "pretrained_cfg": {"mean": [0.5], "std": [0.5]},
            },
            "the option 'checkpoint_path' of timm is not allowed",
        ),
    ],
)
def test_a_bad_configuration_is_one_line(tmp_path: Path, config: Any, said: str) -> None:
    name = write(tmp_path, config)
    with pytest.raises(InputError, match=said) as refused:
        load_model(name, num_classes=3)
    assert "\n" not in str(refused.value)


def test_code_of_a_repository_never_runs(cache: Path, tmp_path: Path) -> None:
    shutil.copytree(folder_of(cache, VIT), tmp_path / "vit")
    config = json.loads((tmp_path / "vit" / "config.json").read_text())
    config["auto_map"] = {"AutoModelForImageClassification": "code.Mine"}
    config["attn_implementation"] = "someone/kernel"
    name = write(tmp_path / "vit", config)
    (tmp_path / "vit" / "code.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')")
    module = load_model(name, num_classes=3, pretrained=True)
    assert type(module).__name__ == "ViTForImageClassification"
    assert not (tmp_path / "mark").exists()


def test_weights_that_are_missing_or_do_not_fit_are_refused(cache: Path, tmp_path: Path) -> None:
    shutil.copytree(folder_of(cache, VIT), tmp_path / "vit")
    config = json.loads((tmp_path / "vit" / "config.json").read_text())
    name = write(tmp_path / "vit", config | {"intermediate_size": 48})
    with pytest.raises(InputError, match="do not fit ViTForImageClassification"):
        load_model(name, num_classes=3, pretrained=True)
    (tmp_path / "vit" / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="cannot be built with options"):
        load_model(name, num_classes=3, pretrained=True)
    (tmp_path / "vit" / "model.safetensors").unlink()
    with pytest.raises(InputError, match="has neither model"):
        load_model(name, num_classes=3, pretrained=True)


def test_weights_of_torch_save_are_tensors_alone(cache: Path, tmp_path: Path) -> None:
    for name in (TIMM, VIT):
        folder = tmp_path / name.rpartition("/")[2]
        shutil.copytree(folder_of(cache, name), folder)
        (folder / "model.safetensors").unlink()
        torch.save(original(cache, name).state_dict(), folder / "pytorch_model.bin")
        images = torch.randn(2, 3, 32, 32)
        module = load_model(f"hf/{folder}", num_classes=3, pretrained=True)
        assert torch.equal(logits(module, images), logits(original(cache, name), images))
        torch.save({"x": nn.Linear(1, 1)}, folder / "pytorch_model.bin")
        with pytest.raises(InputError) as refused:
            load_model(f"hf/{folder}", num_classes=3, pretrained=True)
        assert "\n" not in str(refused.value)


def test_options_of_published_weights_exist() -> None:
    module = load_model(VIT, num_classes=3, pretrained=True, options={"hidden_dropout_prob": 0.1})
    config: Any = module.config
    assert config.hidden_dropout_prob == 0.1
    with pytest.raises(InputError, match="unknown option of transformers/vit 'hidden'"):
        load_model(VIT, num_classes=3, pretrained=True, options={"hidden": 16})


def test_a_model_of_transformers_is_built_by_its_type() -> None:
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}
    module = load_model("transformers/vit", num_classes=4, size=16, options=small)
    assert logits(module, torch.randn(1, 3, 16, 16)).shape == (1, 4)
    with pytest.raises(InputError, match="unknown option of transformers/vit 'hidden'"):
        load_model("transformers/vit", num_classes=4, options={"hidden": 16})
    with pytest.raises(InputError, match="unknown image classifier of transformers 'vitt'"):
        load_model("transformers/vitt", num_classes=4)
    with pytest.raises(InputError, match="no pretrained weights of transformers/vit"):
        load_model("transformers/vit", num_classes=4, pretrained=True)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hf/someone/nothing", "the files of hf/someone/nothing are not in the cache and cannot"),
        ("hf/a/b/c", "'hf/a/b/c' is neither hf/OWNER/NAME nor hf/ and a folder that exists"),
        ("hf/", "is neither hf/OWNER/NAME nor"),
    ],
)
def test_without_a_network_it_is_one_line_with_exit_code_2(
    name: str, said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["distill", "digits", f"teacher.name={name}", "teacher.pretrained=true"]
    with pytest.raises(SystemExit) as ended:
        main([*words, f"out={tmp_path / 'run'}"])
    assert ended.value.code == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert "\n" not in error
    assert not (tmp_path / "run").exists()
