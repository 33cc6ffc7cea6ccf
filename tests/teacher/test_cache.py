"""Cached teacher outputs: equal up to rounding, never of another teacher, and runs repeat."""

from __future__ import annotations

import copy
import functools
import json
import logging
import shutil
import tempfile
from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from filelock import FileLock
from torch import Tensor, nn

from dskd import methods
from dskd.compare.grid import load_plan
from dskd.compare.lockstep import RunProgress
from dskd.compare.runner import run_grid
from dskd.config import recipe
from dskd.data import Dataset, Split
from dskd.data.epoch_plan import draw_plan
from dskd.data.loader import Batch, MemoryLoader
from dskd.engine import run
from dskd.errors import InputError, NonFiniteError, Stopped
from dskd.methods.contracts import TeacherNeeds
from dskd.models.output import ModelOutput
from dskd.models.staged_model import StagedModel
from dskd.runtime.device import autocast
from dskd.storage.run_files import LAST
from dskd.teacher import cache
from dskd.teacher.cache import CachedOutputs
from dskd.teacher.frozen import FrozenTeacher
from dskd.teacher.outputs import TeacherOutputs
from dskd.teacher.record_file import FACTS, RECORDS, RESERVE, RecordFile
from tests import processes, trainers
from tests.builders import make_dataset, make_pair, staged

CPU = torch.device("cpu")
DATA = make_dataset(classes=4, per_class=12, size=16)
LOGITS = TeacherNeeds(logits=True)
ALL = TeacherNeeds(logits=True, stages=(0, 2), pooled=True, last=True)
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def teacher() -> FrozenTeacher:
    """Trained for a moment, so that its norms know their images."""
    model = staged("resnet8").train()
    with torch.no_grad():
        model(DATA.train.images)
    return FrozenTeacher(model, DATA.train.images[:8])


def cached(
    teacher: FrozenTeacher, folder: Path, needs: TeacherNeeds = LOGITS, **changes: Any
) -> CachedOutputs:
    arguments: dict[str, Any] = {
        "kind": "logits" if needs == LOGITS else "features",
        "views": 3,
        "padding": 1,
        "flip": True,
        "precision": "float32",
        "facts": {"name": "resnet8", "options": {}, "folded": True},
        "folder": folder,
    }
    split = MemoryLoader(changes.pop("data", DATA).train, CPU)
    return CachedOutputs(teacher, split, needs, **arguments | changes)


def opened(*arguments: Any, **changes: Any) -> CachedOutputs:
    teacher_outputs = cached(*arguments, **changes)
    teacher_outputs.open()
    return teacher_outputs


def batches(
    teacher_outputs: CachedOutputs, epoch: int = 0, size: int = 32, seed: int = 0, flip: bool = True
) -> list[Batch]:
    plan = draw_plan(seed, epoch, len(DATA.train), 1, flip, teacher_outputs.views_of_each)
    return list(MemoryLoader(DATA.train, CPU).batches(plan, size))


