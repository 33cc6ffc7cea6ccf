"""One for all: the loss, branches on maps and on tokens, CNN and transformer as either model."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dskd
from dskd.errors import InputError
from dskd.losses.logits import ce, kd
from dskd.methods.ofa import OFA, Form, ofa_loss
from dskd.methods.ofa_branches import ConvolutionBranch, Merge, TokenBranch
from dskd.models.output import ModelOutput
from dskd.models.spec import StageSpec
from dskd.models.staged_model import StagedModel
from tests.builders import make_dataset, make_pair, staged
from tests.losses.misfits import Arguments
from tests.methods.edge_cases import check_finite_with_gradient, check_full_precision
from tests.methods.inputs import batch_of
from tests.reference_values import CASES, cases, check, check_scaled, parameters

ARGUMENTS = Arguments(
    {"student_logits": "B K", "teacher_logits": "B K", "labels": "B"},
    indices={"labels": "K"},
    numbers={"gamma": -0.1, "temperature": 0.0},
    choices=("form",),
)
DEFAULTS = {"gamma": 1.0, "temperature": 1.0, "form": "paper"}
WEIGHTS = {"ce": 1.0, "kd": 1.0, "branch": 1.0, "temperature": 1.0}
PRESETS = {
    "literature": WEIGHTS | {"gamma": 1.0},
    "imagenet": WEIGHTS | {"gamma": 1.5, "form": "code"},
}

FORMS: tuple[Form, ...] = get_args(Form)
DATA = make_dataset(size=16)


def code(gamma: float, temperature: float = 1.0) -> Callable[..., Tensor]:
    return lambda s, t, y: ofa_loss(s, t, y, gamma, temperature, "code")


def reference_branches() -> list[ConvolutionBranch]:
    """The authors' four branches; their keys are ``stage.block.op.layer`` and ``stage.last``."""
    weights = parameters("ofa_full")
    stages = [(16, 16), (32, 8), (64, 8), (64, 4)]
    branches = []
    for number, (channels, size) in enumerate(stages, 1):
        branch = ConvolutionBranch(StageSpec(channels, size, size, True), 128, 4 - number, 100)
        own = branch.double().state_dict()
        last = max(int(key.split(".")[1]) for key in weights if key.startswith(f"{number}."))
        for key in own:
            place, _, rest = key.partition(".")
            theirs = f"{number}.{last}.{rest}" if place == "classifier" else f"{number}.{rest}"
            if place == "layers" and number < 4:
                block, _, layer = rest.partition(".")
                theirs = f"{number}.{block}.op.{layer}"
            if not key.endswith("_tracked"):
                own[key] = weights[theirs]
        branch.load_state_dict(own)
        branches.append(branch)
    return branches


def whole(gammas: list[float], further: dict[str, float]) -> Callable[..., Tensor]:
    """The authors' objective; also compares its three parts."""

    def loss(s: Tensor, *others: Tensor) -> Tensor:
        *maps, t, y = others
        label = y.argmax(1) if y.is_floating_point() else y
        stages = zip(reference_branches(), maps, gammas, strict=False)
        parts = {
            "loss_gt": F.cross_entropy(s, y),
            "loss_kd": code(gammas[-1])(s, t, label),
            "loss_ofa": torch.stack([code(g)(b(m), t, label) for b, m, g in stages]).sum(),
        }
        assert {key: part.item() for key, part in parts.items()} == pytest.approx(further)
        return parts["loss_gt"] + parts["loss_kd"] + parts["loss_ofa"]

    return loss


REFERENCE: dict[str, Callable[..., Tensor]] = {
    "ofa_t_eps1.0_T1": ofa_loss,
    "ofa_t_eps1.5_T1": code(1.5),
    "ofa_tc_eps1.0_T1": ofa_loss,
    "ofa_tc_eps1.1_T1": code(1.1),
    "ofa_tc_eps1.5_T1": code(1.5),
    "ofa_tc_eps2.0_T1": code(2.0),
    "ofa_tc_eps1.5_T4": code(1.5, 4.0),
    "ofa_full": whole([1.0] * 5, CASES["ofa_full"]["further"]),
    "ofa_full_eps": whole([1.5, 1.4, 1.3, 1.2, 1.1], CASES["ofa_full_eps"]["further"]),
    "ofa_full_soft": whole([1.5] * 5, CASES["ofa_full_soft"]["further"]),
}


@pytest.mark.parametrize("case", REFERENCE)
def test_value_and_gradient_are_those_of_the_reference(case: str) -> None:
    check(case, REFERENCE[case])


def test_every_case_of_the_reference_is_compared() -> None:
    assert cases("ofa") == {*REFERENCE}


