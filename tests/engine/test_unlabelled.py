"""Runs whose steps have images without labels."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dskd
from dskd.config import recipe
from dskd.config.schema import Recipe
from dskd.config.train_settings import TrainSettings
from dskd.data import Split
from dskd.data.epoch_plan import MIN_SAMPLES
from dskd.data.joint_loader import JointLoader
from dskd.data.joint_plan import draw_joint_plan, unlabelled_bounds
from dskd.data.loader import NO_LABEL, Batch, DataLoaders
from dskd.data.mixing import draw_mix
from dskd.engine import run
from dskd.engine.accumulation import count_parts, process_sizes, split
from dskd.engine.metrics import EpochMetrics
from dskd.engine.mixing import Mixing
from dskd.engine.step import train_step
from dskd.engine.targets import SoftTargets, balanced, soft_targets
from dskd.errors import InputError, Stopped, on_command_line
from dskd.methods.contracts import StepOutput
from dskd.runtime import distributed
from dskd.storage.weights import read_weights
from tests.builders import make_dataset, stop_at
from tests.data.file_writers import write_folder
from tests.methods.test_every_method import made
from tests.runtime.test_distributed import without_batchnorm

CPU = torch.device("cpu")
MADE = make_dataset(classes=4, per_class=6, size=16)
DATA = replace(MADE, unlabelled=Split.unlabelled(make_dataset(size=16, seed=1).train.images))


def first(size: int = 12, share: float = 0.5) -> Batch:
    loaders = DataLoaders(DATA, CPU)
    assert loaders.unlabelled is not None
    loader = JointLoader(loaders.train, loaders.unlabelled, share)
    how: Any = (2, True, None, recipe.load("digits").data.augmentation)
    return next(loader.batches(loader.draw_plan(0, 0, how, size), size))


def test_targets_are_zero_without_a_label_and_a_mean_over_labels_with_one() -> None:
    batch = first(12, 0.25)
    logits = torch.linspace(-2, 2, 48).view(12, 4).sin()
    known = batch.labels != NO_LABEL
    for smoothing in (0.0, 0.2):
        softened = SoftTargets(4, smoothing)(batch)
        expected = F.cross_entropy(logits[known], batch.labels[known], label_smoothing=smoothing)
        torch.testing.assert_close(F.cross_entropy(logits, softened.targets), expected)
        assert not softened.targets[~known].any()


def test_balanced_weights_count_labelled_images_alone() -> None:
    labels = torch.tensor([0, NO_LABEL, 1, 1, NO_LABEL, 1])
    found = soft_targets(TrainSettings(class_weights="balanced"), labels, 2).weights
    assert found is not None
    assert torch.equal(found, balanced(torch.tensor([0, 1, 1, 1]), 2))


def test_the_accuracy_of_the_training_counts_labelled_images_alone() -> None:
    batch = first(12, 0.25)
    logits = F.one_hot(batch.labels.clamp_min(0), 4).float()
    right = (batch.labels != NO_LABEL).nonzero().flatten()
    logits[right[0]] = logits[right[0]].roll(1)
    metrics = EpochMetrics()
    metrics.add(batch, StepOutput({"ce": torch.tensor(1.0)}, logits))
    assert metrics.means()["train_accuracy"] == pytest.approx(100 * 8 / 9)


def test_images_are_mixed_with_images_of_their_kind() -> None:
    batch = first(12, 0.5)
    mixed = Mixing(seed=0, classes=4, mixup=0.4, cutmix=1.0, probability=1.0)(batch)
    mix = draw_mix(0, 0, 0, (16, 16), mixup=0.4, cutmix=1.0)
    assert mix is not None
    unlabelled = batch.labels == NO_LABEL
    for kind in (unlabelled, ~unlabelled):
        own = batch.images[kind]
        assert torch.equal(mixed.images[kind], mix.images(own, own.roll(1, 0)))
    assert (mixed.labels[unlabelled] == NO_LABEL).all()
    assert (mixed.labels[~unlabelled] != NO_LABEL).all()
    known = batch.labels[~unlabelled]
    targets = SoftTargets(4, 0.1)(mixed).targets
    expected = 0.9 * mix.targets(known, known.roll(1, 0), 4) + 0.1 / 4
    torch.testing.assert_close(targets[~unlabelled], 2 * expected)
    assert not targets[unlabelled].any()


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("kinds", [(6, 6), (9, 3), (11, 1), (12, 0), (7, 12)])
def test_parts_of_a_step_are_large_enough_for_batchnorm(
    kinds: tuple[int, int], world: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, total = replace(first(), kinds=kinds, global_size=sum(kinds)), sum(kinds)
    sizes = process_sizes(batch, world)
    assert sum(sizes) == total
    parts = count_parts(total, 4, 4, world, fewest=min(sizes))
    monkeypatch.setattr("dskd.engine.accumulation.distributed.world_size", lambda: world)
    found: list[list[int]] = []
    for rank, size in enumerate(sizes):
        monkeypatch.setattr("dskd.engine.accumulation.distributed.rank", lambda rank=rank: rank)
        rows = torch.arange(size)
        own = replace(batch, labels=rows, indices=rows, views=rows, seeds=rows, images=rows)
        pieces = split(replace(own, cpu_keys=rows), parts)
        assert torch.cat([piece.indices for piece in pieces]).tolist() == rows.tolist()
        found.append([len(piece.indices) for piece in pieces])
        whole = [piece.global_size for piece in pieces]
    assert [sum(one) for one in zip(*found, strict=True)] == whole
    assert min(min(one) for one in found) >= MIN_SAMPLES


@pytest.mark.parametrize("name", ["kd", "at"])
def test_gradients_of_parts_are_those_of_the_whole_step(name: str) -> None:
    found: list[dict[str, Tensor]] = []
    made(name, MADE)  # imports the method's tests, some of which draw random numbers
    for parts in (1, 3):
        torch.manual_seed(0)
        method, outputs = made(name, MADE)
        without_batchnorm(method)
        optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 0.0)
        batch = SoftTargets(4)(first(15, 0.4))
        train_step(method, outputs, batch, optimizer, "float32", parts=parts)
        found.append({n: p.grad for n, p in method.named_parameters() if p.grad is not None})
    for key, value in found[0].items():
        scale = value.abs().max().clamp_min(1.0).item()
        torch.testing.assert_close(found[1][key], value, rtol=0, atol=1e-5 * scale)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "root", per_class=8, val_per_class=3, side=20)


def plan(root: Path, out: Path, *overrides: str) -> Recipe:
    return recipe.load(
        "digits",
        [
            f"data={{name: folder, root: {root}, size: 16, fraction: 0.5}}",
            f"data.unlabelled={root / 'train'}",
            "data.augment=strong",
            "teacher.name=resnet8",
            "teacher.epochs=1",
            "method.name=dskd",
            "train.epochs=2",
            "train.batch_size=6",
            "train.device=cpu",
            f"out={out}",
            *overrides,
        ],
    )


def test_a_batch_too_small_for_all_processes_is_refused_before_the_teacher(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `train.accumulate` a step is large enough, but not the part of it in memory."""
    monkeypatch.setattr(distributed, "launched_world_size", lambda: 2)
    small = ("train.batch_size=4", "train.accumulate=4", "method.name=kd", "teacher.epochs=1")
    with pytest.raises(InputError, match=r"batch_size.*4.* leaves no room .* set 6 or more"):
        run.distill(plan(root, tmp_path / "run", "data.fraction=0.2", *small))
    assert not (tmp_path / "run").exists()


