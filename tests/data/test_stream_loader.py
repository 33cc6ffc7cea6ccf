"""Streamed images: the same as in memory, whatever the number of workers."""

from __future__ import annotations

import importlib
import io
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor
from torch.utils.data import dataloader

from dskd.data import Dataset, Split, load_dataset, stream_decoding, streamed_images
from dskd.data.augmentation import Augmentation
from dskd.data.dataset import Samples
from dskd.data.epoch_plan import EpochPlan, draw_plan
from dskd.data.file_split import FileSplit
from dskd.data.folder_files import FolderFiles
from dskd.data.loader import Batch, Loader
from dskd.data.pixels import RGB, PixelForm
from dskd.data.stream_decoding import BatchDecoder, Job
from dskd.data.streamed_images import must_stream
from dskd.errors import InputError, ProcessLost
from tests.data.file_writers import write_folder

CPU = torch.device("cpu")
ALL = Augmentation(
    crop_scale=(0.1, 1.0), auto_augment="trivialaugment", color_jitter=0.2, random_erasing=0.5
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Images of several sizes and formats."""
    root = write_folder(tmp_path / "root", side=24)
    for number, path in enumerate(sorted((root / "train").rglob("*.png"))[::2]):
        with Image.open(path) as image:
            grown = image.resize((30 + number, 20 + 3 * number))
        grown.save(path.with_suffix(".jpg"), quality=90)
        path.unlink()
    return root


def load(root: Path, loading: str = "stream", **options: Any) -> Dataset:
    options = {"size": 12, "workers": 0} | options
    if loading == "memory":
        del options["workers"]
    cache = root.parent / "cache"
    return load_dataset("folder", root=root, loading=loading, cache_dir=cache, **options)  # type: ignore[arg-type]


def with_workers(split: Samples, workers: int) -> Loader:
    assert isinstance(split, FileSplit)
    return replace(split, workers=workers).loader(CPU)


def equal(one: Batch, other: Batch) -> bool:
    values = [(getattr(one, f.name), getattr(other, f.name)) for f in fields(Batch)]
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in values)


# ---- the same images as in memory


def test_the_splits_are_those_in_memory(root: Path) -> None:
    streamed, memory = load(root), load(root, "memory")
    for name, split in streamed.splits().items():
        other = memory.splits()[name]
        assert isinstance(split, FileSplit)
        assert isinstance(other, Split)
        assert torch.equal(split.labels, other.labels)
        assert tuple(split.names) == other.names
        assert torch.equal(split.images, other.images)
    assert (streamed.mean, streamed.std) == (memory.mean, memory.std)
    assert streamed.shape == memory.shape == (3, 12, 12)
    assert streamed.classes == memory.classes


@pytest.mark.parametrize(
    "options", [{"classes": ["owl", "cat"]}, {"fraction": 0.5}, {"val_fraction": 0.25}]
)
def test_parts_are_those_in_memory(root: Path, options: dict[str, Any]) -> None:
    streamed, memory = load(root, **options), load(root, "memory", **options)
    for name, split in streamed.splits().items():
        other = memory.splits()[name]
        assert torch.equal(split.labels, other.labels)
        assert tuple(split.names) == tuple(other.names)
        assert torch.equal(split.images, other.images)


def test_images_without_a_size_keep_their_own(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "root", side=16)
    streamed, memory = load(root, size=None), load(root, "memory", size=None)
    assert streamed.shape == (3, 16, 16)
    assert torch.equal(streamed.train.images, memory.train.images)
    Image.new("RGB", (16, 17)).save(root / "train" / "dog" / "0.png")
    with pytest.raises(InputError, match=r"0.png is 16x16, but .*0.png is 16x17; give all one"):
        load(root, size=None)


@pytest.mark.parametrize(("padding", "flip"), [(0, False), (0, True), (2, True)])
def test_crops_and_flips_are_those_in_memory(root: Path, padding: int, flip: bool) -> None:
    plan = draw_plan(1, 2, 12, padding, flip)
    streamed = load(root).train.loader(CPU).batches(plan, 5)
    memory = load(root, "memory").train.loader(CPU).batches(plan, 5)
    assert all(map(equal, streamed, memory))


def test_images_in_order_and_the_first_ones(root: Path) -> None:
    split = load(root).train
    images, labels = zip(*split.loader(CPU).in_order(5), strict=True)
    assert torch.equal(torch.cat(images), split.images)
    assert torch.equal(torch.cat(labels), split.labels)
    shares = [list(split.loader(CPU).in_order(5, rank, 2)) for rank in range(2)]
    assert [len(share) for share in shares] == [2, 1]
    assert torch.equal(shares[1][0][0], images[1])
    assert torch.equal(shares[1][0][1], labels[1])
    assert torch.equal(split.loader(CPU).probe(3), split.images[:3])
    assert len(split.loader(CPU).probe(99)) == len(split) == 12


# ---- the same batches after every restart


@pytest.mark.slow
@pytest.mark.parametrize("start", [0, 2])
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_a_byte(root: Path, workers: int, start: int) -> None:
    split = load(root).train
    plan = draw_plan(3, 1, len(split), 0, flip=True, augmentation=ALL)
    expected = list(with_workers(split, 0).batches(plan, 3))
    before = torch.get_rng_state()
    found = list(with_workers(split, workers).batches(plan, 3, start))
    assert torch.equal(torch.get_rng_state(), before)
    assert len(found) == len(expected) - start
    assert all(map(equal, found, expected[start:]))


def test_epoch_and_sample_decide_and_not_the_order(root: Path) -> None:
    split = load(root).train
    loader = split.loader(CPU)
    plan = draw_plan(3, 1, len(split), 0, flip=True, augmentation=ALL)

    def images(plan: EpochPlan, size: int, rank: int = 0, world: int = 1) -> dict[int, Tensor]:
        batches = loader.batches(plan, size, 0, rank, world)
        return {int(i): x for b in batches for i, x in zip(b.indices, b.images, strict=True)}

    whole = images(plan, 12)
    halves = images(plan, 6, 0, 2) | images(plan, 6, 1, 2)
    turned = images(replace(plan, order=plan.order.flip(0)), 5)
    for other in (halves, turned):
        assert other.keys() == whole.keys()
        assert all(torch.equal(whole[i], image) for i, image in other.items())


@pytest.mark.parametrize("start", [0, 1])
def test_readers_at_the_same_step_share_one_stream(
    root: Path, monkeypatch: pytest.MonkeyPatch, start: int
) -> None:
    loader = load(root).train.loader(CPU)
    decoded: list[int] = []
    real = BatchDecoder.__call__

    def counted(self: BatchDecoder, job: Job) -> Tensor:
        decoded.extend(job.indices.tolist())
        return real(self, job)

    plan, other_plan = (draw_plan(0, 0, 12, augmentation=kind) for kind in (ALL, HALF))
    expected = list(loader.batches(plan, 3))
    monkeypatch.setattr(BatchDecoder, "__call__", counted)
    first, second = loader.batches(plan, 3), loader.batches(plan, 3, start)
    ahead = [next(first), next(first)]
    found = [*second]
    assert all(map(equal, [*ahead, *first], expected))
    assert all(map(equal, found, expected[start:]))
    assert len(found) == 4 - start
    assert sorted(decoded) == list(range(12))
    later = list(loader.batches(other_plan, 3))
    assert not torch.equal(later[0].images, expected[0].images)


# ---- random crops


def write(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


def gradient(width: int, height: int) -> Image.Image:
    """An image whose red says the column and whose green says the row."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 0 * x + 128], 2).astype(np.uint8))


def crops(path: Path, augmentation: Augmentation, size: int, count: int, **form: Any) -> Tensor:
    files = FolderFiles(path.parent, [path.name])
    pixels = PixelForm(**form)
    shape = (pixels.channels, size, size)
    seeds = np.arange(count) * 7919
    zeros = np.zeros(count, np.int64)
    decoder = BatchDecoder(files, shape, True, pixels)
    return decoder(Job(zeros, zeros, zeros, zeros > 0, seeds, 0, augmentation))


HALF = Augmentation(crop_scale=(0.3, 1.0))


@pytest.mark.parametrize("side", [64, 512])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_jpeg_has_the_crops_of_the_same_pixels(tmp_path: Path, side: int, channels: int) -> None:
    """At 512 pixels it is decoded at a smaller size."""
    image = gradient(side, side // 2)
    jpeg = write(image, tmp_path / "a.jpg", quality=98, subsampling=0)
    with Image.open(jpeg) as decoded:
        png = write(decoded.convert("RGB"), tmp_path / "a.png")
    one, other = (crops(path, HALF, 24, 20, channels=channels) for path in (jpeg, png))
    assert (one.int() - other.int()).abs().max() <= 12
    if side == 64:
        assert torch.equal(one, other)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("side", [64, 512])
def test_a_turned_jpeg_has_the_crops_of_the_upright_image(
    tmp_path: Path, side: int, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    jpeg = write(gradient(side, side // 2), tmp_path / "a.jpg", quality=98, exif=exif)
    with Image.open(jpeg) as image:
        png = write(ImageOps.exif_transpose(image), tmp_path / "a.png", exif=b"")
    one, other = (crops(path, HALF, 24, 20) for path in (jpeg, png))
    assert (one.int() - other.int()).abs().max() <= 12


def test_a_large_jpeg_is_decoded_at_a_smaller_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(gradient(512, 512), tmp_path / "a.jpg")
    sizes: list[tuple[int, int]] = []

    def noted(self: Any, *options: Any) -> Any:
        found = original(self, *options)
        sizes.append(self.size)
        return found

    original = JpegImageFile.draft
    monkeypatch.setattr(JpegImageFile, "draft", noted)
    crops(path, Augmentation(crop_scale=(1.0, 1.0)), 32, 1)
    crops(path, Augmentation(crop_scale=(1.0, 1.0)), 200, 1)
    crops(path, Augmentation(crop_scale=(0.01, 0.01)), 32, 1)
    assert sizes == [(64, 64), (256, 256)]


@pytest.mark.parametrize(
    "options",
    [{}, {"quality": 50, "progressive": True}, {"subsampling": 0}, {"subsampling": 1}],
    ids=str,
)
def test_a_jpeg_at_its_own_size_has_the_pixels_of_pillow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    pytest.importorskip("torchcodec")
    path = write(gradient(45, 61), tmp_path / "a.jpg", **options)
    found = crops(path, HALF, 24, 5)
    decode = stream_decoding._decode_jpeg
    monkeypatch.setattr(stream_decoding, "_decode_jpeg", lambda *_: None)
    assert torch.equal(found, crops(path, HALF, 24, 5))
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        assert decode(image, PixelForm(channels=1)) is None
        assert decode(image, PixelForm(value_range=(0, 9))) is None
        pixels = decode(image, RGB)
        assert pixels is not None
        assert np.array_equal(pixels.permute(1, 2, 0), np.asarray(image))
    with Image.open(path) as image:
        assert decode(image, RGB) is None  # not all of the file is in memory


def test_a_torchcodec_that_does_not_fit_torch_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(name: str) -> None:
        raise RuntimeError("undefined symbol")

    find = stream_decoding._torchcodec.__wrapped__
    with monkeypatch.context() as patch:
        patch.setattr(importlib, "import_module", broken)
        assert find() is None
    assert "torchcodec cannot be used here (undefined symbol)" in caplog.text
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    caplog.clear()
    assert find() is None
    assert not caplog.text


def test_pillow_says_what_is_wrong_with_a_damaged_jpeg(tmp_path: Path) -> None:
    path = write(gradient(64, 64), tmp_path / "a.jpg", quality=90)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="image file is truncated"):
        crops(path, HALF, 24, 1)


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "P", "I;16"])
def test_every_mode_can_be_cropped(tmp_path: Path, mode: str) -> None:
    base = gradient(40, 40).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        base = Image.fromarray(np.asarray(base).astype(np.uint16) << 8)
    path = write(base, tmp_path / ("a.jpg" if mode in ("L", "CMYK") else "a.png"))
    assert crops(path, HALF, 16, 4).shape == (4, 3, 16, 16)


# ---- evaluation as timm does it


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(100, 70), (70, 100), (64, 64), (45, 46)])
def test_evaluated_images_are_those_of_timm(
    tmp_path: Path, size: tuple[int, int], interpolation: str
) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    root = write_folder(tmp_path / "root", side=64)
    image = gradient(*size)
    image.save(root / "val" / "cat" / "0.png")
    data = load(root, size=32, crop_pct=0.875, interpolation=interpolation)
    mode = transforms.InterpolationMode(interpolation)
    theirs = transforms.Compose([transforms.Resize(36, mode), transforms.CenterCrop(32)])(image)
    ours = data.test.images_at(torch.tensor([0]))[0].permute(1, 2, 0)
    assert np.abs(ours.numpy().astype(int) - np.asarray(theirs).astype(int)).max() <= 1
    memory = load(root, "memory", size=32, crop_pct=0.875, interpolation=interpolation)
    assert torch.equal(memory.test.images, data.test.images)


