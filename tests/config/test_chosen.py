"""Settings that are chosen where there is no recipe."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from dskd.config.chosen import fill_in
from dskd.config.recipe import compose, load, load_by_labels, resolve
from dskd.config.recipe_file import write_recipe
from dskd.config.schema import Recipe
from dskd.config.short_forms import data_settings, label, overrides
from dskd.errors import InputError, on_command_line
from dskd.models import factory, native
from tests.data.file_writers import write_folder

STUDENT, TEACHER, VIT = "timm/test_resnet", "timm/resnet18", "timm/vit_tiny_patch16_224"


def values(
    student: str = STUDENT, teacher: str | None = TEACHER, data: str = "digits", **rest: Any
) -> dict[str, Any]:
    return {
        "data": {"name": data},
        "student": {"name": student},
        **({"teacher": {"name": teacher}} if teacher else {}),
        **rest,
    }


def filled(given: dict[str, Any]) -> dict[str, Any]:
    return fill_in(given)[0]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Class folders without a split, in the current folder."""
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "photos", side=240)
    for name in ("cat", "dog", "owl"):
        (tmp_path / "photos/train" / name).rename(tmp_path / "photos" / name)
    (tmp_path / "photos/train").rmdir()
    (tmp_path / "photos/val").rename(tmp_path / "val")
    return tmp_path / "photos"


def test_the_zoo_keeps_the_schedule_of_the_literature() -> None:
    given = values("resnet8", "resnet20")
    result, line = fill_in(given)
    assert (result, line) == (given | {"train": {"epochs": 240}}, "chosen: train.epochs=240")
    assert filled(values("MobileNetV2", "vgg13"))["train"] == {"epochs": 240, "lr": 0.01}


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("digits", {"name": "digits"}),
        ("cifar100", {"name": "cifar100", "augment": "cifar"}),
        ("tiny_imagenet", {"name": "tiny_imagenet", "crop_padding": 8, "flip": True}),
        ("<Dataset>", {"name": "<Dataset>"}),
    ],
)
def test_a_data_set_gets_its_usual_augmentation(name: str, data: dict[str, Any]) -> None:
    assert filled(values(data=name))["data"] == data


@pytest.mark.parametrize(
    ("student", "chosen"),
    [
        ("timm/resnet18", {"size": 224, "augment": "imagenet"}),
        ("resnet8", {"size": 64, "crop_padding": 8, "flip": True}),
    ],
)
def test_own_images_get_the_size_of_the_student(
    photos: Path, student: str, chosen: dict[str, Any]
) -> None:
    given = values(student)
    given["data"] = data_settings("photos")
    data = filled(given)["data"]
    assert data == {"name": "folder", "root": "photos", "test_split": 0.2, **chosen}
    (photos / "val").mkdir()
    assert "test_split" not in filled(given)["data"]


def test_a_size_of_null_is_kept(photos: Path) -> None:
    """The images keep their size, which they must share."""
    given = values("resnet8")
    given["data"] = {**data_settings("photos"), "size": None}
    data, line = fill_in(given)
    assert data["data"] == {"name": "folder", "root": "photos", "size": None, "test_split": 0.2}
    assert "data.size" not in line


def test_shards_without_a_pattern_are_refused_later(photos: Path) -> None:
    given = values("resnet8")
    given["data"] = {"name": "webdataset", "root": "photos"}
    assert filled(given)["data"]["size"] == 64


def test_the_student_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []

    def counted(name: str, **settings: Any) -> nn.Module:
        built.append(name)
        return factory.load_model(name, **settings)

    monkeypatch.setattr(native, "load_model", counted)
    given = values("timm/resnet18", None)
    given["data"] = data_settings(write_folder(tmp_path / "small", side=130))
    assert filled(given)["data"]["size"] == 128  # which depends on the student's layers
    assert built == ["timm/resnet18"]


@pytest.mark.parametrize(
    ("student", "side", "size"),
    [
        ("timm/resnet18", 224, 224),
        ("timm/resnet18", 130, 128),
        ("timm/resnet18", 20, 32),
        ("resnet8", 40, 32),
        (VIT, 130, 224),
    ],
)
def test_small_images_are_not_enlarged(tmp_path: Path, student: str, side: int, size: int) -> None:
    given = values(student)
    given["data"] = data_settings(write_folder(tmp_path / "small", side=side))
    (tmp_path / "small/train/cat/broken.png").write_bytes(b"x")
    assert filled(given)["data"]["size"] == size


@pytest.mark.usefixtures("photos")
def test_the_number_of_epochs_is_always_said() -> None:
    given = values("resnet8")
    assert filled(given)["train"]["epochs"] == 240
    assert filled(given | {"data": data_settings("photos")})["train"]["epochs"] == 100


@pytest.mark.usefixtures("photos")
def test_one_augmentation_that_is_given_leaves_the_others_out() -> None:
    given = values("timm/resnet18")
    given["data"] = {**data_settings("photos"), "flip": False, "size": 32}
    assert filled(given)["data"] == given["data"] | {"test_split": 0.2}


