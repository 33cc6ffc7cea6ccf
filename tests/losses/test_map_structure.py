"""Losses that compare the structure of maps, against loops written from their equations."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dskd.errors import InputError
from dskd.losses.feature_maps import feature_loss, pool_to
from dskd.losses.map_structure import (
    bind_feature_loss,
    channel_loss,
    cosine_loss,
    pyramid,
    pyramid_loss,
    relation_loss,
)

NAMES: tuple[Any, ...] = ("mse", "pyramid", "cosine", "channel", "relation")


def maps(seed: int = 0, shape: tuple[int, ...] = (3, 4, 8, 8)) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, *shape, dtype=torch.float64, generator=draw)
    return a, b + 1


def test_a_pyramid_has_the_sides_below_the_map_s() -> None:
    for side, sides in ((8, [8, 4, 2, 1]), (4, [4, 2, 1]), (3, [3, 2, 1]), (1, [1])):
        levels = list(pyramid(torch.zeros(1, 2, side, side)))
        assert [part.shape[-1] for _, part in levels] == sides
        assert [weight for weight, _ in levels] == [0.5**level for level in range(len(sides))]


@pytest.mark.parametrize("size", [(16, 16), (6, 10), (3, 8), (7, 5)])
def test_pooling_what_is_pooled_gives_the_pooled_map(size: tuple[int, int]) -> None:
    maps = torch.rand(2, 3, *size, dtype=torch.float64)
    for _, part in list(pyramid(maps))[1:]:
        assert torch.allclose(part, pool_to(maps, *part.shape[2:]))


@pytest.mark.parametrize("scale", ["relative", "none"])
def test_the_pyramid_loss_is_the_weighted_mean_of_its_levels(scale: Any) -> None:
    a, b = maps()
    expected, total = 0.0, 0.0
    for level, side in enumerate((8, 4, 2, 1)):
        pooled, target = pool_to(a, side, side), pool_to(b, side, side)
        squared = float((pooled - target).square().mean())
        size = float(target.square().mean()) if scale == "relative" else 1.0
        expected += 0.5**level * squared / size
        total += 0.5**level
    assert pyramid_loss(a, b, scale).item() == pytest.approx(expected / total)


def test_the_cosine_loss_is_the_loop_over_positions() -> None:
    a, b = maps(1, (2, 3, 2, 2))
    distances = []
    for image in range(2):
        for row in range(2):
            for column in range(2):
                u, v = a[image, :, row, column].tolist(), b[image, :, row, column].tolist()
                dot = sum(x * y for x, y in zip(u, v, strict=True))
                distances.append(1 - dot / (math.hypot(*u) * math.hypot(*v)))
    assert cosine_loss(a, b).item() == pytest.approx(sum(distances) / len(distances))


def test_the_channel_loss_is_one_minus_the_correlation_of_each_channel() -> None:
    a, b = maps(2, (2, 3, 3, 3))
    expected = [
        1 - torch.corrcoef(torch.stack([a[i, c].flatten(), b[i, c].flatten()]))[0, 1].item()
        for i in range(2)
        for c in range(3)
    ]
    assert channel_loss(a, b).item() == pytest.approx(sum(expected) / 6)
    assert channel_loss(5 * a + 2, b).item() == pytest.approx(channel_loss(a, b).item())


def test_constant_channels_of_the_target_do_not_count() -> None:
    a, b = maps(3)
    b[:, 1] = 7.0
    others = [0, 2, 3]
    assert channel_loss(a, b).item() == pytest.approx(
        channel_loss(a[:, others], b[:, others]).item()
    )
    assert channel_loss(a, torch.ones_like(b)).item() == 0


def test_the_relation_loss_is_one_minus_the_centred_kernel_alignment() -> None:
    a, b = maps(4)
    x, y = ((m.flatten(1) - m.flatten(1).mean(0)) for m in (a, b))
    cka = ((x @ x.T) * (y @ y.T)).sum() / ((x @ x.T).norm() * (y @ y.T).norm())
    assert relation_loss(a, b).item() == pytest.approx(1 - cka.item())
    assert relation_loss(3 * b + 1, b).item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_equal_maps_have_no_loss_and_gradients_are_finite(name: Any) -> None:
    loss = bind_feature_loss(name, "relative")
    a, b = maps()
    assert loss(b, b, "mean").item() == pytest.approx(0, abs=1e-6)
    for special in (a, torch.zeros_like(a), b):
        leaf = special.clone().requires_grad_()
        torch.autograd.backward(loss(leaf, b, "mean"))
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES[:-1])
def test_the_mean_is_that_of_the_images(name: Any) -> None:
    loss = bind_feature_loss(name, "none")
    a, b = maps()
    values = loss(a, b, "none")
    assert values.shape == (3,)
    assert loss(a, b, "mean").item() == pytest.approx(values.mean().item())


@pytest.mark.parametrize("name", NAMES)
def test_maps_of_other_shapes_are_refused(name: Any) -> None:
    loss = bind_feature_loss(name, "relative")
    a, b = maps()
    with pytest.raises(InputError):
        loss(a[:, :3], b, "mean")
    with pytest.raises(InputError):
        loss(a[0], b[0], "mean")


def test_other_misfits_are_refused() -> None:
    with pytest.raises(InputError, match="have one; take another loss"):
        channel_loss(*maps(shape=(2, 3, 1, 1)))
    unknown: Any = "piramid"
    with pytest.raises(InputError, match="pyramid"):
        bind_feature_loss(unknown, "relative")
    total: Any = "sum"
    for loss in (cosine_loss, channel_loss):
        with pytest.raises(InputError, match="reduction"):
            loss(*maps(), total)


def test_one_level_is_the_plain_feature_loss() -> None:
    a, b = maps(shape=(3, 4, 1, 1))
    assert pyramid_loss(a, b).item() == pytest.approx(feature_loss(a, b).item())


def test_a_name_gives_the_loss_of_this_name() -> None:
    a, b = maps()
    expected = {"mse": feature_loss(a, b), "pyramid": pyramid_loss(a, b)}
    expected |= {"cosine": cosine_loss(a, b), "channel": channel_loss(a, b)}
    expected |= {"relation": relation_loss(a, b)}
    found = {name: bind_feature_loss(name, "relative")(a, b, "mean").item() for name in NAMES}
    assert found == {name: value.item() for name, value in expected.items()}
    assert len(set(found.values())) == len(NAMES)
