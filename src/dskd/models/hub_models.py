"""Build models of the Hugging Face Hub, and tell what they were published for.

A repository of timm, of transformers or of `dskd.DeployedStudent.push_to_hub` is a network that
also has a name without the Hub (`network`). A student's file holds that name, so that the student
is built again without a repository.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dskd.errors import InputError
from dskd.models.catalog import HF, TIMM, TRANSFORMERS
from dskd.models.hub_files import SAFETENSORS, HubModel, open_model
from dskd.models.transformers_models import known_options

_UNNAMED = "LABEL_"
"""How transformers begins the names of classes that were not named."""
_CONVNEXT_WHOLE = 384
"""From this size on, the processor of ConvNeXt crops nothing."""
_RULES = {2: "bilinear", 3: "bicubic"}
"""Numbers of Pillow's resampling, and names that timm gives."""


@dataclass(frozen=True)
class Published:
    """What a repository says about its model.

    Attributes:
        classes: Number of classes; 0 if the weights have no classifier.
        names: Name of each class, by label; None if it does not name them.
        channels: Channels of the images.
        size: Height and width of the images; None if it does not say.
        mean: Of each channel, on the scale from 0 to 1; None if it does not say.
        std: Of each channel; None if it does not say.
        crop_pct: Share of the shorter side that is kept in evaluation.
        interpolation: How images are resized; None if it does not say.
        crop_mode: See `dskd.models.native.NativePixels`.
    """

    classes: int
    names: tuple[str, ...] | None
    channels: int = 3
    size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop_pct: float = 1.0
    interpolation: str | None = None
    crop_mode: str = "center"

    def pretrained_cfg(self) -> dict[str, Any]:
        """The same as timm's models have it."""
        found: dict[str, Any] = {"num_classes": self.classes, "mean": self.mean, "std": self.std}
        if self.size is not None:
            found["input_size"] = (self.channels, self.size, self.size)
        return found


def published(name: str) -> Published:
    """What a repository says about its model.

    Args:
        name: ``hf/OWNER/NAME`` or ``hf/FOLDER``.

    Raises:
        InputError: It cannot be read, or is damaged.
    """
    model = open_model(name)
    readers = {"dskd": _of_student, "timm": _of_timm, "transformers": _of_transformers}
    try:
        return readers[model.kind](model)
    except InputError:
        raise
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        IndexError,
        ZeroDivisionError,
    ) as error:
        raise _damaged(model, error) from error


def network(
    name: str, options: Mapping[str, Any], *, weights: bool = False
) -> tuple[str, dict[str, Any]]:
    """The name and the options of the same network without the Hub.

    Args:
        name: Of any model.
        options: The user's, which win.
        weights: Whether published weights are loaded. Otherwise a network of transformers is made
            for the size of the run's images, not for its own.

    Returns:
        Both unchanged for a model that is not of the Hub.

    Raises:
        InputError: The repository cannot be read, or needs code of its own.

    Example:
        >>> network("timm/resnet18", {"act_layer": "gelu"})
        ('timm/resnet18', {'act_layer': 'gelu'})
    """
    if not name.startswith(HF):
        return name, dict(options)
    model = open_model(name)
    try:
        plain, own = _network(model, weights)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(model, error) from error
    return plain, {**own, **options}


def saved_student(name: str) -> HubModel | None:
    """The repository of a student that this package saved; None for any other model."""
    if not name.startswith(HF):
        return None
    model = open_model(name)
    return model if model.kind == "dskd" else None


def student_file(model: HubModel) -> Path:
    """The file of a student of the Hub.

    Raises:
        InputError: It is not there.
    """
    path = model.weights()
    if path.name != SAFETENSORS:
        raise InputError(f"{model.name} has no {SAFETENSORS}, which dskd writes; push it again")
    return path


def _network(model: HubModel, weights: bool) -> tuple[str, dict[str, Any]]:
    config = model.config
    if model.kind == "dskd":
        plain, own = config["dskd"]["model"], dict(config["dskd"]["options"])
        if str(plain).startswith(HF):
            raise ValueError("it names another repository")
        return str(plain), own
    if model.kind == "timm":
        own = {k: v for k, v in dict(config.get("model_args") or {}).items() if k != "num_classes"}
        own.pop("in_chans", None)
        return f"{TIMM}{config['architecture']}", own
    kind = config["model_type"]
    if "auto_map" in config and not _is_known(kind):
        raise InputError(
            f"{model.name} needs code of its own, and dskd runs no code of a repository; load it "
            "in Python, if you trust it, and give the module"
        )
    if "quantization_config" in config:
        raise InputError(f"{model.name} is quantized; take the repository of the original weights")
    if weights and model.processor.get("do_flip_channel_order"):
        raise InputError(
            f"{model.name} takes the channels in the order BGR, and images have RGB here; take a "
            "model of timm, or load it in Python and give a module that reorders them"
        )
    known = known_options(kind) - (set() if weights else {"image_size"})
    return f"{TRANSFORMERS}{kind}", {key: config[key] for key in sorted(known & config.keys())}


