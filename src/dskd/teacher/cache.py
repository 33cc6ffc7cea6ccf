"""Teacher outputs cached on disk: what was computed once is read from then on.

``logits`` caches the logits of every view of an image that the epoch plan can draw. ``features``
caches all that the method reads, for a few fixed views of each image. A SHA-256 over everything
that the outputs depend on names the folder, so another teacher, other images or other settings
have a folder of their own. Each tensor has its own records, so methods that read different outputs
share what both read. When a folder is opened, the live teacher's outputs for a few images are
compared with the cached ones. That also notices a model whose code was changed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
from collections.abc import Mapping
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
from dskd.runtime.nonfinite import step_facts
from dskd.settings import Precision
from dskd.teacher.cache_layout import OutputRecords, selected_outputs, stage_name
from dskd.teacher.frozen import FrozenTeacher
from dskd.teacher.outputs import CacheCounts, TeacherForward, TeacherOutputs
from dskd.teacher.record_file import Indices, Words

log = logging.getLogger("dskd")

CacheKind = Literal["logits", "features"]
VERSION = 4
"""Raise it when the same facts come to stand for other records."""
COMPARED = 16
"""Images whose outputs are compared when a cache is opened."""
SMALLEST_BATCH = 16
"""Smallest batch for the teacher's forward pass. A smaller batch may sum float32 in another order,
and then an output would depend on which others are computed with it."""
_TOLERANCE = {torch.bfloat16: 0.1}
_DEFAULT_TOLERANCE = 0.01
"""Largest difference that counts as rounding, relative to the largest value of a part."""


def check_cacheable(kind: CacheKind, needs: TeacherNeeds, method: str) -> None:
    """Refuses a method that reads more than is cached.

    Args:
        kind: What is cached.
        needs: What the method reads.
        method: Its name.

    Raises:
        InputError: It reads more than that.
    """
    if needs.rotated:
        raise InputError(
            f"teacher.cache={kind}: the method {method} reads the teacher's outputs for rotated "
            "images, which are not cached; take teacher.cache=none"
        )
    beyond = [stage_name(index) for index in needs.stages]
    beyond += [name for name in ("pooled", "last") if getattr(needs, name)]
    if kind == "logits" and beyond:
        raise InputError(
            f"teacher.cache=logits: the method {method} reads more of the teacher's outputs "
            f"({', '.join(beyond)}); take teacher.cache=features"
        )


def cached_views(kind: CacheKind, views: int, padding: int, flip: bool) -> int:
    """How many views of an image are cached: all for ``logits``, ``views`` at most otherwise."""
    total = count_views(padding, flip)
    return min(views, total) if kind == "features" else total


def views_of_each(
    kind: CacheKind, loader: Loader, views: int, padding: int, flip: bool
) -> Tensor | None:
    """The views that each image of a run is limited to, the same for all methods.

    Args:
        kind: ``logits`` of all views, or ``features`` of some.
        loader: Of the training split.
        views: Of an image, at most.
        padding: Of the epoch plan.
        flip: Of the epoch plan.

    Returns:
        int64, ``[N, views]``; None for all views.
    """
    if kind == "logits":
        return None
    labelled = loader.labelled_samples
    views = cached_views(kind, views, padding, flip)
    return draw_views(labelled, padding, flip, views, len(loader) - labelled)


class CachedOutputs(TeacherOutputs):
    """Teacher outputs from disk; the teacher computes only what is not there yet.

    Outputs are rounded to two bytes a number when they are stored. The method always gets the
    stored values, also right after the teacher computed them. So a run is the same to the byte
    whether it finds the outputs or not.

    Args:
        teacher: The frozen teacher.
        loader: Of the training split, on the teacher's device.
        needs: Which outputs are cached.
        kind: ``logits`` of all views, or ``features`` of some.
        views: Of an image, at most, for ``features``.
        padding: Of the epoch plan.
        flip: Of the epoch plan.
        precision: Of the teacher's forward pass.
        facts: What else tells this teacher from others: name, options, whether BatchNorm is fused.
        folder: Where caches lie; None for the user's cache folder.

    Attributes:
        records: The records on disk. Nothing is written before `open`.
        views_of_each: For ``features``, the views that the images are limited to.
    """

    def __init__(
        self,
        teacher: FrozenTeacher,
        loader: Loader,
        needs: TeacherNeeds,
        *,
        kind: CacheKind,
        views: int,
        padding: int,
        flip: bool,
        precision: Precision,
        facts: Mapping[str, Any],
        folder: Path | None,
    ) -> None:
        super().__init__(teacher)
        self.cache_counts = CacheCounts()
        self.views = views = cached_views(kind, views, padding, flip)
        self.all_views = count_views(padding, flip)
        self.view_step = 1 if flip else 2  # without flips, view numbers are even
        self.views_of_each = views_of_each(kind, loader, views, padding, flip)
        self.compared_images, self.precision = loader.probe(COMPARED), precision
        self._teacher = teacher
        self.live = self._live_outputs(self.compared_images)
        parts = {
            "version": VERSION,
            "teacher": {**facts, **_teacher_facts(teacher)},
            "precision": precision,
            "images": loader.identity(),
            "padding": padding,
            "flip": flip,
            "kind": kind,
            "views": views,
        }
        key = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
        first = len(loader) * views
        self.compared = first + np.arange(len(self.compared_images))
        self.records = OutputRecords(
            (folder or cache_folder(None) / "teacher-outputs") / key[:32],
            {"sha256": key, **parts},
            first + len(self.compared_images),
            self.live,
            needs,
            precision,
        )

    def _live_outputs(self, images: Tensor) -> ModelOutput:
        with autocast(images.device, self.precision):
            return _in_a_full_batch(self._teacher, images)

    def check(self) -> None:
        """Refuses a cache that cannot be used; writes nothing.

        Raises:
            InputError: It is damaged, belongs to another teacher, does not fit on the disk or
                cannot be written to though it lacks outputs; or the teacher's outputs cannot be
                stored, or depend on the images that are computed with them.
        """
        self._packed_live()
        self._require_independent()
        self.records.load()
        self.records.require_room()
        self.records.require_writable()
        self._compare()

    def open(self) -> None:
        """Opens the cache and reports its size.

        Raises:
            InputError: As `check`, or its folder cannot be made.
        """
        self.check()
        self.records.open()
        log.info(
            "teacher outputs cached in %s: %s for %d of %d views an image, %.1f %% already there",
            self.records.path,
            readable(self.records.size),
            self.views,
            self.all_views,
            100 * self.records.filled(),
        )
        self.records.add(self.compared, self._packed_live())

    def _packed_live(self) -> dict[str, Words]:
        try:
            return self.records.pack(self.live)
        except NonFiniteError as error:
            raise InputError(str(error)) from error

    def _require_independent(self) -> None:
        """Refuses a teacher whose outputs for an image depend on the other images of a batch."""
        half, needs = -(-len(self.compared_images) // 2), self.records.needs
        alone = selected_outputs(self._live_outputs(self.compared_images[:half]), needs)
        for name, tensor in selected_outputs(self.live, needs).items():
            if ((tensor[:half] - alone[name]).abs() > _rounding(tensor)).any():
                raise InputError(
                    f"the teacher's outputs ({name}) for an image depend on the images that are "
                    "computed with it, as with a BatchNorm without running statistics; such "
                    "outputs cannot be cached, take teacher.cache=none"
                )

    def _compare(self) -> None:
        """Refuses cached outputs that differ from the live teacher's by more than rounding."""
        live, device = selected_outputs(self.live, self.records.needs), self.compared_images.device
        for name in self.records.existing():
            cached, there = self.records.read_tensor(name, self.compared, device)
            rows, tensor = torch.from_numpy(there).to(device), live[name]
            if ((tensor - cached)[rows].abs() > _rounding(tensor)).any():
                raise InputError(
                    f"the outputs in {self.records.path} are not this teacher's ({name} differ), "
                    "though its weights are the same: its code was changed; remove that folder"
                )

    def compute(
        self, forward: TeacherForward, batch: Batch, needs: TeacherNeeds
    ) -> tuple[ModelOutput, int]:
        """The stored outputs, after the teacher computed those that were missing."""
        known, device = self.records.needs, batch.images.device
        assert needs | known == known, "these outputs are not cached"
        numbers = self._record_numbers(batch)
        output, there = self.records.read(numbers, device, needs)
        if not there.all():
            missing = np.flatnonzero(~there)
            images = batch.images
            if len(missing) < len(numbers):
                rows = torch.from_numpy(missing).to(device)
                images = images[rows].contiguous(memory_format=torch.channels_last)
            self.records.add(numbers[missing], self._packed(forward, images, batch))
            output, written = self.records.read(numbers, device, needs)
            if not written.all():
                problem = "a record reads back differently from what was written"
                raise OSError(errno.EIO, problem, str(self.records.path))
        return output, int(there.sum())

    def _packed(self, forward: TeacherForward, images: Tensor, batch: Batch) -> dict[str, Words]:
        try:
            return self.records.pack(_in_a_full_batch(forward, images))
        except NonFiniteError as error:
            raised = NonFiniteError(str(error), step_facts(batch, ["teacher"]))
            raised.of_one_process = True
            raise raised from error

    def _record_numbers(self, batch: Batch) -> Indices:
        """The record of each sample of a batch."""
        rows, views = batch.cpu_keys.unbind(1)
        if self.views_of_each is None:
            slots = views // self.view_step
        else:
            same = self.views_of_each[rows] == views[:, None]
            assert same.any(1).all(), "the epoch plan draws other views than are cached"
            slots = same.long().argmax(1)
        numbers: Indices = (rows * self.views + slots).numpy()
        return numbers


def _rounding(tensor: Tensor) -> Tensor:
    """The largest difference that counts as rounding."""
    return tensor.abs().max() * _TOLERANCE.get(tensor.dtype, _DEFAULT_TOLERANCE)


def _in_a_full_batch(forward: TeacherForward, images: Tensor) -> ModelOutput:
    """The outputs for a few images, repeated to `SMALLEST_BATCH` for the forward pass."""
    count = len(images)
    if count >= SMALLEST_BATCH:
        return forward(images)
    rows = torch.arange(SMALLEST_BATCH, device=images.device) % count
    repeated = forward(images[rows].contiguous(memory_format=torch.channels_last))
    logits, stages, pooled, last = repeated
    return ModelOutput(
        logits[:count],
        tuple(stage[:count] for stage in stages),
        None if pooled is None else pooled[:count],
        None if last is None else last[:count],
    )


def _teacher_facts(teacher: FrozenTeacher) -> dict[str, Any]:
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
