"""CRD: the contrast, which images are contrasted, and how the memory changes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dskd.errors import InputError
from dskd.methods.contracts import Pair
from dskd.methods.crd import CRD, crd_loss, crd_terms, updated_memory
from dskd.models.spec import ModelSpec
from dskd.teacher.frozen import FrozenTeacher
from tests.builders import make_pair, staged
from tests.losses.misfits import Arguments
from tests.methods.edge_cases import check_finite_with_gradient, check_full_precision
from tests.methods.inputs import DATA, first_batch
from tests.reference_values import CASES, cases, check, given, parameters

ARGUMENTS = Arguments(
    {
        "student": "B D",
        "teacher": "B D",
        "student_memory": "N D",
        "teacher_memory": "N D",
        "contrasted": "B M",
        "log_z": "Z",
    },
    indices={"contrasted": "N"},
    numbers={"temperature": 0.0},
)
DEFAULTS = {"log_z": None, "temperature": 0.07}
PRESETS = {"literature": {"ce": 1.0, "kd": 0.0, "weight": 0.8}}

SMALL = {"negatives": 16}
GENTLE = {"weight": 0.1}

REFERENCE = ["crd_repdistiller", "crd_mdistiller", "crd_simkd"]
WEIGHTS = parameters("crd")
LABELS = DATA.train.labels


def embedded(pooled: Tensor, side: str) -> Tensor:
    weights = [WEIGHTS[f"embed_{side}/linear.{part}"] for part in ("weight", "bias")]
    return F.normalize(F.linear(pooled, *weights))


@pytest.mark.parametrize("case", REFERENCE)
def test_value_and_gradient_are_those_of_the_reference(case: str) -> None:
    def loss(student: Tensor, teacher: Tensor, _: Tensor, contrasted: Tensor) -> Tensor:
        memories = WEIGHTS["memory_v1"], WEIGHTS["memory_v2"]
        return crd_loss(embedded(student, "s"), embedded(teacher, "t"), *memories, contrasted)

    check(case, loss)


def test_no_reference_value_is_left_out() -> None:
    assert cases("crd") == set(REFERENCE)


def units(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


def contrast(
    images: int = 6, batch: int = 3, others: int = 4
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Vectors of both sides, memories of both sides, and the contrasted rows."""
    contrasted = torch.randint(images, (batch, 1 + others))
    return units(batch, 5), units(batch, 5), units(images, 5), units(images, 5), contrasted


def naive_crd(
    student: Tensor, teacher: Tensor, own: Tensor, other: Tensor, rows: Tensor, t: float
) -> float:
    total, noise = 0.0, (rows.shape[1] - 1) / len(own)
    for vectors, memory in ((student, other), (teacher, own)):
        scores = [
            [
                math.exp(sum(a * b for a, b in zip(v, memory[k].tolist(), strict=True)) / t)
                for k in row
            ]
            for v, row in zip(vectors.tolist(), rows.tolist(), strict=True)
        ]
        z = len(memory) * sum(map(sum, scores)) / rows.numel()
        for first, *rest in scores:
            total -= math.log(first / z / (first / z + noise))
            total -= sum(math.log(noise / (p / z + noise)) for p in rest)
    return total / len(student)


def test_the_loss_is_the_naive_loop() -> None:
    given = contrast()
    assert crd_loss(*given, temperature=0.2).item() == pytest.approx(naive_crd(*given, 0.2))


def test_the_order_of_the_other_images_does_not_matter() -> None:
    student, teacher, own, other, contrasted = contrast()
    reordered = torch.cat([contrasted[:, :1], contrasted[:, 1:].flip(1)], 1)
    torch.testing.assert_close(
        crd_loss(student, teacher, own, other, contrasted),
        crd_loss(student, teacher, own, other, reordered),
    )


def test_student_and_teacher_can_be_exchanged() -> None:
    student, teacher, own, other, contrasted = contrast()
    torch.testing.assert_close(
        crd_loss(student, teacher, own, other, contrasted),
        crd_loss(teacher, student, other, own, contrasted),
    )