def _is_known(kind: str) -> bool:
    try:
        known_options(kind)
    except InputError:
        return False
    return True


def _of_student(model: HubModel) -> Published:
    facts = model.config["dskd"]
    names = tuple(map(str, facts["classes"]))
    channels, _, size = map(int, facts["shape"])
    mean, std = (tuple(map(float, facts[key])) for key in ("mean", "std"))
    pixels = facts.get("pixels") or {}
    crop, rule = float(pixels.get("crop_pct") or 1), pixels.get("interpolation")
    return Published(len(names), names, channels, size, mean, std, crop, rule)


def _of_timm(model: HubModel) -> Published:
    """A repository of timm; older ones have one flat dictionary."""
    config = model.config
    own = config.get("pretrained_cfg") or config
    classes = int(config["num_classes"] if "num_classes" in config else own["num_classes"])
    listed = config.get("label_names") or own.get("label_names") or own.get("labels")
    channels, _, size = own.get("input_size") or (3, 224, 224)
    return Published(
        classes,
        _names(listed, classes),
        channels=int(channels),
        size=int(size),
        mean=tuple(map(float, own["mean"])),
        std=tuple(map(float, own["std"])),
        crop_pct=float(own.get("crop_pct") or 1),
        interpolation=own.get("interpolation"),
        crop_mode=str(own.get("crop_mode") or "center"),
    )


def _of_transformers(model: HubModel) -> Published:
    config, shown = model.config, model.processor
    labels = config.get("id2label") or {0: "LABEL_0", 1: "LABEL_1"}  # the library's default
    size = (
        _side(shown.get("crop_size")) or _side(shown.get("size")) or _side(config.get("image_size"))
    )
    mean, std = _statistics(shown)
    heads = config.get("architectures") or ["ForImageClassification"]
    is_classifier = any("ForImageClassification" in head for head in heads)
    return Published(
        classes=len(labels) if is_classifier else 0,
        names=_names(labels, len(labels)) if is_classifier else None,
        channels=int(config.get("num_channels", 3)),
        size=size,
        mean=mean,
        std=std,
        crop_pct=_crop(shown, size),
        interpolation=_RULES.get(shown.get("resample", 0)),
    )


def _crop(shown: Mapping[str, Any], size: int | None) -> float:
    """The share of the shorter side that a processor keeps."""
    crop = float(shown.get("crop_pct") or 1)
    kind = str(shown.get("image_processor_type", shown.get("feature_extractor_type")))
    if kind.startswith("ConvNext") and (size or 0) >= _CONVNEXT_WHOLE:
        crop = 1.0
    if kind.startswith("Levit"):
        crop = 224 / 256  # it is not in the configuration
    if shown.get("do_center_crop") and size and (full := _side(shown.get("size"))):
        crop *= min(size / full, 1.0)
    return crop


def _statistics(shown: Mapping[str, Any]) -> tuple[Any, Any]:
    """Mean and std of pixels from 0 to 1 that give what a processor makes of pixels to 255.

    With a factor f and an offset o (1 or 0), it computes (f x - o - mean) / std. That of
    EfficientNet then divides by std once more.
    """
    mean, std = shown.get("image_mean"), shown.get("image_std")
    if not shown.get("do_normalize", mean is not None):
        mean, std = ([0.0] * 3, [1.0] * 3) if shown else (None, None)
    if mean is None or std is None:
        return None, None
    scale = (
        255 * float(shown.get("rescale_factor", 1 / 255))
        if shown.get("do_rescale", True)
        else 255.0
    )
    offset = 1.0 if shown.get("rescale_offset") else 0.0
    if shown.get("include_top"):
        std = [s * s for s in std]
    return tuple((float(m) + offset) / scale for m in mean), tuple(float(s) / scale for s in std)


def _side(value: Any) -> int | None:
    """The size in a configuration: a number, a pair, or the values of a dictionary."""
    if isinstance(value, Mapping):
        value = value.get("height", value.get("shortest_edge"))
    if isinstance(value, Sequence) and value:
        value = value[-1]
    return int(value) if value else None


def _names(listed: Any, classes: int) -> tuple[str, ...] | None:
    """The name of each class; None unless all have one. One that occurs twice gets its number."""
    if isinstance(listed, Mapping):
        by_label = {int(label): str(name) for label, name in listed.items()}
        listed = [by_label[label] for label in range(classes)] if len(by_label) == classes else None
    if not listed or len(listed) != classes or str(listed[0]).startswith(_UNNAMED):
        return None
    count = Counter(map(str, listed))
    return tuple(
        f"{name} ({label})" if count[str(name)] > 1 else str(name)
        for label, name in enumerate(listed)
    )


def _damaged(model: HubModel, error: Exception) -> InputError:
    return InputError(
        f"the configuration of {model.name} is damaged ({type(error).__name__}: {error}); give "
        f"{HF}OWNER/NAME or {HF}FOLDER of an image classifier"
    )
