"""What models of timm and torchvision were made for."""

from __future__ import annotations

import pytest

from dskd.models.native import has_batchnorm, native_size


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