def test_a_constant_that_is_set_does_not_change() -> None:
    given = contrast()
    log_z = torch.tensor([1.0, math.inf], dtype=torch.float64)
    terms = crd_terms(*given, log_z)
    free = crd_terms(*given, torch.full_like(log_z, math.inf))
    assert terms.log_z.tolist() == [1.0, free.log_z[1].item()]
    assert free.log_z[0] != 1.0
    assert not free.log_z.requires_grad


@pytest.mark.parametrize("temperature", [0.001, 0.07, 100.0])
@pytest.mark.parametrize("vectors", [torch.zeros(1, 2), torch.ones(2, 2), torch.eye(2) * 100])
def test_the_loss_is_finite_at_any_temperature(vectors: Tensor, temperature: float) -> None:
    memory = torch.eye(2)
    contrasted = torch.tensor([[0, 1], [1, 0]])[: len(vectors)]
    check_finite_with_gradient(
        lambda s, t: crd_loss(s, t, memory, memory, contrasted, temperature=temperature),
        vectors,
        vectors,
    )


def test_arguments_that_do_not_fit_are_refused() -> None:
    student, teacher, own, other, contrasted = contrast()
    with pytest.raises(InputError, match="vectors \\[B, D\\] of the same images"):
        crd_loss(student[:1], teacher, own, other, contrasted)
    with pytest.raises(InputError, match="memories \\[N, D\\] of the same images"):
        crd_loss(student, teacher, own[:1], other, contrasted)
    with pytest.raises(InputError, match="of one length are needed, got lengths \\[4, 5\\]"):
        crd_loss(student[:, 1:], teacher, own, other, contrasted)
    with pytest.raises(InputError, match="one other at least"):
        crd_loss(student, teacher, own, other, contrasted[:, :1])
    with pytest.raises(InputError, match="temperature must be above 0"):
        crd_loss(student, teacher, own, other, contrasted, temperature=0)


def test_an_updated_memory_is_a_new_tensor() -> None:
    memory = units(4, 3)
    before = memory.clone()
    vectors = units(2, 3).requires_grad_()
    after = updated_memory(memory, torch.tensor([3, 1]), vectors, 0.9)
    assert torch.equal(memory, before)
    assert not after.requires_grad
    assert torch.equal(after[[0, 2]], memory[[0, 2]])
    for row, vector in ((3, vectors[0]), (1, vectors[1])):
        moved = 0.9 * memory[row] + 0.1 * vector
        torch.testing.assert_close(after[row], (moved / moved.norm()).detach())


def test_half_precision_is_computed_in_full() -> None:
    memory, contrasted = torch.randn(9, 6), torch.arange(9).expand(8, -1)
    check_full_precision(
        lambda x: crd_loss(x, x.flip(0), memory, memory, contrasted), torch.randn(8, 6)
    )


def made(**settings: Any) -> tuple[CRD, FrozenTeacher]:
    pair, teacher = make_pair(staged("resnet8"), staged("resnet8x4"), DATA)
    assert teacher is not None
    return CRD(pair, **settings), teacher


def alone(labels: Tensor, student: int = 64, teacher: int = 128, **settings: Any) -> CRD:
    """The method for pooled vectors of these lengths and images of these labels."""
    specs = ModelSpec(4, (), student), ModelSpec(4, (), teacher)
    return CRD(Pair(staged(), *specs, labels=labels), **settings)


