"""The epoch plan: a pure function whose parts are independent."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dskd.data.epoch_plan import count_views, draw_plan, draw_views, steps
from dskd.data.transforms import crop_and_flip
from tests import processes


@given(st.integers(0, 2**32), st.integers(0, 500), st.integers(1, 60), st.integers(0, 4))
@settings(max_examples=60, deadline=None)
def test_a_plan_is_a_permutation_with_offsets_in_range(
    seed: int, epoch: int, num_samples: int, padding: int
) -> None:
    plan = draw_plan(seed, epoch, num_samples, padding, flip=True)
    assert plan.order.sort().values.tolist() == list(range(num_samples))
    for offsets in (plan.dy, plan.dx):
        assert 0 <= offsets.min() <= offsets.max() <= 2 * padding
    assert 0 <= plan.views.min() <= plan.views.max() < 2 * (2 * padding + 1) ** 2


@given(st.integers(2, 400), st.integers(2, 70))
@settings(max_examples=200, deadline=None)
def test_batches_hold_every_image_once_and_none_is_alone(num_samples: int, batch_size: int) -> None:
    plan = draw_plan(0, 0, num_samples)
    batches = list(plan.batches(batch_size))
    assert torch.cat(batches).tolist() == plan.order.tolist()
    assert min(map(len, batches)) >= 2
    assert max(map(len, batches)) <= batch_size + 1
    assert len(batches) == steps(num_samples, batch_size)


def test_seeds_and_epochs_differ_and_repeat() -> None:
    orders = [draw_plan(s, e, 50).order.tolist() for s in (0, 1) for e in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    assert draw_plan(1, 1, 50).order.tolist() == orders[3]


@pytest.mark.slow
def test_another_process_draws_the_same_plan() -> None:
    code = "from dskd.data.epoch_plan import draw_plan; p = draw_plan(3, 7, 9, 4, True)"
    script = f"{code}; print(p.order.tolist(), p.views.tolist())"
    out = processes.run(["-c", script])
    assert out.returncode == 0, out.stderr
    plan = draw_plan(3, 7, 9, 4, True)
    assert out.stdout.strip() == f"{plan.order.tolist()} {plan.views.tolist()}"


def test_a_setting_changes_its_own_part_alone() -> None:
    plain, varied = draw_plan(0, 0, 30), draw_plan(0, 0, 30, 4, True)
    assert torch.equal(plain.order, varied.order)
    assert torch.equal(plain.seeds, varied.seeds)
    assert not plain.flip.any()
    assert varied.flip.any()
    assert torch.equal(varied.dy, draw_plan(0, 0, 30, 4, False).dy)


def test_crop_4_and_flip_name_162_views() -> None:
    plan = draw_plan(0, 0, 20_000, 4, True)
    assert sorted(set(plan.views.tolist())) == list(range(162))


@given(st.integers(0, 1000), st.integers(0, 3), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_augmentation_is_the_naive_loop(seed: int, padding: int, channels: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (5, channels, 6, 7), generator=draw, dtype=torch.uint8)
    plan = draw_plan(seed, 0, 5, padding, True)
    got = crop_and_flip(images, plan.dy, plan.dx, plan.flip, padding)
    for b in range(5):
        padded = torch.zeros(channels, 6 + 2 * padding, 7 + 2 * padding, dtype=torch.uint8)
        padded[:, padding : padding + 6, padding : padding + 7] = images[b]
        crop = padded[:, plan.dy[b] : plan.dy[b] + 6, plan.dx[b] : plan.dx[b] + 7]
        assert torch.equal(got[b], crop.flip(2) if plan.flip[b] else crop)


@given(st.integers(1, 40), st.integers(0, 3), st.booleans(), st.data())
@settings(max_examples=60, deadline=None)
def test_the_views_of_a_sample_are_different(
    num_samples: int, padding: int, flip: bool, data: st.DataObject
) -> None:
    total = count_views(padding, flip)
    views = data.draw(st.integers(1, total))
    views_of_each = draw_views(num_samples, padding, flip, views)
    assert views_of_each.shape == (num_samples, views)
    assert 0 <= views_of_each.min() <= views_of_each.max() < 2 * count_views(padding, False)
    assert flip or not (views_of_each % 2).any()
    assert all(len(set(row)) == views for row in views_of_each.tolist())
    assert torch.equal(views_of_each, draw_views(num_samples, padding, flip, views))
    more = draw_views(num_samples, padding, flip, views, unlabelled=3)
    assert torch.equal(more[:num_samples], views_of_each)
    assert more.shape == (num_samples + 3, views)
    assert all(len(set(row)) == views for row in more.tolist())


def test_every_view_is_equally_likely_to_be_cached_and_to_be_drawn() -> None:
    num_samples, views = 30_000, 4
    views_of_each = draw_views(num_samples, 1, True, views)
    for drawn in (
        views_of_each.flatten(),
        draw_plan(0, 0, num_samples, 1, True, views_of_each).views,
    ):
        counts = torch.bincount(drawn, minlength=18).double()
        expected = len(drawn) / 18
        assert counts.sub(expected).abs().max() < 5 * expected**0.5  # five deviations
    slots = (
        (views_of_each == draw_plan(0, 0, num_samples, 1, True, views_of_each).views[:, None])
        .long()
        .argmax(1)
    )
    counts = torch.bincount(slots, minlength=views).double()
    assert counts.sub(num_samples / views).abs().max() < 5 * (num_samples / views) ** 0.5


@pytest.mark.parametrize("flip", [True, False])
def test_a_plan_draws_from_the_cached_views_and_changes_nothing_else(flip: bool) -> None:
    views_of_each = draw_views(50, 2, flip, 3)
    plain, limited = draw_plan(1, 2, 50, 2, flip), draw_plan(1, 2, 50, 2, flip, views_of_each)
    assert torch.equal(plain.order, limited.order)
    assert torch.equal(plain.seeds, limited.seeds)
    assert (limited.views[:, None] == views_of_each).any(1).all()
    assert not torch.equal(limited.views, draw_plan(1, 3, 50, 2, flip, views_of_each).views)
    assert not torch.equal(limited.views, draw_plan(0, 2, 50, 2, flip, views_of_each).views)
    assert torch.equal(limited.views, draw_plan(1, 2, 50, 2, flip, views_of_each).views)


def test_without_crop_and_flip_images_stay_as_they_are() -> None:
    images = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    plan = draw_plan(0, 0, 3)
    assert torch.equal(crop_and_flip(images, plan.dy, plan.dx, plan.flip, 0), images)


def test_batches_have_their_channels_last_in_memory() -> None:
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    plan = draw_plan(0, 0, 4, 2, True)
    cropped = crop_and_flip(images, plan.dy, plan.dx, plan.flip, 2)
    assert cropped.is_contiguous(memory_format=torch.channels_last)


def test_an_unknown_argument_is_an_error() -> None:
    with pytest.raises(ValueError, match="non-negative"):
        draw_plan(-1, 0, 5)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("padding", [0, 2])
def test_the_parts_of_a_plan_have_types_that_index(flip: bool, padding: int) -> None:
    for views in (None, draw_views(6, padding, flip, 1)):
        plan = draw_plan(0, 0, 6, padding, flip, views)
        whole = (plan.order, plan.views, plan.dy, plan.dx, plan.seeds)
        assert {part.dtype for part in whole} == {torch.int64}
        assert plan.flip.dtype == torch.bool
