"""Any module as a staged model: its outputs, what is refused, and that it is unchanged."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from dskd.errors import InputError
from dskd.models.catalog import ZOO
from dskd.models.feature_maps import tokens_to_grid
from dskd.models.output import ModelOutput
from dskd.models.spec import StageSpec, describe
from dskd.models.staged_model import StagedModel
from dskd.models.zoo import build

HALF = (0.5, 0.5, 0.5)


class Net(nn.Module):
    """A user's classifier: two stages, dropout, a classifier that is not the last module."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 5)
        self.shallow = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(4, 8, 3, stride=2, padding=1), nn.Tanh())
        self.drop = nn.Dropout(0.5)
        self.unused = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.deep(self.shallow(x))
        logits: Tensor = self.head(self.drop(x.mean((2, 3))))
        return logits


class Through(nn.Module):
    """Classifies the output of ``body``, of any shape."""

    def __init__(self, body: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.body = Body(body)
        self.head = nn.LazyLinear(5)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.body(x)
        seen = seen[0] if isinstance(seen, tuple) else seen
        logits: Tensor = self.head(seen.flatten(1))
        return logits


class Body(nn.Module):
    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def staged(module: nn.Module, stages: list[str] | None = None) -> StagedModel:
    return StagedModel(module, stages, mean=HALF, std=HALF)


def random_images(height: int = 16, width: int = 16, count: int = 2) -> Tensor:
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8)


def run(body: Callable[[Tensor], Any], images: Tensor) -> Tensor:
    output: ModelOutput = staged(Through(body), ["body"])(images)
    return output.stages[0]


@pytest.mark.parametrize("name", ["resnet8", "resnet8x4", "wrn_16_1", "MobileNetV2", "ShuffleV2"])
def test_hooks_read_what_a_zoo_model_gives_by_itself(name: str) -> None:
    net = build(name, num_classes=5).eval()
    images = random_images(32, 32)
    native = staged(net)(images)
    hooked = staged(net, list(net.stage_names))(images)
    assert torch.equal(native.logits, hooked.logits)
    assert torch.equal(native.pooled, hooked.pooled)
    for one, other in zip(native.stages, hooked.stages, strict=True):
        assert torch.equal(one, other)


def test_the_stages_of_vgg_are_its_blocks_behind_their_relu() -> None:
    net = build("vgg8", num_classes=5).eval()
    images = random_images(32, 32)
    native = staged(net)(images)
    hooked = staged(net, list(net.stage_names))(images)
    for one, other in zip(native.stages, hooked.stages, strict=True):
        assert torch.equal(one, F.relu(other))


@pytest.mark.slow
def test_every_zoo_model_is_described_for_images_of_64() -> None:
    for name in ZOO:
        spec = describe(staged(build(name, num_classes=5)), random_images(64, 64, 1))
        assert spec.classes == 5
        assert len(spec.stages) >= 3
        assert spec.pooled is not None


def test_named_stages_of_ones_own_module() -> None:
    net = Net().eval()
    images = random_images()
    output = staged(net, ["shallow", "deep"])(images)
    x = (images / 255 - 0.5) / 0.5
    first = net.shallow(x)
    second = net.deep(first)
    assert torch.equal(output.logits, net(x))
    assert torch.equal(output.stages[0], first)
    assert torch.equal(output.stages[1], second)
    torch.testing.assert_close(output.pooled, second.mean((2, 3)))


def test_gradients_flow_through_stages_and_pooled_vector() -> None:
    net = Net()
    output = staged(net, ["shallow", "deep"])(random_images())
    (output.stages[0].sum() + output.pooled.sum()).backward()
    assert net.shallow[0].weight.grad is not None
    assert net.deep[0].weight.grad is not None
    assert net.head.weight.grad is None


