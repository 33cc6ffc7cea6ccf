"""Streamed data sets of torch: the same as in memory, whatever the number of workers."""

from __future__ import annotations

import io
import os
import random
import signal
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import ExifTags, Image
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset
from torchvision.datasets import ImageFolder

import dskd
from dskd.config.schema import DataSettings
from dskd.data import stream_loader
from dskd.data.augmentation import Augmentation
from dskd.data.dataset import Dataset, Samples, Split
from dskd.data.duplicates import hash_splits
from dskd.data.epoch_plan import draw_plan
from dskd.data.loader import Batch, Loader
from dskd.data.sample_reader import SampleReader
from dskd.data.sample_split import RowNames, SampleSplit
from dskd.data.torch_dataset import TorchSplits
from dskd.engine.build_data import load_training_data
from dskd.engine.given_data import split_data
from dskd.errors import InputError, ProcessLost
from dskd.settings import validate
from tests.data.file_writers import write_folder
from tests.data.test_stream_loader import look_often

CPU = torch.device("cpu")
ALL = Augmentation(
    crop_scale=(0.1, 1.0), auto_augment="trivialaugment", color_jitter=0.2, random_erasing=0.5
)
COUNT = 12


class Given:
    """A data set that counts what is read, and may list its labels.

    Args:
        image: The image of an index.
        targets: The labels that are listed; None for none.
    """

    def __init__(
        self, image: Callable[[int], Any], targets: Any = None, count: int = COUNT
    ) -> None:
        self.image, self.count, self.read = image, count, 0
        if targets is not None:
            self.targets = targets

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        self.read += 1
        return self.image(index), index % 3


def pixels(index: int, shape: tuple[int, ...] = (3, 10, 14)) -> Tensor:
    draw = torch.Generator().manual_seed(index)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=draw)


def pillow(index: int) -> Image.Image:
    return Image.fromarray(pixels(index).permute(1, 2, 0).numpy())


FORMS: dict[str, Callable[[int], Any]] = {
    "tensor": pixels,
    "floats": lambda index: pixels(index).float() / 255,
    "array": lambda index: pixels(index).permute(1, 2, 0).numpy(),
    "Pillow": pillow,
}
LABELS = [index % 3 for index in range(COUNT)]


def damaged_png() -> Image.Image:
    """A PNG file whose second chunk of pixels is damaged; Pillow opens it."""
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    Image.fromarray(noise).save(file, "PNG", compress_level=0)
    data = file.getvalue()
    second = data.index(b"IDAT", data.index(b"IDAT") + 4)
    return Image.open(io.BytesIO(data[:second] + bytes(4) + data[second + 4 :]))


def load(given: Any, loading: str = "stream", **options: Any) -> Dataset:
    settings = {"dataset": given, "test": given, "loading": loading, "workers": 0} | options
    values, splits = split_data(settings)
    return load_training_data(validate(DataSettings, values), splits)


def with_workers(split: Samples, workers: int) -> Loader:
    assert isinstance(split, SampleSplit)
    return replace(split, workers=workers).loader(CPU)


def equal(one: Batch, other: Batch) -> bool:
    values = [(getattr(one, f.name), getattr(other, f.name)) for f in fields(Batch)]
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in values)


# ---- the same images as in memory


@pytest.mark.parametrize("size", [None, 8])
@pytest.mark.parametrize("form", FORMS)
def test_images_and_batches_are_those_in_memory(form: str, size: int | None) -> None:
    given = Given(FORMS[form])
    streamed, memory = load(given, size=size), load(given, "memory", size=size, workers=None)
    for name, split in streamed.splits().items():
        other = memory.splits()[name]
        assert isinstance(split, SampleSplit)
        assert isinstance(other, Split)
        assert torch.equal(split.images, other.images)
        assert torch.equal(split.labels, other.labels)
        assert tuple(split.names) == other.names
    assert (streamed.mean, streamed.std) == (memory.mean, memory.std)
    assert (streamed.classes, streamed.shape) == (memory.classes, memory.shape)
    plan = draw_plan(1, 2, COUNT, 2, flip=True)
    batches = (data.train.loader(CPU).batches(plan, 5) for data in (streamed, memory))
    assert all(map(equal, *batches))


@pytest.mark.parametrize("form", ["tensor", "Pillow"])
def test_random_crops_are_of_the_whole_image(form: str) -> None:
    plan = draw_plan(1, 2, COUNT, augmentation=ALL)
    same, resized = (load(Given(FORMS[form]), size=size).train for size in (None, 8))
    memory = load(Given(FORMS[form]), "memory", workers=None).train
    # Without a size, the image in memory is the whole one, too.
    assert all(map(equal, same.loader(CPU).batches(plan, 5), memory.loader(CPU).batches(plan, 5)))
    (batch,) = resized.loader(CPU).batches(plan, COUNT)
    assert batch.images.shape == (COUNT, 3, 8, 8)


