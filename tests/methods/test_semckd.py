"""Semantic calibration: the loss of all pairs of stages, the attention, and smaller batches."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dskd.errors import InputError
from dskd.methods.contracts import Pair
from dskd.methods.semckd import Embedding, SemCKD, layer_attention, semckd_loss, similarities
from dskd.models.output import ModelOutput
from dskd.models.spec import ModelSpec, StageSpec
from dskd.teacher.frozen import FrozenTeacher
from tests.builders import make_dataset, make_pair, staged
from tests.losses.misfits import Arguments
from tests.methods.edge_cases import MAPS, check_finite, check_full_precision
from tests.methods.inputs import batch_of
from tests.reference_values import CASES, cases, check, given, parameters

ARGUMENTS = Arguments(
    {"student_maps": "[B C* H* W*]", "teacher_maps": "[B C* I* J*]", "attention": "B P Q"}
)
PRESETS = {"literature": {"ce": 1.0, "kd": 1.0, "weight": 400.0}}

GENTLE = {"weight": 1.0}


def test_value_and_gradient_of_the_loss_are_those_of_the_reference() -> None:
    def loss(h2: Tensor, f3: Tensor, g2: Tensor, g3: Tensor, attention: Tensor) -> Tensor:
        two = attention[:, :2, :2]
        return semckd_loss([h2, h2, f3, f3], [g2, g3, g2, g3], two / two.sum(2, keepdim=True))

    check("semckd_loss_only", loss)


def test_no_reference_value_is_left_out() -> None:
    assert cases("semckd") == {"semckd_loss_only", "semckd_full"}


def test_the_loss_is_the_naive_loop() -> None:
    stages, targets, batch = 2, 3, 4
    attention = torch.rand(batch, stages, targets).double()
    student = [[torch.randn(batch, 2 + j, 4, 4).double() for j in range(targets)] for _ in "ab"]
    teacher = [torch.randn(batch, 2 + j, 4, 4).double() for j in range(targets)]
    expected = 0.0
    for b in range(batch):
        for i in range(stages):
            for j in range(targets):
                distance = (student[i][j][b] - teacher[j][b]).square().mean()
                expected += attention[b, i, j].item() * distance.item() / (batch * stages)
    value = semckd_loss([m for maps in student for m in maps], teacher * stages, attention)
    assert value.item() == pytest.approx(expected)


def test_similarities_are_inner_products() -> None:
    maps = torch.randn(3, 2, 4, 5)
    expected = [[(a * b).sum().item() for b in maps] for a in maps]
    torch.testing.assert_close(similarities(maps), torch.tensor(expected))


def test_the_attention_is_the_naive_loop_and_lengths_do_not_matter() -> None:
    queries, keys = torch.randn(2, 3, 5), torch.randn(2, 4, 5)
    attention = layer_attention(queries, keys, 0.5)
    for b in range(2):
        for i in range(3):
            energy = torch.stack(
                [torch.cosine_similarity(queries[b, i], key, dim=0) for key in keys[b]]
            )
            torch.testing.assert_close(attention[b, i], torch.softmax(energy / 0.5, 0))
    torch.testing.assert_close(layer_attention(3 * queries, 7 * keys, 0.5), attention)


def test_of_two_sizes_the_larger_map_is_pooled() -> None:
    small, large = torch.randn(2, 3, 4, 6), torch.randn(2, 3, 8, 6)
    expected = (small - (large[:, :, ::2] + large[:, :, 1::2]) / 2).square().mean()
    for one, other in ((small, large), (large, small)):
        torch.testing.assert_close(semckd_loss([one], [other], torch.ones(2, 1, 1)), expected)


def _with_attention(student: Tensor, teacher: Tensor) -> Tensor:
    rows = similarities(student), similarities(teacher)
    attention = layer_attention(rows[0][:, None], rows[1][:, None])
    assert rows[0].dtype == attention.dtype == torch.float32
    return semckd_loss([student], [teacher], attention)


@pytest.mark.parametrize("kind", MAPS)
def test_values_and_gradients_are_finite(kind: str) -> None:
    check_finite(_with_attention, MAPS[kind], largest_gradient=1e4)


def test_half_precision_is_computed_in_full() -> None:
    check_full_precision(_with_attention, torch.randn(2, 3, 5, 7), torch.randn(2, 3, 5, 7))


def test_an_embedding_stays_in_the_range_of_float16_and_in_bfloat16_if_asked() -> None:
    embedding, rows = Embedding(4), torch.full((4, 4), 1e6)
    with torch.autocast("cpu", torch.float16):
        found = embedding(rows)
    assert found.isfinite().all()
    assert torch.equal(found, embedding(rows))
    with torch.autocast("cpu", torch.bfloat16):
        assert embedding(rows).dtype == torch.bfloat16


def test_shapes_that_do_not_fit_are_refused() -> None:
    maps = [torch.zeros(2, 3, 4, 4)]
    with pytest.raises(InputError, match="of the same images are needed"):
        semckd_loss(maps, [torch.zeros(2, 3, 4)], torch.ones(2, 1, 1))
    with pytest.raises(InputError, match="same channels are needed, got 3 of the student, 5 of"):
        semckd_loss(maps, [torch.zeros(2, 5, 4, 4)], torch.ones(2, 1, 1))
    with pytest.raises(InputError, match=r"for 1 pairs of stages and 2 images is needed, got \["):
        semckd_loss(maps, maps, torch.ones(2, 2, 2))
    with pytest.raises(InputError, match=r"softness must be above 0, got 0\.0"):
        layer_attention(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2), 0.0)


def reference_method() -> SemCKD:
    def spec(*stages: tuple[int, int]) -> ModelSpec:
        return ModelSpec(4, tuple(StageSpec(c, side, side, True) for c, side in stages), 64)

    student, teacher = spec((16, 16), (32, 8), (64, 8)), spec((32, 16), (64, 8), (64, 8))
    method = SemCKD(Pair(staged(), student, teacher, largest_batch=32), weight=1.0).double()
    weights = parameters("semckd")

    def load(module: nn.Module, prefix: str, places: dict[str, str]) -> None:
        state = {
            key.replace(theirs, ours, 1): value
            for name, value in weights.items()
            for theirs, ours in places.items()
            if name.startswith(f"{prefix}.") and (key := name[len(prefix) + 1 :]).startswith(theirs)
        }
        counts = {k: v for k, v in module.state_dict().items() if k.endswith("_tracked")}
        module.load_state_dict(state | counts)

    embedding = {"linear1.": "layers.0.", "linear2.": "layers.2."}
    for stage in range(3):
        load(method.queries[stage], f"query_{stage}", embedding)
        load(method.keys[stage], f"key_{stage}", embedding)
        for target in range(3):
            place = {"regressor.": "layers."}
            load(method.projections[3 * stage + target], f"regressor{stage}{target}", place)
    return method


@pytest.mark.parametrize("softness", [None, 0.5, 1.0, 3.0])
def test_the_attention_is_the_softmax_of_cosines(softness: float | None) -> None:
    """Divided by the softness, which is 1 unless it is given."""
    queries, keys = 3 * torch.randn(2, 2, 4).double(), 3 * torch.randn(2, 3, 4).double()
    attention = layer_attention(queries, keys, *([] if softness is None else [softness]))
    for b in range(2):
        for i in range(2):
            cosines = [
                float(queries[b, i] @ keys[b, j] / (queries[b, i].norm() * keys[b, j].norm()))
                for j in range(3)
            ]
            powers = [math.exp(cosine / (softness or 1.0)) for cosine in cosines]
            expected = [power / sum(powers) for power in powers]
            assert attention[b, i].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("softness", [0.0, -1.0, 1e-40, math.nan, math.inf])
def test_attention_that_cannot_be_computed_is_refused(softness: float) -> None:
    with pytest.raises(InputError, match="softness must be above 0"):
        layer_attention(torch.ones(1, 1, 2), torch.ones(1, 2, 2), softness)
    with pytest.raises(InputError, match="of one length are needed, got 2 and 3"):
        layer_attention(torch.ones(1, 1, 2), torch.ones(1, 2, 3))
    with pytest.raises(InputError, match=r"feature maps \[B, C, H, W\] are needed"):
        similarities(torch.ones(2, 3))


def test_value_and_gradient_of_the_method_are_those_of_the_reference() -> None:
    method, batch = reference_method(), batch_of(torch.zeros(32, 3, 2, 2))

    def loss(*maps: Tensor) -> Tensor:
        student, teacher = (
            ModelOutput(maps[0], maps[:3], None),
            ModelOutput(maps[0], maps[3:], None),
        )
        return method.extra_losses(batch, student, teacher)["semckd"]

    check("semckd_full", loss)


def test_the_attention_is_that_of_the_reference() -> None:
    student = tuple(given(name).detach() for name in ("f1", "f2", "f3"))
    teacher = tuple(given(name).detach() for name in ("g1", "g2", "g3"))
    attention = reference_method().attention(student, teacher)
    expected = CASES["semckd_full"]["further"]
    for got, name in ((attention[0], "attention_row0"), (attention.mean(0), "attention_mean")):
        torch.testing.assert_close(got, torch.tensor(expected[name]).double(), rtol=1e-5, atol=0)


def made(student: str = "resnet8", teacher: str = "resnet14", **settings: Any) -> tuple[Any, ...]:
    data = make_dataset(size=32)
    pair, frozen = make_pair(staged(student), staged(teacher), data)
    assert isinstance(frozen, FrozenTeacher)
    return SemCKD(pair, **settings), frozen, data.train.images


@pytest.mark.slow
@pytest.mark.parametrize(("student", "teacher"), [("vgg8", "resnet8"), ("resnet8", "vgg8")])
def test_numbers_of_stages_and_sizes_may_differ(student: str, teacher: str) -> None:
    method, frozen, images = made(student, teacher)
    batch = batch_of(images[:4])
    attention = method.attention(method.student(images).stages, frozen(images).stages)
    assert attention.shape[1:] == (len(method.queries), len(method.keys))
    assert method(batch, frozen(batch.images)).objective.isfinite()


def test_a_smaller_batch_is_filled_up_with_zeros() -> None:
    embedding = Embedding(8)
    rows = torch.rand(5, 5)
    expected = embedding.layers(F.pad(rows, (0, 3)))
    assert torch.equal(embedding(rows), expected)
    assert Embedding(2)(torch.rand(2, 2)).shape == (2, 1)  # a fourth of 2 is none


def test_a_batch_above_the_largest_is_refused() -> None:
    with pytest.raises(InputError, match="batches of 8 images at most, got 9"):
        Embedding(8)(torch.rand(9, 9))


def test_a_larger_softness_gives_more_even_attention() -> None:
    def spread(softness: float) -> float:
        torch.manual_seed(0)
        method, frozen, images = made(softness=softness)
        attention = method.attention(method.student(images).stages, frozen(images).stages)
        return float(attention.std(2).mean().detach())

    assert spread(0.2) > spread(1.0) > spread(5.0) > 0


def test_the_gradient_reaches_every_stage_and_all_auxiliary_parts() -> None:
    method, frozen, images = made(ce=0.0, kd=0.0)
    batch = batch_of(images[:8])
    method(batch, frozen(batch.images)).objective.backward()
    for part in (method.queries, method.keys, method.projections, method.student.module.layer1):
        assert all(p.grad is not None for p in part.parameters())
    assert not any(p.grad is not None for p in frozen.parameters())
