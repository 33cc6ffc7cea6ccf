"""The losses of segmentation: small cases by hand, naive loops, gradients and refusals."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from dskd.engine.tasks.segmentation.losses import (
    decoder_kl,
    in_rows,
    partial_cross_entropy,
    pixel_cross_entropy,
    pixel_kd,
    prediction_entropy,
)
from dskd.errors import InputError


def logits_of(*probabilities: float) -> Tensor:
    """Logits ``[1, 2, 1, W]`` whose foreground has these probabilities."""
    p = torch.tensor(probabilities, dtype=torch.float64)
    return torch.stack([(1 - p).log(), p.log()])[None, :, None]


def test_cross_entropy_is_the_mean_over_pixels() -> None:
    found = pixel_cross_entropy(logits_of(0.25, 0.5), torch.tensor([[[1, 0]]]))
    assert found.item() == pytest.approx((math.log(4) + math.log(2)) / 2)


def test_partial_cross_entropy_is_the_mean_over_seeds() -> None:
    """Three pixels, of which two are seeds: -(log 0.5 + log 0.25) / 2."""
    found = partial_cross_entropy(logits_of(0.5, 0.25, 0.9), torch.tensor([[[1, 1, 0]]]))
    assert found.item() == pytest.approx((math.log(2) + math.log(4)) / 2)


def test_seeds_of_several_classes_share_the_sum() -> None:
    logits = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    seeds = torch.randint(0, 3, (2, 4, 4))
    terms = [
        -logits[b, :, i, j].log_softmax(0)[seeds[b, i, j]].item()
        for b in range(2)
        for i in range(4)
        for j in range(4)
        if seeds[b, i, j] > 0
    ]
    assert partial_cross_entropy(logits, seeds).item() == pytest.approx(sum(terms) / len(terms))


def test_without_seeds_there_is_no_loss_and_no_gradient() -> None:
    logits = torch.randn(1, 2, 4, 4, requires_grad=True)
    loss = partial_cross_entropy(logits, torch.zeros(1, 4, 4, dtype=torch.int64))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_entropy_is_the_mean_over_pixels_and_classes() -> None:
    h = [-(p * math.log(p) + (1 - p) * math.log(1 - p)) for p in (0.5, 0.1)]
    assert prediction_entropy(logits_of(0.5, 0.1)).item() == pytest.approx(sum(h) / 4)


def test_sure_predictions_have_no_entropy() -> None:
    logits = torch.tensor([100.0, -100.0]).view(1, 2, 1, 1).requires_grad_()
    loss = prediction_entropy(logits)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_divergence_by_hand() -> None:
    """A says 0.5 of a pixel, and B 0.25."""
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    a, b = logits_of(0.5), logits_of(0.25)
    assert decoder_kl(b, a, 1.0).item() == pytest.approx(expected / 4)  # T^2 / 2, two classes
    reverse = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert decoder_kl(b, a, 1.0, reverse=True).item() == pytest.approx(reverse / 4)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("double_softmax", [False, True])
def test_divergence_against_a_loop(double_softmax: bool, reverse: bool) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(2, 2, 3, 5, 4, dtype=torch.float64)
    temperature, terms = 2.0, []
    for image in range(2):
        for i in range(5):
            for j in range(4):
                z_a, z_b = a[image, :, i, j], b[image, :, i, j]
                if double_softmax:
                    z_a, z_b = z_a.softmax(0), z_b.softmax(0)
                p, q = (z_a / temperature).softmax(0), (z_b / temperature).softmax(0)
                p, q = (q, p) if reverse else (p, q)
                terms.append(sum(float(x * (x / y).log()) for x, y in zip(p, q, strict=True)))
    expected = temperature**2 / 2 * sum(terms) / (2 * 5 * 4 * 3)
    found = decoder_kl(b, a, temperature, double_softmax=double_softmax, reverse=reverse)
    assert found.item() == pytest.approx(expected)


def test_the_public_form_is_that_of_the_public_code() -> None:
    """``KLDivLoss()(log_softmax(softmax(a) / T), softmax(softmax(b) / T)) * 0.5 T^2``."""
    a, b = torch.randn(2, 2, 2, 4, 4)
    p_a, p_b = a.softmax(1), b.softmax(1)
    kl = torch.nn.KLDivLoss(reduction="none")  # the mean is its default there
    expected = kl((p_a / 2).log_softmax(1), (p_b / 2).softmax(1)).mean() * 0.5 * 4
    found = decoder_kl(b, a, 2.0, double_softmax=True, reverse=True, detach=False)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("detach", [True, False])
def test_decoder_a_has_a_gradient_only_if_asked_for(detach: bool) -> None:
    a, b = torch.randn(2, 1, 2, 4, 4)
    a.requires_grad_()
    b.requires_grad_()
    decoder_kl(b, a, detach=detach).backward()  # type: ignore[no-untyped-call]
    assert b.grad is not None
    assert b.grad.any()
    assert (a.grad is None) == detach


def test_rows_are_pixels() -> None:
    logits = torch.arange(24.0).view(2, 3, 2, 2)
    rows = in_rows(logits)
    assert rows.shape == (8, 3)
    torch.testing.assert_close(rows[5], logits[1, :, 0, 1])


def test_pixel_kd_is_the_mean_over_pixels() -> None:
    s, t = torch.randn(2, 2, 3, 4, 4, dtype=torch.float64)
    p, q = (t / 4).softmax(1), (s / 4).softmax(1)
    expected = 16 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(pixel_kd(s, t, 4.0), expected)


def test_order_of_images_and_a_shift_of_logits_do_not_matter() -> None:
    s, t = torch.randn(2, 3, 2, 4, 4)
    order = torch.tensor([2, 0, 1])
    for loss in (decoder_kl, pixel_kd):
        torch.testing.assert_close(loss(s, t), loss(s[order], t[order]))
        torch.testing.assert_close(loss(s, t), loss(s + 3, t - 5), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda z: pixel_cross_entropy(z, torch.zeros(1, 2, 4, dtype=torch.int64)), "masks"),
        (lambda z: pixel_cross_entropy(z, torch.full((1, 4, 4), 2)), "from 0 to 1"),
        (lambda z: partial_cross_entropy(z, torch.zeros(1, 4, 4)), "int64"),
        (lambda z: prediction_entropy(z[0]), "logits \\[B, K, H, W\\]"),
        (lambda z: decoder_kl(z, z[..., :2]), "of one shape"),
        (lambda z: decoder_kl(z, z, 0.0), "temperature must be above 0"),
        (lambda z: decoder_kl(z, z, detach=cast(Any, 1)), "detach must be true or false"),
        (lambda z: pixel_kd(z, z[:, :1]), "of one shape"),
    ],
)
def test_refusals(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(InputError, match=message):
        call(torch.zeros(1, 2, 4, 4))
