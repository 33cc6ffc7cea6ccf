"""Wrap any classifier as a model with stages.

The contract of a model with stages: one forward pass gives a `dskd.models.output.ModelOutput`, that
is, logits, the feature map of each stage (shallow to deep) and the input of the classifier. A
module can meet the contract in two ways:

1. It returns its stages itself: it has a tuple ``stage_names`` and a method
   ``forward_stages(x) -> ModelOutput``, as `dskd.models.staged_net.StagedNet` has.
2. The user names submodules as stages. Their outputs are then recorded by forward hooks, which
   exist only during the forward pass.
"""

from __future__ import annotations

import copy
import difflib
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from dskd.errors import InputError
from dskd.models.feature_hooks import HookedFeatures, feature_hooks, install_hooks
from dskd.models.feature_maps import (
    has_channels_last,
    shape_text,
    spatial_mean,
    to_feature_map,
    to_vector,
)
from dskd.models.frozen_parts import parts_in_eval_mode
from dskd.models.int8_rounding import Int8Rounding
from dskd.models.logits import find_logits
from dskd.models.output import ModelOutput
from dskd.models.prefix_tokens import find_prefix_tokens
from dskd.models.staged_net import StagedNet

if TYPE_CHECKING:
    from dskd.models.stage_table import Stage


