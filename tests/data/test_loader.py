"""The loader interface and its implementation for data sets in memory."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from dskd.data import Dataset, Split
from dskd.data.epoch_plan import draw_plan
from dskd.data.loader import Batch, DataLoaders, Loader, MemoryLoader
from dskd.data.transforms import crop_and_flip, rotations
from dskd.errors import InputError

CPU = torch.device("cpu")


def make_split(count: int = 23, channels: int = 3, height: int = 6, width: int = 5) -> Split:
    draw = torch.Generator().manual_seed(count)
    shape = (count, channels, height, width)
    images = torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8)
    return Split(images, torch.arange(count) % 4)


@pytest.fixture
def split() -> Split:
    return make_split()


@pytest.fixture
def loader(split: Split) -> Loader:
    return MemoryLoader(split, CPU)


def test_a_batch_holds_the_plan_s_samples(split: Split, loader: Loader) -> None:
    plan = draw_plan(3, 2, len(split), 2, flip=True)
    batches = list(loader.batches(plan, 5))
    assert [batch.step for batch in batches] == list(range(len(batches)))
    assert torch.equal(torch.cat([batch.indices for batch in batches]), plan.order)
    for batch in batches:
        own = batch.indices
        expected = crop_and_flip(
            split.images[own], plan.dy[own], plan.dx[own], plan.flip[own], plan.padding
        )
        assert torch.equal(batch.images, expected)
        assert torch.equal(batch.labels, split.labels[own])
        assert torch.equal(batch.views, plan.views[own])
        assert torch.equal(batch.seeds, plan.seeds[own])
        assert torch.equal(batch.cpu_keys, torch.stack([own, batch.views], 1))
        assert batch.epoch == 2
        assert batch.global_size == len(batch.labels)


@pytest.mark.parametrize("start", [0, 1, 3, 99])
def test_batches_continue_at_any_step(loader: Loader, start: int) -> None:
    plan = draw_plan(0, 0, len(loader), 1, flip=True)
    expected = list(loader.batches(plan, 4))[start:]
    found = list(loader.batches(plan, 4, start))
    assert len(found) == len(expected)
    assert all(map(equal, found, expected))


def equal(one: Batch, other: Batch) -> bool:
    values = [(getattr(one, f.name), getattr(other, f.name)) for f in fields(Batch)]
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in values)


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("count", [23, 24, 25])
def test_processes_share_each_batch_and_know_its_size(world_size: int, count: int) -> None:
    loader = MemoryLoader(make_split(count), CPU)
    plan = draw_plan(0, 0, count)
    ranks = [list(loader.batches(plan, 8, 0, rank, world_size)) for rank in range(world_size)]
    seen = []
    for shares in zip(*ranks, strict=True):
        sizes = {share.global_size for share in shares}
        assert sizes == {sum(len(share.labels) for share in shares)}
        seen += [share.indices for share in shares]
    assert torch.cat(seen).sort().values.tolist() == list(range(count))


def test_a_batch_made_by_hand_is_the_whole_batch(loader: Loader) -> None:
    batch = next(loader.batches(draw_plan(0, 0, len(loader)), 7))
    names = [f.name for f in fields(Batch) if f.name not in ("cpu_keys", "global_size")]
    assert Batch(*(getattr(batch, name) for name in names)).global_size == 7
    assert replace(batch, global_size=20).global_size == 20


def test_samples_in_order(split: Split, loader: Loader) -> None:
    samples, labels = zip(*loader.in_order(10), strict=True)
    assert [len(part) for part in samples] == [10, 10, 3]
    assert torch.equal(torch.cat(samples), split.images)
    assert torch.equal(torch.cat(labels), split.labels)
    shares = [list(loader.in_order(10, rank, 2)) for rank in range(2)]
    assert [len(share) for share in shares] == [2, 1]
    assert torch.equal(shares[1][0][0], samples[1])


def test_the_probe_is_the_first_samples(split: Split, loader: Loader) -> None:
    assert torch.equal(loader.probe(4), split.images[:4])
    assert len(loader.probe(1000)) == len(split) == len(loader)
    assert loader.sample_shape == (3, 6, 5)
    assert torch.equal(loader.labels, split.labels)


def test_the_identity_tells_samples_apart(split: Split, loader: Loader) -> None:
    images = split.images.clone()
    images[-1, -1, -1, -1] ^= 1
    assert MemoryLoader(Split(images, split.labels), CPU).identity() != loader.identity()
    relabelled = Split(split.images.clone(), split.labels.flip(0))
    assert MemoryLoader(relabelled, CPU).identity() == loader.identity()


def test_every_split_gets_its_loader(split: Split) -> None:
    names = tuple("abcd")
    half = (0.5,) * 3
    data = Dataset("made", split, make_split(9), names, half, half)
    loaders = DataLoaders(data, CPU)
    assert (len(loaders.train), len(loaders.test)) == (23, 9)
    assert loaders.validation is None
    held_out = DataLoaders(replace(data, validation=make_split(5)), CPU).validation
    assert held_out is not None
    assert len(held_out) == 5


def test_rotations_need_square_images(split: Split) -> None:
    with pytest.raises(InputError, match=r"only square images can be rotated, got \[3, 6, 5\]"):
        rotations(split.images)
