"""Orthogonal projections: the loss, the projector, features of maps, vectors and tokens."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

import dskd
from dskd.errors import InputError, on_command_line
from dskd.losses.logits import ce, kd
from dskd.methods.contracts import Pair
from dskd.methods.vkd import VKD, Normalization, OrthogonalProjector, vkd_loss
from dskd.models.output import ModelOutput
from dskd.models.staged_model import StagedModel
from tests.builders import make_dataset, make_pair, staged
from tests.losses.misfits import Arguments
from tests.methods.edge_cases import VECTORS, check_finite, check_full_precision
from tests.methods.inputs import batch_of
from tests.reference_values import cases, check, parameters

ARGUMENTS = Arguments({"student": "B D", "teacher": "B D"}, choices=("normalization",))
DEFAULTS = {"normalization": "standardize"}
WEIGHTS = {"ce": 1.0, "kd": 1.0, "weight": 1.0, "temperature": 1.0}
PRESETS = {"literature": WEIGHTS, "code": WEIGHTS | {"normalization": "layer"}}

NORMALIZATIONS: tuple[Normalization, ...] = get_args(Normalization)
DATA = make_dataset(size=16)


def projected(vectors: Tensor, case: str, part: str = "") -> Tensor:
    """The vectors after the projector of a case of the reference."""
    weights = parameters(case)
    rows = vectors @ weights[f"{part}projector.weight"].T
    return rows * weights[f"{part}weight"] + weights[f"{part}bias"] if part else rows


def of_vectors(student: Tensor, teacher: Tensor) -> Tensor:
    return vkd_loss(projected(student, "vkd_64_128"), teacher, "layer")


def of_tokens(student: Tensor, teacher: Tensor) -> Tensor:
    own = projected(student.mean((2, 3)), "vkd_64_64")
    return vkd_loss(own, teacher.mean((2, 3)), "layer")


def whole(s: Tensor, z: Tensor, token: Tensor, t: Tensor, z_t: Tensor, y: Tensor) -> Tensor:
    """The authors' objective, whose student has a second classifier for KD."""
    return ce(z, y) + kd(token, z_t, 1.0) + of_vectors(s, t)


def detection(map_s: Tensor, s: Tensor, s2: Tensor, map_t: Tensor, t: Tensor, t2: Tensor) -> Tensor:
    """The authors' code for detection: three kinds of tokens, each with its own projector."""
    rows = [maps.flatten(2).mT.flatten(0, 1) for maps in (map_s, map_t)]
    pairs = {"patch.": (rows[0], rows[1]), "body.": (s, t), "neck.": (s2, t2)}
    losses = [
        vkd_loss(projected(own, "vkd_detection", part), taught)
        for part, (own, taught) in pairs.items()
    ]
    return torch.stack(losses).sum()


REFERENCE: dict[str, Callable[..., Tensor]] = {
    "vkd_s_t": of_vectors,
    "vkd_tokens": of_tokens,
    "vkd_full": whole,
    "vkd_detection": detection,
}


@pytest.mark.parametrize("case", REFERENCE)
def test_value_and_gradient_are_those_of_the_reference(case: str) -> None:
    check(case, REFERENCE[case])


def test_every_case_of_the_reference_is_compared() -> None:
    assert cases("vkd") == {*REFERENCE}


def smooth_l1(one: float, other: float) -> float:
    distance = abs(one - other)
    return distance**2 / 2 if distance < 1 else distance - 0.5


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_the_loss_is_the_naive_loop(normalization: Normalization) -> None:
    student, teacher = 2 * torch.randn(2, 5, 3).double() + 1
    if normalization == "layer":
        expected_student = student
        spread = teacher.std(1, correction=0, keepdim=True)
        expected_teacher = (teacher - teacher.mean(1, keepdim=True)) / spread
    else:
        expected_student = (student - student.mean(0)) / student.std(0)
        expected_teacher = (teacher - teacher.mean(0)) / teacher.std(0)
    pairs = zip(expected_student.flatten(), expected_teacher.flatten(), strict=True)
    total = sum(smooth_l1(float(s), float(t)) for s, t in pairs)
    found = vkd_loss(student, teacher, normalization)
    assert found.item() == pytest.approx(total / 15, rel=1e-4)