def test_large_logits_have_the_values_of_the_reference() -> None:
    """In float32 the authors' log of a softmax is not finite there."""
    check_scaled("ofa_t_eps1.0_T1", ofa_loss)


# The loss

LABELS = torch.tensor([0, 2, 1])


@pytest.mark.parametrize("form", FORMS)
def test_the_loss_is_the_naive_loop(form: Form) -> None:
    s, t = torch.randn(2, 3, 4).double()
    p, q = (t / 2).softmax(1), (s / 2).softmax(1)
    total = 0.0
    for image, label in enumerate(LABELS.tolist()):
        for c in range(4):
            other = float(p[image, c]) ** (1.7 if form == "code" else 1)
            weight = (1 + float(p[image, c])) ** 1.7 - 1 if c == label else other
            total -= weight * float(q[image, c].log())
    found = ofa_loss(s, t, LABELS, 1.7, 2.0, form)
    assert found.item() == pytest.approx(total / 3)


@pytest.mark.parametrize("form", FORMS)
def test_without_an_exponent_the_gradient_is_that_of_classic_distillation(form: Form) -> None:
    s, t = torch.randn(2, 3, 4).double()
    s.requires_grad_()
    (own,) = torch.autograd.grad(ofa_loss(s, t, LABELS, 1.0, 1.0, form), s)
    (expected,) = torch.autograd.grad(kd(s, t, 1.0), s)
    torch.testing.assert_close(own, expected)


def test_a_teacher_that_is_sure_of_the_label_asks_for_it_more() -> None:
    """With gamma = 2 a sure teacher weighs the label by 3, one that excludes it by 0."""
    student = torch.zeros(1, 2, requires_grad=True)
    for logit, weight in ((50.0, 3.0), (-50.0, 0.0)):
        teacher = torch.tensor([[logit, 0.0]])
        other = 0.0 if logit > 0 else 1.0
        value = ofa_loss(student, teacher, torch.tensor([0]), 2.0)
        expected = (weight + other) * torch.tensor(2.0).log()
        torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (7, 2), (3, 100)])
def test_large_logits_give_finite_values_and_gradients(shape: tuple[int, int], form: Form) -> None:
    s, t = 100 * torch.randn(2, *shape).sign()
    y = torch.arange(shape[0]) % shape[1]
    check_finite_with_gradient(lambda s, t: ofa_loss(s, t, y, 1.5, 1.0, form), s, t)


@pytest.mark.parametrize("form", FORMS)
def test_half_precision_is_computed_in_full(form: Form) -> None:
    check_full_precision(lambda s, t: ofa_loss(s, t, LABELS, 1.5, 2.0, form), *torch.randn(2, 3, 4))


def test_arguments_that_do_not_fit_are_refused() -> None:
    logits = torch.zeros(3, 4)
    with pytest.raises(InputError, match="gamma must be a finite number and at least 0"):
        ofa_loss(logits, logits, LABELS, -1.0)
    with pytest.raises(InputError, match="unknown form 'papers'; did you mean 'paper'"):
        ofa_loss(logits, logits, LABELS, form="papers")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"logits \[B, K\] of one shape are needed"):
        ofa_loss(logits, torch.zeros(3, 5), LABELS)


# Branches


