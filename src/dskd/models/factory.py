"""Build a model by its name: from the zoo, timm or torchvision, or by a user's function."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from dskd.errors import InputError, unknown
from dskd.models.catalog import HF, LIBRARIES, TIMM, TORCHVISION, TRANSFORMERS, ZOO
from dskd.models.hub_files import open_model
from dskd.models.hub_models import network, published, student_file
from dskd.models.library_models import from_timm, from_torchvision, load_timm
from dskd.models.pretrained import load_but_classifier
from dskd.models.transformers_models import from_transformers, load_transformers
from dskd.models.user_code import import_code, refused_code
from dskd.models.zoo import build
from dskd.storage.weights import read_weights

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
        name: A name as in a recipe (``student.name``). With ``allow_code``, a function
            ``package.module:function`` takes ``num_classes``, ``in_channels`` and the options.
        num_classes: Number of classes K, at least 2.
        in_channels: Channels of the images.
        size: Height and width of the images in pixels, for models that need it (transformers).
        options: Further arguments of ``timm.create_model``, of torchvision's function for the
            model, or of the user's function; keys of the configuration of transformers.
        allow_code: Whether a name may run code outside this package and libraries.
        pretrained: Load published weights; a classifier of other classes keeps its random ones.

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
    if name.startswith(HF):
        return _from_hub(name, num_classes, in_channels, size, arguments, allow_code, pretrained)
    for library, build_named in ((TIMM, from_timm), (TORCHVISION, from_torchvision)):
        if name.startswith(library):
            plain = name.removeprefix(library)
            return build_named(plain, num_classes, in_channels, size, arguments, pretrained)
    if pretrained:
        raise InputError(
            f"there are no pretrained weights of {name}; give a file, or take a model of timm, of "
            "torchvision or of the Hub"
        )
    if name.startswith(TRANSFORMERS):
        plain = name.removeprefix(TRANSFORMERS)
        return from_transformers(plain, num_classes, in_channels, size, arguments)
    if ":" in name:
        return _from_function(name, num_classes, in_channels, arguments, allow_code)
    if name not in ZOO:
        raise unknown("model", name, [*ZOO, *(f"{library}<name>" for library in LIBRARIES)])
    if arguments:
        raise InputError(f"the model {name!r} takes no options, got {', '.join(arguments)}")
    return build(name, num_classes=num_classes, in_channels=in_channels)


def _hub_error(name: str) -> InputError:
    """The error about a name as timm writes a repository of the Hugging Face Hub."""
    repository = name.removeprefix(TIMM).split(":", 1)[1]
    return InputError(
        f"{name!r}: a model of the Hub is named {HF}{repository or 'OWNER/NAME'} here"
    )


def _from_hub(
    name: str,
    num_classes: int,
    in_channels: int,
    size: int | None,
    options: dict[str, Any],
    allow_code: bool,
    pretrained: bool,
) -> nn.Module:
    """A model of the Hub. What it says about its images becomes its ``pretrained_cfg``."""
    facts, model = published(name), open_model(name)
    plain, own = network(name, options, weights=pretrained)
    arguments: dict[str, Any] = {"num_classes": num_classes, "in_channels": in_channels}
    if not pretrained or model.kind == "dskd":
        module = load_model(plain, **arguments, size=size, options=own, allow_code=allow_code)
        if pretrained:
            if model.config["dskd"].get("deploy_config"):
                raise InputError(
                    f"{name} has parts of its method; load it by "
                    "dskd.DeployedStudent.from_pretrained"
                )
            weights = read_weights(student_file(model))
            load_but_classifier(module, weights, facts.classes, f"the weights of {name}")
    elif model.kind == "timm":
        said = {**model.config, **(model.config.get("pretrained_cfg") or {})}
        module = load_timm(
            name,
            plain.removeprefix(TIMM),
            **arguments,
            size=size,
            options=own,
            published={**said, **facts.pretrained_cfg()},
            weights=read_weights(model.weights()),
        )
    else:
        kind = plain.removeprefix(TRANSFORMERS)
        if in_channels != facts.channels:
            raise InputError(
                f"{name} takes images of {facts.channels} channels, and these have {in_channels}; "
                f"set data.channels={facts.channels} if the images are your own"
            )
        module = load_transformers(name, model.weights(), kind, **arguments, options=own)
    known = getattr(module, "pretrained_cfg", None) or {}
    module.pretrained_cfg = {**known, **facts.pretrained_cfg()}  # type: ignore[assignment]
    return module


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