# ---- files that cannot be used


def break_one(root: Path) -> Path:
    path = sorted((root / "train").rglob("*.jpg"))[1]
    path.write_bytes(path.read_bytes()[:200])
    return path


@pytest.mark.parametrize("loading", ["stream", "memory"])
def test_what_is_no_image_is_called_so_without_an_address(root: Path, loading: str) -> None:
    path = min(root.rglob("*.png"))
    path.write_bytes(b"no image at all")
    with pytest.raises(InputError, match=f"cannot decode {path}: Pillow knows no image format"):
        load(root, loading)


def test_broken_files_are_found_before_the_run(root: Path) -> None:
    path = break_one(root)
    messages = []
    for loading in ("stream", "memory"):
        with pytest.raises(InputError, match="cannot decode") as raised:
            load(root, loading)
        messages.append(str(raised.value))
    assert str(path) in messages[0]
    assert messages[0].split(":")[0] == messages[1].split(":")[0]
    streamed, memory = load(root, skip_bad=True), load(root, "memory", skip_bad=True)
    assert streamed.skipped == memory.skipped
    assert len(streamed.skipped) == 1
    assert tuple(streamed.train.names) == tuple(memory.train.names)


@pytest.mark.parametrize("loading", ["stream", "memory"])
def test_a_class_that_loses_all_training_images_is_named(root: Path, loading: str) -> None:
    for path in (root / "train/cat").iterdir():
        path.write_bytes(b"no image")
    notes = load(root, loading, skip_bad=True).notes
    assert "no training image is left of the classes cat" in notes


