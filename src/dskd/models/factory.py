"""Build a model by its name: from the zoo, from timm, or by a function of the user."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from torch import nn

from dskd.errors import InputError, first_line, option, unknown
from dskd.models.catalog import ZOO
from dskd.models.zoo import build

TIMM = "timm/"
_REFUSED_OPTIONS = frozenset(
    {"checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}
)
_SUGGESTIONS = 5


def load_model(
    name: str,
    *,
    num_classes: int,
    in_channels: int = 3,
    size: int | None = None,
    options: Mapping[str, Any] | None = None,
    allow_code: bool = False,
) -> nn.Module:
    """Build a classifier with random weights.

    Args:
        name: A name of the zoo (``dskd list models``), ``timm/<name>``, or, with ``allow_code``,
            ``package.module:function``: a function that takes ``num_classes``, ``in_channels``
            and the options, and returns a module.
        num_classes: Number of classes K, at least 2.
        in_channels: Channels of the images.
        size: Height and width of the images in pixels, for timm models that need it
            (transformers).
        options: Further arguments of ``timm.create_model`` or of the function.
        allow_code: Whether a name may run code outside this package and timm.

    Returns:
        A module from images ``[B, in_channels, H, W]`` to logits ``[B, num_classes]``.

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
            "timm models need timm; install it with: pip install timm torchvision"
        ) from None


def _from_timm(
    name: str, num_classes: int, in_channels: int, size: int | None, options: dict[str, Any]
) -> nn.Module:
    timm = _timm()
    if refused := sorted(_REFUSED_OPTIONS & options.keys()):
        raise InputError(
            f"the option {refused[0]!r} of timm is not allowed, as it reads other files; "
            "give weights with teacher.checkpoint"
        )
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=_SUGGESTIONS)
        hint = f"the nearest: {', '.join(close)}" if close else "timm.list_models() names them"
        raise InputError(f"unknown timm model {name!r}; {hint}")
    arguments = {"num_classes": num_classes, "in_chans": in_channels} | options
    sized = arguments if size is None else {"img_size": size} | arguments
    try:
        try:
            model: nn.Module = timm.create_model(name, **sized)
        except TypeError as error:
            if sized == arguments or "img_size" not in str(error):
                raise
            model = timm.create_model(name, **arguments)  # convolutional networks take any size
    except Exception as error:  # timm models raise many types
        raise InputError(
            f"timm/{name} cannot be built with options {options}: {first_line(error)}"
        ) from error
    return model


def _from_function(
    name: str, num_classes: int, in_channels: int, options: dict[str, Any], allow_code: bool
) -> nn.Module:
    if not allow_code:
        raise InputError(
            f"the model {name!r} would run your own code; if you trust it, add "
            f"{option('allow_code')}"
        )
    module_name, _, function_name = name.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except ImportError as error:
        raise InputError(
            f"cannot import the model {name!r}: {error}; is its folder on PYTHONPATH?"
        ) from error
    except (AttributeError, ValueError) as error:
        raise InputError(f"cannot import the model {name!r}: {error}") from error
    arguments = {"num_classes": num_classes, "in_channels": in_channels} | options
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        raise InputError(
            f"{name!r} cannot be called with {', '.join(arguments)}: {error}"
        ) from error
    model = function(**arguments)
    if not isinstance(model, nn.Module):
        raise InputError(f"{name!r} gives a {type(model).__name__}, not an nn.Module")
    return model


def pretrained_statistics(
    model: nn.Module, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """The mean and std in a timm model's ``pretrained_cfg``.

    Args:
        model: Any model.
        channels: Channels of the images.

    Returns:
        Mean and std of each channel; None if the model has none for that number of channels.
    """
    config = getattr(model, "pretrained_cfg", None) or {}
    mean, std = config.get("mean"), config.get("std")
    if mean is None or std is None or len(mean) != channels:
        return None
    return tuple(mean), tuple(std)
