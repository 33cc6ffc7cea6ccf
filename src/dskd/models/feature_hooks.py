"""Reading the outputs of a module's parts while it runs: hooks that are gone afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from dskd.errors import InputError


class HookedFeatures:
    """What the hooks caught in one forward pass.

    Attributes:
        outputs: Of each stage that ran, in the order of running.
        pooled: The input of the classifier, None where it did not run.
    """

    def __init__(self) -> None:
        self.outputs: dict[str, tuple[Any, int]] = {}
        self.pooled: object = None

    def see_output(self, _module: nn.Module, _inputs: Any, output: Any, *, name: str) -> None:
        """A forward hook of the stage ``name``."""
        self.outputs.pop(name, None)  # a module that runs again counts where it ran last
        self.outputs[name] = (output, _version(output))

    def see_classifier(self, _module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """A forward pre-hook of the classifier."""
        self.pooled = inputs[0] if inputs else None

    def ordered(self, names: Sequence[str]) -> dict[str, Any]:
        """The outputs of the stages, all of which ran, in their order, and were left as given."""
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
    """Hooks on the named submodules while the block runs."""
    seen = HookedFeatures()
    handles = [
        module.get_submodule(name).register_forward_hook(partial(seen.see_output, name=name))
        for name in stages
    ]
    if classifier is not None:
        head = module.get_submodule(classifier)
        handles.append(head.register_forward_pre_hook(seen.see_classifier))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
