"""Mixup and CutMix against torchvision's, and how they are drawn."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dskd.data.mixing import Mix, draw_mix

IMAGES = torch.randint(0, 256, (6, 3, 8, 10), dtype=torch.uint8)
LABELS = torch.tensor([0, 3, 1, 1, 2, 3])
NEIGHBOURS = IMAGES.roll(1, 0), LABELS.roll(1, 0)


def draw(step: int, **settings: float) -> Mix | None:
    return draw_mix(0, 0, step, (8, 10), **({"mixup": 0.0, "cutmix": 0.0} | settings))


def torchvision_s(mix: Mix) -> tuple[torch.Tensor, torch.Tensor]:
    """The images and targets of torchvision for the same share and box."""
    v2: Any = pytest.importorskip("torchvision.transforms.v2")
    kind = v2.MixUp if mix.box is None else v2.CutMix
    transform = kind(num_classes=4)
    found: dict[str, Any] = {"lam": mix.share, "lam_adjusted": mix.share}
    if mix.box is not None:
        top, bottom, left, right = mix.box
        found["box"] = left, top, right, bottom
    transform.make_params = lambda _: found
    images, targets = transform(IMAGES.float(), LABELS)
    return images, targets


@pytest.mark.parametrize("settings", [{"mixup": 0.5}, {"cutmix": 1.0}, {"mixup": 1.0, "cutmix": 1}])
def test_images_and_targets_are_those_of_torchvision(settings: dict[str, float]) -> None:
    for step in range(20):
        mix = draw(step, **settings)
        assert mix is not None
        images, targets = torchvision_s(mix)
        mixed = mix.images(IMAGES, NEIGHBOURS[0])
        assert mixed.dtype == torch.uint8
        assert (mixed.float() - images).abs().max() <= (0.5 if mix.box is None else 0) + 1e-4
        torch.testing.assert_close(mix.targets(LABELS, NEIGHBOURS[1], 4), targets)


def test_the_share_of_a_box_is_what_is_left_of_the_image() -> None:
    own, other = torch.zeros(1, 1, 8, 10, dtype=torch.uint8), torch.ones(1, 1, 8, 10).byte()
    for step in range(100):
        mix = draw(step, cutmix=1.0)
        assert mix is not None
        assert mix.images(own, other).float().mean().item() == pytest.approx(1 - mix.share)


def test_shares_follow_the_beta_distribution() -> None:
    shares = torch.tensor([mix.share for step in range(4000) if (mix := draw(step, mixup=0.4))])
    assert len(shares) == 4000
    # Beta(a, a) has the mean 1/2 and the variance 1 / (4 (2 a + 1)).
    assert shares.mean().item() == pytest.approx(0.5, abs=0.02)
    assert shares.var().item() == pytest.approx(1 / (4 * 1.8), abs=0.01)


def test_each_kind_is_taken_for_half_of_the_steps_and_some_steps_are_not_mixed() -> None:
    drawn = [draw(step, mixup=1.0, cutmix=1.0, probability=0.6) for step in range(4000)]
    mixed = [mix for mix in drawn if mix is not None]
    assert len(mixed) / 4000 == pytest.approx(0.6, abs=0.03)
    boxes = sum(mix.box is not None for mix in mixed)
    assert boxes / len(mixed) == pytest.approx(0.5, abs=0.03)


def test_a_mix_depends_on_seed_epoch_and_step_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    settings: dict[str, Any] = {"mixup": 1.0, "cutmix": 1.0}
    places = [(seed, epoch, step) for seed in (0, 1) for epoch in (0, 1) for step in (0, 1)]
    found = [draw_mix(*place, (8, 10), **settings) for place in places]
    assert found == [draw_mix(*place, (8, 10), **settings) for place in places]
    assert len({mix.share for mix in found if mix is not None}) == len(places)
    assert torch.equal(before, torch.get_rng_state())
    assert draw(0) is None


def test_the_main_label_has_the_larger_share() -> None:
    assert Mix(0.6).main_labels(LABELS, NEIGHBOURS[1]) is LABELS
    assert Mix(0.4).main_labels(LABELS, NEIGHBOURS[1]) is NEIGHBOURS[1]