@pytest.mark.usefixtures("photos")
def test_a_cached_teacher_gets_augmentations_with_few_views() -> None:
    given = values("timm/resnet18")
    given["data"] = {**data_settings("photos"), "size": 32}
    given["teacher"]["cache"] = "logits"
    data = filled(given)["data"]
    assert (data["crop_padding"], data["flip"], "augment" in data) == (4, True, False)


def test_what_is_given_stays() -> None:
    given = values(train={"epochs": 3, "lr": 0.7, "schedule": "step"})
    before = copy.deepcopy(given)
    train = filled(given)["train"]
    assert given == before
    assert train == {
        "epochs": 3,
        "lr": 0.7,
        "schedule": "step",
        "optimizer": "sgd",
        "weight_decay": 5e-4,
        "warmup": 0.15,
    }


@pytest.mark.parametrize(
    ("student", "teacher", "optimizer"),
    [(STUDENT, TEACHER, "sgd"), (VIT, TEACHER, "adamw"), (STUDENT, VIT, "adamw")],
)
def test_a_model_without_batchnorm_is_trained_by_adamw(
    student: str, teacher: str, optimizer: str
) -> None:
    train = filled(values(student, teacher))["train"]
    assert train["optimizer"] == optimizer
    assert train["lr"] == {"sgd": 0.05, "adamw": 5e-4}[optimizer]
    assert train["weight_decay"] == {"sgd": 5e-4, "adamw": 0.05}[optimizer]


@pytest.mark.parametrize("optimizer", ["timm/sgd", "timm/momentum", "sgd"])
def test_sgd_of_timm_has_the_rate_of_sgd(optimizer: str) -> None:
    train = filled(values(train={"optimizer": optimizer}))["train"]
    assert (train["lr"], train["weight_decay"]) == (0.05, 5e-4)


@pytest.mark.parametrize("given", [{"milestones": [0.5]}, {"gamma": 0.2}])
def test_milestones_choose_their_schedule(given: dict[str, Any]) -> None:
    assert filled(values(train=given))["train"]["schedule"] == "step"


def test_a_teacher_that_is_trained_already_has_no_say() -> None:
    given = values(STUDENT, VIT)
    given["teacher"]["checkpoint"] = "teacher.pth"
    assert filled(given)["train"]["optimizer"] == "sgd"


@pytest.mark.parametrize(
    ("student", "teacher", "train", "own"),
    [
        (False, False, (100, 0.05), {}),
        (True, True, (30, 0.01), {}),
        (False, True, (100, 0.05), {"lr": 0.01, "epochs": 30}),
        (True, False, (30, 0.01), {"lr": 0.05, "epochs": 100}),
    ],
)
def test_pretrained_weights_are_trained_for_less_time_at_a_lower_rate(
    student: bool, teacher: bool, train: tuple[int, float], own: dict[str, Any]
) -> None:
    given = values()
    given["student"]["pretrained"] = student
    given["teacher"]["pretrained"] = teacher
    result = filled(given)
    assert (result["train"]["epochs"], result["train"]["lr"]) == train
    assert result["teacher"] == {"name": TEACHER, "pretrained": teacher, **own}


@pytest.mark.parametrize(
    ("teacher", "epochs", "warmup"),
    [
        ({}, 60, 3),
        ({"pretrained": True}, None, 1.5),
        ({"epochs": 4}, 60, 0.2),
        ({"pretrained": True, "epochs": 40}, 60, 2),
        ({"epochs": 4, "checkpoint": "teacher.pth"}, 60, 3),
        ({"pretrained": True, "epochs": 0}, 60, 3),
    ],
)
def test_a_twentieth_of_the_shorter_schedule_is_warm_up(
    teacher: dict[str, Any], epochs: int | None, warmup: float
) -> None:
    given = values(train={} if epochs is None else {"epochs": epochs})
    given["teacher"] |= teacher
    assert filled(given)["train"]["warmup"] == warmup


@pytest.mark.usefixtures("photos")
@pytest.mark.parametrize(
    ("teacher", "chosen"),
    [
        ({"pretrained": True, "epochs": 0}, ("bicubic", 0.95)),
        ({"pretrained": True, "head": "fit", "name": "torchvision/resnet18"}, ("bilinear", 0.875)),
        ({"pretrained": True}, (None, None)),
        ({}, (None, None)),
    ],
)
def test_images_are_prepared_as_a_published_teacher_expects_them(
    teacher: dict[str, Any], chosen: tuple[str | None, float | None]
) -> None:
    given = {
        "data": {"name": "folder", "root": "photos"},
        "student": {"name": STUDENT},
        "teacher": {"name": "timm/resnet50", **teacher},
    }
    data = filled(given)["data"]
    assert (data.get("interpolation"), data.get("crop_pct")) == chosen


@pytest.mark.parametrize(
    ("pretrained", "epochs", "own"), [(True, 90, 30), (True, 9, None), (False, 9, None)]
)
def test_a_teacher_is_not_trained_for_longer_than_was_asked_for(
    pretrained: bool, epochs: int, own: int | None
) -> None:
    given = values(train={"epochs": epochs})
    given["teacher"]["pretrained"] = pretrained
    given["student"]["pretrained"] = not pretrained
    assert filled(given)["teacher"].get("epochs") == own


