"""Settings that are chosen for the models and the data where there is no recipe.

A recipe file says everything. Without one, only models and data may be given. `fill_in` then adds
what the defaults of `dskd.config.schema`, those of the literature for its small networks on small
images, do not suit: the size and augmentation of the user's own images, and the schedule of models
of timm and torchvision. What is given stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, get_args

from dskd.config.overrides import all_keys
from dskd.config.schema import AUGMENTATIONS, Recipe, TeacherSettings
from dskd.config.train_settings import TrainSettings
from dskd.data.augmentation import Interpolation
from dskd.data.catalog import are_files
from dskd.data.image_sides import typical_side
from dskd.data.image_source import EVALUATION
from dskd.data.subset import HELD_OUT
from dskd.models.catalog import LIBRARIES
from dskd.models.native import has_batchnorm, native_pixels, native_size, short_share
from dskd.settings import validate

SMALL_SIZE = 64
"""Height and width of the user's images for networks of the zoo, and for the user's own."""
SIZE_STEP = 32
"""Smaller sizes are multiples of this, by which networks usually divide the size of their maps."""
EPOCHS, FINE_TUNING_EPOCHS = 100, 30
"""Epochs on the user's images, and of models of timm or torchvision: from random and from
pretrained weights. The package's networks take those of the schema on published data sets."""
WARMUP_SHARE = 20
"""One of so many epochs warms up the learning rate: first steps at the full rate can spoil a model
of timm for the rest of the training."""
_RATES = {("sgd", False): 0.05, ("sgd", True): 0.01, ("adamw", False): 5e-4, ("adamw", True): 1e-4}
"""Learning rates for 64 images a step, by optimizer and by whether weights are pretrained."""
_LIKE_SGD = ("sgd", "dot", "momentum", "nesterov")
"""How optimizers are called that take the rates of SGD."""
_SECTIONS = ("data", "student", "teacher", "train")
_MOBILE = ("MobileNetV2", "ShuffleV1", "ShuffleV2")
"""Networks of the zoo that the literature trains with a rate of 0.01, and others with 0.05."""


