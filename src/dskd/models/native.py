"""What a model of timm, of torchvision or of the Hub was made for, without its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from dskd.errors import InputError, unknown
from dskd.models.catalog import HF, LIBRARIES, TIMM, TORCHVISION
from dskd.models.factory import load_model
from dskd.models.hub_models import published


def native_size(name: str) -> int | None:
    """Height and width of the images that a model of a library or of the Hub was published for.

    Args:
        name: Name of the model, as in a recipe.

    Returns:
        None for other models, and for those without published weights.

    Raises:
        InputError: timm has no such weights of the model.

    Example:
        >>> native_size("timm/resnet50"), native_size("torchvision/inception_v3")
        (224, 299)
        >>> native_size("resnet8")
    """
    if name.startswith(HF):
        return published(name).size
    if name.startswith(TIMM):
        config = _timm_config(name)
        return int(config.input_size[-1]) if config is not None else None
    weights = _torchvision_weights(name)
    return int(next(iter(weights)).transforms().crop_size[0]) if weights else None


def published_classes(name: str) -> int | None:
    """The number of classes of the weights that are published for a model.

    Args:
        name: Name of the model, as in a recipe.

    Returns:
        None for other models, and for those without published weights.

    Raises:
        InputError: timm has no such weights of the model.

    Example:
        >>> published_classes("timm/resnet50"), published_classes("torchvision/resnet18")
        (1000, 1000)
        >>> published_classes("resnet8")
    """
    if name.startswith(HF):
        return published(name).classes
    if name.startswith(TIMM):
        config = _timm_config(name)
        return int(config.num_classes) if config is not None and config.has_weights else None
    weights = _torchvision_weights(name)
    return len(weights.DEFAULT.meta["categories"]) if weights else None


class NativePixels(NamedTuple):
    """How images are prepared for the published weights of a model, in evaluation.

    Attributes:
        crop_pct: Share of the shorter side that is kept.
        interpolation: How images are resized; None if that is not known.
        crop_mode: ``center``, or what timm does in place of cropping the centre: ``squash`` resizes
            the whole image to a square, and ``border`` pads it.
    """

    crop_pct: float
    interpolation: str | None
    crop_mode: str = "center"


def native_pixels(name: str) -> NativePixels | None:
    """How images are prepared for the published weights of a model.

    Args:
        name: Name of the model, as in a recipe.

    Returns:
        None for other models, and for those without published weights.

    Raises:
        InputError: timm has no such weights of the model.

    Example:
        >>> native_pixels("timm/resnet50")
        NativePixels(crop_pct=0.95, interpolation='bicubic', crop_mode='center')
        >>> native_pixels("torchvision/resnet18")[:2]
        (0.875, 'bilinear')
    """
    if name.startswith(HF):
        found = published(name)
        return NativePixels(found.crop_pct, found.interpolation, found.crop_mode)
    if name.startswith(TIMM):
        config = _timm_config(name)
        if config is None or not config.has_weights:
            return None
        return NativePixels(config.crop_pct, config.interpolation, config.crop_mode)
    if (weights := _torchvision_weights(name)) is None:
        return None
    shown = weights.DEFAULT.transforms()
    return NativePixels(shown.crop_size[0] / shown.resize_size[0], shown.interpolation.value)


def short_share(crop_pct: float, size: int) -> float:
    """A `crop_pct` with as few digits, at least four, as resize images to the same side.

    Args:
        crop_pct: Share of the shorter side that is kept.
        size: Height and width of the images.

    Example:
        >>> short_share(224 / 232, 224), short_share(299 / 342, 299)
        (0.9655, 0.874269)
    """
    rounded = (round(crop_pct, digits) for digits in range(4, 17))
    side = int(size / crop_pct)
    return next((short for short in rounded if int(size / short) == side), crop_pct)


def published_names(name: str) -> tuple[str, ...] | None:
    """The names of the classes of a model of the Hub, by label; None if it does not name them.

    Args:
        name: Name of the model, as in a recipe.

    Example:
        >>> published_names("timm/resnet50") is None
        True
    """
    return published(name).names if name.startswith(HF) else None


def _timm_config(name: str) -> Any:
    """What timm says about a model's published weights; None for a model that it does not have.

    Raises:
        InputError: The weights that the name ends in do not exist, as in ``timm/resnet18.mine``.
    """
    import timm

    plain = name.removeprefix(TIMM)
    try:
        return timm.get_pretrained_cfg(plain)
    except RuntimeError:
        model = plain.partition(".")[0]
        known = [f"{TIMM}{one}" for one in (model, *timm.list_pretrained(f"{model}.*"))]
        raise unknown("weights of timm", name, known) from None


def _torchvision_weights(name: str) -> Any:
    """The enumeration of the published weights; None for other models and without weights."""
    if not name.startswith(TORCHVISION):
        return None
    from torchvision import models

    plain = name.removeprefix(TORCHVISION)
    if plain not in models.list_models(module=models):
        return None
    published = models.get_model_weights(plain)
    return published if len(published) else None


def has_batchnorm(name: str, options: Mapping[str, Any]) -> bool:
    """Whether a model of a library has BatchNorm layers. It is built without memory.

    Args:
        name: Name of the model, as in a recipe.
        options: Options of the model.

    Returns:
        True for other models, and for a model that cannot be built so.

    Example:
        >>> has_batchnorm("timm/resnet18", {}), has_batchnorm("timm/vit_tiny_patch16_224", {})
        (True, False)
    """
    if not name.startswith(LIBRARIES):
        return True
    try:
        with torch.device("meta"):
            model = load_model(name, num_classes=2, options=options)
    except InputError:  # it is reported when the model is built for the run
        return True
    return any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in model.modules())
