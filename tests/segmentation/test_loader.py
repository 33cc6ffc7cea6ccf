"""Batches of mixed supervision: what each kind sees, in which order, and after a restart."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from dskd.data.augmentation import NO_AUGMENTATION
from dskd.data.loader import NO_LABEL
from dskd.engine.tasks.segmentation.dataset import SegmentationData
from dskd.engine.tasks.segmentation.loader import MaskedBatch, MixedLoader, Supervision
from dskd.engine.tasks.segmentation.settings import SegmentationDataSettings
from dskd.engine.tasks.segmentation.sources import load_images
from dskd.errors import InputError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data() -> SegmentationData:
    return load_images(SegmentationDataSettings(name="shapes", size=16, patients=3))


def batches(
    loader: MixedLoader, size: int = 4, epoch: int = 0, start: int = 0, seed: int = 0
) -> list[MaskedBatch]:
    plan = loader.draw_plan(seed, epoch, (0, False, None, NO_AUGMENTATION), size)
    return list(loader.batches(plan, size, start))


def test_a_step_has_masks_first_and_more_seeds(data: SegmentationData) -> None:
    loader = MixedLoader(data, CPU, "mixed", 2)
    found = batches(loader)
    assert len(found) == loader.steps(4) == 5  # 18 images with masks
    assert [len(b.labels) for b in found] == [12, 12, 12, 12, 6]
    for batch in found:
        full = batch.masked
        assert full == len(batch.labels) // 3
        assert (batch.labels[full:] == NO_LABEL).all()
        assert (batch.labels[:full] >= 0).all()
        assert data.weak is not None
        truth = torch.cat([data.full.masks, data.weak.masks])[batch.indices].long()
        assert torch.equal(batch.labels[:full], truth[:full])
        labelled = batch.seeds_of > 0
        assert torch.equal(batch.seeds_of[labelled], truth[labelled])


def test_all_masks_without_images_beyond_the_full_ones_are_refused(data: SegmentationData) -> None:
    with pytest.raises(InputError, match=r"weak_ratio.*0.* leaves out those beyond"):
        MixedLoader(data, CPU, "all masks", 0)
    assert len(MixedLoader(data, CPU, "masks", 0)) == 18


def test_an_epoch_is_one_pass_over_the_masks(data: SegmentationData) -> None:
    loader = MixedLoader(data, CPU, "mixed", 2)
    found = batches(loader)
    full = torch.cat([b.indices[: b.masked] for b in found])
    weak = torch.cat([b.indices[b.masked :] for b in found])
    assert sorted(full.tolist()) == list(range(18))
    assert data.weak is not None
    counts = torch.bincount(weak - 18, minlength=len(data.weak))
    assert counts.max() - counts.min() <= 1  # each once before any comes again


@pytest.mark.parametrize(
    ("supervision", "images", "masked"),
    [("masks", 4, 4), ("seeds", 12, 0), ("mixed", 12, 4), ("all masks", 12, 12)],
)
def test_every_supervision_takes_the_same_steps(
    data: SegmentationData, supervision: Supervision, images: int, masked: int
) -> None:
    found = batches(MixedLoader(data, CPU, supervision, 2))
    mixed = batches(MixedLoader(data, CPU, "mixed", 2))
    assert len(found) == len(mixed)
    assert (len(found[0].labels), found[0].masked) == (images, masked)
    for one, other in zip(found, mixed, strict=True):
        assert torch.equal(one.indices, other.indices[: len(one.indices)])


def test_a_restart_gives_the_same_batches(data: SegmentationData) -> None:
    loader = MixedLoader(data, CPU, "mixed", 3)
    whole, rest = batches(loader), batches(loader, start=2)
    for one, other in zip(whole[2:], rest, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.seeds_of, other.seeds_of)
        assert (one.step, one.masked) == (other.step, other.masked)


def test_epochs_and_seeds_differ(data: SegmentationData) -> None:
    loader = MixedLoader(data, CPU, "mixed", 2)
    orders = [
        torch.cat([b.indices for b in batches(loader, epoch=epoch, seed=seed)])
        for epoch, seed in ((0, 0), (1, 0), (0, 1))
    ]
    assert all(not torch.equal(one, other) for one, other in pairwise(orders))


def test_without_weak_images_a_step_has_masks_alone() -> None:
    data = load_images(SegmentationDataSettings(name="shapes", size=16, patients=8))
    assert data.weak is None
    assert [len(b.labels) for b in batches(MixedLoader(data, CPU, "mixed", 5), 24)] == [24, 24]


def test_hits_count_pixels_with_masks_alone(data: SegmentationData) -> None:
    batch = batches(MixedLoader(data, CPU, "mixed", 2))[0]
    logits = torch.zeros(len(batch.labels), 3, 16, 16)
    logits[:, 0] = 1  # all background
    share = (batch.labels[: batch.masked] == 0).float().mean()
    assert batch.hits(logits) == share
    assert batches(MixedLoader(data, CPU, "seeds", 2))[0].hits(logits) == 0


def test_one_image_with_a_mask_is_too_few(data: SegmentationData) -> None:
    from dataclasses import replace

    one = replace(data, full=data.full.take(set()))
    with pytest.raises(InputError, match="two images with masks or more"):
        MixedLoader(one, CPU, "mixed", 2)