def test_a_method_reads_only_what_it_needs(
    teacher: FrozenTeacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = opened(teacher, tmp_path, ALL)
    batch = batches(outputs)[0]
    whole = outputs(batch, ALL)
    read, found = RecordFile.read, []

    def recorded(self: RecordFile, indices: Any) -> Any:
        found.append(self.path.name)
        return read(self, indices)

    monkeypatch.setattr(RecordFile, "read", recorded)
    monkeypatch.setattr(outputs, "forward", silent)
    some = outputs(batch, TeacherNeeds(logits=True, stages=(2,)))
    assert found == ["logits", "stage-3"]
    assert whole is not None
    assert some is not None
    assert torch.equal(some.logits, whole.logits)
    assert torch.equal(some.stages[2], whole.stages[2])
    assert some.pooled is None
    assert some.last is None


def silent(_images: Tensor) -> Any:
    raise AssertionError("the teacher was asked")


# ---- the values


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("needs", [LOGITS, ALL])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_cached_outputs_are_the_teacher_s_up_to_rounding(
    tmp_path: Path, teacher: FrozenTeacher, needs: TeacherNeeds, flip: bool, precision: Any
) -> None:
    teacher_outputs = opened(teacher, tmp_path, needs, flip=flip, precision=precision)
    live = TeacherOutputs(teacher)
    for epoch in (0, 1, 0):
        for batch in batches(teacher_outputs, epoch, flip=flip):
            with autocast(CPU, precision):
                here, there = teacher_outputs(batch, needs), live(batch, needs)
            assert here is not None
            assert there is not None
            pairs = [(here.logits, there.logits)]
            pairs += [(here.stages[stage], there.stages[stage]) for stage in needs.stages]
            if needs.pooled:
                assert here.pooled is not None
                assert here.last is not None
                pairs += [(here.pooled, there.pooled), (here.last, there.last)]  # type: ignore[list-item]
            for one, other in pairs:
                assert one.dtype == other.dtype
                assert one.shape == other.shape
                assert one.dim() < 4 or one.is_contiguous(memory_format=torch.channels_last)
                if precision == "bfloat16":
                    assert torch.equal(one, other)
                else:
                    half = torch.finfo(torch.float16)
                    torch.testing.assert_close(one, other, rtol=half.eps, atol=half.tiny)


@pytest.mark.parametrize("needs", [LOGITS, ALL])
def test_the_teacher_is_asked_for_nothing_twice(
    tmp_path: Path, teacher: FrozenTeacher, needs: TeacherNeeds, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher_outputs = opened(teacher, tmp_path, needs)
    cold = [teacher_outputs(batch, needs) for batch in batches(teacher_outputs)]
    assert teacher_outputs.cache_counts is not None
    assert (teacher_outputs.cache_counts.hits, teacher_outputs.cache_counts.samples) == (
        0,
        len(DATA.train),
    )
    again = opened(teacher, tmp_path, needs)
    monkeypatch.setattr(teacher, "forward", silent)
    warm = [again(batch, needs) for batch in batches(again)]
    assert again.cache_counts is not None
    assert again.cache_counts.hit_rate == 1
    for one, other in zip(cold, warm, strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(one.logits, other.logits)
        assert all(map(torch.equal, one.stages, other.stages))


@pytest.mark.parametrize("needs", [LOGITS, ALL])
def test_what_is_there_is_got_without_a_look_at_the_device(
    tmp_path: Path, teacher: FrozenTeacher, needs: TeacherNeeds
) -> None:
    """A GPU would be waited for; from the device that stands for one nothing can be read."""
    teacher_outputs = opened(teacher, tmp_path, needs)
    here = [teacher_outputs(batch, needs) for batch in batches(teacher_outputs)]
    there = MemoryLoader(DATA.train, torch.device("meta"))
    plan = draw_plan(0, 0, len(DATA.train), 1, True, teacher_outputs.views_of_each)
    for batch, expected in zip(there.batches(plan, 32), here, strict=True):
        found = teacher_outputs(batch, needs)
        assert found is not None
        assert expected is not None
        assert found.logits.is_meta
        assert [s.shape for s in found.stages] == [s.shape for s in expected.stages]


def test_what_is_missing_alone_is_asked_for(
    tmp_path: Path, teacher: FrozenTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher_outputs = opened(teacher, tmp_path)
    for batch in batches(teacher_outputs, 0):
        teacher_outputs(batch, LOGITS)
    asked: list[int] = []
    forward = teacher.forward

    def counted(images: Tensor) -> Any:
        asked.append(len(images))
        return forward(images)

    monkeypatch.setattr(teacher, "forward", counted)
    seen = {view for batch in batches(teacher_outputs, 0) for view in named(batch)}
    assert teacher_outputs.cache_counts is not None
    for batch in batches(teacher_outputs, 1):
        new = sum(view not in seen for view in named(batch))
        hits = teacher_outputs.cache_counts.hits
        teacher_outputs(batch, LOGITS)
        assert teacher_outputs.cache_counts.hits - hits == len(batch.labels) - new
        assert asked == [max(new, 16)]
        asked.clear()


def named(batch: Batch) -> list[tuple[int, int]]:
    return [*zip(batch.indices.tolist(), batch.views.tolist(), strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_first_and_later_reads_give_the_same_output(
    tmp_path: Path, teacher: FrozenTeacher, precision: Any
) -> None:
    """In whatever company: batches of other sizes and seeds, and few that are missing."""
    one = opened(teacher, tmp_path / "one", precision=precision)
    other = opened(teacher, tmp_path / "other", precision=precision)
    with autocast(CPU, precision):
        for batch in batches(one, size=32):
            one(batch, LOGITS)
        for seed in range(2):
            for size in (2, 7, 20):
                for batch in batches(other, seed=seed, size=size):
                    other(batch, LOGITS)
        for batch in batches(one, size=32):
            here, there = one(batch, LOGITS), other(batch, LOGITS)
            assert here is not None
            assert there is not None
            assert torch.equal(here.logits, there.logits)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({"dskd", "at", "fitnet", "kd", "rkd", "simkd", "sp"}))
def test_a_method_learns_the_same_from_a_bank(
    tmp_path: Path, teacher: FrozenTeacher, name: str
) -> None:
    pair, _ = make_pair(staged("resnet8"), teacher.model, DATA)
    method = methods.find(name)(pair)
    teacher_outputs = opened(teacher, tmp_path, method.needs, kind="features")
    live = TeacherOutputs(teacher)
    for batch in batches(teacher_outputs):
        losses = []
        for source in (teacher_outputs, live):
            one = copy.deepcopy(method)
            output = one(batch, source(batch, method.needs))
            output.objective.backward()
            gradient = torch.cat([p.grad.flatten() for p in one.parameters() if p.grad is not None])
            losses.append((output.objective.detach(), gradient))
        (loss, gradient), (loss_live, gradient_live) = losses
        torch.testing.assert_close(loss, loss_live, rtol=2e-3, atol=0)
        assert (gradient - gradient_live).norm() < 5e-3 * gradient_live.norm()


def test_the_size_is_as_predicted(tmp_path: Path, teacher: FrozenTeacher) -> None:
    images, classes, probed = len(DATA.train), 4, 16
    teacher_outputs = opened(teacher, tmp_path / "logits")
    assert teacher_outputs.records.size == (images * 18 + probed) * (2 * classes + 8)
    views_of_each = opened(teacher, tmp_path / "features", TeacherNeeds(logits=True, stages=(2,)))
    of_both = 2 * (classes + 64 * 4 * 4) + 2 * 8  # each tensor has a checksum of its own
    assert views_of_each.records.size == (images * 3 + probed) * of_both
    for one in (teacher_outputs, views_of_each):
        files = [*one.records.path.glob("*/*.bin")]
        assert sum(path.stat().st_size for path in files) == one.records.size


def test_a_bank_has_no_more_views_than_there_are(tmp_path: Path, teacher: FrozenTeacher) -> None:
    teacher_outputs = opened(teacher, tmp_path, ALL, views=100, flip=False)
    assert teacher_outputs.views == 9


def test_the_log_says_where_how_large_and_what_is_there(
    tmp_path: Path, teacher: FrozenTeacher, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dskd")
    teacher_outputs = opened(teacher, tmp_path)
    path = teacher_outputs.records.path
    size = f"{teacher_outputs.records.size / 1024:.1f} KiB"
    assert (
        f"cached in {path}: {size} for 18 of 18 views an image, 0.0 % already there" in caplog.text
    )
    for batch in batches(teacher_outputs):
        teacher_outputs(batch, LOGITS)
    caplog.clear()
    opened(teacher, tmp_path)
    assert f"{100 * (48 + 16) / (48 * 18 + 16):.1f} % already there" in caplog.text


# ---- one cache for each teacher, images and views


def other_weights(teacher: FrozenTeacher) -> FrozenTeacher:
    model = copy.deepcopy(teacher.model)
    next(model.parameters()).data.flatten()[0] += 1e-3
    return FrozenTeacher(model)


def other_mean(teacher: FrozenTeacher) -> FrozenTeacher:
    return FrozenTeacher(StagedModel(teacher.model.module, mean=(0.5, 0.5, 0.4), std=(0.25,) * 3))


def other_std(teacher: FrozenTeacher) -> FrozenTeacher:
    return FrozenTeacher(StagedModel(teacher.model.module, mean=(0.5,) * 3, std=(0.25, 0.25, 0.2)))


def other_stages(teacher: FrozenTeacher) -> FrozenTeacher:
    model = StagedModel(teacher.model.module, ["layer1"], mean=(0.5,) * 3, std=(0.25,) * 3)
    return FrozenTeacher(model)


class Slope(nn.LeakyReLU):
    def __repr__(self) -> str:
        return "Slope()"


def other_structure(teacher: FrozenTeacher) -> FrozenTeacher:
    model = copy.deepcopy(teacher.model)
    model.module.add_module("more", Slope())
    return FrozenTeacher(model)


def of_images(images: Tensor, labels: Tensor | None = None) -> Dataset:
    labels = DATA.train.labels if labels is None else labels
    return replace(DATA, train=Split(images, labels), test=DATA.test)


def one_pixel() -> Dataset:
    images = DATA.train.images.clone()
    images[3, 0, 0, 0] ^= 1
    return of_images(images)


CHANGES: dict[str, dict[str, Any]] = {
    "name": {"facts": {"name": "resnet20", "options": {}, "folded": True}},
    "options": {"facts": {"name": "resnet8", "options": {"width": 2}, "folded": True}},
    "folded": {"facts": {"name": "resnet8", "options": {}, "folded": False}},
    "precision": {"precision": "bfloat16"},
    "padding": {"padding": 2},
    "flip": {"flip": False},
    "kind": {"kind": "logits"},
    "views": {"views": 4},
    "a pixel": {"data": one_pixel()},
    "image size": {"data": make_dataset(classes=4, per_class=12, size=8)},
    "fewer images": {"data": of_images(DATA.train.images[:40], DATA.train.labels[:40])},
    "order": {"data": of_images(DATA.train.images.flip(0))},
}
TEACHERS = [other_weights, other_mean, other_std, other_stages, other_structure]


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_everything_that_an_output_depends_on_has_a_cache_of_its_own(
    tmp_path: Path, teacher: FrozenTeacher, change: dict[str, Any]
) -> None:
    views_of_each: dict[str, Any] = {"kind": "features", "views": 5}
    one, other = (
        cached(teacher, tmp_path, **views_of_each),
        cached(teacher, tmp_path, **views_of_each | change),
    )
    assert one.records.path != other.records.path
    assert one.records.files["logits"].facts != other.records.files["logits"].facts


@pytest.mark.parametrize("change", TEACHERS)
def test_another_teacher_has_a_cache_of_its_own(
    tmp_path: Path, teacher: FrozenTeacher, change: Any
) -> None:
    assert cached(teacher, tmp_path).records.path != cached(change(teacher), tmp_path).records.path


def test_methods_share_the_tensors_that_both_read(
    tmp_path: Path, teacher: FrozenTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one method had computed, another finds; it has only its further tensors computed."""
    few, both = TeacherNeeds(logits=True, stages=(2,)), TeacherNeeds(logits=True, stages=(0, 2))
    first = opened(teacher, tmp_path, few)
    for batch in batches(first):
        first(batch, few)
    second = opened(teacher, tmp_path, both)
    names = {path.parent.name for path in tmp_path.glob("*/*/records.bin")}
    assert names == {"logits", "stage-1", "stage-3"}
    kept = {name: second.records.files[name].filled() for name in second.records.files}
    assert kept["logits"] == kept["stage 3"] > kept["stage 1"] > 0
    expected = [second(batch, both) for batch in batches(second)]
    third = opened(teacher, tmp_path, few)
    monkeypatch.setattr(teacher, "forward", silent)
    for batch, both_read in zip(batches(third), expected, strict=True):
        read = third(batch, few)
        assert read is not None
        assert both_read is not None
        assert torch.equal(read.logits, both_read.logits)
        assert torch.equal(read.stages[2], both_read.stages[2])


def test_pooled_maps_have_smaller_records_of_their_own(
    tmp_path: Path, teacher: FrozenTeacher
) -> None:
    """A map that is no larger than asked for is shared with methods that read whole maps."""
    whole, pooled = (TeacherNeeds(stages=(0, 2), map_size=size) for size in (None, 4))
    first, second = opened(teacher, tmp_path, whole), opened(teacher, tmp_path, pooled)
    names = {path.parent.name for path in tmp_path.glob("*/*/records.bin")}
    assert names == {"stage-1", "stage-1-4x4", "stage-3"}
    assert 16 * second.records.tensors["stage 1"].words == first.records.tensors["stage 1"].words
    for batch in batches(first):
        full, small = first(batch, whole), second(batch, pooled)
        assert full is not None
        assert small is not None
        assert torch.equal(full.stages[2], small.stages[2])
        half = torch.finfo(torch.float16)
        torch.testing.assert_close(
            small.stages[0], F.adaptive_avg_pool2d(full.stages[0], 4), rtol=half.eps, atol=half.eps
        )


@pytest.mark.parametrize(
    ("sizes", "together"), [((4, 8), 8), ((4, None), None), ((None, None), None)]
)
def test_methods_together_read_the_larger_maps(
    sizes: tuple[int | None, int | None], together: int | None
) -> None:
    one, other = (TeacherNeeds(stages=(0,), map_size=size) for size in sizes)
    assert (one | other).map_size == together
    assert (one | LOGITS).map_size == (LOGITS | one).map_size == sizes[0]


def test_a_tensor_that_is_added_does_not_hide_a_changed_teacher(
    tmp_path: Path, teacher: FrozenTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(teacher, tmp_path, kind="features")
    forward = teacher.forward
    monkeypatch.setattr(
        teacher, "forward", lambda x: (o := forward(x))._replace(logits=o.logits * 1.05)
    )
    with pytest.raises(InputError, match=r"not this teacher's \(logits differ\)"):
        opened(teacher, tmp_path, ALL)


def test_labels_and_equal_teachers_share_a_cache(tmp_path: Path, teacher: FrozenTeacher) -> None:
    labels = of_images(DATA.train.images, DATA.train.labels.flip(0))
    assert (
        cached(teacher, tmp_path).records.path
        == cached(teacher, tmp_path, data=labels).records.path
    )
    twin = FrozenTeacher(copy.deepcopy(teacher.model))
    assert cached(teacher, tmp_path).records.path == cached(twin, tmp_path).records.path


def test_the_parts_of_the_key_are_next_to_the_records(
    tmp_path: Path, teacher: FrozenTeacher
) -> None:
    teacher_outputs = opened(teacher, tmp_path)
    facts = json.loads((teacher_outputs.records.path / "logits" / FACTS).read_text())
    assert teacher_outputs.records.path.name == facts["sha256"][:32]
    assert facts["teacher"]["weights"] == teacher.fingerprint()
    assert facts["teacher"]["mean"] == [0.5, 0.5, 0.5]
    assert facts["images"]["shape"] == [48, 3, 16, 16]
    assert (facts["tensor"], facts["shape"], facts["type"]) == ("logits", [4], "float16")
    assert (facts["padding"], facts["flip"], facts["views"]) == (1, True, 18)


def test_a_teacher_whose_code_was_changed_is_told(
    tmp_path: Path, teacher: FrozenTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same weights, same names, another forward pass."""
    opened(teacher, tmp_path)
    forward = teacher.forward
    monkeypatch.setattr(
        teacher, "forward", lambda x: (o := forward(x))._replace(logits=o.logits * 1.05)
    )
    for look in (CachedOutputs.check, CachedOutputs.open):
        with pytest.raises(InputError, match=r"not this teacher's \(logits differ\).*code"):
            look(cached(teacher, tmp_path))


def test_a_damaged_record_is_computed_again(
    tmp_path: Path, teacher: FrozenTeacher, caplog: pytest.LogCaptureFixture
) -> None:
    teacher_outputs = opened(teacher, tmp_path)
    good = [teacher_outputs(batch, LOGITS) for batch in batches(teacher_outputs)]
    path = teacher_outputs.records.path / "logits" / RECORDS
    records = np.fromfile(path, np.int16)
    records[records != 0] ^= 0x0100
    records.tofile(path)
    again = opened(teacher, tmp_path)
    for batch, expected in zip(batches(again), good, strict=True):
        teacher_output = again(batch, LOGITS)
        assert teacher_output is not None
        assert expected is not None
        assert torch.equal(teacher_output.logits, expected.logits)
    assert again.cache_counts is not None
    assert again.cache_counts.hit_rate == 0
    assert "damaged" in caplog.text


def test_an_output_that_autocast_leaves_in_float32_on_one_device_is_found_by_the_other(
    tmp_path: Path, teacher: FrozenTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = teacher.forward

    def in_float32(images: Tensor) -> Any:
        output = forward(images)
        return output._replace(logits=output.logits.float())

    with monkeypatch.context() as patch:
        patch.setattr(teacher, "forward", in_float32)
        written = opened(teacher, tmp_path, precision="bfloat16")
    found = opened(teacher, tmp_path, precision="bfloat16")
    assert written.live.logits.dtype != found.live.logits.dtype
    assert written.records.tensors["logits"].describe()["type"] == "bfloat16"
    assert written.records.path == found.records.path


# ---- what is refused


def huge(teacher: FrozenTeacher) -> FrozenTeacher:
    model = copy.deepcopy(teacher.model)
    assert model.linear_classifier is not None
    model.linear_classifier.weight.data *= 1e7
    return FrozenTeacher(model)


def test_numbers_too_large_for_float16_are_never_cached(
    tmp_path: Path, teacher: FrozenTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = huge(teacher)
    with pytest.raises(InputError, match=r"\(logits\) reach .*e\+0\d, more than float16 holds; "):
        cached(large, tmp_path).check()
    assert not list(tmp_path.iterdir())
    opened(large, tmp_path / "bfloat16", precision="bfloat16")
    teacher_outputs = opened(teacher, tmp_path / "float32")
    filled = teacher_outputs.records.filled()
    forward = teacher.forward
    for value, message in ((1e7, "more than float16"), (float("nan"), "are not finite")):

        def spoiled(images: Tensor, value: float = value) -> Any:
            output = forward(images)
            return output._replace(logits=output.logits * value)

        with monkeypatch.context() as patch:
            patch.setattr(teacher, "forward", spoiled)
            with pytest.raises(NonFiniteError, match=message) as raised:
                teacher_outputs(batches(teacher_outputs)[0], LOGITS)
        assert raised.value.of_one_process
        assert teacher_outputs.records.filled() == filled


def read_only(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Makes a folder that of another user, also if the tests run as root."""
    refused = PermissionError(13, "Permission denied")
    open_file, acquire, temporary = Path.open, FileLock.acquire, tempfile.TemporaryFile

    def opening(self: Path, mode: str = "r", *others: Any, **named: Any) -> Any:
        if self.is_relative_to(folder) and mode != "r" and mode != "rb":
            raise refused
        return open_file(self, mode, *others, **named)

    def locking(self: FileLock, *others: Any, **named: Any) -> Any:
        if Path(self.lock_file).is_relative_to(folder):
            raise refused
        return acquire(self, *others, **named)

    def probing(*others: Any, dir: Path, **named: Any) -> Any:
        if dir.is_relative_to(folder):
            raise refused
        return temporary(*others, dir=dir, **named)

    monkeypatch.setattr(Path, "open", opening)
    monkeypatch.setattr(FileLock, "acquire", locking)
    monkeypatch.setattr(tempfile, "TemporaryFile", probing)


def test_a_complete_cache_of_another_user_is_used(
    tmp_path: Path, teacher: FrozenTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = opened(teacher, tmp_path)
    file = first.records.files["logits"]
    every = np.arange(len(DATA.train) * first.views)
    file.add(every, np.repeat(first._packed_live()["logits"][:1], len(every), 0))
    read_only(monkeypatch, tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 0))  # as of an image
    again = opened(teacher, tmp_path)
    for batch in batches(again):
        assert again(batch, LOGITS) is not None
    assert again.cache_counts is not None
    assert again.cache_counts.hit_rate == 1


@pytest.mark.parametrize("begun", [True, False])
def test_an_incomplete_cache_of_another_user_is_refused_before_the_run(
    tmp_path: Path, teacher: FrozenTeacher, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    if begun:
        opened(teacher, tmp_path)
    read_only(monkeypatch, tmp_path)
    with pytest.raises(InputError, match=r"Permission denied.* another folder .*cache_dir$"):
        cached(teacher, tmp_path).check()


def test_files_of_another_user_in_a_folder_of_all_are_refused(
    tmp_path: Path, teacher: FrozenTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = opened(teacher, tmp_path).records.path / "logits"
    read_only(monkeypatch, path / RECORDS)
    with pytest.raises(InputError, match=f"{path} lacks outputs of this teacher and cannot be"):
        cached(teacher, tmp_path).check()


def test_a_teacher_whose_outputs_depend_on_its_batch_is_refused(tmp_path: Path) -> None:
    model = staged("resnet8")
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.track_running_stats, part.running_mean, part.running_var = False, None, None
    with pytest.raises(InputError, match=r"\(logits\) for an image depend on the images that"):
        cached(FrozenTeacher(model), tmp_path).check()
    assert not list(tmp_path.iterdir())


# ---- runs

SMALL = [
    "data.fraction=0.1",
    "teacher.name=resnet8",
    "teacher.epochs=1",
    "train.epochs=3",
    "train.batch_size=32",
]
"""The digits on a diet: 130 images, 5 steps an epoch, 9 views."""


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher's checkpoint."""
    out = tmp_path_factory.mktemp("taught") / "run"
    run.distill(recipe.load("digits", [*SMALL, "method.name=kd", f"out={out}"]))
    return out / "teacher/student.safetensors"


KINDS = [("logits", "kd"), ("features", "kd"), ("features", "dskd")]
each_kind = pytest.mark.parametrize(("kind", "method"), KINDS)


def overrides(taught: Path, folder: Path, kind: str, method: str = "") -> list[str]:
    own = ["teacher.views=4"] if kind == "features" else []
    place = [f"teacher.cache={kind}", f"teacher.cache_dir={folder / 'outputs'}"]
    return [
        *SMALL,
        f"teacher.checkpoint={taught}",
        *([f"method={{name: {method}}}"] if method else []),
        *place,
        *own,
    ]


def distill(out: Path, changes: list[str], resume: bool = False) -> Any:
    return run.distill(recipe.load("digits", [*changes, f"out={out}"]), resume=resume)


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def without(out: Path, *names: str) -> list[dict[str, Any]]:
    told = ("seconds", *names)
    return [{k: v for k, v in row.items() if not k.endswith(told)} for row in rows(out)]


@pytest.mark.slow
@each_kind
def test_cold_and_warm_runs_are_the_same_to_the_byte(
    taught: Path, tmp_path: Path, kind: str, method: str
) -> None:
    changes = overrides(taught, tmp_path, kind, method)
    cold, warm = distill(tmp_path / "cold", changes), distill(tmp_path / "warm", changes)
    for name in ("student.safetensors", "student_best.safetensors"):
        assert (tmp_path / "cold" / name).read_bytes() == (tmp_path / "warm" / name).read_bytes()
    assert without(tmp_path / "cold", "teacher_cache_hit_rate") == without(
        tmp_path / "warm", "teacher_cache_hit_rate"
    )
    hits = [row["teacher_cache_hit_rate"] for row in rows(tmp_path / "cold")]
    assert hits[0] == 0
    assert 0 < hits[1] < hits[2] < 1
    assert [row["teacher_cache_hit_rate"] for row in rows(tmp_path / "warm")] == [1, 1, 1]
    assert cold.teacher_cache_hit_rate == pytest.approx(sum(hits) / 3)
    assert warm.teacher_cache_hit_rate == 1
    assert json.loads((tmp_path / "warm/result.json").read_text())["teacher_cache_hit_rate"] == 1


@pytest.mark.slow
def test_cached_logits_change_a_run_by_rounding_alone(taught: Path, tmp_path: Path) -> None:
    changes = overrides(taught, tmp_path, "logits", "kd")
    distill(tmp_path / "cached", changes)
    plain = [c for c in changes if not c.startswith(("teacher.cache", "teacher.cache_dir"))]
    result = distill(tmp_path / "live", plain)
    assert result.teacher_cache_hit_rate is None
    for one, other in zip(rows(tmp_path / "cached"), rows(tmp_path / "live"), strict=True):
        assert "teacher_cache_hit_rate" not in other
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-2)
    bfloat16 = "train.precision=bfloat16"  # cached as it is
    distill(tmp_path / "cached16", [*changes, bfloat16])
    distill(tmp_path / "live16", [*plain, bfloat16])
    weights = (tmp_path / "live16/student.safetensors").read_bytes()
    assert (tmp_path / "cached16/student.safetensors").read_bytes() == weights


@pytest.fixture(scope="module")
def undisturbed(
    taught: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Path]:
    """The folder of a run that was never stopped."""

    @functools.cache
    def folder(kind: str, method: str) -> Path:
        own = tmp_path_factory.mktemp("undisturbed")
        distill(own / "whole", overrides(taught, own / "a", kind, method))
        return own / "whole"

    return folder


@pytest.mark.slow
@each_kind
@pytest.mark.parametrize(("stop_at", "saved"), [(7, True), (10, True), (8, False)])
def test_a_stopped_run_goes_on_to_the_same_end(
    taught: Path,
    undisturbed: Callable[[str, str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    method: str,
    stop_at: int,
    saved: bool,
) -> None:
    """Stopped by a signal, or killed with no checkpoint but that of the last epoch's end."""
    whole = undisturbed(kind, method)
    changes = overrides(taught, tmp_path / "b", kind, method)
    with monkeypatch.context() as patch:
        trainers.stop_at(patch, stop_at, None if saved else ZeroDivisionError)
        with pytest.raises(Stopped if saved else ZeroDivisionError):
            distill(tmp_path / "parts", changes)
    distill(tmp_path / "parts", changes, resume=True)
    for name in ("student.safetensors", "student_best.safetensors"):
        assert (whole / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    hits = () if saved else ("teacher_cache_hit_rate",)
    assert without(whole, *hits) == without(tmp_path / "parts", *hits)


@pytest.mark.slow
def test_runs_at_once_fill_one_cache_and_change_nothing(taught: Path, tmp_path: Path) -> None:
    together = overrides(taught, tmp_path / "together", "logits", "kd")
    command = ["-m", "dskd", "distill", "digits", *together]
    output, errors = tmp_path / "output", tmp_path / "errors"
    runs = [
        processes.start(
            [*command, f"seed={seed}", f"out={tmp_path / f'run{seed}'}"], output, errors
        )
        for seed in (0, 1)
    ]
    for one in runs:
        assert processes.wait(one) == 0, errors.read_text()
    assert len(list((tmp_path / "together/outputs").iterdir())) == 1
    for seed in (0, 1):
        alone = overrides(taught, tmp_path / f"alone{seed}", "logits", "kd")
        distill(tmp_path / f"own{seed}", [*alone, f"seed={seed}"])
        weights = (tmp_path / f"own{seed}" / LAST).read_bytes()
        assert (tmp_path / f"run{seed}" / LAST).read_bytes() == weights


@pytest.mark.parametrize(
    ("kind", "method", "message"),
    [
        (
            "logits",
            "dskd",
            r'"cache": "logits"}: the method dskd reads more .*\(stage 1, stage 2\); .*"features"}',
        ),
        ("logits", "rkd", r"the method rkd reads more .*\(pooled\)"),
        ("logits", "sskd", r'"cache": "logits"}: the method sskd reads .* rotated images.*"none"}'),
        (
            "features",
            "sskd",
            r'"cache": "features"}: the method sskd reads .* rotated images.*"none"}',
        ),
    ],
)
def test_a_method_that_reads_more_is_refused_before_any_work(
    taught: Path, tmp_path: Path, kind: str, method: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        distill(tmp_path / "run", overrides(taught, tmp_path, kind, method))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_what_cannot_be_cached_is_refused_before_any_work(
    taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = overrides(taught, tmp_path, "logits", "kd")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, RESERVE))
        with pytest.raises(InputError, match=r"still need \d.* of disk .*, 256\.0 MiB are free"):
            distill(tmp_path / "run", changes)
    assert not list(tmp_path.iterdir())
    distill(tmp_path / "first", changes)
    (cache,) = (tmp_path / "outputs").iterdir()
    with (cache / "logits" / RECORDS).open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(InputError, match=r"records\.bin is damaged: it has 1000 of"):
        distill(tmp_path / "run", changes)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_cache_may_move_and_a_run_may_not_change_its_kind(taught: Path, tmp_path: Path) -> None:
    changes = overrides(taught, tmp_path / "a", "logits", "kd")
    out = tmp_path / "run"
    distill(out, changes)
    (out / "result.json").unlink()
    weights = (out / LAST).read_bytes()
    distill(out, overrides(taught, tmp_path / "b", "logits", "kd"), resume=True)
    assert (out / LAST).read_bytes() == weights
    (out / "result.json").unlink()
    with pytest.raises(InputError, match=r"teacher\.cache is logits there, features here"):
        distill(out, overrides(taught, tmp_path / "b", "features", "kd"), resume=True)


@pytest.mark.slow
def test_without_a_folder_outputs_go_to_the_user_s_cache(
    taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSKD_CACHE", str(tmp_path / "cache"))
    changes = overrides(taught, tmp_path, "logits", "kd")
    distill(tmp_path / "run", [c for c in changes if not c.startswith("teacher.cache_dir")])
    assert len(list((tmp_path / "cache/teacher-outputs").iterdir())) == 1


@pytest.mark.slow
def test_outputs_of_a_teacher_that_is_trained_first_are_cached(tmp_path: Path) -> None:
    changes = [
        *SMALL,
        "method.name=kd",
        "teacher.cache=logits",
        f"teacher.cache_dir={tmp_path / 'a'}",
    ]
    distill(tmp_path / "cold", changes)
    assert distill(tmp_path / "warm", changes).teacher_cache_hit_rate == 1


# ---- comparisons


class Silent:
    def on_step(self, run: RunProgress) -> None: ...

    def on_end(self, run: RunProgress, failure: str | None) -> None: ...


@pytest.mark.slow
def test_students_of_a_comparison_share_a_cache_and_are_those_of_single_runs(
    taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    twice = "train.epochs=2"
    changes = [*overrides(taught, tmp_path, "features"), twice]
    students = {}
    for share in (True, False):
        out = tmp_path / f"share-{share}"
        grid = load_plan("digits", changes, ["ce,kd,dskd"], out, seeds=2, share_teacher=share)
        run_grid(grid, Silent())
        students[share] = {
            path.parent.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob(LAST)
        }
        assert len(list((tmp_path / "outputs").iterdir())) == 1
        assert "teacher_cache_hit_rate" not in rows(out / "ce/seed0")[0]
        hits = [
            [r["teacher_cache_hit_rate"] for r in rows(out / f"{m}/seed1")] for m in ("kd", "dskd")
        ]
        assert hits[0] == hits[1]
        assert 0 < hits[0][0] <= 1
    assert students[True] == students[False]
    assert len(students[True]) == 6
    own = overrides(taught, tmp_path / "own", "features", "dskd")
    distill(tmp_path / "alone", [*own, twice, "seed=1"])
    assert (tmp_path / "alone" / LAST).read_bytes() == students[True]["dskd/seed1"]


def test_a_comparison_names_the_method_that_reads_more(taught: Path, tmp_path: Path) -> None:
    grid = load_plan(
        "digits",
        overrides(taught, tmp_path, "logits"),
        ["kd,dskd"],
        tmp_path / "compared",
        seeds=1,
    )
    with pytest.raises(
        InputError, match=r"^dskd: teacher={..., \"cache\": \"logits\"}: the method dskd reads"
    ):
        run_grid(grid, Silent())
    assert not (tmp_path / "compared").exists()


@pytest.mark.parametrize("count", [1, 3])
def test_a_few_images_are_repeated_to_a_full_batch_in_channels_last(count: int) -> None:
    seen = list[Tensor]()

    def forward(images: Tensor) -> ModelOutput:
        seen.append(images)
        return ModelOutput(images.flatten(1).float(), (images.float(),), None)

    few = torch.randint(0, 256, (count, 3, 4, 4), dtype=torch.uint8)
    output = cache._in_a_full_batch(forward, few)
    (images,) = seen
    assert len(images) == cache.SMALLEST_BATCH
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(image, few[row % count]) for row, image in enumerate(images))
    assert torch.equal(output.logits, few.flatten(1).float())
    assert len(output.stages[0]) == count
