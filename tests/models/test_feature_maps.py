"""Maps: their order of dimensions, and their spatial mean with a gradient in the better format."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dskd.models.feature_maps import has_channels_last, spatial_mean, to_feature_map
from dskd.models.staged_model import StagedModel


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_spatial_mean_is_the_mean(dtype: torch.dtype) -> None:
    feature_map = torch.randn(4, 6, 8, 4).to(dtype).requires_grad_()
    (gradient,) = torch.autograd.grad(spatial_mean(feature_map).sum(), feature_map)
    (expected,) = torch.autograd.grad(feature_map.mean((2, 3)).sum(), feature_map)
    assert torch.equal(spatial_mean(feature_map), feature_map.mean((2, 3)))
    assert torch.equal(gradient, expected)


def test_the_sum_of_a_large_map_in_float16_may_leave_its_range() -> None:
    feature_map = torch.full((2, 3, 64, 64), 17.0, dtype=torch.float16)
    feature_map = feature_map.to(memory_format=torch.channels_last).requires_grad_()
    mean = spatial_mean(feature_map)
    assert mean.dtype == torch.float16
    assert (mean == 17).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_channels_last_map_gets_a_channels_last_gradient(dtype: torch.dtype) -> None:
    feature_map = torch.randn(4, 6, 8, 8, dtype=dtype).to(memory_format=torch.channels_last)
    feature_map.requires_grad_()
    (gradient,) = torch.autograd.grad(spatial_mean(feature_map.relu()).sum(), feature_map)
    assert gradient.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("image", [(64, 64), (48, 96)])
@pytest.mark.parametrize("channels", range(1, 34))
def test_the_order_of_a_map_is_read_from_its_shape(image: tuple[int, int], channels: int) -> None:
    images = torch.zeros(1, 3, *image)
    height, width = image[0] // 4, image[1] // 4
    shape = torch.Size([1, channels, height, width])
    assert to_feature_map(torch.zeros(shape), "a", images, None).shape == shape
    last = torch.zeros(1, height, width, channels)
    found = to_feature_map(last, "a", images, None, channels_last=True)
    assert found.shape == shape
    if channels * height != width**2:  # else both orders fit equally
        assert to_feature_map(last, "a", images, None).shape == shape


def test_a_model_tells_the_order_that_a_shape_does_not() -> None:
    images, output = torch.zeros(1, 3, 8, 8), torch.randn(1, 4, 4, 4)
    assert torch.equal(to_feature_map(output, "a", images, None), output)
    found = to_feature_map(output, "a", images, None, channels_last=True)
    assert torch.equal(found, output.permute(0, 3, 1, 2))
    assert not has_channels_last(nn.Sequential(nn.Conv2d(3, 4, 1)))


@pytest.mark.parametrize("size", [14, 16])
@pytest.mark.parametrize("source", ["timm", "torchvision"])
def test_swin_with_as_many_channels_as_columns(source: str, size: int) -> None:
    """The maps of a stage are 16x16 or 14x14, with 16 channels."""
    library = pytest.importorskip(source)
    if source == "timm":
        options = {"img_size": 4 * size, "window_size": 2, "embed_dim": 16, "depths": (1, 1)}
        net = library.create_model(
            "swin_tiny_patch4_window7_224", num_classes=3, num_heads=(2, 2), **options
        )
        stages = ["layers.0"]
    else:
        net = library.models.SwinTransformer([4, 4], 16, [1, 1], [2, 2], [2, 2], num_classes=3)
        stages = ["features.1"]
    maps = list[torch.Tensor]()
    net.get_submodule(stages[0]).register_forward_hook(lambda *hooked: maps.append(hooked[2]))
    staged = StagedModel(net, stages, mean=(0.5,) * 3, std=(0.25,) * 3).eval()
    with torch.no_grad():
        (found,) = staged(torch.rand(1, 3, 4 * size, 4 * size)).stages
    assert torch.equal(found, maps[0].permute(0, 3, 1, 2))