def hooks(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def test_a_module_is_wrapped_and_not_edited() -> None:
    net = Net()
    net.deep.eval()
    net.head.requires_grad_(False)
    before = copy.deepcopy(net.state_dict())
    modes = [part.training for part in net.modules()]
    learning = [parameter.requires_grad for parameter in net.parameters()]
    model = staged(net, ["shallow", "deep"])
    describe(model, random_images())
    assert model.module is net
    assert hooks(net) == 0
    assert [part.training for part in net.modules()] == modes
    assert [parameter.requires_grad for parameter in net.parameters()] == learning
    assert all(parameter.grad is None for parameter in net.parameters())
    assert net.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert model.state_dict().keys() == {f"module.{key}" for key in before}


def test_no_hook_is_left_and_every_mode_is_restored_when_the_model_fails() -> None:
    net = Net()
    net.shallow.eval()
    model = StagedModel(net, ["shallow"], mean=(0.5,), std=(0.5,))
    with pytest.raises(InputError, match="does not run on images"):
        describe(model, torch.zeros(2, 1, 8, 8))
    assert hooks(net) == 0
    assert net.training
    assert not net.shallow.training


def test_describe_says_what_a_model_gives() -> None:
    spec = describe(staged(Net(), ["shallow", "deep"]), random_images(16, 24))
    assert spec.classes == 5
    assert spec.stages == (StageSpec(4, 16, 24, True), StageSpec(8, 8, 12, False))
    assert spec.pooled == 8
    inner = ("shallow", "shallow.0 ... shallow.2", "deep", "deep.0", "deep.1")
    assert spec.submodules == ("head", *inner, "drop", "unused")
    assert describe(staged(Net()), random_images()).stages == ()


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        (["shalow"], r"Net has no submodule 'shalow'; did you mean 'shallow'\? its parts: head, "),
        (["zzz"], r"no submodule 'zzz'; its parts: head, shallow, .*, deep\.1, drop, unused$"),
        (["shallow.7"], r"did you mean 'shallow\.\d'"),
        ([""], "no submodule ''"),
        (["deep", "deep"], r"named twice in \['deep', 'deep'\]"),
    ],
)
def test_wrong_stage_names_suggest_the_right_ones(stages: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        staged(Net(), stages)


def test_two_names_of_one_module_are_one_stage() -> None:
    net = Net()
    net.alias = net.deep
    assert staged(net, ["alias"])(random_images()).stages[0].shape == (2, 8, 8, 8)
    with pytest.raises(InputError, match="named twice"):
        staged(net, ["deep", "alias"])


def test_a_stage_that_does_not_run_is_refused() -> None:
    with pytest.raises(InputError, match="stage 'unused' did not run"):
        staged(Net(), ["shallow", "unused"])(random_images())


def test_stages_out_of_order_are_refused_with_the_order() -> None:
    with pytest.raises(InputError, match=r"name them as \['shallow', 'deep'\]"):
        staged(Net(), ["deep", "shallow"])(random_images())


def test_a_module_that_runs_twice_counts_where_it_ran_last() -> None:
    relu, other = nn.ReLU(), nn.Conv2d(3, 3, 1)
    net = nn.Sequential(relu, other, relu, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5))
    output = staged(net, ["1", "0"])(random_images())
    assert torch.equal(output.stages[1], F.relu(output.stages[0]))


@pytest.mark.parametrize("module", [nn.ReLU(inplace=True), nn.Hardtanh(inplace=True)])
def test_a_stage_that_is_changed_in_place_later_is_refused(module: nn.Module) -> None:
    tail = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)]
    net = nn.Sequential(nn.Conv2d(3, 4, 3), module, *tail)
    with pytest.raises(InputError, match="stage '0' is changed in place"):
        staged(net, ["0"])(random_images())
    assert (staged(net, ["1"])(random_images()).stages[0] >= -1).all()


