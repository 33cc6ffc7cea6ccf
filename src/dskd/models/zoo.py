"""The networks that the distillation literature compares on, by the names it uses.

Keys and shapes of their state are those of the public CIFAR model zoo, so that teacher checkpoints
shared by the field load as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import MappingProxyType
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dskd.errors import InputError, unknown
from dskd.models.mobilenet import MobileNetV2
from dskd.models.resnet import ResNet, ResNet50
from dskd.models.shufflenet import ShuffleV1, ShuffleV2
from dskd.models.staged_net import StagedNet
from dskd.models.vgg import VGG
from dskd.models.wrn import WideResNet

_Output = TypeVar("_Output")


class Factory(Protocol):
    """What makes a network of the zoo."""

    def __call__(self, *, num_classes: int, in_channels: int) -> StagedNet:
        """Make the network with fresh weights."""
        ...


class ModelCost(NamedTuple):
    """What a network takes to keep and to run.

    Attributes:
        parameters: Numbers in its parameters, each counted once.
        multiply_adds: Of the convolutions and matrix products in one forward pass of one image.
    """

    parameters: int
    multiply_adds: int


class ModelFacts(NamedTuple):
    """A network of the zoo in numbers.

    Attributes:
        name: Its name in the zoo.
        cost: Its parameters and multiply-adds.
        stage_names: Its stages, shallow to deep.
        stage_shapes: ``(C, H, W)`` of each stage's map.
    """

    name: str
    cost: ModelCost
    stage_names: tuple[str, ...]
    stage_shapes: tuple[tuple[int, ...], ...]


_X4 = (32, 64, 128, 256)

ZOO: Mapping[str, Factory] = MappingProxyType(
    {
        "resnet8": partial(ResNet, 8),
        "resnet14": partial(ResNet, 14),
        "resnet20": partial(ResNet, 20),
        "resnet32": partial(ResNet, 32),
        "resnet44": partial(ResNet, 44),
        "resnet56": partial(ResNet, 56),
        "resnet110": partial(ResNet, 110),
        "resnet8x4": partial(ResNet, 8, _X4),
        "resnet32x4": partial(ResNet, 32, _X4),
        "wrn_16_1": partial(WideResNet, 16, 1),
        "wrn_16_2": partial(WideResNet, 16, 2),
        "wrn_40_1": partial(WideResNet, 40, 1),
        "wrn_40_2": partial(WideResNet, 40, 2),
        "vgg8": partial(VGG, 1),
        "vgg13": partial(VGG, 2),
        "MobileNetV2": MobileNetV2,
        "ShuffleV1": ShuffleV1,
        "ShuffleV2": ShuffleV2,
        "ResNet50": ResNet50,
    }
)


def build(name: str, *, num_classes: int, in_channels: int = 3) -> StagedNet:
    """Make a network of the zoo with fresh weights.

    Args:
        name: Its name, a key of ``ZOO``.
        num_classes: Classes K, two or more.
        in_channels: Channels of the image: 3 for colour, 1 for grey.

    Returns:
        The network in training mode; ``[B, in_channels, H, W]`` to ``[B, K]``.

    Raises:
        InputError: If the name is not in the zoo, or a number is too small.

    Example:
        >>> build("resnet20", num_classes=10).stage_names
        ('layer1', 'layer2', 'layer3')
    """
    if name not in ZOO:
        raise unknown("model", name, ZOO)
    if num_classes < 2:
        raise InputError(
            f"num_classes is {num_classes} for model {name!r}: a classifier chooses between two "
            "classes at least; give num_classes >= 2"
        )
    if in_channels < 1:
        raise InputError(
            f"in_channels is {in_channels} for model {name!r}: an image has one channel at least; "
            "give in_channels >= 1"
        )
    return ZOO[name](num_classes=num_classes, in_channels=in_channels)


def facts_of(
    name: str, *, num_classes: int = 100, in_channels: int = 3, size: int = 32
) -> ModelFacts:
    """Say what a network of the zoo costs and shows, without giving it any weights.

    Args:
        name: Its name, a key of ``ZOO``.
        num_classes: Classes K.
        in_channels: Channels of the image.
        size: Side of the square image.

    Raises:
        InputError: As ``build``.

    Example:
        >>> facts = facts_of("resnet20")
        >>> facts.cost.parameters, facts.stage_shapes[-1]
        (278324, (64, 8, 8))
    """
    with torch.device("meta"):
        net = build(name, num_classes=num_classes, in_channels=in_channels)
    taken, out = _measure(net, net.forward_stages, (in_channels, size, size))
    shapes = tuple(tuple(stage.shape[1:]) for stage in out.stages)
    return ModelFacts(name, taken, net.stage_names, shapes)


def cost(module: nn.Module, shape: tuple[int, int, int]) -> ModelCost:
    """Count the parameters and multiply-adds of any module on one image.

    The module runs once on zeros, on its own device and in its own type, in evaluation mode; it is
    left as it was found.

    Args:
        module: The module, called with ``[1, C, H, W]``.
        shape: ``(C, H, W)`` of one image.

    Example:
        >>> cost(nn.Conv2d(3, 8, 3, padding=1, bias=False), (3, 10, 10))
        ModelCost(parameters=216, multiply_adds=21600)
    """
    taken, _ = _measure(module, module, shape)
    return taken


def _measure(
    module: nn.Module, call: Callable[[Tensor], _Output], shape: tuple[int, int, int]
) -> tuple[ModelCost, _Output]:
    """The cost of one ``call`` of the module, and what it gave."""
    like = next(module.parameters(), torch.empty(0))
    image = torch.zeros(1, *shape, dtype=like.dtype, device=like.device)
    with _evaluating(module), FlopCounterMode(display=False) as counter:
        output = call(image)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    # The counter sees a multiplication and an addition as two.
    return ModelCost(parameters, counter.get_total_flops() // 2), output


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every submodule then gets back the mode it had."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training
