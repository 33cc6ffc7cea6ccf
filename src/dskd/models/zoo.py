"""Build the networks of the zoo.

Keys and shapes of their state dicts equal those of the public CIFAR model zoo, so that published
teacher checkpoints load unchanged.
"""

from __future__ import annotations

from importlib import import_module

from dskd.errors import InputError, unknown
from dskd.models.catalog import ZOO
from dskd.models.staged_net import StagedNet


def build(name: str, *, num_classes: int, in_channels: int = 3) -> StagedNet:
    """Build a network of the zoo with random weights.

    Args:
        name: A key of `dskd.models.catalog.ZOO`.
        num_classes: Number of classes K, at least 2.
        in_channels: Channels of the images: 3 for RGB, 1 for gray.

    Returns:
        The network in training mode, from images ``[B, in_channels, H, W]`` to logits ``[B, K]``.

    Raises:
        InputError: The name is not in the zoo, or a number is too small.

    Example:
        >>> build("resnet20", num_classes=10).stage_names
        ('layer1', 'layer2', 'layer3')
    """
    if name not in ZOO:
        raise unknown("model", name, ZOO)
    if num_classes < 2:
        raise InputError(
            f"num_classes is {num_classes} for model {name!r}: a classifier has at least two "
            "classes; give num_classes >= 2"
        )
    if in_channels < 1:
        raise InputError(
            f"in_channels is {in_channels} for model {name!r}: an image has at least one channel; "
            "give in_channels >= 1"
        )
    entry = ZOO[name]
    network = getattr(import_module(f"dskd.models.{entry.module}"), entry.network)
    net: StagedNet = network(*entry.arguments, num_classes=num_classes, in_channels=in_channels)
    return net