def test_stages_are_read_in_inference_mode_too() -> None:
    with torch.inference_mode():
        assert len(staged(Net(), ["shallow", "deep"])(random_images()).stages) == 2


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (lambda x: (x, x), "gives tuple for 2 images"),
        (lambda x: x.mean((2, 3)), r"gives \[2, 3\] for 2 images"),
        (lambda x: x.unsqueeze(1), r"gives \[2, 1, 3, 16, 16\]"),
    ],
)
def test_a_stage_that_gives_no_map_is_refused(body: Callable[[Tensor], Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        run(body, random_images())


def test_a_stage_that_mixes_up_the_images_is_refused() -> None:
    net = Net()
    net.shallow = nn.Sequential(net.shallow, Body(lambda x: torch.cat([x, x])))
    with pytest.raises(InputError, match=r"gives \[4, 4, 16, 16\] for 2 images"):
        staged(net, ["shallow"])(random_images())


# Tokens


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
def test_tokens_become_a_grid(prefix: int, known: bool) -> None:
    grid = torch.randn(2, 8, 4, 4)
    tokens = torch.cat([torch.full((2, prefix, 8), torch.nan), grid.flatten(2).mT], 1)
    assert torch.equal(tokens_to_grid(tokens, prefix if known else None), grid)


def test_prefix_tokens_are_believed_where_the_model_says_them() -> None:
    grid = torch.randn(2, 8, 4, 4)
    tokens = torch.cat([torch.full((2, 9, 8), torch.nan), grid.flatten(2).mT], 1)
    assert torch.equal(tokens_to_grid(tokens, 9), grid)
    assert tokens_to_grid(tokens).shape == (2, 8, 5, 5)  # what else could it be
    assert tokens_to_grid(tokens[:, 9:], 9).shape == (2, 8, 4, 4)  # before they join
    with pytest.raises(InputError, match=r"26 tokens are no grid .* after 9 prefix tokens"):
        tokens_to_grid(torch.zeros(2, 26, 8), 9)
    with pytest.raises(InputError, match="5 tokens are no grid"):
        tokens_to_grid(torch.zeros(2, 5, 8), 5)


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_tokens_of_oblong_images_become_an_oblong_grid(prefix: int) -> None:
    grid = torch.randn(2, 8, 4, 6)
    tokens = torch.cat([torch.full((2, prefix, 8), torch.nan), grid.flatten(2).mT], 1)
    assert torch.equal(tokens_to_grid(tokens, prefix, (32, 48)), grid)
    assert torch.equal(tokens_to_grid(tokens, None, (32, 48)), grid)
    with pytest.raises(InputError, match="no grid of the images' proportions, 31x32"):
        tokens_to_grid(tokens, None, (31, 32))


class Tokens(nn.Module):
    """A transformer's tokens without the transformer: nine registers before the 16 patches."""

    num_prefix_tokens = 9

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 4, stride=4)
        self.blocks = nn.Sequential(nn.Identity())
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).mT
        registers = torch.zeros(len(x), self.num_prefix_tokens, 6)
        tokens = self.blocks(torch.cat([registers, tokens], 1))
        logits: Tensor = self.head(tokens[:, 0])
        return logits


def test_a_models_own_prefix_tokens_are_used_also_where_it_is_wrapped() -> None:
    net, images = Tokens(), random_images()
    expected = net.patches((images / 255 - 0.5) / 0.5)
    for module, name in ((net, "blocks"), (nn.Sequential(net), "0.blocks")):
        torch.testing.assert_close(staged(module, [name])(images).stages[0], expected)


@pytest.mark.parametrize(
    ("options", "prefix"),
    [
        ({}, 1),
        ({"class_token": False, "global_pool": "avg"}, 0),
        ({"reg_tokens": 4}, 5),
        ({"reg_tokens": 4, "class_token": False, "global_pool": "avg"}, 4),
        ({"reg_tokens": 8}, 9),
    ],
)
def test_a_timm_transformer_shows_its_grid(options: dict[str, Any], prefix: int) -> None:
    small: dict[str, Any] = {
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 24,
        "depth": 2,
        "num_heads": 2,
    }
    net: Any = timm.create_model("vit_tiny_patch16_224", num_classes=5, **small, **options).eval()
    assert net.num_prefix_tokens == prefix
    images = random_images(32, 32)
    output = staged(net, ["patch_embed", "blocks.0", "blocks.1"])(images)
    _, maps = net.forward_intermediates((images / 255 - 0.5) / 0.5, norm=False)
    assert output.stages[0].shape == (2, 24, 4, 4)
    for seen, expected in zip(output.stages[1:], maps, strict=True):
        torch.testing.assert_close(seen, expected)
    assert output.pooled is not None
    assert output.pooled.shape == (2, 24)


