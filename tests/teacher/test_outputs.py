"""The teacher's outputs in a run: their time is measured."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch

from dskd.methods.contracts import TeacherNeeds
from dskd.teacher.frozen import FrozenTeacher
from dskd.teacher.outputs import SharedOutputs, TeacherOutputs
from tests.builders import make_dataset, staged
from tests.methods.inputs import batch_of


def test_the_time_of_the_teacher_is_that_of_its_forward_passes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outputs = TeacherOutputs(FrozenTeacher(staged()))
    batch = batch_of(make_dataset().train.images[:2])
    assert outputs.watch.seconds == 0
    now = [5.0]
    forward = FrozenTeacher.forward

    def slow(self: FrozenTeacher, images: torch.Tensor) -> object:
        now[0] += 2
        return forward(self, images)

    monkeypatch.setattr(FrozenTeacher, "forward", slow)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    for count in (1, 2):
        assert outputs(batch, TeacherNeeds(logits=True)) is not None
        assert outputs.watch.seconds == 2 * count


def test_students_in_lockstep_share_one_forward_pass_a_step() -> None:
    shared = SharedOutputs(TeacherOutputs(FrozenTeacher(staged())))
    one, other = shared.for_student(), shared.for_student()
    batch = batch_of(make_dataset().train.images[:2])
    for step in range(3):
        now = replace(batch, step=step)
        first, second = (student(now, TeacherNeeds(logits=True)) for student in (one, other))
        assert first is not None
        assert second is not None
        assert first.logits is second.logits
        assert (shared.requests, shared.computed) == (2 * step + 2, step + 1)