def fill_in(values: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Adds settings that suit the models and the data.

    Args:
        values: Nested plain values of a recipe, with ``data`` and ``student``.

    Returns:
        The values with the added ones, and a line that lists these; empty if nothing is added.

    Raises:
        InputError: A value does not fit.

    Example:
        >>> values = {"data": {"name": "cifar100"}, "student": {"name": "MobileNetV2"}}
        >>> filled, line = fill_in(values)
        >>> line
        'chosen: data.augment=cifar train.epochs=240 train.lr=0.01'
        >>> filled["train"]
        {'epochs': 240, 'lr': 0.01}
    """
    checked = validate(Recipe, values, known=all_keys(values)).model_dump(exclude_unset=True)
    sections = {key: dict(checked.get(key) or {}) for key in _SECTIONS}
    filled = {key: dict(values.get(key) or {}) for key in _SECTIONS}
    added: list[str] = []
    # A large model takes a second to build, and size and schedule depend on it.
    plain = cache(lambda: _is_plain(sections["student"]))
    for section, choices in (("data", _data(sections, plain)), *_training(sections, plain)):
        for key, value in choices.items():
            if key not in sections[section]:
                sections[section][key] = filled[section][key] = value
                added.append(f"{section}.{key}={_text(value)}")
    whole = {**values, **{key: section for key, section in filled.items() if section}}
    return whole, f"chosen: {' '.join(added)}" if added else ""


def _data(sections: Mapping[str, dict[str, Any]], plain: Callable[[], bool]) -> dict[str, Any]:
    """Size, split and augmentation of the images."""
    data = sections["data"]
    chosen: dict[str, Any] = {}
    size: int | None = data.get("size")
    if are_files(data.get("name", "")):
        root: Path | None = data.get("root")
        if "size" not in data:  # an explicit null stays
            chosen["size"] = size = _size(sections["student"], data, plain)
        bare = root is not None and not any((root / split).is_dir() for split in EVALUATION)
        if data["name"] == "folder" and bare:
            chosen["test_split"] = HELD_OUT
        if size is not None:
            chosen |= _of_published(sections["teacher"], size)
    if not data.keys() & {"augment", *AUGMENTATIONS}:
        chosen |= _augmentation(sections, size)
    return chosen


def _is_plain(model: Mapping[str, Any]) -> bool:
    """Whether a model learns by SGD and on images of any size, as those with BatchNorm do."""
    return has_batchnorm(str(model.get("name")), model.get("options") or {})


def _size(student: Mapping[str, Any], data: Mapping[str, Any], plain: Callable[[], bool]) -> int:
    """The student's own size, or a smaller one if the images are smaller."""
    name = str(student.get("name"))
    own = native_size(name) or SMALL_SIZE
    side = typical_side(data)
    if side is None or side >= own or not plain():
        return own  # transformers are made for few sizes
    return max(1, side // SIZE_STEP) * SIZE_STEP


def _of_published(teacher: Mapping[str, Any], size: int) -> dict[str, Any]:
    """How images are prepared for a teacher whose published weights are used as they are."""
    as_it_is = teacher.get("epochs") == 0 or teacher.get("head") == "fit"
    if teacher.get("pretrained") is not True or not as_it_is:
        return {}
    if (found := native_pixels(str(teacher["name"]))) is None:
        return {}
    crop, rule = found.crop_pct, found.interpolation
    chosen: dict[str, Any] = {} if crop == 1 else {"crop_pct": short_share(crop, size)}
    return chosen | ({"interpolation": rule} if rule in get_args(Interpolation) else {})


def _augmentation(sections: Mapping[str, dict[str, Any]], size: int | None) -> dict[str, Any]:
    name, student = sections["data"].get("name"), str(sections["student"].get("name"))
    if name in ("cifar10", "cifar100"):
        return {"augment": "cifar"}
    if name == "tiny_imagenet":
        return {"crop_padding": (size or 64) // 8, "flip": True}
    if not are_files(sections["data"].get("name", "")) or size is None:
        return {}
    is_cached = sections["teacher"].get("cache", "none") != "none"  # it needs few views
    if student.startswith(LIBRARIES) and not is_cached:
        return {"augment": "imagenet"}
    return {"crop_padding": size // 8, "flip": True}


def _training(
    sections: Mapping[str, dict[str, Any]], plain: Callable[[], bool]
) -> list[tuple[str, dict[str, Any]]]:
    """The schedule of the student, and where it differs, of the teacher."""
    student, teacher, train = sections["student"], sections["teacher"], sections["train"]
    name = str(student.get("name"))
    if not name.startswith(LIBRARIES):
        epochs = EPOCHS if are_files(sections["data"].get("name", "")) else TrainSettings().epochs
        return [("train", {"epochs": epochs} | ({"lr": 0.01} if name in _MOBILE else {}))]
    trains_teacher = bool(teacher) and not TeacherSettings(**teacher).is_given
    all_plain = plain() and (not trains_teacher or _is_plain(teacher))
    optimizer = train.get("optimizer") or ("sgd" if all_plain else "adamw")
    tuned = bool(student.get("pretrained") or student.get("checkpoint"))
    epochs = train.get("epochs") or (FINE_TUNING_EPOCHS if tuned else EPOCHS)
    schedule = "step" if train.keys() & {"milestones", "gamma"} else "cosine"
    chosen = {"epochs": epochs, "optimizer": optimizer, "schedule": schedule}
    kind = "sgd" if optimizer.removeprefix("timm/").startswith(_LIKE_SGD) else "adamw"
    chosen |= {"lr": _RATES[kind, tuned], "weight_decay": 0.05 if kind == "adamw" else 5e-4}
    own = _of_teacher(sections, trains_teacher, tuned, kind)
    taught = (teacher.get("epochs") or own.get("epochs") or epochs) if trains_teacher else epochs
    chosen["warmup"] = min(epochs, taught) / WARMUP_SHARE  # the teacher has the same one
    return [("train", chosen), ("teacher", own)]


def _of_teacher(
    sections: Mapping[str, dict[str, Any]], trains: bool, tuned: bool, kind: str
) -> dict[str, Any]:
    """The teacher's own schedule, if one of the two models starts from pretrained weights."""
    pretrained, given = bool(sections["teacher"].get("pretrained")), sections["train"].get("epochs")
    if not trains or pretrained == tuned:
        return {}
    wanted = FINE_TUNING_EPOCHS if pretrained else EPOCHS
    chosen: dict[str, Any] = {"lr": _RATES[kind, pretrained]}
    if given is None or (pretrained and wanted < given):
        chosen["epochs"] = wanted
    return chosen


def _text(value: Any) -> str:
    """A value as the command line takes it."""
    return str(value).lower() if isinstance(value, bool) else f"{value}"