def test_a_timm_transformer_shows_the_grid_of_oblong_images() -> None:
    small: dict[str, Any] = {
        "img_size": (32, 48),
        "patch_size": 8,
        "embed_dim": 24,
        "depth": 2,
        "num_heads": 2,
    }
    net = timm.create_model("vit_tiny_patch16_224", num_classes=5, **small)
    spec = describe(staged(net, ["blocks.0", "blocks.1"]), random_images(32, 48))
    assert [(s.height, s.width) for s in spec.stages] == [(4, 6), (4, 6)]


# Maps with the channels last


@pytest.mark.parametrize(("height", "width"), [(16, 16), (16, 24), (24, 16), (17, 33), (8, 36)])
def test_channels_that_come_last_are_brought_to_the_front(height: int, width: int) -> None:
    def deep(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 4, ceil_mode=True).repeat(1, 8, 1, 1)

    images = random_images(height, width)
    expected = run(deep, images)
    assert expected.shape == (2, 24, -(-height // 4), -(-width // 4))
    assert torch.equal(run(lambda x: deep(x).permute(0, 2, 3, 1), images), expected)


@pytest.mark.parametrize("source", ["timm", "torchvision"])
def test_swin(source: str) -> None:
    library = {"timm": timm, "torchvision": torchvision}[source]
    if source == "timm":
        names = ["layers.0", "layers.1"]
        net = library.create_model(
            "swin_tiny_patch4_window7_224",
            num_classes=5,
            img_size=32,
            window_size=4,
            embed_dim=12,
            depths=(1, 1),
            num_heads=(2, 2),
        )
    else:
        names = ["features.1", "features.3"]
        net = library.models.SwinTransformer([4, 4], 12, [1, 1], [2, 2], [4, 4], num_classes=5)
    spec = describe(staged(net, names), random_images(32, 32))
    assert [(s.channels, s.height, s.width) for s in spec.stages] == [(12, 8, 8), (24, 4, 4)]
    assert spec.pooled == 24


# The pooled vector


def test_a_model_without_a_linear_layer_has_no_pooled_vector() -> None:
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    output = staged(net, ["0"])(random_images())
    assert output.pooled is None
    assert describe(staged(net, ["0"]), random_images()).pooled is None


def test_the_pooled_vector_is_what_a_convolution_over_one_position_classifies() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 7, 3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(7, 5, 1), nn.Flatten()
    )
    model = StagedModel(net, mean=HALF, std=HALF, classifier="2")
    assert model(random_images()).pooled.shape == (2, 7)
    assert describe(model, random_images()).pooled == 7


def test_a_classifier_of_every_position_has_no_pooled_vector() -> None:
    class Everywhere(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 5)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(x.flatten(2).mT).mean(1)
            return logits

    assert staged(Everywhere())(random_images()).pooled is None


def test_a_classifier_that_is_called_with_a_keyword_has_no_pooled_vector() -> None:
    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 5)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(input=x.mean((2, 3)))
            return logits

    assert staged(Keyword())(random_images()).pooled is None


# Images, mean and std


def test_uint8_and_float_images_are_the_same_images() -> None:
    model = StagedModel(Net().eval(), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    images = random_images()
    normal = model.normalize(images)
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.6, 0.7])
    expected = ((images / 255).permute(0, 2, 3, 1) - mean) / std
    torch.testing.assert_close(normal, expected.permute(0, 3, 1, 2))
    assert torch.equal(model.normalize(images / 255), normal)
    assert torch.equal(model.normalize(images.long()), normal)
    assert torch.equal(model(images).logits, model(images / 255).logits)


