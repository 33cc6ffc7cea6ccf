"""Round weights and activations to 8 bits in the forward pass, so that a network learns with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_ROUNDED = (F.conv2d, F.linear)
_MOMENTUM = 0.05
"""Share of a batch in the moving averages of the ranges."""


class Int8Rounding(nn.Module):
    r"""The ranges of the inputs of convolutions and linear layers, for fake quantization.

    A weight W of an output channel has the scale ``s = max |W| / 127`` and becomes
    ``s round(W / s)``. An input x with the range ``[l, h]``, which includes 0, has the scale
    ``s = (h - l) / 255`` and becomes ``s (round(clip(x, l, h) / s))``, up to the whole number that
    stands for 0. The gradient passes through the rounding as if it was not there, and is 0 outside
    of the range. In training mode, a range is the moving average of those of the batches.

    Rounding each output channel by itself also fits a BatchNorm that is fused into the layer later:
    it multiplies a whole channel.

    Source: Jacob et al., Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference, CVPR 2018, arXiv 1712.05877. The momentum is *our choice*.

    Args:
        module: The network. It is not changed.

    Example:
        >>> net = nn.Linear(2, 1, bias=False)
        >>> rounding = Int8Rounding(net)
        >>> with torch.no_grad(), rounding.rounding(net):
        ...     net(torch.tensor([[1.0, 0.5], [0.25, -0.5]])).shape
        torch.Size([2, 1])
        >>> rounding.low, rounding.high
        (tensor([-0.5000]), tensor([1.]))
    """

    low: Tensor
    high: Tensor

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        count = len(list(_weights(module)))
        self.register_buffer("low", torch.full((count,), torch.nan))
        self.register_buffer("high", torch.full((count,), torch.nan))

    @contextmanager
    def rounding(self, module: nn.Module) -> Iterator[None]:
        """Within the block, the layers of the network see rounded weights and inputs."""
        places = {id(weight): place for place, weight in enumerate(_weights(module))}
        with _Rounded(self, places):
            yield

    def rounded_input(self, place: int, values: Tensor) -> Tensor:
        """The input of a layer, after its range was updated in training mode.

        Args:
            place: The number of the layer.
            values: Its input.
        """
        values = values.float()
        self._observe(place, values.detach())
        low, high = self.low[place].clamp_max(0), self.high[place].clamp_min(0)
        scale = ((high - low) / 255).clamp_min(1e-12)
        zero = (-128 - low / scale).round().clamp(-128, 127).to(torch.int32)
        return torch.fake_quantize_per_tensor_affine(values, scale, zero, -128, 127)

    def _observe(self, place: int, values: Tensor) -> None:
        new = bool(self.low[place].isnan())
        if not (self.training or new):
            return
        share = 1.0 if new else _MOMENTUM
        for range_, value in ((self.low, values.min()), (self.high, values.max())):
            before = value if new else range_[place]
            range_[place] = torch.lerp(before, value, share)


class _Rounded(TorchFunctionMode):
    """Rounds the arguments of the layers whose weights it knows."""

    def __init__(self, ranges: Int8Rounding, places: Mapping[int, int]) -> None:
        super().__init__()
        self.ranges, self.places = ranges, places

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Runs a function of torch, a known layer with rounded arguments."""
        kwargs = dict(kwargs or {})
        if func in _ROUNDED and len(args) > 1 and id(args[1]) in self.places:
            place = self.places[id(args[1])]
            values, weight = args[:2]
            args = (
                self.ranges.rounded_input(place, values),
                rounded_weight(weight),
                *args[2:],
            )
        return func(*args, **kwargs)


def rounded_weight(weight: Tensor) -> Tensor:
    """A weight whose output channels are rounded, each with a scale of its own.

    Args:
        weight: ``[C, ...]``.

    Example:
        >>> rounded_weight(torch.tensor([[127.0, 1.4], [1.27, 0.014]]))
        tensor([[1.2700e+02, 1.0000e+00],
                [1.2700e+00, 1.0000e-02]])
    """
    scale = (weight.detach().flatten(1).abs().amax(1).float() / 127).clamp_min(1e-12)
    zeros = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight.float(), scale, zeros, 0, -127, 127)


def _weights(module: nn.Module) -> Iterator[Tensor]:
    """The weights of the layers that are rounded."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            yield part.weight
