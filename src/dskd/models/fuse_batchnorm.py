"""BatchNorm folded into the convolutions before it: the same answers from fewer operations."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dskd.errors import InputError
from dskd.models.staged_model import StagedModel

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CAST = (*_CONVOLUTIONS, nn.Linear)
"""Layers that autocast runs in bfloat16; no subclass, which may do more with its weights."""
_TOLERANCE = 1e-4
"""Largest difference that counts as rounding, relative to the largest value of an output."""


@dataclass
class _Calls:
    """What a module was given and gave, in one forward pass."""

    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)


def fuse_batchnorm(model: StagedModel, images: Tensor) -> StagedModel:
    """A copy of a frozen model in eval mode, in which BatchNorm is part of the convolutions.

    ``BN(W x) = (g / s) W x + (b - g m / s)`` with running mean ``m``, deviation ``s``, scale ``g``
    and shift ``b``. Which norm follows which convolution is read off a forward pass, so that any
    module can be folded. A pair whose folding changes any answer by more than rounding (a stage
    taken between the two, say) is left as it is.

    Args:
        model: In eval mode; it stays as it is.
        images: A few images, uint8 ``[B, C, H, W]``, on its device.

    Example:
        >>> from dskd.models.zoo import build
        >>> net = build("resnet8", num_classes=10).eval()
        >>> model = StagedModel(net, mean=(0.5,) * 3, std=(0.5,) * 3).eval()
        >>> fast = fuse_batchnorm(model, torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
        >>> sum(isinstance(part, nn.BatchNorm2d) for part in fast.modules())
        0
    """
    twin = copy.deepcopy(model)
    with torch.no_grad():
        expected = _tensors(model, images)
        pairs = _pairs(twin, images)
        _fold(twin, pairs)
        if not _answers(twin, images, expected):
            twin = copy.deepcopy(model)
            for pair in pairs:
                _fold_if_same(twin, pair, images, expected)
    return twin


def in_bfloat16(model: StagedModel, images: Tensor) -> StagedModel:
    """A copy whose weights autocast need not turn to bfloat16 anew in every forward pass.

    It answers under autocast to bfloat16, and only there, exactly as the model itself does. Where
    it does not (a module that reads the weights of its layers in a way of its own), the model is
    given back.

    Args:
        model: Frozen, in eval mode; it stays as it is.
        images: A few images, uint8 ``[B, C, H, W]``, on its device.

    Example:
        >>> from dskd.models.zoo import build
        >>> net = build("resnet8", num_classes=10).eval().requires_grad_(False)
        >>> model = StagedModel(net, mean=(0.5,) * 3, std=(0.5,) * 3).eval()
        >>> fast = in_bfloat16(model, torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
        >>> fast.linear.weight.dtype
        torch.bfloat16
    """
    twin = copy.deepcopy(model)
    for part in twin.modules():
        if type(part) in _CAST:
            part.to(torch.bfloat16)
    with torch.no_grad(), torch.autocast(images.device.type, torch.bfloat16):
        try:
            found = _tensors(twin, images)
        except RuntimeError:  # two types met in an operation that autocast does not watch
            return model
        expected = _tensors(model, images)
    return twin if all(map(torch.equal, expected, found)) else model


def _fold_if_same(
    model: StagedModel, pair: tuple[str, str], images: Tensor, expected: list[Tensor]
) -> None:
    before = [(name, model.get_submodule(name)) for name in pair]
    _fold(model, [pair])
    if not _answers(model, images, expected):
        for name, part in before:
            _replace(model, name, part)


def _pairs(model: StagedModel, images: Tensor) -> list[tuple[str, str]]:
    """Names of each convolution and the norm that is given what it gave, where both run once."""
    calls: dict[str, _Calls] = {}

    def see(name: str) -> object:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen = calls.setdefault(name, _Calls())
            seen.inputs.append(inputs[0])
            seen.outputs.append(output)

        return hook

    kinds = (*_CONVOLUTIONS, nn.modules.batchnorm._BatchNorm)
    named = {n: part for n, part in model.named_modules() if isinstance(part, kinds)}
    handles = [part.register_forward_hook(see(name)) for name, part in named.items()]  # type: ignore[arg-type]
    try:
        model(images)
    finally:
        for handle in handles:
            handle.remove()
    once = {name: seen for name, seen in calls.items() if len(seen.outputs) == 1}
    givers = {
        id(seen.outputs[0]): name
        for name, seen in once.items()
        if isinstance(named[name], _CONVOLUTIONS)
    }
    return [
        (givers[id(seen.inputs[0])], name)
        for name, seen in once.items()
        if not isinstance(named[name], _CONVOLUTIONS)
        and id(seen.inputs[0]) in givers
        and _has_statistics(named[name])
    ]


def _has_statistics(norm: nn.Module) -> bool:
    return not norm.training and norm.running_mean is not None


def _fold(model: StagedModel, pairs: list[tuple[str, str]]) -> None:
    for convolution, norm in pairs:
        conv, bn = model.get_submodule(convolution), model.get_submodule(norm)
        assert isinstance(conv, _CONVOLUTIONS)
        assert isinstance(bn, nn.modules.batchnorm._BatchNorm)
        dtype = conv.weight.dtype
        fused = fuse_conv_bn_eval(copy.deepcopy(conv).double(), copy.deepcopy(bn).double())
        _replace(model, convolution, fused.to(dtype).requires_grad_(False))
        _replace(model, norm, _rest_of(bn).eval())


def _rest_of(norm: nn.Module) -> nn.Module:
    """What a norm does besides: timm's have a dropout and an activation within."""
    parts = [getattr(norm, name, None) for name in ("drop", "act")]
    return nn.Sequential(*(part for part in parts if isinstance(part, nn.Module)))


def _replace(model: nn.Module, name: str, part: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, part)


def _tensors(model: StagedModel, images: Tensor) -> list[Tensor]:
    output = model(images)
    given = (output.logits, *output.stages, output.pooled, output.last)
    return [tensor for tensor in given if tensor is not None]


def _answers(model: StagedModel, images: Tensor, expected: list[Tensor]) -> bool:
    """Whether a folded model gives what is expected, but for rounding."""
    try:
        found = _tensors(model, images)
    except InputError:  # with the norm gone, an activation overwrites what a stage gave
        return False
    return all(
        a.shape == b.shape and (a - b).abs().max() <= _TOLERANCE * a.abs().max()
        for a, b in zip(expected, found, strict=True)
    )
