"""Fuse BatchNorm into the convolutions before it: the same outputs from fewer operations."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dskd.errors import InputError
from dskd.models.staged_model import StagedModel

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_AUTOCAST = (*_CONVOLUTIONS, nn.Linear)
"""Layers that autocast runs in bfloat16. Subclasses may use their weights in other ways."""
_TOLERANCE = 1e-4
"""Largest difference that counts as rounding, relative to the largest value of an output."""


@dataclass
class _Calls:
    """The inputs and outputs of a module in one forward pass."""

    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)


def fuse_batchnorm(model: StagedModel, images: Tensor) -> StagedModel:
    """Copy a frozen model and fuse each BatchNorm into the convolution before it.

    ``BN(W x) = (g / s) W x + (b - g m / s)`` with running mean ``m``, standard deviation ``s``,
    scale ``g`` and shift ``b``. A forward pass shows which norm follows which convolution, so that
    any module can be fused. A pair stays unfused if fusing it changes an output by more than
    rounding, for example if a stage is taken between the two.

    Args:
        model: The model, in evaluation mode. It is not changed.
        images: A few images, uint8 ``[B, C, H, W]``, on the device of the model.

    Returns:
        The fused copy.

    Example:
        >>> from dskd.models.zoo import build
        >>> net = build("resnet8", num_classes=10).eval()
        >>> model = StagedModel(net, mean=(0.5,) * 3, std=(0.5,) * 3).eval()
        >>> fast = fuse_batchnorm(model, torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
        >>> sum(isinstance(part, nn.BatchNorm2d) for part in fast.modules())
        0
    """
    fused = copy.deepcopy(model)
    with torch.no_grad():
        expected = _outputs(model, images)
        pairs = _find_pairs(fused, images)
        _fuse(fused, pairs)
        if not _gives(fused, images, expected):
            fused = copy.deepcopy(model)
            for pair in pairs:
                _fuse_if_equal(fused, pair, images, expected)
    return fused


def in_bfloat16(model: StagedModel, images: Tensor) -> StagedModel:
    """Copy a model and convert its weights to bfloat16 once, not in every forward pass.

    The copy works under autocast to bfloat16 only. There its outputs equal those of the model.

    Args:
        model: The frozen model, in evaluation mode. It is not changed.
        images: A few images, uint8 ``[B, C, H, W]``, on the device of the model.

    Returns:
        The copy; the model itself if the outputs differ (a module may use the weights of its
        layers in other ways).

    Example:
        >>> from dskd.models.zoo import build
        >>> net = build("resnet8", num_classes=10).eval().requires_grad_(False)
        >>> model = StagedModel(net, mean=(0.5,) * 3, std=(0.5,) * 3).eval()
        >>> fast = in_bfloat16(model, torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
        >>> fast.linear_classifier.weight.dtype
        torch.bfloat16
    """
    cast = copy.deepcopy(model)
    for part in cast.modules():
        if type(part) in _AUTOCAST:
            part.to(torch.bfloat16)
    with torch.no_grad(), torch.autocast(images.device.type, torch.bfloat16):
        try:
            found = _outputs(cast, images)
        except RuntimeError:  # an operation that autocast does not cover got two types
            return model
        expected = _outputs(model, images)
    return cast if all(map(torch.equal, expected, found)) else model


def _fuse_if_equal(
    model: StagedModel, pair: tuple[str, str], images: Tensor, expected: list[Tensor]
) -> None:
    before = [(name, model.get_submodule(name)) for name in pair]
    _fuse(model, [pair])
    if not _gives(model, images, expected):
        for name, part in before:
            _replace(model, name, part)


def _find_pairs(model: StagedModel, images: Tensor) -> list[tuple[str, str]]:
    """Names of the convolutions and the norms that take their outputs, if both run only once."""
    calls: dict[str, _Calls] = {}

    def record(name: str) -> object:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            own = calls.setdefault(name, _Calls())
            own.inputs.append(inputs[0])
            own.outputs.append(output)

        return hook

    kinds = (*_CONVOLUTIONS, nn.modules.batchnorm._BatchNorm)
    named = {n: part for n, part in model.named_modules() if isinstance(part, kinds)}
    handles = [part.register_forward_hook(record(name)) for name, part in named.items()]  # type: ignore[arg-type]
    try:
        model(images)
    finally:
        for handle in handles:
            handle.remove()
    once = {name: own for name, own in calls.items() if len(own.outputs) == 1}
    sources = {
        id(own.outputs[0]): name
        for name, own in once.items()
        if isinstance(named[name], _CONVOLUTIONS)
    }
    return [
        (sources[id(own.inputs[0])], name)
        for name, own in once.items()
        if not isinstance(named[name], _CONVOLUTIONS)
        and id(own.inputs[0]) in sources
        and _has_statistics(named[name])
    ]


def _has_statistics(norm: nn.Module) -> bool:
    return not norm.training and norm.running_mean is not None


def _fuse(model: StagedModel, pairs: list[tuple[str, str]]) -> None:
    for convolution, norm in pairs:
        conv, bn = model.get_submodule(convolution), model.get_submodule(norm)
        assert isinstance(conv, _CONVOLUTIONS)
        assert isinstance(bn, nn.modules.batchnorm._BatchNorm)
        dtype = conv.weight.dtype
        fused = fuse_conv_bn_eval(copy.deepcopy(conv).double(), copy.deepcopy(bn).double())
        _replace(model, convolution, fused.to(dtype).requires_grad_(False))
        _replace(model, norm, _remainder(bn).eval())


def _remainder(norm: nn.Module) -> nn.Module:
    """The rest of a norm: timm's norms include a dropout and an activation."""
    parts = [getattr(norm, name, None) for name in ("drop", "act")]
    return nn.Sequential(*(part for part in parts if isinstance(part, nn.Module)))


def _replace(model: nn.Module, name: str, part: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, part)


def _outputs(model: StagedModel, images: Tensor) -> list[Tensor]:
    output = model(images)
    tensors = (output.logits, *output.stages, output.pooled, output.last)
    return [tensor for tensor in tensors if tensor is not None]


def _gives(model: StagedModel, images: Tensor, expected: list[Tensor]) -> bool:
    """Whether a fused model gives the expected outputs, up to rounding."""
    try:
        found = _outputs(model, images)
    except InputError:  # without the norm, an activation overwrites the output of a stage
        return False
    return all(
        a.shape == b.shape and (a - b).abs().max() <= _TOLERANCE * a.abs().max()
        for a, b in zip(expected, found, strict=True)
    )
