"""Refuse settings of a recipe that contradict each other or have no effect."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from dskd import methods
from dskd.config.schema import DataSettings, TeacherSettings
from dskd.config.train_settings import TrainSettings
from dskd.data.catalog import are_own
from dskd.errors import InputError, option
from dskd.settings import Settings
from dskd.storage.yaml_file import Ambiguous

log = logging.getLogger("dskd")


def check_schedule(train: TrainSettings, teacher: Any) -> None:
    """Refuses schedules that contradict themselves.

    Args:
        train: The schedule.
        teacher: The settings of a teacher that is trained with it; None without one.

    Raises:
        InputError: One does.
    """
    lengths = {"train.epochs": train.epochs}
    if teacher is not None and teacher.epochs is not None:
        lengths["teacher.epochs"] = teacher.epochs
    for key, epochs in lengths.items():
        if train.warmup >= epochs:
            raise InputError(
                f"train.warmup: {train.warmup:g} epochs of warmup leave nothing of the {epochs} "
                f"epochs of {key}; make it smaller"
            )
    if train.min_lr and train.schedule != "cosine":
        raise InputError("train.min_lr is the end of train.schedule=cosine; set that, or drop it")
    for key in ("milestones", "gamma"):
        steps = train.milestones and not train.is_default(key)  # an empty list has no steps
        if train.schedule == "cosine" and steps:
            raise InputError(
                f"train.{key} is of train.schedule=step and has no effect on cosine; set that, or "
                "drop it"
            )
    lowest = min(getattr(teacher, "lr", None) or train.lr, train.lr)
    if train.min_lr >= lowest:
        raise InputError(
            f"train.min_lr={train.min_lr:g} is not below the learning rate {lowest:g}; lower it"
        )
    if train.nesterov and train.momentum == 0:
        raise InputError("train.nesterov needs train.momentum above 0")
    if train.nesterov and train.optimizer not in ("sgd", "dot"):
        raise InputError(
            f"train.nesterov is a setting of train.optimizer=sgd, not of {train.optimizer}; drop it"
        )


def check_untrained(teacher: TeacherSettings | None) -> None:
    """Refuses a teacher without training where its initial weights are not published ones."""
    if teacher is None or teacher.epochs != 0 or teacher.pretrained is True:
        return
    hint = "give the file as teacher.checkpoint" if teacher.pretrained else "set it to 1 or more"
    raise InputError(
        f"teacher.epochs=0 is for a teacher with teacher.pretrained=true, which needs no training; "
        f"{hint}"
    )


def check_teaches(
    teacher: Settings | None, method: str, keys: Collection[str], shown: str | None = None
) -> None:
    """Refuses a teacher that was asked for if the method learns from none.

    A recipe may have one for other methods, so only what is given beside it is refused. A warning
    names what a teacher that is trained already does not use.

    Args:
        teacher: Of a single run.
        method: Its name.
        keys: What the user gave, as in ``teacher.epochs``; see `keys_of_teacher`.
        shown: The name of the method in the message; None for the name itself.

    Raises:
        InputError: The method learns from none.
    """
    given = next((key for key in keys if key.partition(".")[0] == "teacher"), None)
    if given and teacher is not None and not methods.find(method).needs_teacher:
        raise InputError(
            f"{given} has no effect: the method {shown or method!r} learns from no teacher; set "
            "method.name=dskd, or drop it"
        )
    warn_of_unused_training(teacher, keys)


def warn_of_unused_training(teacher: Any, keys: Collection[str]) -> None:
    """Warns of settings of the teacher's own training beside its checkpoint.

    Args:
        teacher: Of the recipe.
        keys: As for `check_teaches`.
    """
    if teacher is None or teacher.checkpoint is None:
        return
    for key in ("epochs", "lr"):
        if f"teacher.{key}" in keys and getattr(teacher, key):
            log.warning(
                "teacher.%s is not used, since the teacher of teacher.checkpoint is trained "
                "already; drop one of them",
                key,
            )


def keys_of(overrides: Iterable[str]) -> list[str]:
    """The keys that ``key=value`` arguments set.

    Example:
        >>> keys_of(["teacher.epochs=10", "seed=1"])
        ['teacher.epochs', 'seed']
    """
    return [override.partition("=")[0] for override in overrides]


def keys_of_teacher(given: object) -> list[str]:
    """The keys that the argument ``teacher`` of a Python call sets; none if it is None.

    Example:
        >>> keys_of_teacher({"name": "resnet20", "epochs": 10})
        ['teacher', 'teacher.name', 'teacher.epochs']
    """
    settings = given if isinstance(given, Mapping) else ()
    return [] if given is None else ["teacher", *(f"teacher.{key}" for key in settings)]


def check_head(teacher: TeacherSettings | None) -> None:
    """Refuses to fit a head to a teacher that is not trained, or that is to be trained."""
    if teacher is None or teacher.head == "own":
        return
    if not (teacher.checkpoint or teacher.pretrained or teacher.name.startswith("<")):
        raise InputError(
            "teacher.head=fit fits a head to a trained teacher; set teacher.pretrained=true or "
            "teacher.checkpoint, or drop teacher.head, so that the teacher is trained"
        )
    for key, value in (("epochs", teacher.epochs), ("lr", teacher.lr)):
        if value:
            raise InputError(
                f"teacher.{key} does not apply with teacher.head=fit, which trains nothing but "
                "the head; drop one of them"
            )


def check_dot(train: TrainSettings, method: str) -> None:
    """Refuses ``train.optimizer=dot`` where it makes no sense, and its setting without it."""
    if train.optimizer != "dot":
        if not train.is_default("dot_delta"):
            raise InputError("train.dot_delta needs train.optimizer=dot")
        return
    if not methods.find(method).needs_teacher:
        raise InputError(
            "train.optimizer=dot separates the gradients of labels and teacher, and the method "
            f"{method!r} has no teacher; set train.optimizer=sgd"
        )
    if train.precision == "float16":
        raise InputError(
            "train.precision=float16 scales one loss of a step, and train.optimizer=dot takes the "
            "gradients of two; take train.precision=bfloat16"
        )
    if train.nesterov:
        raise InputError("train.optimizer=dot has no Nesterov momentum; drop train.nesterov")
    if train.compile:
        raise InputError(
            "train.compile=true: torch compiles one backward pass of a step, and "
            "train.optimizer=dot takes two; drop one of them"
        )
    if not train.dot_delta <= train.momentum < 1 - train.dot_delta:
        raise InputError(
            f"train.dot_delta: {train.dot_delta:g} moves the momentum {train.momentum:g} below 0 "
            "or to 1 and more; make it smaller"
        )


def check_cache_settings(teacher: TeacherSettings | None) -> None:
    """Refuses settings that would have no effect."""
    for key, kinds in (("views", ("features",)), ("cache_dir", ("features", "logits"))):
        if teacher and teacher.cache not in kinds and not teacher.is_default(key):
            wanted = " or ".join(f"teacher.cache={kind}" for kind in kinds)
            raise InputError(f"teacher.{key} needs {wanted}")


def check_cache_folder(data: DataSettings, out: Path) -> None:
    """Refuses a cache of decoded images in the folder of the run, which must be empty at its start.

    Args:
        data: The settings of the images.
        out: The folder of the run.
    """
    if data.cache_dir is not None and data.cache_dir.resolve().is_relative_to(out.resolve()):
        raise InputError(
            f"data.cache_dir={data.cache_dir} is in the folder of the run, {out}; choose a folder "
            "outside of it, which other runs can use, too"
        )


def check_augmentation(data: DataSettings, teacher: TeacherSettings | None) -> None:
    """Refuses augmentations that contradict each other or the cache, and settings of none."""
    used = [f"data.{name}" for name in data.augmentation.used()]
    if data.crop_scale and data.crop_padding:
        raise InputError(
            "data.crop_scale and data.crop_padding are two kinds of random crop; set "
            "data.crop_padding=0 or data.crop_scale=null"
        )
    # Images given in Python may be resized, too; `dskd.engine.build_data` knows which are.
    for key in ("crop_ratio",) if are_own(data.name) else ("crop_ratio", "interpolation"):
        if data.crop_scale is None and not data.is_default(key):
            raise InputError(f"data.{key} does nothing without data.crop_scale; drop it")
    if used and teacher and teacher.cache != "none":
        raise InputError(
            f"teacher.cache={teacher.cache} needs a limited number of views of an image, and "
            f"{' and '.join(used)} draw{'s' if len(used) == 1 else ''} any number; set "
            "teacher.cache=none, or turn the augmentation off"
        )


def check_mixing(train: TrainSettings, teacher: TeacherSettings | None) -> None:
    """Refuses a cache of outputs for images that are mixed, and a setting without effect."""
    if not train.mixing:
        if not train.is_default("mix_probability"):
            raise InputError("train.mix_probability needs train.mixup or train.cutmix above 0")
    elif teacher and teacher.cache != "none":
        raise InputError(
            f"train.{train.mixing} mixes images anew in every step, and "
            f"teacher.cache={teacher.cache} holds outputs of single images; drop one of them"
        )


def check_shared(overrides: Iterable[str]) -> None:
    """Refuses overrides of a comparison that its runs would not share.

    Args:
        overrides: As ``key=value``.

    Raises:
        InputError: One sets the folder or the method.
    """
    for override in overrides:
        key, _, text = override.partition("=")
        section, _, setting = key.partition(".")
        if key == "out":
            raise InputError(
                f"out has no effect on a comparison; give its folder with {option('out', 'FOLDER')}"
            )
        if section == "method":
            examples = {"": "NAME:SETTING=VALUE", "name": text}
            example = examples.get(setting, f"NAME:{setting}={text}")
            raise InputError(
                f"a comparison does not take {key}; name each method with its settings, as in "
                f"{option('methods', example)}"
            )


def refuse_ambiguous(value: object, key: str) -> None:
    """Refuses text that may not be meant as text, in settings of any type."""
    if isinstance(value, Ambiguous):
        raise InputError(
            f"{key}: {value} may be text, a number, a date or a truth value; write '{value}' in "
            "quotes if it is text, else as in 0.001 or true"
        )
    parts = (
        value.items()
        if isinstance(value, Mapping)
        else enumerate(value)
        if isinstance(value, list | tuple)
        else ()
    )
    for name, part in parts:
        refuse_ambiguous(part, f"{key}.{name}")