class StagedModel(nn.Module):
    """A classifier with its own normalisation; one forward gives logits, stages, pooled vector.

    Args:
        module: Any classifier from normalised images to logits. It is wrapped, not changed.
        stages: Names of the submodules whose outputs are the stages, shallow to deep, such as
            ``["layer1", "layer2"]``. None uses the stages that the module returns itself. An
            output may be a feature map with the channels first or last (as in Swin), or tokens
            ``[B, N, D]``, which become a grid ``[B, D, H, W]`` without their prefix tokens (see
            `dskd.models.feature_maps.tokens_to_grid`).
        mean: Mean of each channel, on the scale from 0 to 1, which is subtracted.
        std: Standard deviation of each channel, on the scale from 0 to 1, which divides.
        classifier: Name of the submodule whose input is the pooled vector. None takes the
            module's own ``get_classifier()`` (timm), else its last linear layer.

    Attributes:
        class_order: int64 ``[K]``: which of the module's logits each class has, if the module has
            the classes in another order; None if the order is the same.
        head: A head for other classes than the module's own, see `add_head`.
        int8: Rounds weights and activations to 8 bits; None for none.
        other_classes: Number of the module's own classes, if they are not the run's and its logits
            are ignored, see `ignore_logits`.
        chosen_stages: The table of the stages, if they were chosen and not named by the user.

    Raises:
        InputError: A name does not exist, or mean and std do not fit.

    Example:
        >>> pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), pool, nn.Linear(4, 2))
        >>> staged = StagedModel(net, ["0"], mean=(0.5,), std=(0.25,))
        >>> output = staged(torch.zeros(3, 1, 8, 8, dtype=torch.uint8))
        >>> output.logits.shape, output.stages[0].shape, output.pooled.shape
        (torch.Size([3, 2]), torch.Size([3, 4, 6, 6]), torch.Size([3, 4]))
    """

    def __init__(
        self,
        module: nn.Module,
        stages: Sequence[str] | None = None,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        classifier: str | None = None,
    ) -> None:
        super().__init__()
        _check_statistics(mean, std)
        self.module = module
        self.chosen_stages: Sequence[Stage] = ()
        self._kept: HookedFeatures | None = None
        self.head: nn.Linear | None = None
        self.other_classes: int | None = None
        self.ignored_for = 0
        self.int8: Int8Rounding | None = None
        self.stage_names = tuple(stages) if stages is not None else None
        for name in [*(stages or ()), *([classifier] if classifier else [])]:
            _check_submodule(module, name)
        if stages is not None and len({module.get_submodule(n) for n in stages}) < len(stages):
            raise InputError(f"a stage is named twice in {list(stages)}; name each once")
        self.classifier = classifier or find_classifier(module)
        self.prefix_tokens = find_prefix_tokens(module)
        self.map_form = self.prefix_tokens, has_channels_last(module)  # see `to_feature_map`
        self._always_eval = parts_in_eval_mode(module)
        # Not in the state dict: the file of a student has the keys of its module.
        for key, values in (("mean", mean), ("std", std)):
            statistic = torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)
            self.register_buffer(key, statistic, persistent=False)
        self.register_buffer("class_order", None, persistent=False)
        self.mean: Tensor
        self.std: Tensor
        self.class_order: Tensor | None

    def normalize(self, images: Tensor) -> Tensor:
        """Normalise images as the module expects them.

        Args:
            images: uint8 ``[B, C, H, W]``, or floating point from 0 to 1.

        Raises:
            InputError: The shape is wrong, or mean and std have another number of channels.
        """
        channels = self.mean.shape[1]
        if images.dim() != 4 or images.shape[1] != channels:  # one channel would be broadcast
            raise InputError(
                f"images [B, {channels}, H, W] are needed, as mean and std have {channels} "
                f"channels, got {list(images.shape)}"
            )
        return normalized(images, self.mean, self.std)

    def train(self, mode: bool = True) -> StagedModel:
        """Set training or evaluation mode, except for parts that came frozen.

        They stay in evaluation mode, see `dskd.models.frozen_parts.parts_in_eval_mode`.
        """
        super().train(mode)
        for name in self._always_eval:
            self.module.get_submodule(name).training = False
        return self

    def forward(self, images: Tensor) -> ModelOutput:
        """Run the model on images (see `normalize`)."""
        return self.forward_normalized(self.normalize(images))

    def forward_normalized(self, images: Tensor) -> ModelOutput:
        """Run the model on images that are already normalised."""
        with nullcontext() if self.int8 is None else self.int8.rounding(self.module):
            return self._forward(images)

    def _forward(self, images: Tensor) -> ModelOutput:
        if self.returns_stages:
            output = cast(StagedNet, self.module).forward_stages(images)
        else:
            # Batches are channels-last in memory, which other modules may not support.
            output = self._forward_with_hooks(images.clone(memory_format=torch.contiguous_format))
        if not isinstance(output.logits, Tensor) or output.logits.dim() != 2:
            raise InputError(
                f"{type(self.module).__name__} gives {shape_text(output.logits)}, not logits "
                "[B, K]; wrap it in a module that returns only logits"
            )
        if self.head is not None:
            return _with_head(output, self.head)
        if self.other_classes is not None:
            return output._replace(logits=output.logits.new_zeros(len(images), self.ignored_for))
        if self.class_order is not None:
            output = output._replace(logits=output.logits[:, self.class_order])
        return output

    def add_head(self, width: int, classes: int) -> None:
        """Put a linear layer on the pooled vector in place of the module's own logits.

        Without a pooled vector it gets the average of the last feature map. It starts with zeros.

        Args:
            width: Length of that vector.
            classes: Number of classes.
        """
        self.head = nn.Linear(width, classes).to(self.mean.device)
        self.head.requires_grad_(False).weight.zero_()
        self.head.bias.zero_()
        self.class_order = self.other_classes = None

    def ignore_logits(self, own: int, classes: int) -> None:
        """Give logits of zero from now on, as the module's own are those of other classes.

        Args:
            own: Number of the module's classes.
            classes: Number of logits.
        """
        self.other_classes, self.ignored_for = own, classes

    @property
    def linear_classifier(self) -> nn.Linear | None:
        """The linear layer from the pooled vector to the logits; None if there is none."""
        if self.head is not None:
            return self.head
        layer = self.module.get_submodule(self.classifier) if self.classifier else None
        if not isinstance(layer, nn.Linear):
            return None
        return layer if self.class_order is None else _reordered(layer, self.class_order)

    @property
    def returns_stages(self) -> bool:
        """Whether the module returns the requested stages itself, without hooks."""
        own = getattr(self.module, "stage_names", ())
        return hasattr(self.module, "forward_stages") and self.stage_names in (None, tuple(own))

    def to_device(self, device: torch.device) -> StagedModel:
        """Move the model to a device; networks of the zoo become channels-last in memory."""
        self.to(device)
        if isinstance(self.module, StagedNet):
            self.module.to(memory_format=torch.channels_last)
        return self

    def keep_hooks(self) -> None:
        """Keep the hooks in the module between forward passes.

        Hooks that come and go are new functions in each forward pass, and torch would compile the
        model anew each time. `dskd.models.feature_hooks.remove_hooks` removes them.
        """
        if not self.returns_stages and self._kept is None:
            self._kept = HookedFeatures()
            install_hooks(self.module, self.stage_names or (), self.classifier, self._kept)

    def _forward_with_hooks(self, images: Tensor) -> ModelOutput:
        if self._kept is not None:
            output = self._collected(self._kept, self.module(images), images)
            self._kept.clear()
            return output
        with feature_hooks(self.module, self.stage_names or (), self.classifier) as features:
            result = self.module(images)
        return self._collected(features, result, images)

    def _collected(self, features: HookedFeatures, output: Any, images: Tensor) -> ModelOutput:
        """The output of a forward pass from the result of the module and the hooked features."""
        # len() would fix the batch size of a module that is exported.
        logits = find_logits(output, images.shape[0], self.module)
        outputs = features.ordered(self.stage_names or ())
        maps = [to_feature_map(o, n, images, *self.map_form) for n, o in outputs.items()]
        last = maps[-1] if maps else None
        return ModelOutput(logits, tuple(maps), to_vector(features.pooled), last)