FEW = ("data.fraction=0.2", "train.batch_size=64", "method.name=kd", "teacher.epochs=1")


def test_a_share_that_leaves_no_image_without_a_label_is_refused_before_the_teacher(
    root: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    said = r"share=0\.01 leaves no image .* the (\d+) labelled .* set it to (\S+) or more"
    with on_command_line(), pytest.raises(InputError, match=said) as refused:
        run.distill(plan(root, out, *FEW, "data.unlabelled_share=0.01"))
    assert not out.exists()
    found = re.search(said, str(refused.value))
    assert found is not None
    for labelled in (int(found[1]), 2, 3, 7, 50):
        enough = math.ceil(100 / (labelled + 1)) / 100
        for size in range(8, 300):
            assert unlabelled_bounds(labelled, size, enough)[-1]


def test_a_rehearsed_step_may_have_no_image_without_a_label() -> None:
    drawn = draw_joint_plan(0, 0, (3, 8), (8, 0.1, 1)).unlabelled
    assert drawn is not None
    assert drawn.order.tolist() == []


def student(folder: Path) -> dict[str, Tensor]:
    return read_weights(folder / "student.safetensors")


def assert_same_student(one: Path, other: Path) -> None:
    first, second = student(one), student(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


FIELD = ("train.mixup=0.2", "train.label_smoothing=0.1", "train.accumulate=2", "train.ema=0.9")


@pytest.mark.slow
@pytest.mark.parametrize("settings", [("data.loading=memory",), ("data.loading=stream", *FIELD)])
def test_a_run_resumes_in_mid_epoch_to_the_same_bytes(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Sequence[str]
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run.distill(plan(root, whole, "data.workers=0", *settings))
    teacher = f"teacher.checkpoint={whole / 'teacher/student.safetensors'}"
    with monkeypatch.context() as patch:
        stop_at(patch, epoch=1, step=0)
        with pytest.raises(Stopped):
            run.distill(plan(root, stopped, "data.workers=1", *settings, teacher))
    run.distill(plan(root, stopped, "data.workers=2", *settings, teacher), resume=True)
    assert_same_student(whole, stopped)
    alone = tmp_path / "alone"
    run.distill(plan(root, alone, "data.unlabelled=null", *settings, teacher))
    assert any(not torch.equal(value, student(alone)[key]) for key, value in student(whole).items())


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["logits", "features"])
def test_teacher_outputs_of_all_images_are_cached(root: Path, tmp_path: Path, cache: str) -> None:
    settings = (
        f"teacher.cache={cache}",
        f"teacher.cache_dir={tmp_path / 'outputs'}",
        *(["teacher.views=2"] if cache == "features" else []),
        f"method.name={'kd' if cache == 'logits' else 'dskd'}",
        "data.augment=none",
        "data.flip=true",
        "train.epochs=4",
    )
    first, second = tmp_path / "first", tmp_path / "second"
    run.distill(plan(root, first, *settings))
    teacher = f"teacher.checkpoint={first / 'teacher/student.safetensors'}"
    result = run.distill(plan(root, second, *settings, teacher))
    assert result.teacher_cache_hit_rate == 1
    assert_same_student(first, second)


@pytest.mark.slow
def test_a_comparison_trains_without_a_teacher_on_labelled_images(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "dskd")
    summary = dskd.compare_methods(
        recipe=plan(root, tmp_path / "unused").plain() | {"out": None},
        methods=["ce", "kd"],
        seeds=1,
        out=tmp_path / "comparison",
    )
    assert [row.method for row in summary] == ["ce", "kd"]
    said = caplog.text
    assert "the method ce learns from labels alone: the 12 images without labels are not" in said
    assert "the method kd learns from 12 images with and 12 without labels: 3 and 3 in" in said


def test_images_without_labels_may_be_given_in_python(tmp_path: Path) -> None:
    images = [(image, label) for image, label in zip(*_pairs(40), strict=True)]
    for unlabelled in ([image for image, _ in images], images, torch.stack([i for i, _ in images])):
        out = tmp_path / str(type(unlabelled).__name__) / str(type(unlabelled[0]).__name__)
        data = {"dataset": images[:20], "test": images[20:], "unlabelled": unlabelled}
        result = dskd.distill(
            "resnet8",
            teacher={"module": nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), "trust": True},
            data=data,
            method="kd",
            epochs=1,
            train={"batch_size": 8},
            out=out,
            verbose=0,
        )
        assert json.loads((result.path / "result.json").read_text())["method"] == "kd"
    with pytest.raises(InputError, match=r"data\.unlabelled: a folder or a data set of images"):
        dskd.distill(
            "resnet8", data={"dataset": images, "unlabelled": 3}, method="kd", out=tmp_path
        )
    with pytest.raises(InputError, match="unlabelled is given without dataset"):
        dskd.distill("resnet8", data={"name": "digits", "unlabelled": images}, out=tmp_path)


def _pairs(count: int) -> tuple[Tensor, list[int]]:
    images = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8)
    return images, [index % 2 for index in range(count)]
