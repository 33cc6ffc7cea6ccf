"""Record the outputs of submodules with forward hooks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from dskd.errors import InputError
from dskd.models.feature_maps import main_tensor


class HookedFeatures:
    """The features that hooks recorded in one forward pass.

    Attributes:
        outputs: By stage, in the order in which the stages ran: the output, and how often it had
            been changed in place by then.
        pooled: The input of the classifier; None if the classifier did not run.
    """

    def __init__(self) -> None:
        self.outputs: dict[str, tuple[Any, int]] = {}
        self.pooled: object = None

    def clear(self) -> None:
        """Forgets the features, so that they do not stay in memory."""
        self.outputs, self.pooled = {}, None

    def record_stage(self, _module: nn.Module, _inputs: Any, output: Any, *, name: str) -> None:
        """Forward hook of the stage ``name``."""
        self.outputs.pop(name, None)  # a module that runs twice counts where it ran last
        self.outputs[name] = (output, change_count(output))

    def record_pooled(self, _module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Forward pre-hook of the classifier."""
        self.pooled = inputs[0] if inputs else None

    def ordered(self, names: Sequence[str]) -> dict[str, Any]:
        """The outputs of the stages, by name.

        Args:
            names: The stages, shallow to deep.

        Raises:
            InputError: A stage did not run, the stages ran in another order, or a later layer
                changed an output in place.
        """
        for name in names:
            if name not in self.outputs:
                raise InputError(
                    f"stage {name!r} did not run in the model's forward; name one that does"
                )
        if list(self.outputs) != list(names):
            raise InputError(
                f"stages go from shallow to deep, and {list(names)} do not run in this order; "
                f"name them as {list(self.outputs)}"
            )
        for name, (output, version) in self.outputs.items():
            if change_count(output) != version:
                raise InputError(
                    f"the output of stage {name!r} is changed in place by a later layer; "
                    "name that later layer as the stage"
                )
        return {name: output for name, (output, _) in self.outputs.items()}


def change_count(output: object) -> int:
    """How often the tensor of an output was changed in place; 0 where torch does not count it."""
    if torch.compiler.is_compiling():  # the first forward pass of a run is not compiled
        return 0
    tensor = main_tensor(output)
    return 0 if tensor is None or tensor.is_inference() else tensor._version


@contextmanager
def feature_hooks(
    module: nn.Module, stages: Sequence[str], classifier: str | None
) -> Iterator[HookedFeatures]:
    """Install hooks on submodules within the block.

    Args:
        module: The model.
        stages: Names of the submodules whose outputs are recorded.
        classifier: Name of the submodule whose input is recorded; None for none.
    """
    features = HookedFeatures()
    handles = install_hooks(module, stages, classifier, features)
    try:
        yield features
    finally:
        for handle in handles:
            handle.remove()


def install_hooks(
    module: nn.Module, stages: Sequence[str], classifier: str | None, features: HookedFeatures
) -> list[RemovableHandle]:
    """Install hooks on submodules for good.

    Args:
        module: The model.
        stages: As for `feature_hooks`.
        classifier: As for `feature_hooks`.
        features: Gets the features of every forward pass.

    Returns:
        What removes the hooks.
    """
    handles = [
        module.get_submodule(name).register_forward_hook(partial(features.record_stage, name=name))
        for name in stages
    ]
    if classifier is not None:
        head = module.get_submodule(classifier)
        handles.append(head.register_forward_pre_hook(features.record_pooled))
    return handles


def remove_hooks(module: nn.Module) -> None:
    """Remove the hooks that `install_hooks` left in a module, or in the module it was copied from.

    Args:
        module: Any module. Its other hooks stay.
    """
    for part in module.modules():
        for hooks in (part._forward_hooks, part._forward_pre_hooks):
            for number, hook in list(hooks.items()):
                method = getattr(hook, "func", hook)
                if isinstance(getattr(method, "__self__", None), HookedFeatures):
                    del hooks[number]
