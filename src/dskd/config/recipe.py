"""Recipes: load a YAML file, apply ``key=value`` overrides, and check the result.

`load` is the way in. It reads a file, applies the overrides, and calls `resolve`, which checks all
values against `dskd.config.schema` and fills in the defaults.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from dskd import methods
from dskd.config.optimizers import timm_optimizer
from dskd.config.overrides import all_keys, overridden
from dskd.config.schema import DataSettings, MethodSettings, Recipe, TeacherSettings
from dskd.config.short_forms import check_parts, label
from dskd.config.train_settings import TrainSettings
from dskd.data.catalog import DATASETS
from dskd.errors import InputError, as_given, call, unknown
from dskd.settings import validate
from dskd.storage.paths import as_path
from dskd.storage.yaml_file import Ambiguous, read_yaml_file

log = logging.getLogger("dskd")


def load(name: str | None, overrides: Iterable[str] = ()) -> Recipe:
    """Loads a recipe by name or from a YAML file, and applies overrides.

    Without a recipe, the overrides name models and data, and what suits these is filled in (see
    `dskd.config.chosen`). A line says what.

    If an override changes ``method.name``, the file's method settings that the new method also has
    (such as ``temperature``) stay. The other ones are dropped. An override of ``data.augment``
    drops the file's augmentations.

    Args:
        name: A name of `shipped`, or the path of a YAML file; None for no recipe.
        overrides: As in ``["train.epochs=10", "student.stages=[layer1,layer2]"]``.

    Raises:
        InputError: The recipe or a key does not exist, or a value does not fit.

    Example:
        >>> load("digits", ["train.epochs=2"]).train.epochs
        2
    """
    return compose(name, overrides).resolved()


@dataclass(frozen=True)
class Composed:
    """The values of a recipe, before they are checked.

    Attributes:
        values: Nested plain values.
        folder: Of all runs with this recipe.
        chosen: Lists what was filled in; empty with a recipe.
    """

    values: dict[str, Any]
    folder: Path
    chosen: str = ""

    def resolved(self) -> Recipe:
        """The checked recipe, see `resolve`. Logs what was filled in."""
        recipe = resolve(self.values, self.folder)
        if self.chosen:
            log.info(as_given(self.chosen))
        return recipe


def compose(name: str | None, overrides: Iterable[str] = ()) -> Composed:
    """The values of a recipe with overrides, as `load` checks them.

    Args:
        name: As for `load`.
        overrides: As for `load`.
    """
    if name is None:
        return complete(overridden({}, overrides))
    values, stem = read(name)
    return Composed(overridden(values, overrides), Path("runs") / stem)


def complete(values: Mapping[str, Any]) -> Composed:
    """Fills in what suits models and data, for a run without a recipe.

    Raises:
        InputError: There is no student or no data.
    """
    from dskd.config.chosen import fill_in  # it imports torch

    check_parts(values)
    filled, chosen = fill_in(values)
    return Composed(filled, Path("runs") / label(values), chosen)


def load_by_labels(name: str | None, overrides: Iterable[str] = ()) -> Recipe:
    """Loads a recipe as `load` does, to train its student on the labels alone.

    Raises:
        InputError: As `load`, or an override sets the teacher or the method, which such a run does
            not use.
    """
    overrides = list(overrides)
    for override in overrides:
        key = override.partition("=")[0]
        if key.split(".")[0] in ("teacher", "method"):
            raise InputError(
                f"{key} has no effect on training by labels; use {call('distill', name or '...')}"
            )
    return load(name, [*overrides, "method={name: ce}", "teacher=null"])


def shipped() -> list[str]:
    """Lists the recipes that come with the package.

    Example:
        >>> "digits" in shipped()
        True
    """
    root = _recipes()
    return sorted(p.relative_to(root).with_suffix("").as_posix() for p in root.rglob("*.yaml"))


def preview(name: str) -> Recipe:
    """Reads a shipped recipe without checking its method, and so without importing torch.

    Example:
        >>> preview("digits").student.name
        'resnet8'
    """
    values, _ = read(name)
    return validate(Recipe, values)


def resolve(values: Mapping[str, Any], folder: Path) -> Recipe:
    """Checks a whole recipe before any work starts, and fills in the defaults.

    Args:
        values: Nested plain values, as read from YAML.
        folder: If the recipe sets no ``out``, the run's folder is ``<method>-seed<seed>`` in here.

    Raises:
        InputError: A key does not exist, a value does not fit, or two settings contradict.
    """
    recipe = validate(Recipe, values, known=all_keys(values))
    if recipe.data.name not in DATASETS and not recipe.data.name.startswith("<"):
        raise unknown("data set", recipe.data.name, DATASETS)
    timm_optimizer(recipe.train.optimizer)
    _check_schedule(recipe.train, recipe.teacher)
    _check_cache_settings(recipe.teacher)
    _check_augmentation(recipe.data, recipe.teacher)
    _check_untrained(recipe.teacher)
    _check_head(recipe.teacher)
    _check_mixing(recipe.train, recipe.teacher)
    options = methods.resolve(recipe.method.name, recipe.method.options)
    method = MethodSettings(name=recipe.method.name, **options)
    for key, free in (("student", recipe.student), ("teacher", recipe.teacher)):
        _refuse_ambiguous(free.options if free else {}, f"{key}.options")
        if free and free.checkpoint_key is not None and free.checkpoint is None:
            raise InputError(f"{key}.checkpoint_key does nothing without {key}.checkpoint; drop it")
        if free and free.checkpoint is not None and free.pretrained:
            raise InputError(f"{key}.checkpoint and {key}.pretrained are two sources; drop one")
    if recipe.teacher and recipe.teacher.trust and not recipe.teacher.is_given:
        raise InputError(
            "teacher.trust does nothing without teacher.checkpoint, since a teacher that is "
            "trained first is not refused; drop it"
        )
    _refuse_ambiguous(options, "method")
    if recipe.teacher is None and methods.find(method.name).needs_teacher:
        raise InputError(
            f"the method {method.name!r} needs a teacher; give one, as in teacher.name=resnet20"
        )
    _check_dot(recipe.train, method.name)
    out = recipe.out or folder / f"{_folder_name(method.name)}-seed{recipe.seed}"
    return recipe.changed(method=method, out=out)


def _folder_name(method: str) -> str:
    """The name of a method without characters that a folder cannot have everywhere."""
    return method.strip("<>").replace(":", ".")


def _check_schedule(train: TrainSettings, teacher: TeacherSettings | None) -> None:
    shortest = min((teacher.epochs if teacher else None) or train.epochs, train.epochs)
    if train.warmup >= shortest:
        raise InputError(
            f"train.warmup: {train.warmup:g} epochs of warmup leave nothing of "
            f"{shortest} epochs; make it smaller"
        )
    if train.min_lr and train.schedule != "cosine":
        raise InputError("train.min_lr is the end of train.schedule=cosine; set that, or drop it")
    lowest = min((teacher.lr if teacher else None) or train.lr, train.lr)
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


def _check_untrained(teacher: TeacherSettings | None) -> None:
    """Refuses a teacher without training where its first weights are not published ones."""
    if teacher is None or teacher.epochs != 0 or teacher.pretrained is True:
        return
    hint = "give the file as teacher.checkpoint" if teacher.pretrained else "set it to 1 or more"
    raise InputError(
        f"teacher.epochs=0 is for a teacher with teacher.pretrained=true, which needs no training; "
        f"{hint}"
    )


def _check_head(teacher: TeacherSettings | None) -> None:
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


def _check_dot(train: TrainSettings, method: str) -> None:
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


def _check_cache_settings(teacher: TeacherSettings | None) -> None:
    """Refuses settings that would have no effect."""
    for key, kinds in (("views", ("features",)), ("cache_dir", ("features", "logits"))):
        if teacher and teacher.cache not in kinds and not teacher.is_default(key):
            wanted = " or ".join(f"teacher.cache={kind}" for kind in kinds)
            raise InputError(f"teacher.{key} needs {wanted}")


def _check_augmentation(data: DataSettings, teacher: TeacherSettings | None) -> None:
    """Refuses augmentations that contradict each other or the cache, and settings of none."""
    used = [f"data.{name}" for name in data.augmentation.used()]
    if data.crop_scale and data.crop_padding:
        raise InputError(
            "data.crop_scale and data.crop_padding are two kinds of random crop; set "
            "data.crop_padding=0 or data.crop_scale=null"
        )
    own = data.name in DATASETS and DATASETS[data.name].own_images
    for key in ("crop_ratio",) if own else ("crop_ratio", "interpolation"):
        if data.crop_scale is None and not data.is_default(key):
            raise InputError(f"data.{key} does nothing without data.crop_scale; drop it")
    if used and teacher and teacher.cache != "none":
        raise InputError(
            f"teacher.cache={teacher.cache} needs a limited number of views of an image, and "
            f"{' and '.join(used)} draw{'s' if len(used) == 1 else ''} any number; set "
            "teacher.cache=none, or turn the augmentation off"
        )


def _check_mixing(train: TrainSettings, teacher: TeacherSettings | None) -> None:
    """Refuses a cache of outputs for images that are mixed, and a setting without effect."""
    if not train.mixing:
        if not train.is_default("mix_probability"):
            raise InputError("train.mix_probability needs train.mixup or train.cutmix above 0")
    elif teacher and teacher.cache != "none":
        raise InputError(
            f"train.{train.mixing} mixes images anew in every step, and "
            f"teacher.cache={teacher.cache} holds outputs of single images; drop one of them"
        )


def _recipes() -> Path:
    """The folder of the shipped recipes."""
    return Path(str(resources.files("dskd.config") / "recipes"))


def read(name: str) -> tuple[dict[str, Any], str]:
    """Reads a recipe's values, and returns them with the label that names its runs.

    Raises:
        InputError: There is no such recipe, or it cannot be read.
    """
    if name in shipped():
        path, stem = _recipes() / f"{name}.yaml", name
    elif name.endswith((".yaml", ".yml")):
        path, stem = as_path(name, "recipe"), Path(name).stem
    else:
        raise unknown("recipe", name, [*shipped(), "<your own>.yaml"])
    return read_yaml_file(path, "recipe"), stem


def _refuse_ambiguous(value: object, key: str) -> None:
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
        _refuse_ambiguous(part, f"{key}.{name}")
