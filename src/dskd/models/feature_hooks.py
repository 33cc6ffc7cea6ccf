"""Record the outputs of submodules with forward hooks that exist only during a forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from dskd.errors import InputError


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

    def record_stage(self, _module: nn.Module, _inputs: Any, output: Any, *, name: str) -> None:
        """Forward hook of the stage ``name``."""
        self.outputs.pop(name, None)  # a module that runs twice counts where it ran last
        self.outputs[name] = (output, _version(output))

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
            if _version(output) != version:
                raise InputError(
                    f"the output of stage {name!r} is changed in place by a later layer; "
                    "name that later layer as the stage"
                )
        return {name: output for name, (output, _) in self.outputs.items()}


def _version(output: object) -> int:
    """How often a tensor was changed in place; tensors of inference mode do not count it."""
    return output._version if isinstance(output, Tensor) and not output.is_inference() else 0


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
    handles = [
        module.get_submodule(name).register_forward_hook(partial(features.record_stage, name=name))
        for name in stages
    ]
    if classifier is not None:
        head = module.get_submodule(classifier)
        handles.append(head.register_forward_pre_hook(features.record_pooled))
    try:
        yield features
    finally:
        for handle in handles:
            handle.remove()
