"""A teacher that answers several batches at once, before the student comes to them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from dskd.data.loader import Batch
from dskd.engine.cuda_graph import Recorder, each_tensor, narrowed
from dskd.methods.contracts import TeacherNeeds
from dskd.models.output import ModelOutput
from dskd.runtime.device import autocast
from dskd.settings import Precision
from dskd.teacher.outputs import ForwardedOutputs, Planned, TeacherOutputs


@dataclass(frozen=True)
class _Part:
    """A batch's share of a group's answer.

    Attributes:
        answer: The group's, of ``turns`` turns of all images, one turn after the other.
        turns: 1, or 4 where images are rotated.
        start: The batch's first image in the group.
        stop: Behind its last.
        done: When a GPU has computed it.
    """

    teacher_output: ModelOutput
    turns: int
    start: int
    stop: int
    done: torch.cuda.Event | None

    def taken(self) -> ModelOutput:
        """The batch's own answer."""
        if self.done is not None:
            torch.cuda.current_stream(self.teacher_output.logits.device).wait_event(self.done)
        own: ModelOutput = each_tensor(self.teacher_output, self._rows)
        return own

    def _rows(self, tensor: Tensor) -> Tensor:
        if not len(tensor):  # a stage that is not needed
            return tensor
        turned = tensor.view(self.turns, -1, *tensor.shape[1:])[:, self.start : self.stop]
        return torch.cat(tuple(turned)) if self.turns > 1 else turned[0]


class Ahead(ForwardedOutputs):
    """Answers to a group of batches, got at once.

    A GPU is filled better by more images, and answers a group while the student still learns from
    the one before, on a stream of its own. The answers are those to single batches but for
    rounding: a GPU and a CPU may sum in another order for another number of images. Groups begin
    at whole multiples of their size in every epoch, also after a stop, so that a run that goes on
    gets the same answers to the byte. What was answered ahead of a stop is then asked for again,
    and counts again in `watch` and `cache_counts`.

    Args:
        source: Who is asked.
        together: Batches of a group.
        precision: Of the teacher's forward pass.
    """

    def __init__(self, source: TeacherOutputs, together: int, precision: Precision) -> None:
        super().__init__(source)
        self.together, self.precision = together, precision
        self._parts: dict[tuple[int, int], _Part] = {}
        self._stream: torch.cuda.Stream | None = None

    def record(self, size: int, recorder: Recorder) -> None:
        """See `TeacherOutputs.record`; ``size`` is that of a single batch."""
        super().record(self.together * size, recorder)

    def following(self, planned: Planned, step: int, needs: TeacherNeeds) -> Iterator[Batch]:
        """The epoch's batches from a step on; the answers to each are under way when it comes."""
        if self.teacher is None or not needs:
            yield from planned(step)
            return
        batches = planned(step - step % self.together)
        groups = iter(lambda: list(islice(batches, self.together)), [])
        self._parts = {}
        group = self._begun(next(groups, []), needs)
        while group:
            upcoming = self._begun(next(groups, []), needs)
            yield from (batch for batch in group if batch.step >= step)
            for batch in group:
                del self._parts[batch.epoch, batch.step]
            group = upcoming

    def __call__(self, batch: Batch, needs: TeacherNeeds) -> ModelOutput | None:
        """What was answered ahead; a batch that does not follow from others is asked for alone."""
        part = self._parts.get((batch.epoch, batch.step))
        return part.taken() if part is not None else super().__call__(batch, needs)

    def _begun(self, group: list[Batch], needs: TeacherNeeds) -> list[Batch]:
        """Has the group answered, and gives it back."""
        if not group:
            return group
        device = group[0].images.device
        with self._beside(device):
            with autocast(device, self.precision):
                teacher_output = narrowed(super().__call__(_joined(group), needs), needs)
            # Copied: a recorded answer is overwritten by the next.
            teacher_output = each_tensor(teacher_output, Tensor.clone)
            done = None
            if device.type == "cuda":
                done = torch.cuda.current_stream(device).record_event()
        turns, start = 4 if needs.rotated else 1, 0
        for batch in group:
            stop = start + len(batch.labels)
            self._parts[batch.epoch, batch.step] = _Part(teacher_output, turns, start, stop, done)
            start = stop
        return group

    @contextmanager
    def _beside(self, device: torch.device) -> Iterator[None]:
        """On a GPU, work beside the student's, behind all that was given to the GPU so far.

        So it finds its images whole, and memory that it takes again is no longer read.
        """
        if device.type != "cuda":
            yield
            return
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self._stream):
            yield


def _joined(group: list[Batch]) -> Batch:
    """The images of all as those of one batch, that of the first one's step."""
    tensors = [name for name, value in vars(group[0]).items() if isinstance(value, Tensor)]
    joined: dict[str, Any] = {
        name: torch.cat([getattr(batch, name) for batch in group]) for name in tensors
    }
    return replace(group[0], **joined)