def test_images_are_checked_once_for_each_state(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = break_one(root)
    first = load(root, skip_bad=True)
    with monkeypatch.context() as patch:
        patch.setattr(streamed_images, "check_all", None)
        again = load(root, skip_bad=True)
        with pytest.raises(InputError, match=r"cannot decode .*data=.*skip_bad"):
            load(root)
    assert (again.skipped, tuple(again.train.names)) == (first.skipped, tuple(first.train.names))
    path.unlink()
    assert load(root).skipped == ()


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_file_that_breaks_during_the_run_ends_it_in_a_line(root: Path, workers: int) -> None:
    split = load(root).train
    path = break_one(root)
    plan = draw_plan(0, 0, len(split), augmentation=HALF)
    with pytest.raises(InputError) as raised:
        list(with_workers(split, workers).batches(plan, 4))
    assert str(raised.value).startswith(f"cannot decode {path}: ")
    assert "\n" not in str(raised.value)


def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets torch see after 0.2 seconds, not after 5, that a worker has died or does not end."""
    monkeypatch.setattr(
        dataloader._MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.2,)
    )
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)


@pytest.mark.slow
def test_a_dead_worker_ends_the_run_in_a_line(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = load(root).train
    real, here = BatchDecoder.__call__, os.getpid()

    def killed(self: BatchDecoder, job: Job) -> Tensor:
        if os.getpid() != here and 5 in job.indices:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, job)

    handler = signal.getsignal(signal.SIGCHLD)
    monkeypatch.setattr(BatchDecoder, "__call__", killed)
    look_often(monkeypatch)
    start = time.monotonic()
    with pytest.raises(ProcessLost, match="a worker process that decodes images died"):
        list(with_workers(split, 2).batches(draw_plan(0, 0, len(split)), 3))
    assert time.monotonic() - start < 60
    assert signal.getsignal(signal.SIGCHLD) is handler


@pytest.mark.slow
def test_a_signal_to_all_processes_leaves_the_workers_to_end_the_step(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = load(root).train
    real, here = BatchDecoder.__call__, os.getpid()

    def signalled(self: BatchDecoder, job: Job) -> Tensor:
        if os.getpid() != here:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, job)

    monkeypatch.setattr(BatchDecoder, "__call__", signalled)
    plan = draw_plan(0, 0, len(split))
    expected = with_workers(split, 0).batches(plan, 3)
    assert all(map(equal, with_workers(split, 2).batches(plan, 3), expected))


@pytest.mark.slow
def test_workers_end_with_the_epoch_and_when_it_is_left(root: Path) -> None:
    loader = with_workers(load(root).train, 2)
    before = set(psutil.Process().children())
    plan = draw_plan(0, 0, 12)
    assert len(list(loader.batches(plan, 3))) == 4
    assert not set(psutil.Process().children()) - before
    batches: Iterator[Batch] = loader.batches(plan, 3)
    next(batches)
    assert len(set(psutil.Process().children()) - before) == 2
    del batches
    assert not set(psutil.Process().children()) - before


# ---- identity


def test_identity_and_fingerprint_tell_files_apart(root: Path) -> None:
    data = load(root)
    identity, fingerprint = data.train.loader(CPU).identity(), data.fingerprint()
    assert load(root).fingerprint() == fingerprint
    turned = replace(data, train=data.train.relabelled(data.train.labels.flip(0)))
    assert turned.train.loader(CPU).identity() == identity
    assert turned.fingerprint() != fingerprint
    assert load(root, size=14).train.loader(CPU).identity() != identity

    path = root / data.train.names[0]
    facts, content = path.stat(), path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # of the same size and time
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert data.train.loader(CPU).identity() != identity
    path.write_bytes(content)
    assert load(root).train.loader(CPU).identity() != identity  # another time of change
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert load(root).train.loader(CPU).identity() == identity
    moved = shutil.copytree(root, root.parent / "moved", copy_function=shutil.copy2)
    assert load(Path(moved)).train.loader(CPU).identity() == identity


# ---- the choice


def test_auto_streams_what_does_not_fit(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(load(root, "auto").train, Split)
    assert load(root, "memory").notes == ()
    small = SimpleNamespace(total=4 * 7775, available=10**9)  # 18 images need 7776
    monkeypatch.setattr(psutil, "virtual_memory", lambda: small)
    data = load(root, "auto", workers=2)
    assert isinstance(data.train, FileSplit)
    assert data.notes == (
        "18 images would take 7.6 KiB of memory, more than 7.6 KiB, so they are decoded by 2 "
        "worker processes whenever they are used (data.loading=stream)",
    )
    small.total += 4
    assert isinstance(load(root, "auto").train, Split)
    assert isinstance(load(root).train, FileSplit)


def test_auto_decides_by_the_machine_and_not_by_the_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory = SimpleNamespace(total=4 * 2 * 7776, available=0)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    assert not must_stream(2 * 18, "auto", 0, lambda: 432)
    for key in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(key, "0")
    for key in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(key, "2")
    assert must_stream(2 * 18, "auto", 0, lambda: 432), "two processes share the quarter"
    assert not must_stream(18, "auto", 0, lambda: 432)


@pytest.mark.parametrize("options", [{"loading": "stream"}, {"workers": 2}, {"crop_pct": 0.9}])
def test_only_image_files_are_streamed(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="are for your own images"):
        load_dataset("digits", size=8, **options)


def test_pixels_are_refused_that_do_not_fit(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = load(root).train
    empty = SimpleNamespace(total=10**12, available=100)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: empty)
    with pytest.raises(InputError, match=r"12 images from .* need 5\.1 KiB of memory"):
        assert split.images is not None


def test_bytes_of_a_truncated_image_are_not_taken_for_one(tmp_path: Path) -> None:
    whole = io.BytesIO()
    gradient(64, 64).save(whole, "JPEG")
    (tmp_path / "a.jpg").write_bytes(whole.getvalue()[:-300])
    with pytest.raises(InputError, match="cannot decode"):
        crops(tmp_path / "a.jpg", HALF, 16, 1)
