"""What a run is: one YAML file, typed and validated, changed by ``key=value``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

from dskd import methods
from dskd.data.catalog import DATASETS
from dskd.errors import InputError, brief, unknown
from dskd.settings import (
    Count,
    DeviceName,
    Fraction,
    Natural,
    Number,
    OptimizerName,
    PathSetting,
    Positive,
    Precision,
    Rate,
    Schedule,
    Seed,
    Settings,
    Share,
    Weight,
    known_keys,
    signature_settings,
    unknown_key,
    validate,
)
from dskd.storage.yaml_file import read_yaml, read_yaml_file


def _class_choice(value: Any) -> Any:
    """Names may be written as numbers, as those of the digits are."""
    if isinstance(value, list | tuple):
        value = [str(name) if type(name) is int else name for name in value]
        if value and all(isinstance(name, str) for name in value):
            return value
    elif value is None or (type(value) is int and value >= 2):
        return value
    raise ValueError("how many classes, 2 or more, or a list of their names is needed")


ClassChoice = Annotated[int | list[str] | None, BeforeValidator(_class_choice)]


class DataSettings(Settings):
    """Which images, and how they are varied."""

    name: str
    """One of ``dskd list datasets``."""
    root: PathSetting | None = None
    """The folder that holds the published files; None downloads them."""
    size: Annotated[Count, Field(le=4096)] | None = None
    """Side of the images in pixels; None for the data set's own."""
    classes: ClassChoice = None
    """The first so many classes, or these; None for all."""
    fraction: Share = 1.0
    """Share of the training images that is used, the same of every class."""
    val_fraction: Fraction = 0.0
    """Share of the training images held out for validation, the same for every seed."""
    crop_padding: Annotated[Natural, Field(le=256)] = 0
    """Pixels of zeros around an image before the random crop."""
    flip: bool = False
    """Mirror half of the images."""
    cache_dir: PathSetting | None = None
    """Folder of decoded images and downloads; None for the user's cache folder."""


class ModelSettings(Settings):
    """A model, its stages and its normalisation."""

    name: str
    """A name of the zoo, ``timm/<name>``, or ``package.module:function``."""
    stages: Annotated[list[str], Field(min_length=1)] | None = None
    """Submodules whose outputs are the stages; None for a zoo model's own."""
    mean: Annotated[list[Number], Field(min_length=1)] | None = None
    """Per channel, from 0 to 1; None for the model's own, or else the data set's."""
    std: Annotated[list[Positive], Field(min_length=1)] | None = None
    """Per channel, from 0 to 1; None for the model's own, or else the data set's."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further arguments for the model's constructor (timm or your own function)."""


class TeacherSettings(ModelSettings):
    """The teacher: trained already, or by this recipe first."""

    checkpoint: PathSetting | None = None
    """Weights; None trains the teacher first and keeps it beside the run."""
    epochs: Count | None = None
    """Epochs of its own training; None for train.epochs."""
    lr: Rate | None = None
    """Learning rate of its own training, at most 1e6; None for train.lr."""
    fuse_batchnorm: bool = True
    """Answer with BatchNorm folded into the convolutions: faster, the same but for rounding."""
    ahead: Count = 1
    """Batches that are answered at once, ahead of the student, for a GPU that one does not fill."""
    cache: Literal["none", "logits", "features"] = "none"
    """Answers kept on disk for later epochs and runs: ``logits`` of every view of an image, or a
    ``views_of_each`` of all that the method reads, of a few fixed views that the images are then shown
    in."""
    views: Count = 16
    """Views of an image in the bank; all of them where there are not so many."""
    cache_dir: PathSetting | None = None
    """Folder of cached outputs; None for ``teacher_outputs`` in the user's cache folder."""


class MethodSettings(Settings):
    """The method and its own settings."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = "dskd"

    @property
    def options(self) -> dict[str, Any]:
        """The method's own settings."""
        return dict(self.model_extra or {})


def _increasing(milestones: tuple[float, ...]) -> tuple[float, ...]:
    if sorted(set(milestones)) != list(milestones):
        raise ValueError("milestones must increase")
    return milestones