@pytest.mark.parametrize("blocks", [0, 1, 3])
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (32, 32)])
def test_each_block_halves_the_map_and_doubles_the_channels(
    blocks: int, size: tuple[int, int]
) -> None:
    branch = ConvolutionBranch(StageSpec(6, *size, True), 40, blocks, 5)
    feature_map = torch.randn(2, 6, *size)
    widths = [*[6, 12, 24, 40][: max(blocks, 1)], 40]
    for block, width in zip(branch.layers, widths[1:], strict=True):
        height, length = feature_map.shape[2:]
        feature_map = block(feature_map)
        halved = (-(-height // 2), -(-length // 2)) if blocks else (height, length)
        assert feature_map.shape == (2, width, *halved)
    assert branch(torch.randn(2, 6, *size)).shape == (2, 5)


def test_the_branches_of_many_stages_stay_narrow() -> None:
    branch = ConvolutionBranch(StageSpec(64, 8, 8, True), 128, 11, 5)
    assert max(p.shape[0] for p in branch.parameters()) == 128
    assert branch(torch.randn(2, 64, 8, 8)).shape == (2, 5)


@pytest.mark.parametrize(
    ("grid", "merges"), [((7, 7), 0), ((13, 20), 0), ((14, 14), 1), ((15, 29), 1), ((28, 28), 2)]
)
def test_tokens_are_merged_while_seven_by_seven_remain(grid: tuple[int, int], merges: int) -> None:
    branch = TokenBranch(StageSpec(12, *grid, False), 16, 2, 5)
    assert len(branch.merges) == merges
    assert isinstance(branch.enter, nn.Identity) is (merges > 0)
    assert branch(torch.randn(2, 12, *grid)).shape == (2, 5)


def test_a_merged_token_sees_its_four_neighbours_alone() -> None:
    merge = Merge(3, 8)
    tokens = torch.randn(2, 4, 6, 3)
    before = merge(tokens)
    moved = tokens.clone()
    moved[:, 2:4, 4:6] += torch.randn(2, 2, 2, 3)
    changed = (merge(moved) != before).any(3)
    assert changed.nonzero()[:, 1:].unique(dim=0).tolist() == [[1, 2]]


@pytest.mark.parametrize("width", [24, 6, 5])
def test_the_order_of_tokens_does_not_matter_without_a_merge(width: int) -> None:
    """Also for widths that four heads cannot share."""
    branch = TokenBranch(StageSpec(width, 3, 4, False), width, 2, 5).double()
    tokens = torch.randn(2, width, 3, 4).double()
    torch.testing.assert_close(branch(tokens.flip(2, 3)), branch(tokens))


# The method


def made(student: Any = "resnet8", teacher: str = "resnet14", **settings: Any) -> Any:
    model = staged(student) if isinstance(student, str) else student
    pair, frozen = make_pair(model, staged(teacher), DATA)
    assert frozen is not None
    images = DATA.train.images[:8]
    return OFA(pair, **settings), images, frozen(images)


@pytest.mark.parametrize("form", FORMS)
def test_the_losses_are_those_of_labels_logits_and_branches(form: Form) -> None:
    method, images, taught = made(ce=0.5, kd=2.0, branch=3.0, gamma=1.5, temperature=2.0, form=form)
    method.eval()
    batch, student = batch_of(images), method.student(images)
    assert isinstance(taught, ModelOutput)

    def loss(logits: Tensor) -> Tensor:
        return ofa_loss(logits, taught.logits, batch.labels, 1.5, 2.0, form)

    branches = [
        loss(branch(stage)) for branch, stage in zip(method.branches, student.stages, strict=True)
    ]
    assert len(branches) == 3
    expected = {
        "ce": 0.5 * ce(student.logits, batch.labels),
        "kd": 2 * loss(student.logits),
        "ofa": 3 * (branches[0] + branches[1] + branches[2]),
    }
    torch.testing.assert_close(method(batch, taught).losses, expected)


def test_the_branches_are_those_of_a_pyramid() -> None:
    method, _, _ = made(teacher="resnet8x4")
    blocks = [len(branch.layers) for branch in method.branches[:2]]
    assert blocks == [2, 1]
    assert isinstance(method.branches[2].layers[0], nn.Conv2d)
    assert {branch.classifier.in_features for branch in method.branches} == {256}


def test_an_exponent_for_each_branch() -> None:
    method, images, taught = made(branch_gammas=[1.0, 2.0], supervise=[3, 1])
    method.eval()
    batch, student = batch_of(images), method.student(images)
    assert method.supervised == [0, 2]
    logits = [method.branches[0](student.stages[0]), method.branches[1](student.stages[2])]
    expected = sum(
        ofa_loss(z, taught.logits, batch.labels, gamma)
        for z, gamma in zip(logits, (1.0, 2.0), strict=True)
    )
    torch.testing.assert_close(method(batch, taught).losses["ofa"], expected)
    with pytest.raises(InputError, match="one exponent for each of the 3 branches, got 2"):
        made(branch_gammas=[1.0, 2.0])


@pytest.mark.parametrize("supervise", [[], [4], [1, 1]])
def test_stages_that_are_not_there_are_refused(supervise: list[int]) -> None:
    with pytest.raises(InputError, match="supervise must name stages from 1 to 3, each once"):
        made(supervise=supervise)


def test_each_branch_is_evaluated_and_none_is_deployed() -> None:
    method, images, _ = made(supervise=[1, 3])
    method.eval()
    found = method.classifier_logits(images)
    assert [*found] == ["student", "stage1", "stage3"]
    torch.testing.assert_close(found["student"], method.student(images).logits)
    assert method.deployed() is method.student.module


class Isotropic(nn.Module):
    """A user's network whose stages all have one size and width."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 6, 2, 2)
        self.one, self.two = (nn.Conv2d(6, 6, 3, 1, 1) for _ in range(2))
        self.head = nn.Linear(6, 4)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.two(self.one(self.patch(images)).relu())
        logits: Tensor = self.head(maps.mean((2, 3)))
        return logits


def own(*stages: str) -> StagedModel:
    return StagedModel(Isotropic(), stages, mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.mark.parametrize("kind", ["auto", "transformer", "convolution"])
@pytest.mark.parametrize("student", ["resnet8", "isotropic"])
def test_the_kind_of_the_branches_follows_from_the_stages(student: str, kind: str) -> None:
    method, images, taught = made(
        own("one", "two") if student == "isotropic" else student, kind=kind
    )
    tokens = kind == "transformer" or (kind, student) == ("auto", "isotropic")
    assert {type(branch) for branch in method.branches} == {
        TokenBranch if tokens else ConvolutionBranch
    }
    method(batch_of(images), taught).objective.backward()
    assert all(p.grad is not None for p in method.branches.parameters())


class MLP(nn.Module):
    """A user's network of patches, which are mixed by linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 6, 4, 4)
        self.one, self.two = (nn.Sequential(nn.Linear(6, 6), nn.GELU()) for _ in range(2))
        self.head = nn.Linear(6, 4)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.two(self.one(self.patch(images).flatten(2).mT))
        logits: Tensor = self.head(tokens.mean(1))
        return logits


def test_an_mlp_has_branches_on_tokens() -> None:
    student = StagedModel(MLP(), ["one", "two"], mean=(0.5,) * 3, std=(0.25,) * 3)
    method, images, taught = made(student)
    assert [len(branch.blocks) for branch in method.branches] == [1, 1]
    assert {type(branch) for branch in method.branches} == {TokenBranch}
    assert method(batch_of(images), taught).objective.isfinite()


def test_a_student_with_a_single_stage_has_one_branch() -> None:
    method, images, taught = made(own("two"))
    assert [type(branch) for branch in method.branches] == [ConvolutionBranch]
    assert method(batch_of(images), taught).objective.isfinite()


def test_a_student_without_stages_is_refused() -> None:
    with pytest.raises(
        InputError,
        match=r"has none; name them with student={.*\"stages\": \[\"a\", \"b\"\]}.*patch",
    ):
        made(own())


def test_a_teacher_without_vector_and_map_supervises_too() -> None:
    """Its predictions are all that is needed."""
    pair, _ = make_pair(staged(), staged("resnet14"), DATA)
    assert pair.teacher_spec is not None
    spec = replace(pair.teacher_spec, last=None, pooled=None, stages=())
    method = OFA(replace(pair, teacher_spec=spec))
    assert {branch.classifier.in_features for branch in method.branches} == {64}  # type: ignore[union-attr]


# Architectures of different families

VIT = {
    "name": "timm/vit_tiny_patch16_224",
    "options": {"patch_size": 4, "embed_dim": 24, "depth": 4, "num_heads": 2},
    "stages": [f"blocks.{block}" for block in range(4)],
}
SWIN = {
    "name": "timm/swin_tiny_patch4_window7_224",
    "options": {
        "patch_size": 2,
        "window_size": 4,
        "embed_dim": 16,
        "depths": [1, 1],
        "num_heads": [2, 2],
    },
    "stages": ["layers.0", "layers.1"],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("student", "teacher"),
    [(VIT, "resnet8"), ("resnet8", VIT), (SWIN, "resnet8"), (VIT, SWIN)],
    ids=["cnn to vit", "vit to cnn", "cnn to swin", "swin to vit"],
)
def test_student_and_teacher_may_be_of_any_architecture(
    student: Any, teacher: Any, tmp_path: Path
) -> None:
    pytest.importorskip("timm")
    spec = teacher if isinstance(teacher, dict) else {"name": teacher}
    cached = {"epochs": 1, "cache": "logits", "cache_dir": str(tmp_path / "cache")}
    for run in ("cold", "warm"):
        result = dskd.distill(
            student=student,
            teacher=spec | cached,
            data=make_dataset(4, per_class=4, size=32),
            method={"name": "ofa", "preset": "imagenet"},
            train={"epochs": 1, "batch_size": 8, "lr": 0.01, "device": "cpu"},
            out=tmp_path / run,
        )
        assert result.teacher_cache_hit_rate == float(run == "warm")
        assert result.extra_parameters > 0


@pytest.mark.slow
@pytest.mark.parametrize("option", ["train.precision=bfloat16", "train.compile=true"])
def test_transformer_branches_learn_the_teacher_s_predictions(option: str) -> None:
    """In both fast paths the loss of each of the branches falls."""
    method, images, taught = made(own("one", "two"), ce=0.0, kd=0.0)
    optimizer = torch.optim.Adam(method.parameters(), 3e-3)
    step = torch.compile(method, backend="eager") if "compile" in option else method
    values = []
    for _ in range(25):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled="bfloat16" in option):
            loss = step(batch_of(images), taught).losses["ofa"]
        assert loss.dtype == torch.float32
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert all(later < earlier for earlier, later in itertools.pairwise(values[::8]))