def _with_head(output: ModelOutput, head: nn.Linear) -> ModelOutput:
    """The output with the logits of a head, see `StagedModel.add_head`."""
    pooled = output.pooled
    if pooled is None or pooled.shape[1] != head.in_features:
        assert output.last is not None, "a head needs features"
        pooled = spatial_mean(output.last)
    return output._replace(logits=head(pooled), pooled=pooled)


def _reordered(layer: nn.Linear, order: Tensor) -> nn.Linear:
    """A copy of a linear layer with its outputs in another order."""
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        for new, old in zip(twin.parameters(), layer.parameters(), strict=True):
            new.copy_(old[order])
    return twin


def _check_submodule(module: nn.Module, name: str) -> None:
    names = [n for n, _ in module.named_modules(remove_duplicate=False) if n]
    if name in names:
        return
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise InputError(
        f"{type(module).__name__} has no submodule {name!r}; {hint}its parts: "
        f"{', '.join(submodule_names(module))}"
    )


def submodule_names(module: nn.Module) -> tuple[str, ...]:
    """The parts of a module that can be stages, for a message, also those in a list of blocks.

    Example:
        >>> blocks = nn.Sequential(*(nn.Identity() for _ in range(6)))
        >>> submodule_names(nn.ModuleDict({"stem": nn.Identity(), "blocks": blocks}))
        ('stem', 'blocks', 'blocks.0 ... blocks.5')
    """
    names: list[str] = []
    for name, child in module.named_children():
        if not isinstance(child, nn.ModuleList):  # it never runs itself
            names.append(name)
        if isinstance(child, nn.ModuleList | nn.Sequential):
            inner = [f"{name}.{part}" for part, _ in child.named_children()]
            if len(inner) > 1 or isinstance(child, nn.ModuleList):
                names += inner if len(inner) < 3 else [f"{inner[0]} ... {inner[-1]}"]
    return tuple(names)


def find_classifier(module: nn.Module) -> str | None:
    """Path of the classifier: that of ``get_classifier()``, else the last linear layer."""
    get_classifier: Callable[[], object] = getattr(module, "get_classifier", lambda: None)
    classifier = get_classifier()
    last_linear: str | None = None
    for name, part in module.named_modules():
        if classifier is not None and part is classifier:
            return name or None
        if isinstance(part, nn.Linear):
            last_linear = name or None
    return last_linear


def normalized(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Images less the mean, divided by the standard deviation.

    Args:
        images: uint8 ``[B, C, H, W]``, or floating point from 0 to 1.
        mean: ``[1, C, 1, 1]``, or one number as ``[1, 1, 1, 1]``.
        std: Of the same shape.

    Example:
        >>> half = torch.full((1, 1, 1, 1), 0.5)
        >>> normalized(torch.tensor([[[[0, 255]]]], dtype=torch.uint8), half, half)
        tensor([[[[-1.,  1.]]]])
    """
    if not images.is_floating_point():
        images = images.to(mean.dtype) / 255
    return (images - mean) / std


def _check_statistics(mean: Sequence[float], std: Sequence[float]) -> None:
    if not mean or len(mean) != len(std):
        raise InputError(
            f"mean has {len(mean)} channels, std has {len(std)}; give one of each for each channel"
        )
    if not all(math.isfinite(value) for value in mean):
        raise InputError(f"mean must be a finite number in every channel, got {list(mean)}")
    if not all(0 < value < math.inf for value in std):
        raise InputError(f"std must be above 0 in every channel, got {list(std)}")
