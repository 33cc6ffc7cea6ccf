"""The U-Net: shapes, widths, odd sizes, and one encoder under two decoders."""

from __future__ import annotations

import pytest
import torch

from dskd.engine.tasks.segmentation.unet import SegmentationModel, UNet, UNetDecoder, UNetEncoder
from dskd.errors import InputError
from dskd.models.spec import describe


def test_the_published_widths() -> None:
    encoder = UNetEncoder(1, 64, 0.5)
    with torch.no_grad():
        maps = encoder.eval()(torch.zeros(1, 1, 16, 16))
    assert [m.shape[1] for m in maps] == [64, 128, 256, 512, 1024]
    assert [m.shape[2] for m in maps] == [16, 8, 4, 2, 1]


@pytest.mark.parametrize("size", [(16, 16), (17, 31), (48, 33)])
def test_every_pixel_gets_logits(size: tuple[int, int]) -> None:
    output = UNet(3, in_channels=2, width=2).forward_stages(torch.zeros(2, 2, *size))
    assert output.logits.shape == (2, 3, *size)
    assert output.last is not None
    assert output.last.shape == (2, 2, *size)


def test_a_shifted_image_has_shifted_logits() -> None:
    """Convolutions: 16 pixels further, far from the border, the logits are the same."""
    torch.manual_seed(0)
    net = UNet(2, width=2).eval()
    image = torch.zeros(1, 1, 128, 128)
    image[..., 48:64, 48:64] = torch.randn(16, 16)
    with torch.no_grad():
        there, moved = net(image), net(image.roll(16, 3))
    torch.testing.assert_close(
        moved[..., 48:64, 64:80], there[..., 48:64, 48:64], atol=1e-5, rtol=1e-5
    )


def test_a_second_decoder_reads_the_same_encoder() -> None:
    net, other = UNet(2, width=2), UNetDecoder(2, width=2)
    logits, _ = other(net.encoder(torch.randn(2, 1, 16, 16)))
    logits.sum().backward()
    assert all(p.grad is not None for p in net.encoder.parameters())
    assert all(p.grad is None for p in net.decoder.parameters())


def test_the_model_normalises_and_is_described() -> None:
    model = SegmentationModel(UNet(2, width=2), mean=(0.5,), std=(0.25,)).eval()
    images = torch.randint(0, 256, (2, 1, 16, 16), dtype=torch.uint8)
    expected = model.module((images / 255 - 0.5) / 0.25)
    torch.testing.assert_close(model(images).logits, expected)
    spec = describe(model, images)
    assert (spec.classes, [s.channels for s in spec.stages]) == (2, [2, 4, 8, 16, 32])
    assert all(stage.nonnegative for stage in spec.stages)


def test_an_image_can_have_a_normalisation_of_its_own() -> None:
    net = UNet(2, width=2)
    model = SegmentationModel(net, mean=(0.5,), std=(0.25,), by_image=True).eval()
    images = torch.randint(0, 128, (2, 1, 16, 16), dtype=torch.uint8)
    normal = model.normalize(images)
    torch.testing.assert_close(normal.mean((2, 3)), torch.zeros(2, 1), atol=1e-5, rtol=0)
    torch.testing.assert_close(normal.std((2, 3), correction=0), torch.ones(2, 1))
    torch.testing.assert_close(model.normalize(images + 100), normal)  # brightness does not matter
    torch.testing.assert_close(model.normalize(images * 2), normal)  # nor does contrast
    assert not model.normalize(torch.full((1, 1, 16, 16), 7, dtype=torch.uint8)).any()


def test_dropout_works_on_the_fourth_stage_in_training() -> None:
    net = UNet(2, width=2, dropout=0.5)
    maps = net.encoder(torch.randn(4, 1, 32, 32))
    zeros = [float((m == 0).float().mean()) for m in maps]
    assert zeros[3] > 0.6
    assert all(share < 0.6 for share in zeros[:3])


def test_small_images_are_refused() -> None:
    with pytest.raises(InputError, match="needs images of 16x16 pixels or more, got 16x8"):
        UNet(2, width=2)(torch.zeros(1, 1, 8, 16))
