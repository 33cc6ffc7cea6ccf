"""The stages that are found in any module, and their table."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn

import dskd
from dskd.errors import InputError
from dskd.models.feature_maps import to_feature_map
from dskd.models.prefix_tokens import find_prefix_tokens
from dskd.models.stage_choice import choose_stages
from dskd.models.stage_table import table_lines
from dskd.models.staged_model import StagedModel

IMAGES = torch.zeros(2, 3, 32, 32)


def conv(inner: int, outer: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inner, outer, 3, stride, 1)


class Plain(nn.Module):
    """As VGG: convolutions, ReLUs in place and pooling in one container."""

    def __init__(self) -> None:
        super().__init__()
        first = conv(3, 8), nn.ReLU(inplace=True), nn.MaxPool2d(2)
        second = conv(8, 16), nn.ReLU(inplace=True), nn.MaxPool2d(2)
        third = conv(16, 16), nn.ReLU(inplace=True), conv(16, 32), nn.ReLU(), nn.MaxPool2d(2)
        self.features = nn.Sequential(*first, *second, *third)
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(512, 64), nn.Linear(64, 3))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x))
        return logits


class Excited(nn.Module):
    """A block with squeeze and excitation, whose single positions are no stage."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.conv = conv(inner, outer, stride=2)
        self.squeeze = nn.AdaptiveAvgPool2d(1)
        self.excite = nn.Conv2d(outer, outer, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        excited: Tensor = x * self.excite(self.squeeze(x)).sigmoid()
        return excited


class Blocks(nn.Module):
    """Blocks in a ModuleList, which itself does not run; the pooling is a function."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Excited(a, b) for a, b in ((3, 8), (8, 12), (12, 16)))
        self.fc = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


class Transformer(nn.Module):
    """A plain transformer with a class token and registers, written by hand."""

    def __init__(self, depth: int, registers: int = 0) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 8, 8)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 16))
        self.register_tokens = nn.Parameter(torch.zeros(1, registers, 16))
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        prefix = torch.cat([self.cls_token, self.register_tokens], 1).expand(len(x), -1, -1)
        logits: Tensor = self.head(self.encoder(torch.cat([prefix, x], 1))[:, 0])
        return logits


class ChannelsLast(nn.Module):
    """Maps with the channels last, as in Swin."""

    def __init__(self) -> None:
        super().__init__()
        self.one = Permuted(3, 24)
        self.two = Permuted(24, 40)
        self.three = Permuted(40, 56)
        self.fc = nn.Linear(56, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.three(self.two(self.one(x.permute(0, 2, 3, 1))))
        logits: Tensor = self.fc(x.mean((1, 2)))
        return logits


class Permuted(nn.Module):
    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.conv = conv(inner, outer, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        maps: Tensor = self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return maps


class Wrapped(nn.Module):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.backbone(x)
        return logits


LAYERS = tuple(f"backbone.layer{layer}" for layer in (1, 2, 3, 4))
CASES: list[tuple[Callable[[], nn.Module], tuple[str, ...], list[int]]] = [
    (Plain, ("features.1", "features.4", "features.9"), [32, 16, 8]),
    (Blocks, ("blocks.0", "blocks.1", "blocks.2"), [16, 8, 4]),
    (ChannelsLast, ("one", "two", "three"), [16, 8, 4]),
    (lambda: Transformer(6), tuple(f"encoder.layers.{n}" for n in (1, 2, 4, 5)), [4] * 4),
    (lambda: Transformer(2, 9), ("encoder.layers.0", "encoder.layers.1"), [4] * 2),
    (lambda: Wrapped(timm.create_model("resnet10t", num_classes=3)), LAYERS, [8, 4, 2, 1]),
]
IDS = ["plain", "module list", "channels last", "transformer", "registers", "wrapped"]


@pytest.mark.parametrize(("make", "names", "heights"), CASES, ids=IDS)
def test_the_stages_of_any_module(
    make: Callable[[], nn.Module], names: tuple[str, ...], heights: list[int]
) -> None:
    module = make()
    assert choose_stages(module, IMAGES) == names
    model = StagedModel(module, names, mean=(0.5,) * 3, std=(0.5,) * 3).eval()
    assert [stage.shape[2] for stage in model(IMAGES).stages] == heights


def test_prefix_tokens_are_counted_by_their_names() -> None:
    assert find_prefix_tokens(Transformer(1, registers=9)) == 10
    assert find_prefix_tokens(timm.create_model("vit_tiny_patch16_224", img_size=32)) == 1
    assert find_prefix_tokens(Plain()) is None


def test_a_module_without_maps_has_no_stages() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3072, 3))
    assert choose_stages(flat, IMAGES) == ()
    with pytest.raises(InputError, match="no part of Sequential returns a feature map"):
        dskd.stages(flat)
    with pytest.raises(InputError, match=r"Linear does not run on images \[3, 32, 32\]: "):
        dskd.stages(nn.Linear(5, 5))


def test_the_tensor_in_the_output_of_a_block_is_its_map() -> None:
    tokens = torch.zeros(2, 17, 8)
    assert to_feature_map((tokens, None), "block", IMAGES, 1).shape == (2, 8, 4, 4)
    with pytest.raises(InputError, match="gives tuple"):
        to_feature_map((tokens, tokens), "block", IMAGES, 1)


def test_the_table_of_stages() -> None:
    rows = dskd.stages(Plain(), classes=3)
    work = [3 * 8 * 9 * 32**2, 8 * 16 * 9 * 16**2, (16 * 16 + 16 * 32) * 9 * 8**2]
    total = sum(work) + 512 * 64 + 64 * 3
    assert [row.multiply_adds for row in rows] == pytest.approx([part / total for part in work])
    assert [row.depth for row in rows] == pytest.approx([1 / 6, 2 / 6, 4 / 6])
    assert [(row.number, row.channels, row.height, row.width) for row in rows] == [
        (1, 8, 32, 32),
        (2, 16, 16, 16),
        (3, 32, 8, 8),
    ]
    header, first, *_ = table_lines(rows)
    assert header.split("  ")[0] == "stage"
    assert first.split() == ["1", "features.1", "8x32x32", "17", "22"]


def test_the_table_of_all_candidates_marks_the_stages() -> None:
    rows = dskd.stages(Plain(), all=True)
    assert [row.name for row in rows if row.number] == ["features.1", "features.4", "features.9"]
    names = [row.name for row in rows]
    assert {"features.2", "features.8", "features"} <= {*names}
    assert not {"features.0", "features.3"} & {*names}, "a ReLU changes them in place"
    assert "classifier" not in names
    assert [row.name for row in dskd.stages("resnet8", size=16)] == ["layer1", "layer2", "layer3"]
    assert [row.height for row in dskd.stages("resnet8", size=16)] == [16, 8, 4]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_scripted_module_takes_no_hooks_and_has_no_stages() -> None:
    net = nn.Sequential(conv(3, 4), nn.Flatten())
    scripted = torch.jit.trace(net, IMAGES)  # type: ignore[no-untyped-call]
    assert choose_stages(scripted, IMAGES) == ()
