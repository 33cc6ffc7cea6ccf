"""The teacher's outputs kept on disk: whatever was answered once is read in place of asking again.

Two kinds: the logits of every view of an image that the epoch plan can draw, or a bank of all
that a method reads, of a few fixed views. Which answers a store holds follows from a SHA-256 over
all that they depend on, so that another teacher, other images or other settings have a store of
their own. And the teacher's outputs to a few images are compared with the kept ones whenever a
store is opened: that also tells a model whose code was changed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dskd.data.download import cache_folder
from dskd.data.epoch_plan import count_views, draw_views
from dskd.data.loader import Batch, Loader
from dskd.errors import InputError, NonFiniteError
from dskd.methods.contracts import TeacherNeeds
from dskd.models.output import ModelOutput
from dskd.runtime.device import autocast
from dskd.runtime.memory import readable
from dskd.runtime.nonfinite import facts_of
from dskd.settings import Precision
from dskd.teacher.frozen import FrozenTeacher
from dskd.teacher.outputs import CacheCounts, TeacherForward, TeacherOutputs
from dskd.teacher.record_file import Indices, Store, Words

log = logging.getLogger("dskd")

CacheKind = Literal["logits", "features"]
VERSION = 1
"""Raise when the same facts come to stand for other records."""
PROBED = 16
"""Images whose answers are compared when a store is opened."""
FEWEST = 16
"""Images that the teacher is asked for at once, at least: for fewer, float32 may be summed in
another order, and an answer would depend on which others are asked for with it."""
_TOLERANCE = {torch.bfloat16: 0.1}
_TOLERANCE_ELSE = 0.01
"""Largest difference that counts as rounding, relative to the largest value of a part."""


@dataclass(frozen=True)
class Part:
    """One tensor of an answer, as a record holds it.

    Attributes:
        shape: For one image, as a model gives it: ``[K]``, ``[D]`` or ``[C, H, W]``.
        given: The type in which the teacher gives it.
        start: Its first word.
    """

    shape: tuple[int, ...]
    given: torch.dtype
    start: int

    @property
    def kept(self) -> torch.dtype:
        """The type of two bytes that it is kept in: bfloat16 as it is, anything else as float16."""
        return torch.bfloat16 if self.given == torch.bfloat16 else torch.float16

    @property
    def words(self) -> int:
        """How many it takes."""
        return int(np.prod(self.shape))


class Layout:
    """How an answer's tensors lie in a record: one after the other, maps with the channels last.

    Args:
        output: An answer of the teacher's.
        needs: What of it is kept.
    """

    def __init__(self, output: ModelOutput, needs: TeacherNeeds) -> None:
        self.parts: dict[str, Part] = {}
        self.words = 0
        for name, tensor in _chosen(output, needs).items():
            part = Part(tuple(tensor.shape[1:]), tensor.dtype, self.words)
            self.parts[name] = part
            self.words += part.words
        self.needs = needs | TeacherNeeds()  # in order

    def facts(self) -> dict[str, Any]:
        """What is kept of an image, for a person."""
        return {
            name: {"shape": list(part.shape), "type": str(part.kept).removeprefix("torch.")}
            for name, part in self.parts.items()
        }

    def pack(self, output: ModelOutput, words: int) -> Words:
        """Answers as records of so many words, int16 ``[B, words]``.

        Raises:
            NotFinite: A number is not finite, or too large for the type that it is kept in.
        """
        packed = np.zeros((len(output.logits), words), np.int16)
        for name, tensor in _chosen(output, self.needs).items():
            part = self.parts[name]
            kept = tensor.to(part.kept)
            if not kept.isfinite().all():
                raise NonFiniteError(_why_not_kept(name, tensor, part))
            flat = (kept.permute(0, 2, 3, 1) if kept.dim() == 4 else kept).flatten(1)
            packed[:, part.start : part.start + part.words] = flat.view(torch.int16).cpu().numpy()
        return packed

    def unpack(self, words: Words, device: torch.device) -> ModelOutput:
        """Records as the answers that they hold, in the types in which the teacher gives them."""
        records = torch.from_numpy(words)
        if device.type == "cuda":
            records = records.pin_memory()  # else the host would wait for the GPU
        records = records.to(device, non_blocking=True)
        found: dict[str, Tensor] = {}
        for name, part in self.parts.items():
            flat = records[:, part.start : part.start + part.words].view(part.kept)
            tensor = flat.to(part.given).contiguous()
            if len(part.shape) == 3:
                channels, height, width = part.shape
                tensor = tensor.view(-1, height, width, channels).permute(0, 3, 1, 2)
            found[name] = tensor
        nothing = records.new_empty(0)  # stages that nobody reads keep their places
        stages = [found.get(_stage(i), nothing) for i in range(max((-1, *self.needs.stages)) + 1)]
        logits = found.get("logits", nothing)
        return ModelOutput(logits, tuple(stages), found.get("pooled"), found.get("last"))


def _stage(index: int) -> str:
    return f"stage {index + 1}"


def _chosen(output: ModelOutput, needs: TeacherNeeds) -> dict[str, Tensor]:
    """What is needed of an answer, by name."""
    chosen: dict[str, Tensor | None] = {"logits": output.logits} if needs.logits else {}
    chosen |= {_stage(index): output.stages[index] for index in needs.stages}
    if needs.pooled:
        chosen["pooled"] = output.pooled
    if needs.last:
        chosen["last"] = output.last
    return {name: tensor for name, tensor in chosen.items() if tensor is not None}


def _why_not_kept(name: str, tensor: Tensor, part: Part) -> str:
    if not tensor.isfinite().all():
        return f"the teacher's outputs ({name}) are not finite; give another teacher"
    return (
        f"the teacher's outputs ({name}) reach {tensor.abs().max().item():.3g}, more than float16 "
        "holds; take train.precision=bfloat16 or teacher.cache=none"
    )


def check_cacheable(keep: CacheKind, needs: TeacherNeeds, method: str) -> None:
    """Refuses a method that reads what is not kept.

    Args:
        keep: The kind of store.
        needs: What the method reads.
        method: Its name.

    Raises:
        InputError: It reads more than that.
    """
    if needs.rotated:
        raise InputError(
            f"teacher.cache={keep}: the method {method} reads the teacher's outputs to turned "
            "images, which are not kept; take teacher.cache=none"
        )
    beyond = [_stage(index) for index in needs.stages]
    beyond += [name for name in ("pooled", "last") if getattr(needs, name)]
    if keep == "logits" and beyond:
        raise InputError(
            f"teacher.cache=logits: the method {method} reads more of the teacher's outputs "
            f"({', '.join(beyond)}); take teacher.cache=features"
        )


class CachedOutputs(TeacherOutputs):
    """A teacher that is asked for what is not in a store yet.

    An answer is rounded to two bytes a number when it is kept, and what a method gets is always
    what is kept, also where the teacher was just asked. So a run is the same to the byte whether
    it finds the answers or not.

    Args:
        teacher: The frozen teacher.
        split: The training split, on the teacher's device.
        needs: What is kept of an answer.
        keep: ``logits`` of all views, or a ``views_of_each`` of some.
        views: Of an image in the bank, at most.
        padding: Of the epoch plan.
        flip: Of the epoch plan.
        precision: Of the teacher's forward pass.
        facts: What else tells the teacher from others: name, options, whether it is folded.
        folder: Where stores lie; None for the user's cache folder.

    Attributes:
        store: The store; nothing is written before `open`.
    """

    def __init__(
        self,
        teacher: FrozenTeacher,
        split: Loader,
        needs: TeacherNeeds,
        *,
        keep: CacheKind,
        views: int,
        padding: int,
        flip: bool,
        precision: Precision,
        facts: Mapping[str, Any],
        folder: Path | None,
    ) -> None:
        super().__init__(teacher)
        self.cache_counts = CacheCounts()
        self.views = views = cached_views(keep, views, padding, flip)
        self.all_views = count_views(padding, flip)
        self.every = 1 if flip else 2  # without flips, the names of views are even
        self.views_of_each = (
            draw_views(len(split), padding, flip, views) if keep == "features" else None
        )
        self.images, self.precision = split.probe(PROBED), precision
        self.probe = self._probe(teacher)
        self.layout = Layout(self.probe, needs)
        parts = {
            "version": VERSION,
            "teacher": {**facts, **_facts_of(teacher)},
            "precision": precision,
            "images": split.identity(),
            "padding": padding,
            "flip": flip,
            "cache": keep,
            "views": views,
            "parts": self.layout.facts(),
        }
        key = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
        first = len(split) * views
        self.probed = first + np.arange(len(self.images))
        self.store = Store(
            (folder or cache_folder(None) / "answers") / key[:32],
            {"sha256": key, **parts},
            first + len(self.images),
            self.layout.words,
        )

    def _probe(self, teacher: FrozenTeacher) -> ModelOutput:
        with autocast(self.images.device, self.precision):
            return self._asked(teacher, self.images)

    def check(self) -> None:
        """Refuses what cannot be kept or read; writes nothing.

        Raises:
            InputError: The store is damaged, not this teacher's, or too large for the disk, or the
                teacher's outputs cannot be kept.
        """
        self._packed_probe()
        self.store.require_room()
        if self.store.path.is_dir():
            self.store.load()
            self._compare()

    def open(self) -> None:
        """Opens the store and says how large it is.

        Raises:
            InputError: As `check`, or the store cannot be made.
        """
        self.check()
        self.store.open()
        log.info(
            "teacher outputs cached in %s: %s for %d of %d views an image, %.1f %% there already",
            self.store.path,
            readable(self.store.size),
            self.views,
            self.all_views,
            100 * self.store.filled(),
        )
        self.store.add(self.probed, self._packed_probe())

    def _packed_probe(self) -> Words:
        try:
            return self.layout.pack(self.probe, self.store.words)
        except NonFiniteError as error:
            raise InputError(str(error)) from error

    def _compare(self) -> None:
        """Refuses a store whose answers differ from the teacher's by more than rounding."""
        words, there = self.store.read(self.probed)
        rows = torch.from_numpy(there).to(self.images.device)
        kept = _chosen(self.layout.unpack(words, rows.device), self.layout.needs)
        for name, tensor in _chosen(self.probe, self.layout.needs).items():
            largest = tensor.abs().max() * _TOLERANCE.get(tensor.dtype, _TOLERANCE_ELSE)
            if ((tensor - kept[name])[rows].abs() > largest).any():
                raise InputError(
                    f"the answers in {self.store.path} are not this teacher's ({name} differ), "
                    "though its weights are the same: its code was changed; remove that folder"
                )

    def ask(
        self, teacher_forward: TeacherForward, batch: Batch, needs: TeacherNeeds
    ) -> tuple[ModelOutput, int]:
        """The answers as they are kept, once those that are not there were asked for."""
        assert needs | self.layout.needs == self.layout.needs, "these answers are not kept"
        numbers = self._numbers(batch)
        words, there = self.store.read(numbers)
        if not there.all():
            missing = np.flatnonzero(~there)
            images = batch.images
            if len(missing) < len(numbers):
                rows = torch.from_numpy(missing).to(images.device)
                images = images[rows].contiguous(memory_format=torch.channels_last)
            teacher_output = self._packed(self._asked(teacher_forward, images), batch)
            self.store.add(numbers[missing], teacher_output)
            words[missing], written = self.store.read(numbers[missing])
            if not written.all():
                problem = "what was written is read otherwise"
                raise OSError(errno.EIO, problem, str(self.store.path))
        return self.layout.unpack(words, batch.images.device), int(there.sum())

    def _packed(self, teacher_output: ModelOutput, batch: Batch) -> Words:
        try:
            return self.layout.pack(teacher_output, self.store.words)
        except NonFiniteError as error:
            raise NonFiniteError(str(error), facts_of(batch, ["teacher"])) from error

    def _numbers(self, batch: Batch) -> Indices:
        """The record of each image of a batch."""
        rows, views = batch.cpu_keys.unbind(1)
        if self.views_of_each is None:
            slots = views // self.every
        else:
            same = self.views_of_each[rows] == views[:, None]
            assert same.any(1).all(), "the plan draws from another bank"
            slots = same.long().argmax(1)
        numbers: Indices = (rows * self.views + slots).numpy()
        return numbers

    @staticmethod
    def _asked(teacher_forward: TeacherForward, images: Tensor) -> ModelOutput:
        """The teacher's outputs to a few images, asked for with copies of them where too few."""
        count = len(images)
        if count >= FEWEST:
            return teacher_forward(images)
        rows = torch.arange(FEWEST, device=images.device) % count
        teacher_output = teacher_forward(images[rows].contiguous(memory_format=torch.channels_last))
        logits, stages, pooled, last = teacher_output
        return ModelOutput(
            logits[:count],
            tuple(stage[:count] for stage in stages),
            None if pooled is None else pooled[:count],
            None if last is None else last[:count],
        )


def cached_views(keep: CacheKind, views: int, padding: int, flip: bool) -> int:
    """Views that are kept of an image: all of them, or at most so many in a bank."""
    total = count_views(padding, flip)
    return min(views, total) if keep == "features" else total


def _facts_of(teacher: FrozenTeacher) -> dict[str, Any]:
    """What a teacher's outputs depend on."""
    model = teacher.model
    structure = hashlib.sha256(repr(model.module).encode()).hexdigest()
    return {
        "stages": model.stage_names,
        "mean": model.mean.flatten().tolist(),
        "std": model.std.flatten().tolist(),
        "weights": teacher.fingerprint(),
        "structure": structure,
    }