def test_forms_of_an_image_have_the_same_crops() -> None:
    plan = draw_plan(1, 2, COUNT, augmentation=ALL)
    first, *others = (
        [*load(Given(form), size=8).train.loader(CPU).batches(plan, 5)] for form in FORMS.values()
    )
    assert all(all(map(equal, first, other)) for other in others)


def test_crops_leave_the_images_of_the_data_set_as_they_are(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    shapes = (3, 96, 64), (3, 64, 96)
    for index in range(COUNT):
        options: dict[str, Any] = {"exif": exif} if index % 2 else {}
        wide = pixels(index, shapes[index % 2]).permute(1, 2, 0).numpy()
        Image.fromarray(wide).save(tmp_path / f"{index}.jpg", **options)

    def opened(index: int) -> Image.Image:
        return Image.open(tmp_path / f"{index}.jpg")

    def small(index: int) -> Image.Image:
        image = opened(index)
        image.draft("RGB", (24, 24))
        return image

    def not_turned(index: int) -> Image.Image:
        image = opened(index)
        image.getexif().pop(ExifTags.Base.Orientation, None)
        return image

    plan = draw_plan(1, 2, COUNT, augmentation=Augmentation(crop_scale=(0.9, 1.0)))
    for form in (opened, small, not_turned):
        given = Given(form)
        split = load(given, size=8).train
        kept, expected = [form(index) for index in range(COUNT)], [*map(form, range(COUNT))]
        (anew,) = split.loader(CPU).batches(plan, COUNT)
        given.image = kept.__getitem__
        for _ in range(2):  # images without crops do not change the next crops, either
            assert split.images_at(torch.arange(COUNT)).shape == (COUNT, 3, 8, 8)
            (batch,) = split.loader(CPU).batches(plan, COUNT)
            assert equal(batch, anew)
        for image, other in zip(kept, expected, strict=True):
            assert np.array_equal(np.asarray(image), np.asarray(other))


def test_a_part_is_that_in_memory() -> None:
    settings = {
        "test": None,
        "test_split": 0.25,
        "val_fraction": 0.25,
        "classes": ["2", "0"],
        "size": 8,
    }
    data = [
        load_training_data(validate(DataSettings, {**rest, "loading": loading}), splits)
        for loading in ("stream", "memory")
        for rest, splits in [split_data({"dataset": Given(pillow)} | _without(settings, "test"))]
    ]
    for name, split in data[0].splits().items():
        other = data[1].splits()[name]
        assert torch.equal(split.images, other.images)
        assert torch.equal(split.labels, other.labels)
        assert tuple(split.names) == tuple(other.names)
    assert data[0].test_is_held_out


def _without(settings: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name != key}


# ---- the same batches in any process


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "start"), [(1, 0), (2, 2)])
def test_workers_do_not_change_a_byte(workers: int, start: int) -> None:
    split = load(Given(pillow), size=8).train
    plan = draw_plan(3, 1, COUNT, flip=True, augmentation=ALL)
    expected = list(with_workers(split, 0).batches(plan, 3))
    states = random.getstate(), repr(np.random.get_state()), torch.get_rng_state()
    found = list(with_workers(split, workers).batches(plan, 3, start))
    assert states[:2] == (random.getstate(), repr(np.random.get_state()))
    assert torch.equal(states[2], torch.get_rng_state())
    assert len(found) == len(expected) - start
    assert all(map(equal, found, expected[start:]))
    assert torch.equal(with_workers(split, workers).probe(3), split.images[:3])


def test_what_a_data_set_draws_is_the_same_at_every_use() -> None:
    """Such as a transform with so small a probability that no check has seen it."""
    given = Given(pillow)
    split = load(given, size=8).train
    given.image = lambda _: Image.fromarray(
        (np.random.rand(10, 14, 3) * random.random() * float(torch.rand(())) * 255).astype(np.uint8)
    )
    before = torch.get_rng_state()
    first = split.images
    torch.rand(3), np.random.rand(3), random.random()
    turned = split.images_at(torch.arange(COUNT).flip(0)).flip(0)
    assert torch.equal(first, turned)
    assert len({image.numpy().tobytes() for image in first}) == COUNT
    assert not torch.equal(before, torch.get_rng_state())  # these were the test's own draws


