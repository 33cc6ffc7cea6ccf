"""One forward pass of a module in which every submodule's feature map and cost are measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dskd.errors import InputError, first_line
from dskd.models.cost import counted_operations
from dskd.models.eval_mode import eval_mode, no_gradients
from dskd.models.feature_hooks import change_count
from dskd.models.feature_maps import main_tensor, to_feature_map
from dskd.models.prefix_tokens import find_prefix_tokens

TRACED = 2
"""Images of the forward pass. One image would hide the batch dimension."""


@dataclass(frozen=True)
class TracedModule:
    """A submodule that ran, and the feature map that it returned.

    Attributes:
        name: Path of the submodule.
        map: Channels, height and width; None if its output is no map, or is changed in place later.
        tokens: Whether the map was made of tokens.
        layers: How many layers with parameters had run at its end.
        multiply_adds: Multiply-adds for one image up to its end.
    """

    name: str
    map: tuple[int, int, int] | None
    tokens: bool
    layers: int
    multiply_adds: int


@dataclass(frozen=True)
class Trace:
    """What ran in one forward pass.

    Attributes:
        modules: The submodules that ran, by name, in the order in which they ended. One that ran
            several times counts where it ran last.
        layers: Number of runs of layers with parameters.
        multiply_adds: Multiply-adds of the convolutions and matrix products for one image.
        image: Height and width of the image.
    """

    modules: dict[str, TracedModule]
    layers: int
    multiply_adds: int
    image: tuple[int, int]


class _Recorder:
    """What the hooks see."""

    def __init__(self, images: Tensor, prefix: int | None, counter: FlopCounterMode) -> None:
        self.images, self.prefix, self.counter = images, prefix, counter
        self.layers = 0
        self.outputs: dict[str, tuple[Any, int, TracedModule]] = {}

    @property
    def multiply_adds(self) -> int:
        # The counter counts a multiplication and an addition as two operations.
        return int(self.counter.get_total_flops()) // (2 * len(self.images))

    def record(self, module: nn.Module, _inputs: Any, output: Any, *, name: str) -> None:
        """Forward hook of the submodule ``name``."""
        if not any(True for _ in module.children()) and any(True for _ in module.parameters()):
            self.layers += 1
        try:
            shape = to_feature_map(output, name, self.images, self.prefix).shape
            found: tuple[int, int, int] | None = (shape[1], shape[2], shape[3])
        except InputError:
            found = None
        tensor = main_tensor(output) if found is not None else None
        is_tokens = tensor is not None and tensor.dim() == 3
        traced = TracedModule(name, found, is_tokens, self.layers, self.multiply_adds)
        self.outputs.pop(name, None)
        self.outputs[name] = (tensor, change_count(tensor), traced)

    def modules(self) -> Iterator[TracedModule]:
        """All that ran; a map that was changed in place by a later layer is none."""
        for name, (tensor, version, traced) in self.outputs.items():
            if change_count(tensor) != version:
                traced = TracedModule(name, None, False, traced.layers, traced.multiply_adds)
            yield traced


def trace(module: nn.Module, images: Tensor) -> Trace:
    """Run a module once, in evaluation mode and without gradients. It is not changed.

    Args:
        module: Any classifier of images.
        images: A few images ``[B, C, H, W]``, as the module expects them.

    Raises:
        InputError: The module does not run on them.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.ReLU())
        >>> traced = trace(net, torch.zeros(2, 3, 8, 8))
        >>> traced.modules["0"].map, traced.multiply_adds
        ((4, 8, 8), 6912)
    """
    if (parameter := next(module.parameters(), None)) is not None:
        images = images.to(parameter.device)
    with counted_operations() as counter:
        recorder = _Recorder(images, find_prefix_tokens(module), counter)
        try:
            with eval_mode(module), no_gradients(module), _hooked(module, recorder):
                module(images)
        except Exception as error:  # a user's module may raise any type
            raise InputError(
                f"{type(module).__name__} does not run on images {list(images.shape[1:])}: "
                f"{first_line(error)}"
            ) from error
        total = recorder.multiply_adds
    modules = {one.name: one for one in recorder.modules()}
    height, width = images.shape[2:]
    return Trace(modules, recorder.layers, total, (height, width))


@contextmanager
def _hooked(module: nn.Module, recorder: _Recorder) -> Iterator[None]:
    with ExitStack() as stack:
        for name, part in module.named_modules():
            if name and not isinstance(part, torch.jit.ScriptModule):  # they take no hooks
                handle = part.register_forward_hook(partial(recorder.record, name=name))
                stack.callback(handle.remove)
        yield