def test_standardised_features_are_free_of_scale_and_shift() -> None:
    student, teacher = torch.randn(2, 6, 4).double()
    value = vkd_loss(student, teacher)
    moved = student * torch.tensor([1.0, 2.0, 5.0, 0.5]) + 3
    torch.testing.assert_close(vkd_loss(moved, 4 * teacher - 1), value)
    assert vkd_loss(moved, teacher, "layer") != vkd_loss(student, teacher, "layer")


def test_layer_norm_leaves_the_student_as_it_is() -> None:
    teacher = torch.randn(4, 8)
    target = torch.nn.functional.layer_norm(teacher, (8,))
    assert vkd_loss(target, 7 * teacher + 2, "layer").item() == pytest.approx(0, abs=1e-6)
    assert vkd_loss(2 * target, teacher, "layer").item() > 0.1


def test_a_feature_that_is_equal_for_all_images_counts_as_zero() -> None:
    student, teacher = torch.randn(2, 6, 3)
    teacher[:, 1] = 5.0
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(vkd_loss(student, teacher), student)
    assert gradient.isfinite().all()
    alone = vkd_loss(student[:1], teacher[:1])
    assert alone.item() == 0


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("kind", VECTORS)
def test_extreme_features_give_finite_values_and_gradients(
    kind: str, normalization: Normalization
) -> None:
    check_finite(lambda s, t: vkd_loss(s, t, normalization), VECTORS[kind], largest_gradient=1e4)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_half_precision_is_computed_in_full(normalization: Normalization) -> None:
    check_full_precision(lambda s, t: vkd_loss(s, t, normalization), *torch.randn(2, 4, 6))


def test_arguments_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match=r"features \[B, D\] of one shape are needed"):
        vkd_loss(torch.zeros(2, 3), torch.zeros(2, 4))
    wrong: Any = "layers"
    with pytest.raises(InputError, match="unknown normalization 'layers'; did you mean 'layer'"):
        vkd_loss(torch.zeros(2, 3), torch.zeros(2, 3), wrong)


# The projector


