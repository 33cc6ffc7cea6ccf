"""Steps of images with and without labels: who comes when, and the same bytes wherever."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dskd.config.schema import DataSettings
from dskd.data import Split
from dskd.data.augmentation import NO_AUGMENTATION
from dskd.data.epoch_plan import MIN_SAMPLES, EpochPlan, draw_plan
from dskd.data.joint_loader import JointLoader
from dskd.data.joint_plan import (
    draw_joint_plan,
    largest_joint_batch,
    step_sizes,
    unlabelled_bounds,
)
from dskd.data.loader import NO_LABEL, Batch, DataLoaders, ViewChoice
from dskd.errors import InputError
from tests.builders import make_dataset
from tests.data.file_writers import write_folder
from tests.data.test_stream_loader import load

CPU = torch.device("cpu")
HOW: ViewChoice = (2, True, None, NO_AUGMENTATION)
MADE = make_dataset(classes=3, per_class=7, size=8)
OTHERS = make_dataset(classes=5, per_class=3, size=8, seed=1).train.images
DATA = replace(MADE, unlabelled=Split.unlabelled(OTHERS))
LABELLED, UNLABELLED = len(MADE.train), len(OTHERS)


def loader(share: float = 0.5) -> JointLoader:
    loaders = DataLoaders(DATA, CPU)
    assert loaders.unlabelled is not None
    return JointLoader(loaders.train, loaders.unlabelled, share)


def epoch(
    share: float = 0.5, size: int = 8, epoch: int = 0, rank: int = 0, world: int = 1, start: int = 0
) -> list[Batch]:
    made = loader(share)
    plan = made.draw_plan(0, epoch, HOW, size, world)
    return list(made.batches(plan, size, start, rank, world))


def assert_same(one: Batch, other: Batch) -> None:
    for name, value in vars(one).items():
        found = getattr(other, name)
        same = torch.equal(value, found) if isinstance(value, torch.Tensor) else value == found
        assert same, name


def test_the_share_says_how_many_of_a_step_have_no_label() -> None:
    assert step_sizes(64, 0.25) == (48, 16)
    assert step_sizes(4, 0.01) == (3, 1), "one at least"
    assert step_sizes(4, 0.99) == (2, 2), "BatchNorm needs two labelled images"
    assert step_sizes(8, 0.01, world_size=2) == (6, 2), "one for each process"
    with pytest.raises(InputError, match=r"train=.*batch_size.* set 3 or more"):
        step_sizes(2, 0.5)


def test_an_epoch_is_one_pass_over_the_labelled_images() -> None:
    steps = epoch(0.25, size=8)
    assert [len(step.labels) for step in steps] == [8, 8, 8, 4]
    assert [step.kinds for step in steps] == [(6, 2), (6, 2), (6, 2), (3, 1)]
    labels = torch.cat([step.labels for step in steps])
    indices = torch.cat([step.indices for step in steps])
    known = indices < LABELLED
    assert torch.equal(labels[known], MADE.train.labels[indices[known]])
    assert (labels[~known] == NO_LABEL).all()
    assert sorted(indices[known].tolist()) == list(range(LABELLED))


def test_a_last_step_has_images_without_labels_in_proportion() -> None:
    assert unlabelled_bounds(9, 8, 0.5) == (0, 4, 9), "9 joins 8: BatchNorm needs two images"
    assert unlabelled_bounds(10, 8, 0.5) == (0, 4, 8, 10)
    assert unlabelled_bounds(100, 16, 0.75, 1)[-1] == unlabelled_bounds(100, 16, 0.75, 2)[-1]


def test_labelled_images_have_the_plan_that_they_have_alone() -> None:
    joint = draw_joint_plan(3, 2, (LABELLED, UNLABELLED), (8, 0.5, 1), 2, True)
    alone = draw_plan(3, 2, LABELLED, 2, True)
    for name, value in vars(alone).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, getattr(joint, name)), name


def _drawn(epoch: int, seed: int = 0) -> EpochPlan:
    found = draw_joint_plan(seed, epoch, (6, 5), (6, 0.5, 1), 2, True).unlabelled
    assert found is not None
    return found


def test_every_image_without_a_label_is_drawn_once_before_one_is_drawn_again() -> None:
    drawn = torch.cat([_drawn(number).order for number in range(5)]).tolist()
    assert len(drawn) == 30, "six in each of five epochs, of five images"
    passes = [drawn[start : start + 5] for start in range(0, 30, 5)]
    assert all(sorted(one) == [0, 1, 2, 3, 4] for one in passes)
    assert len({tuple(one) for one in passes}) > 1, "each pass has an order of its own"
    other = torch.cat([_drawn(number, seed=1).order for number in range(5)]).tolist()
    assert other != drawn


def test_images_without_labels_have_views_of_their_own_in_each_epoch() -> None:
    first, second = _drawn(0), _drawn(1)
    assert not torch.equal(first.seeds, second.seeds)
    assert not torch.equal(first.seeds, draw_plan(0, 0, 5, 2, True).seeds)


def test_both_kinds_are_evenly_mixed_in_a_step() -> None:
    step = epoch(0.25, size=8)[0]
    places = (step.labels == NO_LABEL).nonzero().flatten().tolist()
    assert places == [1, 6] or places == [2, 5] or places == [1, 5] or places == [2, 6]


def test_images_are_those_of_the_indices_in_their_views() -> None:
    made = loader()
    how: ViewChoice = (0, False, None, NO_AUGMENTATION)
    plan = made.draw_plan(0, 0, how, 8)
    both = torch.cat([MADE.train.images, OTHERS])
    for step in made.batches(plan, 8):
        assert torch.equal(step.images, both[step.indices])
        assert torch.equal(step.cpu_keys[:, 0], step.indices)
        assert torch.equal(step.cpu_keys[:, 1], step.views)


def test_an_epoch_goes_on_from_any_step() -> None:
    whole = epoch()
    for start in range(len(whole)):
        for one, other in zip(whole[start:], epoch(start=start), strict=True):
            assert_same(one, other)


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.75])
def test_processes_share_the_images_that_one_would_see(world: int, share: float) -> None:
    """Also in a later epoch, which begins where the one before ended."""
    alone = epoch(share, 16, epoch=1)
    parts = [epoch(share, 16, 1, rank, world) for rank in range(world)]
    for shares in zip(*parts, strict=True):
        assert len({step.kinds for step in shares}) == 1
        assert sum(len(step.labels) for step in shares) == shares[0].global_size
        assert max(len(step.labels) for step in shares) <= largest_joint_batch(16, share, world)
        assert min(len(step.labels) for step in shares) >= MIN_SAMPLES
    if step_sizes(16, share) != step_sizes(16, share, world):
        return  # too few of one kind for all processes
    found = torch.cat([step.indices for part in parts for step in part])
    expected = torch.cat([step.indices for step in alone])
    assert torch.equal(found.sort().values, expected.sort().values)
    if len(alone) == len(parts[0]):
        for step, *own in zip(alone, *parts, strict=True):
            rows = torch.cat([share.indices for share in own])
            assert torch.equal(rows.sort().values, step.indices.sort().values)


def test_a_step_may_have_no_image_without_a_label() -> None:
    steps = epoch(0.1, size=11)
    assert [step.kinds for step in steps] == [(10, 1), (11, 1)], "one label less is no step"
    made = loader(0.1)
    strong: ViewChoice = (0, True, None, DataSettings(name="", augment="strong").augmentation)
    plan = made.draw_plan(0, 0, strong, 9)
    assert [step.kinds for step in made.batches(plan, 9)] == [(8, 1), (8, 1), (5, 1)]
    plan = made.draw_plan(0, 0, strong, 20)
    assert [step.kinds for step in made.batches(plan, 20)] == [(18, 2), (3, 0)]


def test_streamed_and_decoded_images_are_the_same(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "root", per_class=5, side=20)
    splits = {how: load(root, loading=how, size=16, workers=0) for how in ("memory", "stream")}
    found = []
    for labelled, unlabelled in (("memory", "memory"), ("stream", "stream"), ("memory", "stream")):
        others = splits[unlabelled].test
        made = JointLoader(
            splits[labelled].train.loader(CPU),
            others.relabelled(torch.full_like(others.labels, NO_LABEL)).loader(CPU),
            0.5,
        )
        found.append(list(made.batches(made.draw_plan(0, 0, HOW, 6), 6)))
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert_same(one, two)


def test_it_is_a_loader_of_all_its_images() -> None:
    made = loader()
    assert (len(made), made.labelled_samples) == (LABELLED + UNLABELLED, LABELLED)
    images, labels = (torch.cat(part) for part in zip(*made.in_order(4), strict=True))
    assert torch.equal(images, torch.cat([MADE.train.images, OTHERS]))
    assert torch.equal(labels, made.labels)
    assert torch.equal(made.probe(30), images[:30])
    assert made.identity() != JointLoader(made.unlabelled, made.labelled, 0.5).identity()


def test_a_data_set_checks_its_images_without_labels() -> None:
    assert DATA.fingerprint() != MADE.fingerprint()
    with pytest.raises(InputError, match="the label -1"):
        replace(MADE, unlabelled=MADE.test)
    with pytest.raises(InputError, match=r"images without labels are \[3, 4, 4\]"):
        replace(MADE, unlabelled=Split.unlabelled(OTHERS[:, :, :4, :4]))
    with pytest.raises(InputError, match="no images without labels"):
        replace(MADE, unlabelled=Split.unlabelled(OTHERS[:0]))
