"""Answers to several batches at once: but for rounding, those to single batches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dskd.compare.grid import plan as comparison
from dskd.config import recipe
from dskd.config.schema import Recipe
from dskd.data.epoch_plan import draw_plan
from dskd.data.loader import Batch, MemoryLoader
from dskd.engine import run
from dskd.engine.trainer import Trainer
from dskd.errors import InputError, Stopped
from dskd.methods.contracts import TeacherNeeds
from dskd.models.output import ModelOutput
from dskd.teacher.frozen import FrozenTeacher
from dskd.teacher.outputs import Planned, TeacherForward, TeacherOutputs
from dskd.teacher.prefetch import Ahead
from tests.conftest import staged, stop_at
from tests.recorders import Direct, Replaying, fused
from tests.trainers import DATA, assert_same_state, epochs, trainer

ALL = TeacherNeeds(logits=True, stages=(0, 2), pooled=True, last=True)
TURNED = TeacherNeeds(logits=True, pooled=True, rotated=True)


def frozen() -> FrozenTeacher:
    torch.manual_seed(1)
    return FrozenTeacher(staged("resnet14"))


def planned(size: int, epoch: int = 0, rank: int = 0, world: int = 1) -> Planned:
    plan = draw_plan(0, epoch, len(DATA.train), 2, True)
    split = MemoryLoader(DATA.train, torch.device("cpu"))
    return lambda step: split.batches(plan, size, step, rank, world)


def ahead_of(teacher: FrozenTeacher, together: int) -> Ahead:
    return Ahead(TeacherOutputs(teacher), together, "float32")


@pytest.mark.parametrize("needs", [ALL, TURNED, TeacherNeeds(logits=True)])
@pytest.mark.parametrize("together", [2, 3, 100])
@pytest.mark.parametrize("size", [4, 5])  # 28 images: seven batches, or five and one of three
def test_answers_are_those_to_single_batches(needs: TeacherNeeds, together: int, size: int) -> None:
    teacher = frozen()
    alone, ahead = TeacherOutputs(teacher), ahead_of(teacher, together)
    for epoch in range(2):
        seen = []
        for batch in ahead.following(planned(size, epoch), 0, needs):
            found, expected = ahead(batch, needs), alone(batch, needs)
            assert found is not None
            assert expected is not None
            torch.testing.assert_close(found.logits, expected.logits)
            for stage in needs.stages:
                torch.testing.assert_close(found.stages[stage], expected.stages[stage])
            if needs.pooled:
                torch.testing.assert_close(found.pooled, expected.pooled)
            if needs.last:
                torch.testing.assert_close(found.last, expected.last)
            seen.append(batch.step)
        assert seen == list(range(-(-28 // size)))


def test_a_process_among_several_gets_answers_to_its_own_images() -> None:
    teacher, needs = frozen(), TeacherNeeds(logits=True)
    alone, ahead = TeacherOutputs(teacher), ahead_of(teacher, 2)
    for batch in ahead.following(planned(9, rank=1, world=2), 1, needs):
        found, expected = ahead(batch, needs), alone(batch, needs)
        assert found is not None
        assert expected is not None
        torch.testing.assert_close(found.logits, expected.logits)


class OneByOne(FrozenTeacher):
    """Its answer to an image depends on that image alone, to the last bit."""

    def forward(self, images: torch.Tensor) -> ModelOutput:
        teacher_outputs = [FrozenTeacher.forward(self, image[None]) for image in images]
        logits, stages, pooled, last = zip(*teacher_outputs, strict=True)
        maps = tuple(torch.cat(parts) for parts in zip(*stages, strict=True))
        return ModelOutput(torch.cat(logits), maps, torch.cat(pooled), torch.cat(last))


def trained(name: str, kind: type[FrozenTeacher], together: int, **settings: Any) -> Trainer:
    """A student of two epochs."""

    def teacher_forward(teacher: FrozenTeacher | None) -> TeacherOutputs:
        assert teacher is not None
        teacher_outputs = TeacherOutputs(kind(teacher.model))
        return Ahead(teacher_outputs, together, "float32") if together > 1 else teacher_outputs

    student = trainer(name, teacher_forward=teacher_forward, **settings)
    epochs(student, 2)
    return student


@pytest.mark.parametrize("together", [3, 100])
@pytest.mark.parametrize("name", ["kd", "dskd", "rkd", "sskd"])  # logits, maps, vectors, turned
def test_a_student_is_the_same_to_the_byte_where_answers_are(name: str, together: int) -> None:
    assert_same_state(trained(name, OneByOne, 1), trained(name, OneByOne, together))


@pytest.mark.parametrize("name", ["kd", "dskd"])
def test_a_student_is_the_same_but_for_rounding_where_answers_are_not(name: str) -> None:
    one, other = trained(name, FrozenTeacher, 1), trained(name, FrozenTeacher, 3)
    for key, value in one.method.state_dict().items():
        scale = value.double().abs().max().clamp_min(1.0).item()
        found = other.method.state_dict()[key]
        torch.testing.assert_close(found, value, rtol=0, atol=1e-3 * scale)


class Counting(TeacherOutputs):
    """Counts the images of each question."""

    def __init__(self) -> None:
        super().__init__(frozen())
        self.asked: list[int] = []

    def ask(
        self, teacher_forward: TeacherForward, batch: Batch, needs: TeacherNeeds
    ) -> tuple[ModelOutput, int]:
        self.asked.append(len(batch.labels))
        return super().ask(teacher_forward, batch, needs)


def test_a_group_is_asked_for_once_and_one_ahead_of_the_student() -> None:
    source, needs = Counting(), TeacherNeeds(logits=True)
    ahead = Ahead(source, 2, "float32")
    asked = []
    for batch in ahead.following(planned(5), 0, needs):
        ahead(batch, needs)
        asked.append(len(source.asked))
    assert source.asked == [10, 10, 8]
    assert asked == [2, 2, 3, 3, 3, 3]
    assert not ahead._parts


def test_groups_begin_where_they_began_whatever_the_step() -> None:
    source, needs = Counting(), TeacherNeeds(logits=True)
    ahead = Ahead(source, 2, "float32")
    assert [batch.step for batch in ahead.following(planned(5), 3, needs)] == [3, 4, 5]
    assert source.asked == [10, 8]


def test_a_batch_that_follows_no_others_is_asked_for_alone() -> None:
    source = Counting()
    assert Ahead(source, 4, "float32")(next(planned(5)(0)), ALL) is not None
    assert source.asked == [5]


def test_a_method_that_reads_nothing_asks_for_nothing() -> None:
    source = Counting()
    ahead = Ahead(source, 4, "float32")
    assert len(list(ahead.following(planned(5), 0, TeacherNeeds()))) == 6
    assert not source.asked


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("teacher") / "run"
    changes = ["data.fraction=0.1", "teacher=null", "method={name: ce}", "student.name=resnet8"]
    run.distill(recipe.load("digits", [*changes, "train.epochs=1", f"out={out}"]))
    return f"teacher.checkpoint={out / 'student.safetensors'}"


def plan(out: Path, teacher: str, *changes: str) -> Recipe:
    """Seven steps an epoch."""
    short = ("data.fraction=0.1", "teacher.name=resnet8", "train.epochs=2", "train.batch_size=20")
    return recipe.load("digits", [*short, teacher, "teacher.ahead=3", f"out={out}", *changes])


@pytest.mark.parametrize("name", ["kd", "dskd", "sskd"])
@pytest.mark.parametrize("step", [3, 5])
def test_a_stopped_run_goes_on_to_the_same_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teacher: str, name: str, step: int
) -> None:
    more = [f"method={{name: {name}}}", *(["method.head_epochs=1"] if name == "sskd" else [])]
    run.distill(plan(tmp_path / "whole", teacher, *more))
    with monkeypatch.context() as patch:
        stop_at(patch, 1, step)
        with pytest.raises(Stopped):
            run.distill(plan(tmp_path / "parts", teacher, *more))
    run.distill(plan(tmp_path / "parts", teacher, *more), resume=True)
    whole, parts = (tmp_path / part / "student.safetensors" for part in ("whole", "parts"))
    assert whole.read_bytes() == parts.read_bytes()


@pytest.mark.parametrize("recorder", [Direct, Replaying])
@pytest.mark.parametrize(("ahead", "cache"), [(3, "none"), (1, "bank"), (3, "bank")])
def test_with_a_recorder_the_run_is_the_same(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    teacher: str,
    recorder: Any,
    ahead: int,
    keep: str,
) -> None:
    more = [f"teacher.ahead={ahead}", f"teacher.cache={keep}"]
    if keep == "bank":
        more += ["teacher.views=4", f"teacher.cache_dir={tmp_path / 'store'}"]
    monkeypatch.setattr(run, "make_optimizer", lambda method, name, **_: fused(method, name))
    run.distill(plan(tmp_path / "plain", teacher, *more))
    train_epoch = Trainer.train_epoch

    def recorded(self: Trainer) -> Iterator[None]:
        self.recorder = self.recorder or recorder()
        return train_epoch(self)

    monkeypatch.setattr(Trainer, "train_epoch", recorded)
    run.distill(plan(tmp_path / "twin", teacher, *more))
    plain, twin = (tmp_path / part / "student.safetensors" for part in ("plain", "twin"))
    assert plain.read_bytes() == twin.read_bytes()


def test_a_comparison_refuses_it(tmp_path: Path, teacher: str) -> None:
    with pytest.raises(InputError, match=r"teacher\.ahead has no part in a comparison"):
        comparison(plan(tmp_path, teacher), ["kd"], tmp_path / "grid", seeds=1)


@pytest.mark.parametrize(("cache", "name"), [("logits", "kd"), ("features", "dskd")])
def test_kept_answers_are_the_same_to_the_byte_ahead(
    tmp_path: Path, teacher: str, keep: str, name: str
) -> None:
    """They are what is kept, whoever asked for them first and in which groups."""

    def distilled(folder: str, store: str, ahead: int) -> tuple[bytes, float | None]:
        own = (f"teacher.ahead={ahead}", f"teacher.cache_dir={tmp_path / store}")
        chosen = (f"teacher.cache={keep}", f"method={{name: {name}}}", *own)
        result = run.distill(plan(tmp_path / folder, teacher, *chosen))
        return (
            tmp_path / folder / "student.safetensors"
        ).read_bytes(), result.teacher_cache_hit_rate

    alone, _ = distilled("alone", "one", 1)
    cold, hits = distilled("cold", "two", 3)
    assert hits is not None
    assert hits < 1
    assert cold == alone
    assert distilled("warm", "one", 3) == (alone, 1)
