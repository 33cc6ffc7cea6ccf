"""Any module seen through its stages: wrapped, never edited."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from dskd.errors import InputError
from dskd.models.feature_hooks import feature_hooks
from dskd.models.feature_maps import as_map, as_vector, kind_of
from dskd.models.output import ModelOutput
from dskd.models.staged_net import StagedNet


class StagedModel(nn.Module):
    """A model with its own normalisation, whose one forward gives logits, stages and pooled vector.

    The model itself stays what it was: `module` is the object that was given, and the hooks that
    read its stages are there only while it runs.

    Args:
        module: Any classifier from normalised images to logits. A model with a method
            ``forward_stages`` (the zoo) gives its own stages where none are named.
        stages: Names of submodules whose outputs are the stages, shallow to deep, as in
            ``["layer1", "layer2"]``. A map is taken as it is; a token sequence ``[B, N, D]``
            becomes its grid ``[B, D, H, W]`` without the prefix tokens (see `tokens_to_grid`; a
            model that says ``num_prefix_tokens``, as timm's do, is believed); a map with the
            channels last, as Swin's, gets them first.
        mean: Of each channel, on the scale from 0 to 1, subtracted from the images.
        std: Of each channel, on the scale from 0 to 1, that the images are divided by.
        classifier: Name of the submodule whose input is the pooled vector; by default the model's
            own ``get_classifier()`` (timm) or the last linear layer.

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
        self.stage_names = tuple(stages) if stages is not None else None
        for name in [*(stages or ()), *([classifier] if classifier else [])]:
            _check_submodule(module, name)
        if stages is not None and len({module.get_submodule(n) for n in stages}) < len(stages):
            raise InputError(f"a stage is named twice in {list(stages)}; name each once")
        self.classifier = classifier or _find_classifier(module)
        self.prefix_tokens = _find_prefix_tokens(module)
        # Not part of any state_dict: the student's file has the student's own keys.
        for key, values in (("mean", mean), ("std", std)):
            statistic = torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)
            self.register_buffer(key, statistic, persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def normalize(self, images: Tensor) -> Tensor:
        """Images as the module expects them.

        Args:
            images: uint8 ``[B, C, H, W]``, or floating point from 0 to 1.

        Raises:
            InputError: They are not images of as many channels as mean and std have.
        """
        channels = self.mean.shape[1]
        if images.dim() != 4 or images.shape[1] != channels:  # one channel would be broadcast
            raise InputError(
                f"images [B, {channels}, H, W] are needed, as mean and std have {channels} "
                f"channels, got {list(images.shape)}"
            )
        if not images.is_floating_point():
            images = images.to(self.mean.dtype) / 255
        return (images - self.mean) / self.std

    def forward(self, images: Tensor) -> ModelOutput:
        """Logits, stages and pooled vector of a batch of images (see `normalize`)."""
        return self.observe(self.normalize(images))

    def observe(self, images: Tensor) -> ModelOutput:
        """As `forward`, of images that are normalised already."""
        if self.native:
            output = cast(StagedNet, self.module).forward_stages(images)
        else:
            # Batches come with their channels last, which a foreign module may not expect.
            output = self._watched(images.clone(memory_format=torch.contiguous_format))
        if not isinstance(output.logits, Tensor) or output.logits.dim() != 2:
            raise InputError(
                f"{type(self.module).__name__} gives {kind_of(output.logits)}, not logits [B, K]; "
                "wrap it in a module that gives them alone"
            )
        return output

    @property
    def linear(self) -> nn.Linear | None:
        """The linear layer that makes logits of the pooled vector, where there is one."""
        layer = self.module.get_submodule(self.classifier) if self.classifier else None
        return layer if isinstance(layer, nn.Linear) else None

    @property
    def native(self) -> bool:
        """Whether the module itself gives the stages that are asked for."""
        own = getattr(self.module, "stage_names", ())
        return hasattr(self.module, "forward_stages") and self.stage_names in (None, tuple(own))

    def place(self, device: torch.device) -> StagedModel:
        """Moves the model to a device; the zoo's weights are laid out as convolutions like them."""
        self.to(device)
        if isinstance(self.module, StagedNet):
            self.module.to(memory_format=torch.channels_last)
        return self

    def _watched(self, images: Tensor) -> ModelOutput:
        """One forward of a model that knows nothing of stages."""
        names = self.stage_names or ()
        with feature_hooks(self.module, names, self.classifier) as seen:
            logits = self.module(images)
        outputs = seen.ordered(names)
        maps = [as_map(o, n, images, self.prefix_tokens) for n, o in outputs.items()]
        last = maps[-1] if maps else None
        return ModelOutput(logits, tuple(maps), as_vector(seen.pooled), last)


def _check_submodule(module: nn.Module, name: str) -> None:
    names = [n for n, _ in module.named_modules(remove_duplicate=False) if n]
    if name in names:
        return
    top = [n for n, _ in module.named_children()]
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise InputError(
        f"{type(module).__name__} has no submodule {name!r}; {hint}its parts: {', '.join(top)}"
    )


def _find_classifier(module: nn.Module) -> str | None:
    get_own: Callable[[], object] = getattr(module, "get_classifier", lambda: None)
    own = get_own()
    linear: str | None = None
    for name, part in module.named_modules():
        if own is not None and part is own:
            return name or None
        if isinstance(part, nn.Linear):
            linear = name or None
    return linear


def _find_prefix_tokens(module: nn.Module) -> int | None:
    """What a vision transformer says of itself, also where another module wraps it."""
    found = (getattr(part, "num_prefix_tokens", None) for part in module.modules())
    return next((number for number in found if isinstance(number, int)), None)


def _check_statistics(mean: Sequence[float], std: Sequence[float]) -> None:
    if not mean or len(mean) != len(std):
        raise InputError(
            f"mean has {len(mean)} channels, std has {len(std)}; give one of each a channel"
        )
    if not all(math.isfinite(value) for value in mean):
        raise InputError(f"mean must be a finite number in every channel, got {list(mean)}")
    if not all(0 < value < math.inf for value in std):
        raise InputError(f"std must be above 0 in every channel, got {list(std)}")
