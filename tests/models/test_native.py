"""What models of timm and torchvision were made for."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dskd.errors import InputError
from dskd.models.native import (
    has_batchnorm,
    native_pixels,
    native_size,
    published_classes,
    short_share,
)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("timm/resnet50", 224),
        ("timm/inception_v3", 299),
        ("timm/no_such_model", None),
        ("torchvision/resnet18", 224),
        ("torchvision/inception_v3", 299),
        ("torchvision/no_such_model", None),
        ("resnet8", None),
        ("own:net", None),
    ],
)
def test_the_size_is_that_of_the_published_weights(name: str, size: int | None) -> None:
    assert native_size(name) == size


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("timm/test_resnet", True),
        ("timm/vit_tiny_patch16_224", False),
        ("timm/no_such_model", True),
        ("torchvision/mobilenet_v3_small", True),
        ("torchvision/convnext_tiny", False),
        ("resnet8", True),
        ("own:net", True),
    ],
)
def test_batchnorm_is_found_without_memory_for_the_model(name: str, expected: bool) -> None:
    assert has_batchnorm(name, {}) is expected


def test_options_count() -> None:
    assert not has_batchnorm("timm/test_resnet", {"norm_layer": "layernorm2d"})


@pytest.mark.parametrize(
    ("name", "size", "side"),
    [
        ("torchvision/inception_v3", 299, 342),
        ("torchvision/efficientnet_b1", 240, 255),
        ("torchvision/efficientnet_b4", 380, 384),
        ("torchvision/swin_s", 224, 246),
        ("torchvision/maxvit_t", 224, 224),
    ],
)
def test_a_share_gives_the_side_that_torchvision_resizes_to(
    name: str, size: int, side: int
) -> None:
    pixels = native_pixels(name)
    assert pixels is not None
    assert int(size / short_share(pixels.crop_pct, size)) == side


def test_some_models_of_timm_squeeze_images() -> None:
    pixels = native_pixels("timm/vit_base_patch16_clip_384.openai_ft_in12k_in1k")
    assert pixels is not None
    assert (pixels.crop_pct, pixels.crop_mode) == (0.95, "squash")


@pytest.mark.parametrize("read", [native_size, published_classes, native_pixels])
def test_weights_that_timm_does_not_have_are_one_line(read: Callable[[str], object]) -> None:
    with pytest.raises(
        InputError, match=r"unknown weights of timm 'timm/resnet18\.typo'"
    ) as refused:
        read("timm/resnet18.typo")
    assert "timm/resnet18.a1_in1k" in str(refused.value)
    assert "\n" not in str(refused.value)