def test_workers_alone_read_if_there_are_some() -> None:
    """A file that a data set opens must not be shared with forked processes."""
    given = Given(pillow, LABELS)
    data = load(given, size=8, workers=1)
    assert (given.read, len(data.train)) == (0, COUNT)


@pytest.mark.slow
def test_a_dead_worker_ends_the_run_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    look_often(monkeypatch)
    given, here = Given(pillow, LABELS), os.getpid()
    split = load(given, size=8).train

    def killed(index: int) -> Image.Image:
        if os.getpid() != here and index == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return pillow(index)

    given.image = killed
    start = time.monotonic()
    with pytest.raises(ProcessLost, match="a worker process that decodes images died"):
        list(with_workers(split, 2).batches(draw_plan(0, 0, COUNT), 3))
    assert time.monotonic() - start < 60


def test_what_cannot_be_sent_to_a_process_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where processes are not forked, as on macOS and Windows."""
    spawned = partial(DataLoader, multiprocessing_context="spawn")
    monkeypatch.setattr(
        stream_loader,
        "DataLoader",
        lambda *given, **options: spawned(*given, **_without(options, "multiprocessing_context")),
    )
    given = Given(lambda index: pixels(index), LABELS)
    with pytest.raises(InputError, match=r"cannot be read in worker processes here.*workers.*0"):
        load(given, workers=1)


# ---- labels


def test_listed_labels_are_taken_and_few_images_are_read() -> None:
    big = Given(pillow, np.arange(300_000) % 3, 300_000)
    tracemalloc.start()
    try:
        data = load(big, size=8)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert torch.equal(data.train.labels[:COUNT], torch.tensor(LABELS))
    assert big.read < 1000
    assert most < 32 * 300_000 + 4e6  # labels and numbers of both splits; no list of objects
    assert data.train.names[299_999] == "299999"
    assert isinstance(data.train.names, RowNames)


def listed(given: Any) -> list[int] | None:
    found = SampleReader(given, "training", None, None, dskd.data.pixels.RGB).known_labels()
    return None if found is None else found.tolist()


def test_labels_are_found_where_data_sets_list_them() -> None:
    named = Given(pillow, LABELS)
    assert listed(named) == LABELS
    assert listed(Subset(named, [4, 2])) == [1, 2]  # type: ignore[arg-type]
    assert listed(ConcatDataset([named, Subset(named, [5])])) == [*LABELS, 2]  # type: ignore[list-item,arg-type]
    images = torch.stack([pixels(index) for index in range(COUNT)])
    assert listed(TensorDataset(images, torch.tensor(LABELS))) == LABELS
    for useless in (None, LABELS[1:], ["cat"] * COUNT, [0.5] * COUNT, torch.zeros(COUNT, 2), 3):
        assert listed(Given(pillow, useless)) is None
    named.target_transform = lambda label: 2 - label  # type: ignore[attr-defined]
    assert listed(named) is None


def test_labels_that_are_listed_otherwise_are_read() -> None:
    for targets in (None, [2 - label for label in LABELS]):
        given = Given(pillow, targets)
        assert load(given, size=8).train.labels.tolist() == LABELS


def test_a_label_that_changes_ends_the_run_in_a_line() -> None:
    targets = np.array([index % 3 for index in range(1000)])
    targets[2] = 0  # an image that is not read at the beginning
    split = load(Given(pillow, targets, 1000), size=8).train
    with pytest.raises(InputError, match=r"image 2 of .* has the label 2, and 0"):
        split.images_at(torch.arange(3))


# ---- data sets that cannot be streamed


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_random_transforms_are_refused(workers: int) -> None:
    given = Given(lambda _: Image.fromarray((np.random.rand(8, 8, 3) * 255).astype(np.uint8)))
    with pytest.raises(InputError, match=r"another one when it is read again.*data\.augment"):
        load(given, workers=workers)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (
            lambda i: pixels(i, (3, 8, 8 + (i == 6))),
            "image 6 of .* is 9x8, and the first image 8",
        ),
        (
            lambda i: pixels(i, (1 if i == 6 else 3, 8, 8)),
            "image 6 of .* has 1 channels, and the first",
        ),
        (lambda i: "a.png" if i == 6 else pixels(i), "image 6 of .* is a str; give an image"),
        (lambda i: pixels(i) if i != 6 else 1 // 0, "image 6 of .* cannot be read: .*by zero"),
        (
            lambda i: damaged_png() if i == 6 else pixels(i),
            "image 6 of .* cannot be used: broken PNG file",
        ),
    ],
)
@pytest.mark.parametrize("crops", [False, True])
def test_what_cannot_be_used_is_named(image: Any, said: str, crops: bool) -> None:
    with pytest.raises(InputError, match=said):
        load(Given(image))
    given = Given(lambda index: pixels(index, (3, 8, 8) if "first" in said else (3, 10, 14)))
    split = load(given).train
    given.image = image  # it changes during the run
    plan = draw_plan(0, 0, COUNT, augmentation=ALL if crops else Augmentation())
    if crops and "9x8" in said:
        assert list(split.loader(CPU).batches(plan, 5))  # crops have one size
        return
    with pytest.raises(InputError, match=said) as raised:
        list(split.loader(CPU).batches(plan, 5))
    assert "\n" not in str(raised.value)


def test_bad_labels_that_are_listed_are_named() -> None:
    given = Given(pillow, [-1] * COUNT)
    given.__class__ = type("Shifted", (Given,), {"__getitem__": lambda _, i: (pillow(i), -1)})
    with pytest.raises(InputError, match="has the label -1; give a number from 0 to 999,999"):
        load(given)


# ---- the choice, and what depends on it


def test_auto_streams_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    given = Given(pillow)
    assert isinstance(load(given, "auto", size=8).train, Split)
    needed = 2 * COUNT * 3 * 8 * 8
    memory = SimpleNamespace(total=4 * needed - 1, available=10**9)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    data = load(given, "auto", size=8)
    assert isinstance(data.train, SampleSplit)
    assert "24 images would take 4.5 KiB of memory, more than 4.5 KiB" in data.notes[0]
    memory.total += 4
    assert isinstance(load(given, "auto", size=8).train, Split)
    many = Given(pillow, np.arange(100) % 3, 100)
    memory.total = 4 * 200 * 3 * 10 * 14 - 1
    assert isinstance(load(many, "auto").train, SampleSplit)


def test_fingerprints_tell_images_labels_and_rows_apart() -> None:
    data = load(Given(pillow), size=8)
    prints = {
        data.fingerprint(),
        load(Given(lambda index: pillow(index + 1)), size=8).fingerprint(),
        load(Given(pillow), size=9).fingerprint(),
        replace(data, train=data.train.take(torch.arange(COUNT).flip(0))).fingerprint(),
        replace(data, train=data.train.relabelled(data.train.labels.flip(0))).fingerprint(),
    }
    assert len(prints) == 5
    assert load(Given(pillow), size=8).fingerprint() == data.fingerprint()


def test_the_same_images_are_found_in_two_splits() -> None:
    data = load(Given(pillow), size=8)
    found = hash_splits(data.splits(), 10)
    assert found["test"].indices.keys() == found["training"].indices.keys()
    assert found["test"].compared == COUNT


def test_images_without_labels_are_streamed_and_share_the_workers() -> None:
    settings = {"dataset": Given(pillow), "test": Given(pillow), "unlabelled": [pillow(99)] * 3}
    values, splits = split_data(settings | {"loading": "stream", "size": 8, "workers": 4})
    assert isinstance(splits, TorchSplits)
    data = load_training_data(validate(DataSettings, values), splits)
    assert isinstance(data.train, SampleSplit)
    assert isinstance(data.unlabelled, SampleSplit)
    assert (data.train.workers, data.unlabelled.workers) == (2, 2)
    assert data.unlabelled.labels.tolist() == [-1] * 3


@pytest.mark.slow
def test_a_run_is_the_same_in_memory_streamed_and_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dskd.errors import Stopped
    from dskd.storage.weights import read_weights
    from tests.builders import stop_at

    root = write_folder(tmp_path / "root", side=16)
    data = {"dataset": ImageFolder(root / "train"), "test": ImageFolder(root / "val")}

    def train(name: str, resume: bool = False, **settings: Any) -> dict[str, Tensor]:
        dskd.train(
            "resnet8",
            data=data | {"flip": True} | settings,
            train={"epochs": 2, "batch_size": 4},
            out=tmp_path / name,
            resume=resume,
            verbose=0,
        )
        return read_weights(tmp_path / name / "student.safetensors")

    runs = [train("memory", loading="memory"), train("streamed", loading="stream", workers=0)]
    stop_at(monkeypatch, 1, 1)
    with pytest.raises(Stopped):
        train("stopped", loading="stream", workers=0)
    monkeypatch.undo()
    runs.append(train("stopped", resume=True, loading="stream", workers=2))
    assert all(torch.equal(runs[0][key], run[key]) for run in runs for key in runs[0])
    assert dskd.evaluate(tmp_path / "stopped", data=data).accuracy is not None
