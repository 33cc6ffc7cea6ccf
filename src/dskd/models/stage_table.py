"""The table of a model's stages: where they are, and how much of the work each does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dskd.errors import InputError
from dskd.models.default_stages import default_stages
from dskd.models.eval_mode import eval_mode
from dskd.models.factory import load_model
from dskd.models.native import native_size
from dskd.models.plain_copy import plain_copy
from dskd.models.staged_model import StagedModel
from dskd.models.trace import TRACED, Trace, TracedModule, trace

COLUMNS = ("stage", "name", "shape", "depth, %", "multiply-adds, %")
_SIZE, _CLASSES = 32, 10
"""Of the images of a model that was made for no particular ones."""


@dataclass(frozen=True)
class Stage:
    """A stage of a model, or a submodule that can be one.

    Attributes:
        number: From 1; None for a submodule that was not chosen.
        name: Path of the submodule.
        channels: Channels of its map.
        height: Height of its map.
        width: Width of its map.
        depth: Relative depth: the share of the layers with parameters that ran up to its end. None
            if the name is no submodule, as it may be in a module that returns stages itself.
        multiply_adds: The share of the model's multiply-adds since the end of the row before. None
            as for ``depth``.
    """

    number: int | None
    name: str
    channels: int
    height: int
    width: int
    depth: float | None
    multiply_adds: float | None

    def cells(self) -> list[str]:
        """The cells of `COLUMNS`."""
        number = "" if self.number is None else str(self.number)
        shape = f"{self.channels}x{self.height}x{self.width}"
        return [number, self.name, shape, _percent(self.depth), _percent(self.multiply_adds)]


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f}"


def stages(
    model: str | nn.Module,
    *,
    size: int | None = None,
    channels: int = 3,
    classes: int = _CLASSES,
    all: bool = False,
    allow_code: bool = False,
) -> list[Stage]:
    """The stages that a run would choose for a model.

    Args:
        model: A name, as for `dskd.load_model`, or a module, which is not changed.
        size: Height and width of the images. None means the size that a model of timm or
            torchvision was published for, or else 32.
        channels: Channels of the images.
        classes: Number of classes, for a model given by name.
        all: List every submodule that can be named as a stage. Only those chosen have a number.
        allow_code: Allow ``package.module:function`` as a name.

    Raises:
        InputError: The model cannot be built, does not run on such images, or no part of it returns
            a feature map.

    Example:
        >>> [(stage.name, stage.channels, stage.height) for stage in stages("resnet8")]
        [('layer1', 16, 32), ('layer2', 32, 16), ('layer3', 64, 8)]
    """
    if isinstance(model, nn.Module):
        module = plain_copy(model)
        published = getattr(module, "pretrained_cfg", None) or {}
        size = size or published.get("input_size", (_SIZE,))[-1]
    else:
        size = size or native_size(model) or _SIZE
        module = load_model(
            model, num_classes=classes, in_channels=channels, size=size, allow_code=allow_code
        )
    images = torch.zeros(TRACED, channels, size, size)
    traced = trace(module, images)
    names = default_stages(module, images) or tuple(getattr(module, "stage_names", ()))
    if not names:
        raise InputError(
            f"no part of {type(module).__name__} returns a feature map [B, C, H, W] or tokens "
            "[B, N, D]; methods such as kd need none"
        )
    own = None if hasattr(module, "forward_stages") else names
    staged = StagedModel(module, own, mean=(0.0,) * channels, std=(1.0,) * channels)
    chosen = stage_rows(staged, images, traced)
    return _with_others(chosen, traced) if all else list(chosen)


def stage_rows(model: StagedModel, images: Tensor, traced: Trace | None = None) -> list[Stage]:
    """The table of a model with stages.

    Args:
        model: On the device of the images.
        images: A few images, as the module expects them.
        traced: The trace of its module on the images, if there is one.

    Raises:
        InputError: The module does not run on the images, or a stage is none.
    """
    traced = traced or trace(model.module, images)
    with eval_mode(model), torch.no_grad():
        maps = model.forward_normalized(images.to(next(model.parameters(), images).device)).stages
    names = model.stage_names or tuple(getattr(model.module, "stage_names", ()))
    rows, done = [], 0
    for number, (name, feature_map) in enumerate(zip(names, maps, strict=True), 1):
        channels, height, width = feature_map.shape[1:]
        depth = share = None
        if (there := traced.modules.get(name)) is not None:
            depth, share = _shares(there, done, traced)
            done = there.multiply_adds
        rows.append(Stage(number, name, channels, height, width, depth, share))
    return rows


def _shares(there: TracedModule, done: int, traced: Trace) -> tuple[float, float]:
    """The share of the layers up to a submodule, and of the multiply-adds since ``done``."""
    work = (there.multiply_adds - done) / max(traced.multiply_adds, 1)
    return there.layers / max(traced.layers, 1), work


def _with_others(chosen: Sequence[Stage], traced: Trace) -> list[Stage]:
    """Every submodule that returns a map, in the order in which they end, with its own share."""
    by_name = {stage.name: stage for stage in chosen}
    rows, done = [], 0
    for one in traced.modules.values():
        if one.name in by_name:
            rows.append(by_name[one.name])
        elif one.map is not None:
            rows.append(Stage(None, one.name, *one.map, *_shares(one, done, traced)))
        done = one.multiply_adds
    return rows


def table_lines(rows: Sequence[Stage]) -> list[str]:
    """The table as lines of text."""
    lines = [list(COLUMNS), *(row.cells() for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    return [
        "  ".join(
            cell.ljust(width) if i in (1, 2) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
