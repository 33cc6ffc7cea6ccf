"""A check finds what speaks against a run before it starts, and writes nothing into its folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dskd
from dskd.cli.check_page import _cost_rows
from dskd.data.dataset import Dataset, Split
from dskd.data.duplicates import hash_splits
from dskd.engine.check import cost, run, steps, teacher
from dskd.engine.check.data import (
    check_data,
    count_images,
    count_warnings,
    data_reasons,
    data_warnings,
    shared_images,
)
from dskd.engine.check.findings import CheckReport, CostFindings, StepFindings
from dskd.engine.check.run import check
from dskd.engine.optimizer import set_rate
from dskd.errors import InputError
from dskd.runtime import cores, distributed
from tests.builders import make_dataset
from tests.data.file_writers import write_folder
from tests.trainers import trainer


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "STEPS", 9)


def with_shared(count: int) -> Dataset:
    """A data set whose first test images are training images, too."""
    data = make_dataset()
    assert isinstance(data.train, Split)
    assert isinstance(data.test, Split)
    images = data.test.images.clone()
    images[:count] = data.train.images[:count]
    return replace(data, test=Split(images, data.test.labels))


class Tint(nn.Module):
    """A teacher that tells the classes of `make_dataset` by their tint, in a given order."""

    def __init__(self, order: list[int]) -> None:
        super().__init__()
        self.order = order
        self.centres = nn.Parameter(torch.linspace(40, 215, 4) / 255)

    def forward(self, images: Tensor) -> Tensor:
        tint = images.mean((1, 2, 3))[:, None]
        return -100 * (tint - self.centres[self.order]) ** 2


def quick(data: Dataset, out: Path, **arguments: Any) -> CheckReport:
    return dskd.check("resnet8", data=data, epochs=2, out=out, verbose=0, **arguments)


def tinted(order: list[int]) -> dict[str, Any]:
    return {"module": Tint(order), "mean": 0.0, "std": 1.0}


# ---- data


def test_counts_are_those_of_each_split_and_class() -> None:
    training, test = count_images(make_dataset(classes=2, per_class=3))
    assert (training.split, training.images) == ("training", 6)
    assert training.per_class == {"class0": 3, "class1": 3}
    assert (test.split, test.per_class) == ("test", {"class0": 5, "class1": 5})


def test_shared_images_are_counted_and_named() -> None:
    (found,) = shared_images(with_shared(3))
    assert (found.split, found.other, found.images) == ("test", "training", 3)
    assert (found.compared, found.other_compared) == (20, 40)
    assert set(found.examples) == {(f"image {i}", f"image {i}") for i in range(3)}


def test_many_shared_images_are_a_reason_and_few_are_a_warning() -> None:
    found = check_data(with_shared(3), skip_bad=False)
    (reason,) = data_reasons(found)
    assert reason.startswith("3 of 20 compared test images are training images, too (")
    few = replace(found, shared=[replace(found.shared[0], images=1, compared=1000)])
    assert not [*data_reasons(few)]
    (warning,) = data_warnings(few)
    assert warning.startswith("the test and the training split share 1 image (")


def test_a_clean_data_set_has_no_reason_and_no_warning() -> None:
    found = check_data(make_dataset(), skip_bad=False)
    assert not [*data_reasons(found), *data_warnings(found)]


def test_a_class_without_training_images_is_a_reason_and_imbalance_a_warning() -> None:
    data = make_dataset(classes=3, per_class=10)
    found = check_data(replace(data, train=data.train.take(torch.arange(20))), skip_bad=False)
    (reason,) = data_reasons(found)
    assert reason.startswith("1 of 3 classes have no training image: class2;")
    unbalanced = data.train.take(torch.tensor([*range(10), 10, *range(20, 30)]))
    (warning,) = count_warnings(count_images(replace(data, train=unbalanced)))
    assert warning == ("the classes are unbalanced: 10 training images of 'class0', 1 of 'class1'")


def test_a_run_warns_of_unbalanced_classes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = make_dataset(classes=2, per_class=20, size=8)
    few = replace(data, train=data.train.take(torch.tensor([*range(20), 20])))
    dskd.train("resnet8", data=few, epochs=1, out=tmp_path / "run")
    assert "the classes are unbalanced: 20 training images of 'class0', 1 of 'class1'" in (
        record.getMessage() for record in caplog.records if record.levelname == "WARNING"
    )


def test_time_that_is_over_leaves_images_out() -> None:
    data = make_dataset(classes=4, per_class=100, size=4)
    found = hash_splits(data.splits(), seconds=0.0)
    assert found["test"].compared == 20
    assert found["training"].compared == 256  # the first look at the clock


@pytest.mark.slow
def test_the_same_file_in_two_splits_and_a_damaged_file_are_found(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "images")
    (root / "val/cat/copy.png").write_bytes((root / "train/cat/0.png").read_bytes())
    (root / "train/dog/1.png").write_bytes(b"no image")
    data = {"name": "folder", "root": str(root), "size": 16, "loading": "stream", "workers": 0}
    data["cache_dir"] = str(tmp_path / "cache")
    report = dskd.check("resnet8", data=data, method="ce", epochs=1, out=tmp_path / "run")
    assert not report.ok
    bad, shared = report.reasons
    assert bad.startswith("1 image file cannot be read: ")
    assert "train/dog/1.png" in bad
    assert "skip_bad" in bad
    assert shared.startswith("1 of 7 compared test images are training images, too (")
    assert "copy.png" in shared
    assert report.data.splits[0].per_class == {"cat": 4, "dog": 3, "owl": 4}
    assert report.cost is not None
    assert not (tmp_path / "run").exists()


@pytest.mark.slow(seconds=3)
@pytest.mark.parametrize("loading", ["memory", "stream"])
def test_a_sample_of_many_images_stands_for_all(
    loading: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_folder(tmp_path / "images", classes=("cat", "dog"), per_class=80)
    (root / "train/dog/1.png").write_bytes(b"no image")
    monkeypatch.setattr(run, "DECODE_SECONDS", 0.0)
    data = {"name": "folder", "root": str(root), "size": 8, "loading": loading, "workers": 0}
    data["cache_dir"] = str(tmp_path / "cache")
    arguments: dict[str, Any] = {"method": "ce", "epochs": 2, "out": tmp_path / "run"}
    train = {"batch_size": 16}
    report = dskd.check("resnet8", data=data, train=train, **arguments)
    images = sum(split.images for split in report.data.splits)
    assert report.data.decoded == 64 < images
    assert report.data.splits[0].images in (159, 160)  # the damaged file may be none of the 64
    assert report.cost is not None
    (step,) = report.steps
    expected = report.data.splits[0].images / 16 * 2 * step.seconds
    assert report.cost.seconds["student's training"] == pytest.approx(expected, rel=0.3)
    assert report.cost.seconds["decoding"] > 0
    assert not [*(tmp_path / "cache").glob("*")]  # a run still decodes all of them

    monkeypatch.setattr(run, "DECODE_SECONDS", 60.0)
    every = dskd.check("resnet8", data=data, train=train, **arguments)
    assert (every.data.decoded, len(every.data.bad_files)) == (0, 1)
    assert every.cost is not None
    assert "decoding" not in every.cost.seconds


# ---- teacher


@pytest.mark.slow
def test_a_good_teacher_is_measured_and_a_mixed_up_one_refused(tmp_path: Path) -> None:
    good = quick(make_dataset(), tmp_path / "run", teacher=tinted([0, 1, 2, 3]), method="kd")
    assert good.ok, good.reasons
    assert good.teacher is not None
    assert (good.teacher.accuracy, good.teacher.images) == (100.0, 20)
    assert (round(good.teacher.low, 1), good.teacher.high) == (83.2, 100.0)
    assert good.teacher.class_order == "as here"
    assert [loss.name for loss in good.losses] == ["ce", "kd"]
    assert [step.trained for step in good.steps] == ["student"]
    assert good.cost is not None
    assert {*good.cost.seconds} == {"student's training", "student's evaluation"}

    mixed = replace(make_dataset(), test=make_dataset(per_class=20).train)
    bad = quick(mixed, tmp_path / "run", teacher=tinted([1, 2, 3, 0]), method="kd")
    assert bad.teacher is not None
    assert bad.teacher.class_order == "another"
    assert any("classes are in another order" in reason for reason in bad.reasons)
    assert not (tmp_path / "run").exists()


def test_the_interval_of_an_accuracy_ends_at_its_bounds() -> None:
    assert teacher.accuracy_interval(0, 10)[0] == 0.0
    assert teacher.accuracy_interval(10, 10)[1] == 100.0
    low, high = teacher.accuracy_interval(5, 10)  # Clopper and Pearson: 0.187 to 0.813
    assert (round(low, 1), round(high, 1)) == (18.7, 81.3)


# ---- losses and steps


def test_gradients_are_those_of_each_term_at_each_stage() -> None:
    made = trainer("dskd")
    found = {loss.name: loss for loss in steps.check_losses(made)}
    assert {*found} == {"ce", "kd", "shallow"}
    for loss in found.values():
        assert [*loss.gradients] == ["layer1", "layer2", "layer3", "logits"]
    assert found["shallow"].gradients["logits"] == 0  # branches sit on the shallow stages
    assert min(found["ce"].gradients.values()) > 0
    batch = next(made.loader.batches(made.plan(0, 4), 4))
    logits = made.method.student(batch.images).logits.detach()
    gradient = (logits.softmax(1) - nn.functional.one_hot(batch.labels, 4)) / len(logits)
    assert found["ce"].gradients["logits"] == pytest.approx(gradient.norm().item(), rel=1e-4)


def test_steps_measure_speed_memory_and_the_size_of_a_checkpoint() -> None:
    made = trainer("kd")
    weights = sum(value.nbytes for value in made.method.deployed().state_dict().values())
    found = steps.check_steps(made, "student", warmup=0.0)
    assert found.problem == ""
    assert (found.batch_size, len(found.losses)) == (4, 9)
    assert sum(found.shares.values()) == pytest.approx(1.0)
    assert found.images_per_second == pytest.approx(4 / found.seconds)
    assert found.model_bytes == weights
    assert found.state_bytes > 2 * weights  # with the momentum
    assert found.saved_bytes > 0


def test_the_steps_are_those_of_a_run_without_the_momentum_of_a_rehearsal() -> None:
    found = steps.check_steps(trainer("kd"), "student", warmup=0.0)
    fresh = trainer("kd")
    fresh.method.train()
    set_rate(fresh.optimizer, fresh.learning_rate(0.0))
    batches = steps._batches(fresh, found.batch_size)
    next(batches)
    for loss in found.losses:
        step = fresh.take_step(fresh.with_targets(next(batches)))
        assert loss == pytest.approx(step.objective.item(), rel=1e-4)


def test_a_slow_step_is_measured_with_fewer_images(monkeypatch: pytest.MonkeyPatch) -> None:
    made = trainer("ce")
    made.batch_size = 64
    monkeypatch.setattr(steps, "_seconds_of", lambda *_: 0.5)  # of eight images
    found = steps.check_steps(made, "student", 0.0, seconds=5.0)
    assert found.batch_size == 16
    assert made.optimizer.param_groups[0]["lr"] == pytest.approx(0.02 * 16 / 64)


def test_a_check_on_busy_cores_gives_a_range(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cores, "times", iter([(1.0, 2.0), (2.0, 3.5)]).__next__)
    found = steps.check_steps(trainer("ce"), "student", 0.0)
    assert found.waiting == pytest.approx(0.6)
    train = SimpleNamespace(batch_size=8, accumulate=1, compile=False, threads=2)
    recipe: Any = SimpleNamespace(train=train)
    busy = replace(found, batch_size=8, loading=0.0)
    (warning,) = run._step_warnings(recipe, [busy])
    assert "the steps waited for a core 60 % of the time; the shorter times are those" in warning
    assert "stop other programs, or set train.threads below 2, and check again" in warning
    assert not [*run._step_warnings(recipe, [replace(busy, waiting=0.3)])]


def test_a_time_without_the_waiting_for_a_core_is_shown_as_well(tmp_path: Path) -> None:
    report = quick(make_dataset(), tmp_path / "run", method="ce")
    assert report.cost is not None
    (found,) = report.steps
    for name, spent in report.cost.seconds.items():
        assert report.cost.free_core_seconds[name] == pytest.approx(spent * (1 - found.waiting))
    (calm, busy) = (
        replace(report.cost, seconds={"run": 100.0}, free_core_seconds={"run": short})
        for short in (90.0, 40.0)
    )
    texts = [dict(row[:2] for row in _cost_rows(cost))["time of the run"] for cost in (calm, busy)]
    assert texts == ["1 min 40 s", "40 s to 1 min 40 s"]


def test_a_check_does_not_log_the_stages_that_its_report_has(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "dskd")
    layers = [nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1)]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4, 4))
    options: Any = {"method": "ce", "epochs": 2, "out": tmp_path / "run"}
    report = dskd.check({"module": net, "mean": 0, "std": 1}, data=make_dataset(), **options)
    assert report.stages["student"]
    assert not [line for line in caplog.messages if "stage" in line]


def test_the_bottleneck_is_the_largest_share() -> None:
    found = StepFindings("student", 8, [1.0], seconds=1.0, loading=0.6, teacher=0.1)
    assert found.bottleneck == "loading"
    assert found.shares == pytest.approx({"loading": 0.6, "teacher": 0.1, "student": 0.3})


@pytest.mark.parametrize(
    ("losses", "grows"),
    [
        ([1, 1, 1, 2, 2, 2, 4, 4, 4], True),
        ([1, 1, 1, 2, 2, 2, 2.5, 2.5, 2.5], False),  # not far
        ([1, 1, 1, 9, 9, 9, 4, 4, 4], False),  # it falls again
        ([1, 1, 2, 2, 4, 4], False),  # too few steps
    ],
)
def test_a_loss_that_goes_on_growing_is_a_problem(losses: list[float], grows: bool) -> None:
    assert steps._growth(losses) == ("the loss grows from 1 to 4 in 9 steps" if grows else "")


def test_a_rate_that_is_too_high_is_a_reason(tmp_path: Path) -> None:
    train = {"lr": 1e4, "batch_size": 16}
    report = quick(make_dataset(), tmp_path / "run", method="ce", train=train)
    assert len(report.reasons) == 1
    assert report.reasons[0].startswith("the student's training does not start: ")
    assert report.reasons[0].endswith("; lower train.lr")
    json.dumps(report.plain(), allow_nan=False)


@pytest.mark.slow
def test_a_teacher_without_a_checkpoint_is_timed_as_it_is_trained(tmp_path: Path) -> None:
    report = quick(make_dataset(), tmp_path / "run", teacher="resnet14", method="kd")
    assert report.ok, report.reasons
    assert [step.trained for step in report.steps] == ["teacher", "student"]
    assert report.teacher is not None
    assert report.teacher.note == "it is trained first"
    assert report.cost is not None
    assert len(report.cost.seconds) == 4
    assert not (tmp_path / "run").exists()


# ---- cost


def test_too_little_memory_or_disk_is_a_reason() -> None:
    found = CostFindings({}, {}, 10, 5, {"run": 10}, {"run": 5})
    memory, disk = cost.cost_reasons(found, torch.device("cpu"))
    assert "train.batch_size" in memory
    assert disk == (
        "the run needs about 10 bytes of disk, and 5 bytes are free; free some, or set out=FOLDER "
        "on another disk"
    )
    fits = CostFindings({}, {}, 5, 5, {"run": 5}, {"run": 5})
    assert not [*cost.cost_reasons(fits, torch.device("cpu"))]


def test_a_cache_saves_the_teacher_s_time_after_the_first_epochs() -> None:
    found = StepFindings("student", 8, [1.0], seconds=1.0, teacher=0.5)
    made: Any = SimpleNamespace(step_size=16, steps=3, epochs=10)
    recipe: Any = SimpleNamespace(
        teacher=SimpleNamespace(cache="features", views=2),
        data=SimpleNamespace(crop_padding=4, flip=True),
    )
    # 30 steps of 2 s: 1 s of the student each, 1 s of the teacher in two of ten epochs.
    assert cost._training_seconds(recipe, made, found) == pytest.approx(30 * 1.2)
    recipe.teacher.cache = "none"
    assert cost._training_seconds(recipe, made, found) == pytest.approx(30 * 2.0)


def test_the_cache_of_teacher_outputs_is_counted_and_not_begun(tmp_path: Path) -> None:
    cached = tinted([0, 1, 2, 3]) | {"cache": "logits", "cache_dir": str(tmp_path / "cache")}
    data = {"dataset": make_dataset(), "crop_padding": 0, "flip": False}
    arguments: dict[str, Any] = {"data": data, "teacher": cached, "method": "kd", "epochs": 2}
    report = dskd.check("resnet8", out=tmp_path / "run", verbose=0, **arguments)
    assert report.cost is not None
    numbers = 2 * 40 * 4  # two bytes for each of four logits of 40 images
    assert numbers <= report.cost.disk["teacher outputs"] < 10 * numbers
    assert not [*tmp_path.iterdir()]


# ---- whole


def test_a_check_leaves_random_numbers_as_they_were(tmp_path: Path) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    quick(make_dataset(), tmp_path / "run", method="ce")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_a_folder_that_holds_a_run_is_a_warning_and_another_one_a_reason(tmp_path: Path) -> None:
    dskd.train("resnet8", data=make_dataset(), epochs=1, out=tmp_path / "run", verbose=0)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    begun = quick(make_dataset(), tmp_path / "run", method="ce")
    assert begun.ok
    assert any("overwrite=True" in warning for warning in begun.warnings)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    (tmp_path / "other").mkdir()
    (tmp_path / "other/letter.txt").write_text("dear")
    other = quick(make_dataset(), tmp_path / "other", method="ce")
    assert len(other.reasons) == 1
    assert str(tmp_path / "other") in other.reasons[0]
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["letter.txt"]


def test_a_check_of_several_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "launched_world_size", lambda: 2)
    recipe: Any = None
    with pytest.raises(InputError, match="start it without torchrun"):
        check(recipe)


def test_a_teacher_that_the_method_does_not_use_is_refused_as_by_the_run() -> None:
    with pytest.raises(InputError, match=r"^teacher has no effect: the method 'ce' learns from"):
        dskd.check("resnet8", teacher="resnet14", data="digits", method="ce")