def test_value_memory_and_second_value_are_those_of_the_reference() -> None:
    fact, weights = CASES["crd_repdistiller"], parameters("crd")
    method = alone(torch.arange(200) % 4, feat_dim=32).double()
    method.student_memory = weights["memory_v1"]
    method.teacher_memory = weights["memory_v2"]
    for side, embedding in (("s", method.student_embedding), ("t", method.teacher_embedding)):
        prefix = f"embed_{side}/"
        embedding.load_state_dict(
            {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        )
    values = []

    def loss(student: Tensor, teacher: Tensor, indices: Tensor, contrasted: Tensor) -> Tensor:
        value = method.contrast(student, teacher, indices, contrasted)
        with torch.no_grad():
            state = {name: tensor.clone() for name, tensor in method.named_buffers()}
            second = method.contrast(student, teacher, indices, contrasted)
            method.load_state_dict(state, strict=False)
        values.append(second.item())
        return value

    check("crd_repdistiller", loss)
    further = fact["further"]
    assert values == pytest.approx([further["second_call_value"]], rel=1e-5)
    assert method.log_z.exp().tolist() == pytest.approx(
        [further["Z_v1"], further["Z_v2"]], rel=1e-5
    )
    memories = method.student_memory, method.teacher_memory
    for memory, name in zip(memories, ("v1", "v2"), strict=True):
        assert memory.sum().item() == pytest.approx(further[f"memory_{name}_sum_after"], rel=1e-5)
    row = method.student_memory[given("crd_idx")[0], :4].tolist()
    assert row == pytest.approx(further["memory_v1_row_idx0_first4_after"], rel=1e-5)


@pytest.mark.parametrize("labels", [LABELS, LABELS.flip(0), torch.tensor([0, 5, 5, 2] * 10)])
def test_an_image_is_contrasted_with_every_other_class_and_never_its_own(labels: Tensor) -> None:
    method, batch = alone(labels), first_batch(40)
    assert method.negatives == 39
    drawn = method.others(batch)
    assert not (labels[drawn] == labels[batch.indices][:, None]).any()
    assert torch.equal(drawn, method.others(batch))
    seen: list[set[int]] = [set() for _ in labels]
    for epoch in range(12):
        batch = first_batch(40, epoch)
        for image, row in zip(batch.indices.tolist(), method.others(batch).tolist(), strict=True):
            seen[image] |= set(row)
    for image, others in enumerate(seen):
        assert others == set((labels != labels[image]).nonzero()[:, 0].tolist())


def test_in_one_class_an_image_is_contrasted_with_all_others() -> None:
    method = alone(torch.full((40,), 3))
    batch = first_batch(40)
    drawn = method.others(batch)
    assert not (drawn == batch.indices[:, None]).any()
    assert set(drawn.flatten().tolist()) == set(range(40))


def test_as_many_are_drawn_as_are_set() -> None:
    assert alone(LABELS, negatives=7).others(first_batch(3)).shape == (3, 7)


def test_only_a_training_step_updates_the_rows_of_its_images() -> None:
    method, teacher = made(feat_dim=16)
    batch = first_batch()
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    method.eval()
    method(batch, teacher(batch.images))
    for name, tensor in method.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    method.train()
    output = method(batch, teacher(batch.images))
    output.objective.backward()  # uses the memory from before the update
    for side in ("student", "teacher"):
        memory = method.state_dict()[f"{side}_memory"]
        moved = (memory != before[f"{side}_memory"]).any(1)
        assert moved.nonzero()[:, 0].tolist() == sorted(batch.indices.tolist())
        torch.testing.assert_close(memory[batch.indices].norm(dim=1), torch.ones(8))
    assert method.log_z.isfinite().all()


def test_the_constant_is_set_in_the_first_step() -> None:
    method, teacher = made()
    for epoch in range(2):
        batch = first_batch(epoch=epoch)
        method(batch, teacher(batch.images))
        if epoch == 0:
            first = method.log_z.clone()
    assert torch.equal(method.log_z, first)


def test_vectors_of_any_lengths_are_embedded() -> None:
    method, teacher = made(feat_dim=5, negatives=3)
    batch = first_batch()
    with torch.autocast("cpu", torch.bfloat16):
        output = method(batch, teacher(batch.images))
    assert method.student_memory.dtype == torch.float32
    output.objective.backward()
    for embedding in (method.student_embedding, method.teacher_embedding):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in embedding.parameters())


def test_pairs_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="tells training images apart, and there are 0"):
        alone(torch.zeros(0, dtype=torch.long))
    with pytest.raises(InputError, match="the vector that the student's classifier sees"):
        CRD(Pair(staged(), ModelSpec(4, (), None), ModelSpec(4, (), 8), labels=LABELS))