SHAPES = [(6, 6), (6, 10), (10, 6), (1, 5), (5, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("half", [False, True])
def test_the_projection_is_orthogonal_and_stays_so(shape: tuple[int, int], half: bool) -> None:
    """Also under autocast, and with weight decay, which zeroes torch's own parametrisation."""
    projector = OrthogonalProjector(*shape)
    optimizer = torch.optim.SGD(projector.parameters(), 0.5, weight_decay=0.1)
    vectors, target = torch.randn(8, shape[0]), torch.randn(8, shape[1])
    before = projector.weight.detach().clone()
    for _ in range(5):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            found = projector(vectors.bfloat16() if half else vectors)
        assert found.dtype == torch.float32
        (found - target).square().mean().backward()
        optimizer.step()
    weight = projector.weight.detach()
    narrow = weight if shape[0] > shape[1] else weight.T
    torch.testing.assert_close(narrow @ narrow.T, torch.eye(min(shape)), rtol=0, atol=1e-5)
    assert max(shape) == 1 or not torch.equal(weight, before)


def test_lengths_and_angles_of_the_student_s_features_are_kept() -> None:
    vectors = torch.randn(7, 6)
    found = OrthogonalProjector(6, 10)(vectors)
    torch.testing.assert_close(found @ found.T, vectors @ vectors.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_saved_projector_is_the_same_to_the_byte(shape: tuple[int, int], tmp_path: Path) -> None:
    saved, fresh = OrthogonalProjector(*shape), OrthogonalProjector(*shape)
    torch.save(saved.state_dict(), tmp_path / "projector.pt")
    fresh.load_state_dict(torch.load(tmp_path / "projector.pt", weights_only=True))
    vectors = torch.randn(4, shape[0])
    assert torch.equal(fresh(vectors), saved(vectors))
    assert torch.equal(copy.deepcopy(saved)(vectors), saved(vectors))


# Training


def made(**settings: Any) -> tuple[VKD, Tensor, ModelOutput]:
    pair, teacher = make_pair(staged("resnet8"), staged("resnet8x4"), DATA)
    assert teacher is not None
    images = DATA.train.images[:8]
    return VKD(pair, **settings), images, teacher(images)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_the_losses_are_those_of_labels_predictions_and_features(
    normalization: Normalization,
) -> None:
    method, images, taught = made(
        ce=0.5, kd=2.0, weight=3.0, temperature=2.0, normalization=normalization
    )
    method.eval()
    student, batch = method.student(images), batch_of(images)
    assert student.last is not None
    assert taught.last is not None
    own = student.last.mean((2, 3)) @ method.projector.weight.T
    loss = vkd_loss(own, taught.last.mean((2, 3)), normalization)
    expected = {
        "ce": 0.5 * ce(student.logits, batch.labels),
        "kd": 2 * kd(student.logits, taught.logits, 2.0),
        "vkd": 3 * loss,
    }
    torch.testing.assert_close(method(batch, taught).losses, expected)


def test_the_projector_is_trained_and_never_deployed() -> None:
    method, images, taught = made(ce=0.0, kd=0.0)
    method(batch_of(images), taught).objective.backward()
    free = method.projector.reflections.grad
    assert free is not None
    assert free.any()
    assert method.deployed() is method.student.module
    assert all(key.startswith("projector.") for key in method.auxiliary_state_dict())


def test_the_pooled_vector_is_read_where_it_is_the_average_of_the_map() -> None:
    """A cache then holds a vector for each image, not a map."""
    method, images, taught = made()
    assert (method.needs.pooled, method.needs.last, method.needs.stages) == (True, False, ())
    assert taught.last is not None
    torch.testing.assert_close(taught.pooled, taught.last.mean((2, 3)))
    assert method(batch_of(images), taught._replace(last=None)).objective.isfinite()


class Net(nn.Module):
    """A user's classifier with a norm between the average and the classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU())
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 4)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(self.body(images).mean((2, 3))))
        return logits


def own(*stages: str) -> StagedModel:
    return StagedModel(Net(), stages, mean=(0.5,) * 3, std=(0.25,) * 3)


def test_a_map_that_is_normalised_after_its_average_is_averaged() -> None:
    pair, teacher = make_pair(staged("resnet8"), own("body"), DATA)
    assert teacher is not None
    method, images = VKD(pair), DATA.train.images[:8]
    assert (method.needs.pooled, method.needs.last) == (False, True)
    taught = teacher(images)
    assert taught.last is not None
    pooled = method.projector(method.student(images).pooled)
    torch.testing.assert_close(
        method(batch_of(images), taught).losses["vkd"], vkd_loss(pooled, taught.last.mean((2, 3)))
    )


def test_models_without_stages_are_compared_by_the_vectors_of_their_classifiers() -> None:
    pair, teacher = make_pair(own(), own(), DATA)
    assert teacher is not None
    method, images = VKD(pair), DATA.train.images[:8]
    assert (method.needs.pooled, method.needs.last) == (True, False)
    own_vector, taught = method.projector(method.student(images).pooled), teacher(images)
    assert taught.pooled is not None
    torch.testing.assert_close(
        method(batch_of(images), taught).losses["vkd"], vkd_loss(own_vector, taught.pooled)
    )


@pytest.mark.parametrize("what", ["student", "teacher"])
def test_a_model_without_map_and_vector_is_refused(what: str) -> None:
    pair: Pair = make_pair(staged("resnet8"), staged("resnet14"), DATA)[0]
    spec = getattr(pair, f"{what}_spec")
    changes: Any = {f"{what}_spec": replace(spec, last=None, pooled=None)}
    message = rf"the {what} has none; name it with {what}.stages"
    with on_command_line(), pytest.raises(InputError, match=message):
        VKD(replace(pair, **changes))


VIT = {
    "name": "timm/vit_tiny_patch16_224",
    "options": {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2},
    "stages": ["blocks.0", "norm"],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("student", "teacher"), [(VIT, "resnet8"), ("resnet8", VIT)], ids=["to vit", "from vit"]
)
def test_a_transformer_is_student_and_teacher(student: Any, teacher: Any, tmp_path: Path) -> None:
    pytest.importorskip("timm")
    spec = teacher if isinstance(teacher, dict) else {"name": teacher}
    for run in ("cold", "warm"):
        result = dskd.distill(
            student=student,
            teacher=spec | {"epochs": 1, "cache": "features", "cache_dir": str(tmp_path / "cache")},
            data=make_dataset(4, per_class=4, size=32),
            method={"name": "vkd", "preset": "code"},
            train={"epochs": 1, "batch_size": 8, "lr": 0.01, "device": "cpu"},
            out=tmp_path / run,
        )
        assert result.teacher_cache_hit_rate == float(run == "warm")
        assert result.extra_parameters > 0
