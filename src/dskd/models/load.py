"""From a name to a model: the zoo's, timm's, or a function of the user's own."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from torch import nn

from dskd.errors import InputError, unknown
from dskd.models.zoo import ZOO, build

TIMM = "timm/"


def load_model(
    name: str,
    *,
    num_classes: int,
    in_channels: int = 3,
    size: int | None = None,
    options: Mapping[str, Any] | None = None,
    allow_code: bool = False,
) -> nn.Module:
    """A freshly initialised classifier.

    Args:
        name: A name of the zoo (``dskd list models``), ``timm/<name>``, or
            ``package.module:function`` where ``allow_code`` is true.
        num_classes: K, two or more.
        in_channels: Of the pictures.
        size: Side of the pictures in pixels, for timm models that must know (transformers).
        options: Further arguments of ``timm.create_model`` or of the function.
        allow_code: Whether a name may run code that is not this package's or timm's.

    Returns:
        A module from ``[B, in_channels, H, W]`` to logits ``[B, num_classes]``.

    Raises:
        InputError: The name does not exist, timm is not installed, or the options do not fit.

    Example:
        >>> import torch
        >>> model = load_model("resnet8", num_classes=10, in_channels=1)
        >>> model(torch.zeros(2, 1, 32, 32)).shape
        torch.Size([2, 10])
    """
    arguments = dict(options or {})
    if name.startswith(TIMM):
        return _from_timm(name.removeprefix(TIMM), num_classes, in_channels, size, arguments)
    if ":" in name:
        return _from_function(name, num_classes, in_channels, arguments, allow_code)
    if name not in ZOO:
        raise unknown("model", name, [*ZOO, f"{TIMM}<name>"])
    if arguments:
        raise InputError(f"the model {name!r} takes no options, got {', '.join(arguments)}")
    return build(name, num_classes=num_classes, in_channels=in_channels)


def _timm() -> ModuleType:
    try:
        return importlib.import_module("timm")
    except ImportError:
        raise InputError(
            "timm models need timm; install it with: pip install 'dskd[timm]'"
        ) from None


def _from_timm(
    name: str, num_classes: int, in_channels: int, size: int | None, options: dict[str, Any]
) -> nn.Module:
    timm = _timm()
    if name not in timm.list_models():
        raise unknown("timm model", name, timm.list_models(f"*{name[:4]}*") or timm.list_models())
    arguments = {"num_classes": num_classes, "in_chans": in_channels} | options
    attempts = [arguments]
    if size is not None and "img_size" not in options:
        attempts.insert(0, arguments | {"img_size": size})
    for attempt in attempts:
        try:
            model: nn.Module = timm.create_model(name, **attempt)
            return model
        except TypeError as error:  # convolutional models have no img_size
            reason = error
    raise InputError(f"timm/{name} cannot be made with {options}: {reason}")


def _from_function(
    name: str, num_classes: int, in_channels: int, options: dict[str, Any], allow_code: bool
) -> nn.Module:
    if not allow_code:
        raise InputError(
            f"the model {name!r} would run your own code; if you trust it, add --allow-code "
            "(allow_code=True in Python)"
        )
    module_name, _, function_name = name.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise InputError(f"cannot import the model {name!r}: {error}") from error
    model = function(num_classes=num_classes, in_channels=in_channels, **options)
    if not isinstance(model, nn.Module):
        raise InputError(f"{name!r} gives a {type(model).__name__}, not an nn.Module")
    return model


def own_statistics(
    model: nn.Module, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """The mean and std that a timm model was made for; None where it has none of its own."""
    config = getattr(model, "pretrained_cfg", None) or {}
    mean, std = config.get("mean"), config.get("std")
    if mean is None or std is None or len(mean) != channels:
        return None
    return tuple(mean), tuple(std)
