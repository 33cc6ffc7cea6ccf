"""What a GPU does, done on a CPU: its optimizer, and recorders of steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dskd.engine.optimizer import on_device
from dskd.settings import OptimizerName

R = TypeVar("R")


def fused(module: nn.Module, name: OptimizerName = "sgd") -> torch.optim.Optimizer:
    """The optimizer as a GPU has it: fused, with its rate in a tensor."""
    learned = [p for p in module.parameters() if p.requires_grad]
    made: torch.optim.Optimizer
    if name == "sgd":
        made = torch.optim.SGD(learned, 0.01, momentum=0.9, weight_decay=1e-3, fused=True)
    else:
        made = torch.optim.AdamW(learned, 0.01, weight_decay=1e-3, fused=True)
    on_device(made)
    return made


class Direct:
    """The eager twin: recorded work is called anew, on the same buffers."""

    def __init__(self) -> None:
        self.recorded = 0

    def run(self, work: Callable[[], R]) -> R:
        return work()

    def record(self, work: Callable[[], R]) -> Callable[[], R]:
        self.recorded += 1
        return work


class Operations(TorchDispatchMode):
    """Notes every operation, what it was given and where its results lie in memory."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.made: set[int] = set()
        self.before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # BatchNorm's operation changes its statistics and does not say so.
        if func._schema.is_mutable or "batch_norm" in func.__name__:
            for tensor in tree_leaves((args, kwargs)):
                if isinstance(tensor, Tensor):
                    self._keep(tensor)
        result = func(*args, **kwargs)
        given = {_memory(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        self.made |= {_memory(t) for t in tree_leaves(result) if isinstance(t, Tensor)} - given
        self.calls.append((func, args, kwargs, result))
        return result

    def _keep(self, tensor: Tensor) -> None:
        if _memory(tensor) not in self.made and _memory(tensor) not in self.before:
            whole = tensor.new_empty(0).set_(tensor.untyped_storage())
            self.before[_memory(tensor)] = whole, whole.clone()

    def undo(self) -> None:
        """Puts back what was changed of tensors from outside."""
        for tensor, value in self.before.values():
            tensor.copy_(value)

    def again(self) -> None:
        """Does the same operations in the same memory; no Python of theirs runs."""
        for func, args, kwargs, result in self.calls:
            found = func(*args, **kwargs)
            for new, old in zip(tree_leaves(found), tree_leaves(result), strict=True):
                if isinstance(old, Tensor) and new.data_ptr() != old.data_ptr():
                    old.copy_(new)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class Holding(Direct):
    """As `Direct`, but every tensor of a call outlives it.

    Autograd adds in place where nobody else holds a tensor, and beside it where somebody does: the
    layout of a sum may then be another one, and its rounding with it. `Replaying` holds them all.
    """

    def run(self, work: Callable[[], R]) -> R:
        with Operations():
            return work()

    def record(self, work: Callable[[], R]) -> Callable[[], R]:
        self.recorded += 1
        return lambda: self.run(work)


class Replaying:
    """As a CUDA graph: the operations of one call, repeated in the memory that it had.

    Whatever a step does beside operations on tensors, happens only while it is recorded.
    """

    def __init__(self) -> None:
        self.recorded = 0

    def run(self, work: Callable[[], R]) -> R:
        with Operations():
            return work()

    def record(self, work: Callable[[], R]) -> Callable[[], R]:
        self.recorded += 1
        random = torch.get_rng_state()
        with Operations() as operations:
            result = work()
        with torch.no_grad():
            operations.undo()
        torch.set_rng_state(random)

        def replay() -> R:
            with torch.no_grad():
                operations.again()
            return result

        return replay
