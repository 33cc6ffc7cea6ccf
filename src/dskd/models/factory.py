"""Build a model by its name: from the zoo, timm or torchvision, or by a user's function."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from dskd.errors import InputError, unknown
from dskd.models.catalog import LIBRARIES, TIMM, TORCHVISION, ZOO
from dskd.models.library_models import from_timm, from_torchvision
from dskd.models.user_code import import_code, refused_code
from dskd.models.zoo import build

HUB = ("hf-hub:", "hf_hub:")
"""How timm begins the name of a repository of the Hugging Face Hub."""


def load_model(
    name: str,
    *,
    num_classes: int,
    in_channels: int = 3,
    size: int | None = None,
    options: Mapping[str, Any] | None = None,
    allow_code: bool = False,
    pretrained: bool = False,
) -> nn.Module:
    """Build a classifier with random or pretrained weights.

    Args:
        name: A name of the zoo (``dskd list models``), ``timm/<name>``, ``torchvision/<name>``,
            or, with ``allow_code``, ``package.module:function``: a function that takes
            ``num_classes``, ``in_channels`` and the options, and returns a module.
        num_classes: Number of classes K, at least 2.
        in_channels: Channels of the images.
        size: Height and width of the images in pixels, for models that need it (transformers).
        options: Further arguments of ``timm.create_model``, of torchvision's function for the
            model, or of the user's function.
        allow_code: Whether a name may run code outside this package, timm and torchvision.

        pretrained: Load the weights that timm or torchvision publishes. A classifier of other
            classes keeps its random weights.

    Returns:
        A module from images ``[B, in_channels, H, W]`` to logits ``[B, num_classes]``.

    Raises:
        InputError: The name does not exist, the options do not fit, or there are no pretrained
            weights.

    Example:
        >>> import torch
        >>> model = load_model("resnet8", num_classes=10, in_channels=1)
        >>> model(torch.zeros(2, 1, 32, 32)).shape
        torch.Size([2, 10])
    """
    arguments = dict(options or {})
    if name.removeprefix(TIMM).startswith(HUB):
        raise _hub_error(name)
    if name.startswith(TIMM):
        plain = name.removeprefix(TIMM)
        return from_timm(plain, num_classes, in_channels, size, arguments, pretrained)
    if name.startswith(TORCHVISION):
        plain = name.removeprefix(TORCHVISION)
        return from_torchvision(plain, num_classes, in_channels, size, arguments, pretrained)
    if pretrained:
        raise InputError(
            f"there are no pretrained weights of {name}; give a file, or take a model of timm or "
            "torchvision"
        )
    if ":" in name:
        return _from_function(name, num_classes, in_channels, arguments, allow_code)
    if name not in ZOO:
        raise unknown("model", name, [*ZOO, *(f"{library}<name>" for library in LIBRARIES)])
    if arguments:
        raise InputError(f"the model {name!r} takes no options, got {', '.join(arguments)}")
    return build(name, num_classes=num_classes, in_channels=in_channels)


def _hub_error(name: str) -> InputError:
    """The error about a name that timm or transformers would take from the Hugging Face Hub."""
    repository = name.removeprefix(TIMM).split(":", 1)[1]
    owner, _, model = repository.partition("/")
    fix = "load it in Python by timm or transformers, and give the module"
    if owner == "timm" and model:
        fix = f"take {TIMM}{model} with pretrained=true, which comes from there, or {fix}"
    return InputError(f"{name!r}: models are not named by repositories of the Hub; {fix}")


def _from_function(
    name: str, num_classes: int, in_channels: int, options: dict[str, Any], allow_code: bool
) -> nn.Module:
    if not allow_code:
        raise refused_code("model", name)
    function = import_code(name, "model", name)
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
    """The mean and std in a model's ``pretrained_cfg``, as timm's and pretrained models have it.

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


def pretrained_classes(model: nn.Module) -> int | None:
    """The number of classes of the weights in a model's ``pretrained_cfg``; None without one."""
    config = getattr(model, "pretrained_cfg", None) or {}
    number: int | None = config.get("num_classes")
    return number