class TrainSettings(Settings):
    """The schedule."""

    epochs: Count = 240
    """Passes over the training images."""
    batch_size: Annotated[Count, Field(ge=2)] = 64
    """Images a step, of all processes together; two for each at least: BatchNorm cannot learn
    from one."""
    lr: Rate = 0.05
    """The base learning rate, at most 1e6."""
    schedule: Schedule = "step"
    """``step``: times gamma at every milestone; ``cosine``: down to 0."""
    milestones: Annotated[tuple[Fraction, ...], AfterValidator(_increasing)] = (0.625, 0.75, 0.875)
    """Where ``step`` lowers the rate, as shares of the epochs."""
    gamma: Share = 0.1
    """What ``step`` multiplies the rate by."""
    warmup: Weight = 0.0
    """Epochs in which the rate rises from 0."""
    optimizer: OptimizerName = "sgd"
    """``sgd`` or ``adamw``."""
    momentum: Fraction = 0.9
    """For sgd."""
    nesterov: bool = False
    """For sgd."""
    weight_decay: Weight = 5e-4
    """On every parameter."""
    precision: Precision = "float32"
    """Of the forward passes: ``float32`` or ``bfloat16``; losses and weights stay in float32."""
    sync_batchnorm: bool = False
    """BatchNorm sees the images of all processes, each on its GPU (torch.nn.SyncBatchNorm)."""
    compile: bool = False
    """Have torch compile the steps of zoo models: some minutes at first, then each is shorter."""
    graph: bool = False
    """On a GPU, record a step once and replay it: the same results, less work for the host."""
    device: DeviceName = "auto"
    """``cpu``, ``cuda``, or ``auto``: the GPU where there is one."""


class Recipe(Settings):
    """A whole run."""

    data: DataSettings
    student: ModelSettings
    teacher: TeacherSettings | None = None
    method: MethodSettings = MethodSettings()
    train: TrainSettings = TrainSettings()
    seed: Seed = 0
    out: PathSetting | None = None
    """The run's folder; None for runs/<recipe>/<method>-seed<seed>."""

    def plain(self) -> dict[str, Any]:
        """As plain values, every default filled in, ready for YAML."""
        plain: dict[str, Any] = self.model_dump(mode="json")
        places = (
            ("data", "root"),
            ("data", "cache_dir"),
            ("teacher", "checkpoint"),
            ("teacher", "cache_dir"),
        )
        for section, key in places:
            if plain[section] and plain[section][key]:  # it may be read from another folder
                plain[section][key] = os.path.abspath(plain[section][key])  # noqa: PTH100 (no "..")
        return plain

    def changed(self, **sections: Any) -> Recipe:
        """A copy with some sections replaced."""
        return self.model_copy(update=sections)


def resolve(values: Mapping[str, Any], folder: Path) -> Recipe:
    """Checks a recipe whole, before any work: keys, types, ranges, the method's settings.

    Args:
        values: Nested plain values, as a YAML file gives them.
        folder: Where the recipe names no ``out``, the run's folder is ``<method>-seed<seed>`` here.

    Raises:
        InputError: Something in it does not exist or does not fit.
    """
    recipe = validate(Recipe, values, known=all_keys(values))
    if recipe.data.name not in DATASETS and not recipe.data.name.startswith("<"):
        raise unknown("data set", recipe.data.name, DATASETS)
    own = (recipe.teacher.epochs if recipe.teacher else None) or recipe.train.epochs
    shortest = min(own, recipe.train.epochs)
    if recipe.train.warmup >= shortest:
        raise InputError(
            f"train.warmup: {recipe.train.warmup:g} epochs of warmup leave nothing of "
            f"{shortest} epochs; make it smaller"
        )
    if recipe.train.nesterov and recipe.train.momentum == 0:
        raise InputError("train.nesterov needs train.momentum above 0")
    if recipe.train.compile and recipe.train.graph:
        raise InputError("train.compile and train.graph exclude each other; take one of them")
    _check_cache_settings(recipe.teacher)
    options = methods.resolve(recipe.method.name, recipe.method.options)
    method = MethodSettings(name=recipe.method.name, **options)
    if recipe.teacher is None and methods.find(method.name).needs_teacher:
        raise InputError(f"the method {method.name!r} needs a teacher; set teacher.name")
    out = recipe.out or folder / f"{method.name}-seed{recipe.seed}"
    return recipe.changed(method=method, out=out)