def test_every_model_uses_its_own_mean_and_std() -> None:
    net, images = Net().eval(), random_images()
    plain = StagedModel(net, mean=(0, 0, 0), std=(1, 1, 1))
    other = StagedModel(net, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    assert torch.equal(plain(images).logits, net(images / 255))
    assert torch.equal(other(images).logits, net(other.normalize(images)))
    assert not torch.allclose(plain(images).logits, other(images).logits)


@pytest.mark.parametrize(
    ("mean", "std", "said"),
    [
        ((0.5,), HALF, "mean has 1 channels, std has 3"),
        ((), (), "mean has 0 channels"),
        (HALF, (0.5, 0.0, 0.5), "std must be above 0"),
        (HALF, (0.5, -1.0, 0.5), "std must be above 0"),
        (HALF, (0.5, float("nan"), 0.5), "std must be above 0"),
        (HALF, (0.5, float("inf"), 0.5), "std must be above 0"),
        ((0.5, float("nan"), 0.5), HALF, "mean must be a finite number"),
    ],
)
def test_mistaken_mean_and_std(mean: tuple[float, ...], std: tuple[float, ...], said: str) -> None:
    with pytest.raises(InputError, match=said):
        StagedModel(Net(), mean=mean, std=std)


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (2, 4, 8, 8), (3, 8, 8)])
def test_images_of_other_channels_are_not_broadcast(shape: tuple[int, ...]) -> None:
    said = re.escape(
        f"images [B, 3, H, W] are needed, as mean and std have 3 channels, got {[*shape]}"
    )
    with pytest.raises(InputError, match=said):
        staged(Net())(torch.zeros(shape))


# What describe refuses


@pytest.mark.parametrize("error", [RuntimeError, ValueError, KeyError, ZeroDivisionError])
def test_a_model_that_fails_is_refused_in_one_line(error: type[Exception]) -> None:
    def fail(x: Tensor) -> Tensor:
        raise error("\nthe first line\nthe second line")

    with pytest.raises(InputError) as caught:
        describe(staged(Through(fail)), random_images())
    assert str(caught.value).startswith("Through does not run on images [3, 16, 16]: ")
    assert "\n" not in str(caught.value)


def test_an_error_of_ours_is_passed_on_as_it_is() -> None:
    with pytest.raises(InputError, match=r"^stage 'unused' did not run"):
        describe(staged(Net(), ["unused"]), random_images())


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda x: {"map": x}, "Body gives dict, not logits"),
        (lambda x: {"logits": x}, r"Body gives \[2, 3, 16, 16\], not logits"),
        (lambda x: x, r"Body gives \[2, 3, 16, 16\], not logits"),
    ],
)
def test_a_model_that_gives_no_logits_is_refused(
    output: Callable[[Tensor], Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        describe(staged(Body(output)), random_images())


def test_nonnegative_maps_are_those_without_a_value_below_zero() -> None:
    tail = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)]
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.GELU(), nn.Tanh(), nn.Conv2d(4, 4, 1))
    names = ["0", "1", "4"]
    spec = describe(staged(nn.Sequential(*net, *tail), names), random_images())
    assert [stage.nonnegative for stage in spec.stages] == [False, True, False]


@pytest.mark.parametrize(("scale", "linear_logits"), [(1.0, True), (2.0, False)])
def test_whether_the_logits_are_the_linear_layer_s_is_told_from_images(
    scale: float, linear_logits: bool
) -> None:
    class Scaled(Net):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = super().forward(x)
            return scale * logits

    assert describe(staged(Scaled(), ["deep"]), random_images()).linear_logits is linear_logits


def test_a_batchnorm_before_the_classifier_is_no_average_once_it_is_trained() -> None:
    parts = nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    for neck, averages in ((nn.Identity(), True), (nn.BatchNorm1d(4), False)):
        model = staged(nn.Sequential(*parts, neck, nn.Linear(4, 5)), ["0"])
        before = {key: value.clone() for key, value in model.state_dict().items()}
        assert describe(model, random_images()).average_pooled is averages
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_what_a_spec_says_about_the_classifier_is_yes_or_no() -> None:
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    plain = nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten())
    spec = describe(StagedModel(plain, mean=(0.5,) * 3, std=(0.5,) * 3), images)
    assert spec.linear_logits is False
    assert spec.average_pooled is False
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))
    spec = describe(StagedModel(linear, mean=(0.5,) * 3, std=(0.5,) * 3), images)
    assert spec.linear_logits is True
