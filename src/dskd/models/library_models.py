"""Build models of timm and torchvision by their names. Both are imported when they are used."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any

from torch import Tensor, nn

from dskd.errors import InputError, first_line
from dskd.models.catalog import TIMM, TORCHVISION
from dskd.models.pretrained import (
    is_download_error,
    load_torchvision_weights,
    not_downloaded,
    offline_without_network,
    timm_weights,
)

_REFUSED_OPTIONS: Mapping[str, frozenset[str]] = {
    TIMM: frozenset({"checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}),
    TORCHVISION: frozenset({"weights", "weights_backbone"}),
}
"""Options that read other files."""
_SIZE_OPTIONS = {"vit_": "image_size", "maxvit_": "input_size"}
"""Arguments of torchvision's transformers for the size of the images."""
_INCEPTION = {"init_weights": True, "aux_logits": False, "transform_input": True}
_OWN_OPTIONS = {"googlenet": _INCEPTION, "inception_v3": _INCEPTION}
"""Other defaults than torchvision's. It warns without ``init_weights``. Nothing would train the
auxiliary classifiers. The input is transformed as the published weights need it, also in a student
that is loaded without them.
"""
_SUGGESTIONS = 5


def from_timm(
    name: str,
    num_classes: int,
    in_channels: int,
    size: int | None,
    options: Mapping[str, Any],
    pretrained: bool = False,
) -> nn.Module:
    """Build a model of timm, see `dskd.models.factory.load_model`.

    Args:
        name: A name of ``timm.list_models()``.
        num_classes: Number of classes.
        in_channels: Channels of the images.
        size: Height and width of the images, for models that need it.
        options: Further arguments of ``timm.create_model``.
        pretrained: Load the published weights.

    Raises:
        InputError: The name does not exist, the options do not fit, or there are no weights.
    """
    import timm

    _check_options(TIMM, options)
    if not timm.is_model(name):
        raise _unknown(TIMM, name, timm.list_models())
    weights = timm_weights(name) if pretrained else ""
    arguments: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_channels, **options}
    if pretrained:
        arguments["pretrained"] = True
    sized = arguments if size is None else {"img_size": size, **arguments}
    try:
        with offline_without_network() if pretrained else nullcontext():
            return _create(name, sized, arguments)
    except Exception as error:  # timm models raise many types
        if pretrained and is_download_error(error):
            raise not_downloaded(weights, error) from error
        raise _not_built(TIMM, name, options, error) from error


_OF_WEIGHTS = (
    *("mean", "std", "input_size", "fixed_input_size", "num_classes", "classifier", "first_conv"),
    *("label_offset", "crop_pct", "crop_mode", "interpolation", "pool_size"),
)
"""Keys that say how published weights are used, without those that say where they are."""


def load_timm(
    repository: str,
    name: str,
    num_classes: int,
    in_channels: int,
    size: int | None,
    options: Mapping[str, Any],
    published: Mapping[str, Any],
    weights: Mapping[str, Tensor],
) -> nn.Module:
    """Build a model of timm with weights that were read, as timm fits its own to a model.

    Args:
        repository: Names the weights in errors.
        name: A name of ``timm.list_models()``.
        num_classes: Number of classes. A classifier of others keeps its random weights.
        in_channels: Channels of the images. The first layer is fitted to them.
        size: Height and width of the images, for models that need it.
        options: Further arguments of ``timm.create_model``.
        published: timm's ``pretrained_cfg`` of the weights.
        weights: The weights.

    Raises:
        InputError: The name does not exist, or the options or the weights do not fit.
    """
    import timm

    _check_options(TIMM, options)
    if not timm.is_model(name):
        raise _unknown(TIMM, name, timm.list_models())
    config = {key: published[key] for key in _OF_WEIGHTS if published.get(key) is not None}
    given = {**config, "state_dict": dict(weights), "custom_load": False}
    sized: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_channels, **options}
    sized |= {"pretrained": True, "pretrained_cfg": given}
    try:
        model = _create(name, sized if size is None else {"img_size": size, **sized}, sized)
    except Exception as error:  # timm models raise many types
        raise _not_built("", repository, options, error) from error
    model.pretrained_cfg = config  # type: ignore[assignment]  # without the weights
    return model


def _create(name: str, sized: dict[str, Any], arguments: dict[str, Any]) -> nn.Module:
    """The model for images of one size, or of any size if it takes no size."""
    import timm

    try:
        return timm.create_model(name, **sized)
    except TypeError as error:
        if sized == arguments or "img_size" not in str(error):
            raise
    return timm.create_model(name, **arguments)  # convolutional networks take any size


def from_torchvision(
    name: str,
    num_classes: int,
    in_channels: int,
    size: int | None,
    options: Mapping[str, Any],
    pretrained: bool = False,
) -> nn.Module:
    """Build a classifier of torchvision, see `dskd.models.factory.load_model`.

    Args:
        name: A name of ``torchvision.models``, as in ``resnet18``.
        num_classes: Number of classes.
        in_channels: Channels of the images; torchvision's models take RGB only.
        size: Height and width of the images, for models that need it.
        options: Further arguments of the function in ``torchvision.models``.
        pretrained: Load the published weights.

    Raises:
        InputError: The name does not exist, the images are not RGB, the options do not fit, or
            there are no weights.
    """
    from torchvision import models

    _check_options(TORCHVISION, options)
    names = models.list_models(module=models)
    if name not in names:
        raise _unknown(TORCHVISION, name, names)
    if in_channels != 3:
        raise InputError(
            f"torchvision's models take RGB images, and these have {in_channels} channels; take a "
            "model of timm, or set data.channels=3 if the images are your own"
        )
    own: dict[str, Any] = {**_OWN_OPTIONS.get(name, {}), **options}
    arguments: dict[str, Any] = {"num_classes": num_classes}
    for family, key in _SIZE_OPTIONS.items():
        if size is not None and name.startswith(family):
            arguments[key] = size if key == "image_size" else (size, size)
    try:
        model: nn.Module = models.get_model(name, **{**arguments, **own})
        if pretrained:
            load_torchvision_weights(name, model, options)
    except InputError:
        raise
    except Exception as error:  # its models raise many types
        raise _not_built(TORCHVISION, name, options, error) from error
    return model


def _check_options(library: str, options: Mapping[str, Any]) -> None:
    if "pretrained" in options:
        raise InputError(
            "the option 'pretrained' is a setting of its own; drop it, and set "
            "student.pretrained=true or teacher.pretrained=true"
        )
    if refused := sorted(_REFUSED_OPTIONS[library] & options.keys()):
        raise InputError(
            f"the option {refused[0]!r} of {library.rstrip('/')} is not allowed, as it reads "
            "other files; give weights with teacher.checkpoint"
        )


def _unknown(library: str, name: str, known: Iterable[str]) -> InputError:
    plain = library.rstrip("/")
    close = difflib.get_close_matches(name, known, n=_SUGGESTIONS)
    listing = "timm.list_models()" if library == TIMM else "torchvision.models.list_models()"
    hint = f"the nearest: {', '.join(close)}" if close else f"{listing} names them"
    return InputError(f"unknown {plain} model {name!r}; {hint}")


def _not_built(library: str, name: str, options: Mapping[str, Any], error: Exception) -> InputError:
    return InputError(
        f"{library}{name} cannot be built with options {dict(options)}: {first_line(error)}"
    )
