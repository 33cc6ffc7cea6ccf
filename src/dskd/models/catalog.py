"""The zoo by name: the networks that the distillation literature compares, and what they cost.

This module imports neither torch nor a network, so that a list of the models comes at once. A new
network is one class with the contract of `dskd.models.staged_net.StagedNet` and one entry here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

TIMM = "timm/"
TORCHVISION = "torchvision/"
HF = "hf/"
TRANSFORMERS = "transformers/"
LIBRARIES = (TIMM, TORCHVISION, TRANSFORMERS, HF)
"""What the names of models from other libraries start with."""


def local_folder(name: str) -> Path | None:
    """The folder that a name ``hf/FOLDER`` stands for; None for a repository.

    Example:
        >>> local_folder("hf/timm/resnet18.a1_in1k") is None
        True
    """
    place = os.path.expanduser(name.removeprefix(HF))  # noqa: PTH111 (Path's may raise)
    return Path(place) if name.startswith(HF) and place and Path(place).is_dir() else None


def with_absolute_folder(name: str) -> str:
    """The name of a model, with the absolute path of the folder if it is ``hf/FOLDER``.

    Example:
        >>> with_absolute_folder("resnet8")
        'resnet8'
    """
    folder = local_folder(name)
    return name if folder is None else f"{HF}{os.path.abspath(folder)}"  # noqa: PTH100 (no "..")


@dataclass(frozen=True)
class ZooEntry:
    """A network of the zoo.

    Attributes:
        family: Name of the family in the literature.
        module: Module of the network's class, within `dskd.models`.
        network: Name of the class.
        arguments: Positional arguments of the class.
        stages: Names of the stages, shallow to deep.
        parameters: Number of parameters for RGB images of 100 classes.
        multiply_adds: Multiply-adds for one such image of 32x32 pixels.
    """

    family: str
    module: str
    network: str
    arguments: tuple[Any, ...]
    stages: tuple[str, ...]
    parameters: int
    multiply_adds: int


_LAYERS = ("layer1", "layer2", "layer3")
_X4 = (32, 64, 128, 256)


def _resnet(parameters: int, multiply_adds: int, *arguments: Any) -> ZooEntry:
    return ZooEntry("ResNet", "resnet", "ResNet", arguments, _LAYERS, parameters, multiply_adds)


def _wide_resnet(parameters: int, multiply_adds: int, *arguments: Any) -> ZooEntry:
    stages = ("block1", "block2", "block3")
    return ZooEntry(
        "Wide ResNet", "wrn", "WideResNet", arguments, stages, parameters, multiply_adds
    )


def _vgg(parameters: int, multiply_adds: int, *arguments: Any) -> ZooEntry:
    stages = tuple(f"block{index}" for index in range(5))
    return ZooEntry("VGG", "vgg", "VGG", arguments, stages, parameters, multiply_adds)


ZOO: Mapping[str, ZooEntry] = MappingProxyType(
    {
        "resnet8": _resnet(83_892, 12_507_392, 8),
        "resnet14": _resnet(181_108, 26_663_168, 14),
        "resnet20": _resnet(278_324, 40_818_944, 20),
        "resnet32": _resnet(472_756, 69_130_496, 32),
        "resnet44": _resnet(667_188, 97_442_048, 44),
        "resnet56": _resnet(861_620, 125_753_600, 56),
        "resnet110": _resnet(1_736_564, 253_155_584, 110),
        "resnet8x4": _resnet(1_233_540, 177_071_104, 8, _X4),
        "resnet32x4": _resnet(7_433_860, 1_083_040_768, 32, _X4),
        "wrn_16_1": _wide_resnet(180_916, 26_663_168, 16, 1),
        "wrn_16_2": _wide_resnet(703_284, 101_118_464, 16, 2),
        "wrn_40_1": _wide_resnet(569_780, 83_286_272, 40, 1),
        "wrn_40_2": _wide_resnet(2_255_156, 327_610_880, 40, 2),
        "vgg8": _vgg(3_965_028, 96_192_512, 1),
        "vgg13": _vgg(9_462_180, 284_936_192, 2),
        "MobileNetV2": ZooEntry(
            family="MobileNetV2",
            module="mobilenet",
            network="MobileNetV2",
            arguments=(),
            stages=("blocks.1", "blocks.2", "blocks.4", "blocks.6"),
            parameters=812_836,
            multiply_adds=6_523_648,
        ),
        "ShuffleV1": ZooEntry(
            "ShuffleNet", "shufflenet", "ShuffleV1", (), _LAYERS, 949_258, 38_691_456
        ),
        "ShuffleV2": ZooEntry(
            "ShuffleNetV2", "shufflenet", "ShuffleV2", (), _LAYERS, 1_355_528, 44_504_448
        ),
        "ResNet50": ZooEntry(
            family="ResNet",
            module="resnet",
            network="ResNet50",
            arguments=(),
            stages=(*_LAYERS, "layer4"),
            parameters=23_705_252,
            multiply_adds=1_298_014_208,
        ),
    }
)
"""Every network of the zoo, by the name that the literature uses."""
