"""Steps recorded once and replayed: one launch in place of several hundred, on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from dskd.data.loader import Batch
from dskd.methods.contracts import StepOutput, TeacherNeeds
from dskd.models.output import ModelOutput

R = TypeVar("R")
WARM_UP = 3
"""Calls that run as they are before one is recorded: libraries choose kernels and take memory."""


class Recorder(Protocol):
    """How work is recorded."""

    def run(self, work: Callable[[], R]) -> R:
        """Does work that is not recorded, where recorded work is done too."""
        ...

    def record(self, work: Callable[[], R]) -> Callable[[], R]:
        """Records work, without doing it; calling what comes back does it and gives its result.

        The result is the same tensors every time, with new values.
        """
        ...


class CudaRecorder:
    """Records CUDA graphs, on a stream of its own, as torch's notes on CUDA graphs ask for.

    Args:
        device: The GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def run(self, work: Callable[[], R]) -> R:
        """See `Recorder`."""
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = work()
        current.wait_stream(self._stream)
        # Work that comes from another stream may not take this memory before it was read.
        for tensor in _tensors(result):
            tensor.record_stream(current)
        return result

    def record(self, work: Callable[[], R]) -> Callable[[], R]:
        """See `Recorder`."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            result = work()

        def replay() -> R:
            graph.replay()
            return result

        return replay


class Recorded(Generic[R]):
    """A function of tensors that is recorded once and replayed, with the same results.

    What it is given is copied to the same place in memory every time, where the recorded work finds
    it. Everything else that it depends on must keep its place too: it may change tensors in place
    (weights, an optimizer's state), and no Python value that changes may play a part. The one
    exception is a batch's ``epoch`` and ``step``: where they are read, and have changed, it is
    recorded anew.

    The first calls, and those of another number of images, run as they are. Those are calls like
    all others, so that nothing has to be undone after them.

    Args:
        function: Takes tensors, a `Batch`, a `ModelOutput`.
        size: Images in the first tensor of the calls that are replayed.
        recorder: How they are recorded.

    Example:
        >>> class Direct:
        ...     def run(self, work):
        ...         return work()
        ...
        ...     def record(self, work):
        ...         return work
        >>> double = Recorded(lambda values: 2 * values, 3, Direct())
        >>> [double(torch.arange(3) + call).tolist() for call in range(WARM_UP + 1)][-1]
        [6, 8, 10]
    """

    def __init__(self, function: Callable[..., R], size: int, recorder: Recorder) -> None:
        self._function, self._size, self._recorder = function, size, recorder
        self._left = WARM_UP
        self._inputs: list[Tensor] = []
        self._read: dict[str, int] = {}
        self._replay: Callable[[], R] | None = None

    def __call__(self, *args: Any) -> R:
        """What the function gives; tensors that the next call overwrites."""
        given = _tensors(args)
        fits = len(given[0]) == self._size
        if not fits or self._left:
            self._left -= fits
            return self._recorder.run(partial(self._function, *args))
        if self._replay is None or self._read != _numbers(args, self._read):
            self._replay = self._record(*args)
        for place, tensor in zip(self._inputs, given, strict=True):
            place.copy_(tensor)
        return self._replay()

    def _record(self, *args: Any) -> Callable[[], R]:
        self._replay = None  # an older recording gives back its memory first
        self._inputs = [tensor.clone() for tensor in _tensors(args)]
        places = iter(self._inputs)
        self._read = {}
        kept = each_tensor(args, lambda _: next(places), lambda batch: _Noting(batch, self._read))
        return self._recorder.record(partial(self._function, *kept))


class _Noting(Batch):
    """A batch that notes which of its numbers were read."""

    _NUMBERS = ("epoch", "step")

    def __init__(self, batch: Batch, read: dict[str, int]) -> None:
        super().__init__(**vars(batch))
        object.__setattr__(self, "_read", read)

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name in _Noting._NUMBERS:
            super().__getattribute__("_read")[name] = value
        return value


def each_tensor(
    value: Any,
    change: Callable[[Tensor], Tensor],
    wrap: Callable[[Batch], Batch] = lambda batch: batch,
) -> Any:
    """The same structure with every tensor changed, and every batch wrapped.

    Args:
        value: A tensor, a `Batch`, a `ModelOutput`, or a tuple of such; all else stays as it is.
        change: From a tensor to another.
        wrap: From a batch to another.
    """
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Batch):
        parts = {name: each_tensor(part, change) for name, part in vars(value).items()}
        return wrap(replace(value, **parts))
    if isinstance(value, ModelOutput):
        return ModelOutput(*(each_tensor(part, change) for part in value))
    if isinstance(value, tuple):
        return tuple(each_tensor(part, change, wrap) for part in value)
    return value


def _tensors(value: Any) -> list[Tensor]:
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    each_tensor(value, note)
    return found


def _numbers(args: tuple[Any, ...], names: dict[str, int]) -> dict[str, int]:
    batches = [value for value in args if isinstance(value, Batch)]
    return {name: getattr(batch, name) for batch in batches for name in names}


@contextmanager
def buffers_in_place(module: nn.Module) -> Iterator[None]:
    """Buffers that the block replaces by others are changed in place instead.

    A recording goes on in the memory that it was made with.
    """
    before = [(part, n, buffer) for part in module.modules() for n, buffer in part._buffers.items()]
    yield
    with torch.no_grad():
        for part, name, buffer in before:
            now = part._buffers[name]
            if buffer is not None and now is not None and now is not buffer:
                part._buffers[name] = buffer.copy_(now)


def capturable(optimizer: torch.optim.Optimizer) -> None:
    """Tells torch's AdamW whether its step is being recorded, which it asks to be told."""
    for group in optimizer.param_groups:
        if "capturable" in group:
            group["capturable"] = (
                torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
            )


def detached(output: StepOutput) -> StepOutput:
    """The same values without their history, which would keep a step's graph of gradients."""
    losses = {name: loss.detach() for name, loss in output.losses.items()}
    return StepOutput(losses, output.logits.detach(), output.metrics)


def narrowed(teacher_output: ModelOutput | None, needs: TeacherNeeds) -> ModelOutput | None:
    """Only what is needed of an answer; stages that are not keep their places, empty."""
    if teacher_output is None:
        return None
    nothing = teacher_output.logits.new_empty(0)
    stages = (s if i in needs.stages else nothing for i, s in enumerate(teacher_output.stages))
    pooled = teacher_output.pooled if needs.pooled else None
    return ModelOutput(
        teacher_output.logits, tuple(stages), pooled, teacher_output.last if needs.last else None
    )