def test_the_line_lists_what_was_added_as_it_could_be_given() -> None:
    given = values(train={"epochs": 3})
    result, line = fill_in(given)
    assert line.startswith("chosen: ")
    texts = line.removeprefix("chosen: ").split()
    parts = overrides(student=STUDENT, teacher=TEACHER, data="digits", epochs=3)
    again = compose(None, [*parts, *texts])
    assert again.values == result
    assert again.chosen == ""


def test_a_run_without_a_recipe_logs_its_choices(
    photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dskd")
    with on_command_line():
        recipe = load(
            None, overrides(data="photos/", student="resnet8", teacher="resnet20", epochs=2)
        )
    assert recipe.out == Path("runs/resnet8-resnet20-photos/dskd-seed0")
    assert (recipe.data.size, recipe.train.epochs) == (64, 2)
    assert caplog.messages == [
        "chosen: data.size=64 data.test_split=0.2 data.crop_padding=8 data.flip=true"
    ]
    alone = load_by_labels(None, overrides(data="photos/", student="resnet8"))
    assert alone.out == Path("runs/resnet8-photos/ce-seed0")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"data": "digits"}, "student and data are needed: give --student timm/mobilenetv4"),
        ({"student": "resnet8"}, "student and data are needed: give --data photos/"),
        (
            {"student": "resnet8", "data": "digits"},
            "'dskd' needs a teacher; give one, as in teacher.name=",
        ),
        ({"student": "resnet8", "data": "digts"}, "did you mean 'digits'"),
        ({"student": "resnet8", "data": "gone/"}, "data: gone is not there; check the path"),
    ],
)
def test_what_is_missing_is_named(given: dict[str, Any], said: str) -> None:
    with on_command_line(), pytest.raises(InputError) as refused:
        load(None, overrides(**given))
    assert said in str(refused.value)


def test_nothing_is_logged_about_a_recipe_that_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dskd")
    with pytest.raises(InputError, match=r"train\.lr"):
        load(None, [*overrides(data="cifar10", student="resnet8", teacher="vgg8"), "train.lr=-1"])
    assert not caplog.messages


def test_the_name_of_a_data_set_comes_before_a_folder(photos: Path) -> None:
    (photos.parent / "digits").mkdir()
    assert data_settings("digits") == {"name": "digits"}
    tar = Path("train-0000.tar")
    assert (
        data_settings(tar)
        == data_settings(str(tar))
        == {
            "name": "webdataset",
            "root": ".",
            "shards": "train-0000.tar",
        }
    )
    assert data_settings("./digits") == {"name": "folder", "root": "./digits"}
    assert data_settings(Path("photos")) == {"name": "folder", "root": "photos"}


def test_a_label_names_the_folder_of_the_images(photos: Path) -> None:
    assert label(values() | {"data": {"name": "folder", "root": "photos/"}}) == (
        "timm_test_resnet-timm_resnet18-photos"
    )
    assert label({"data": {"name": "<Dataset>"}, "student": {"name": "<Net>"}}) == "Net-Dataset"


def same(one: Recipe, other: Recipe) -> bool:
    return one.plain() == other.plain()


@pytest.mark.usefixtures("photos")
@pytest.mark.parametrize("changes", [[], ["method.name=kd", "seed=3", "student.pretrained=true"]])
def test_the_file_of_init_stands_for_the_same_run(changes: list[str]) -> None:
    parts = overrides(data="photos/", student=STUDENT, teacher=VIT, epochs=2)
    composed = compose(None, [*parts, *changes])
    path = write_recipe(composed, None)
    assert path == Path("timm_test_resnet-timm_vit_tiny_patch16_224-photos.yaml")
    assert same(load(str(path)), composed.resolved())
    assert path.read_text().startswith("# A recipe of dskd")
    with pytest.raises(InputError, match=r"photos\.yaml exists; remove it, or give out=\"FILE\""):
        write_recipe(composed, None)


@pytest.mark.usefixtures("photos")
def test_init_copies_a_recipe_with_changes(tmp_path: Path) -> None:
    path = write_recipe(compose("digits", ["train.epochs=7"]), tmp_path / "mine.yaml")
    mine, theirs = load(str(path)), load("digits", ["train.epochs=7"])
    assert same(mine.changed(out=None), theirs.changed(out=None))
    for wrong, said in (("mine.txt", "needs the suffix .yaml"), ("no/x.yaml", "No such file")):
        with pytest.raises((InputError, OSError), match=said):
            write_recipe(compose("digits"), tmp_path / wrong)
    with pytest.raises(InputError, match=r"train\.lr"):
        write_recipe(compose("digits", ["train.lr=-1"]), tmp_path / "bad.yaml")
    assert not (tmp_path / "bad.yaml").exists()


def test_a_whole_recipe_resolves_to_the_same(tmp_path: Path) -> None:
    composed = compose(None, overrides(data="digits", student=STUDENT, teacher=TEACHER))
    plain = composed.resolved().plain()
    assert resolve(plain, tmp_path).plain() == plain