def _check_cache_settings(teacher: TeacherSettings | None) -> None:
    """Refuses settings that would do nothing."""
    for key, kinds in (("views", ("features",)), ("cache_dir", ("features", "logits"))):
        default = TeacherSettings.model_fields[key].default
        if teacher and teacher.cache not in kinds and getattr(teacher, key) != default:
            raise InputError(f"teacher.{key} needs teacher.cache={' or '.join(kinds)}")


def shipped() -> list[str]:
    """The names of the recipes that come with the package.

    Example:
        >>> "digits" in shipped()
        True
    """
    root = Path(str(resources.files("dskd.config") / "recipes"))
    return sorted(p.relative_to(root).with_suffix("").as_posix() for p in root.rglob("*.yaml"))


def load(name: str, overrides: Iterable[str] = ()) -> Recipe:
    """A shipped recipe, or one's own YAML file, with ``key=value`` applied.

    Where ``method.name`` is changed, those of the file's method settings stay that the other
    method has too (``temperature``, say), and the rest go with the method they belong to.

    Args:
        name: A name of `shipped`, or the path of a YAML file.
        overrides: As in ``["train.epochs=10", "student.stages=[layer1,layer2]"]``.

    Raises:
        InputError: The recipe or a key does not exist, or a value does not fit.

    Example:
        >>> load("digits", ["train.epochs=2"]).train.epochs
        2
    """
    values, label = _read(name)
    overrides = list(overrides)
    others = [o.partition("=")[2] for o in overrides if o.startswith("method.name=")]
    if others and isinstance(values.get("method"), dict):
        values["method"] = _shared(values["method"], read_yaml(others[-1], "method.name"))
    for override in overrides:
        _override(values, override)
    return resolve(values, Path("runs") / label)


def _shared(settings: dict[str, Any], method: Any) -> dict[str, Any]:
    """Those of a method's settings that the one called ``method`` has too."""
    if settings.get("name", "dskd") == method or method not in methods.names():
        return settings
    known = signature_settings(methods.find(method).__init__).model_fields
    return {key: value for key, value in settings.items() if key in known}


def _read(name: str) -> tuple[dict[str, Any], str]:
    """The values of a recipe, and what its runs are called."""
    if name in shipped():
        path = Path(str(resources.files("dskd.config") / "recipes" / f"{name}.yaml"))
        label = name
    elif name.endswith((".yaml", ".yml")):
        path, label = Path(name), Path(name).stem
    else:
        raise unknown("recipe", name, [*shipped(), "<your own>.yaml"])
    return read_yaml_file(path, "recipe"), label


def _override(values: dict[str, Any], override: str) -> None:
    """Sets ``a.b=value`` in nested values; the value is read as YAML."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"{brief(override)} is not key=value; write it as in train.epochs=10")
    value = read_yaml(text, f"{key}: the value {brief(text)}")
    *path, last = key.split(".")
    section = values
    for part in path:
        inner = section.setdefault(part, {})
        if inner is None:
            inner = section[part] = {}
        if not isinstance(inner, dict):
            raise unknown_key(key, all_keys(values))
        section = inner
    section[last] = value


def all_keys(values: Mapping[str, Any]) -> list[str]:
    """Every key that a recipe with these values may have, those of its method included."""
    method = values.get("method")
    name = method.get("name", "dskd") if isinstance(method, dict) else "dskd"
    keys = known_keys(Recipe)
    if name in methods.names():
        keys += known_keys(signature_settings(methods.find(name).__init__), "method.")
    return keys


def load_by_labels(name: str, overrides: Iterable[str] = ()) -> Recipe:
    """As `load`, for a run that trains the student by labels alone.

    Raises:
        InputError: As `load`, and for a setting of the teacher or the method, which such a run
            does not read.
    """
    overrides = list(overrides)
    for override in overrides:
        key = override.partition("=")[0]
        if key.split(".")[0] in ("teacher", "method"):
            raise InputError(
                f"{key} has no effect on training by labels; use `dskd distill {name}`"
            )
    return load(name, [*overrides, "method={name: ce}", "teacher=null"])
