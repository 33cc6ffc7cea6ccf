"""CRD as a method: whom an image is contrasted with, and what the memory keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dskd.data.epoch_plan import draw_plan
from dskd.data.loader import Batch, MemoryLoader
from dskd.errors import InputError
from dskd.methods.base import Pair
from dskd.methods.crd import CRD
from dskd.models.spec import ModelSpec
from dskd.teacher.frozen import FrozenTeacher
from tests.conftest import make_dataset, make_pair, staged
from tests.published import CASES, check, given, parameters

DATA = make_dataset()
LABELS = DATA.train.labels


def batch_of(size: int = 8, epoch: int = 0) -> Batch:
    plan = draw_plan(0, epoch, len(DATA.train), 2, True)
    return next(MemoryLoader(DATA.train, torch.device("cpu")).batches(plan, size))


def made(**settings: Any) -> tuple[CRD, FrozenTeacher]:
    pair, teacher = make_pair(staged("resnet8"), staged("resnet8x4"), DATA)
    assert teacher is not None
    return CRD(pair, **settings), teacher


def alone(labels: Tensor, student: int = 64, teacher: int = 128, **settings: Any) -> CRD:
    """The method for pooled vectors of these lengths and images of these labels."""
    specs = ModelSpec(4, (), student), ModelSpec(4, (), teacher)
    return CRD(Pair(staged(), *specs, labels=labels), **settings)


def test_value_memory_and_second_value_are_the_published_ones() -> None:
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
def test_a_image_is_contrasted_with_every_other_class_and_never_its_own(labels: Tensor) -> None:
    method, batch = alone(labels), batch_of(40)
    assert method.negatives == 39
    drawn = method.others(batch)
    assert not (labels[drawn] == labels[batch.indices][:, None]).any()
    assert torch.equal(drawn, method.others(batch))
    seen: list[set[int]] = [set() for _ in labels]
    for epoch in range(12):
        batch = batch_of(40, epoch)
        for image, row in zip(batch.indices.tolist(), method.others(batch).tolist(), strict=True):
            seen[image] |= set(row)
    for image, others in enumerate(seen):
        assert others == set((labels != labels[image]).nonzero()[:, 0].tolist())


def test_in_one_class_a_image_is_contrasted_with_all_others() -> None:
    method = alone(torch.full((40,), 3))
    batch = batch_of(40)
    drawn = method.others(batch)
    assert not (drawn == batch.indices[:, None]).any()
    assert set(drawn.flatten().tolist()) == set(range(40))


def test_no_more_are_drawn_than_wanted() -> None:
    assert alone(LABELS, negatives=7).others(batch_of(3)).shape == (3, 7)


def test_a_step_moves_the_rows_of_its_images_in_training_only() -> None:
    method, teacher = made(feat_dim=16)
    batch = batch_of()
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    method.eval()
    method(batch, teacher(batch.images))
    for name, tensor in method.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    method.train()
    output = method(batch, teacher(batch.images))
    output.objective.backward()  # through the scores that the memory gave before it moved
    for side in ("student", "teacher"):
        memory = method.state_dict()[f"{side}_memory"]
        moved = (memory != before[f"{side}_memory"]).any(1)
        assert moved.nonzero()[:, 0].tolist() == sorted(batch.indices.tolist())
        torch.testing.assert_close(memory[batch.indices].norm(dim=1), torch.ones(8))
    assert method.log_z.isfinite().all()


def test_the_constant_is_that_of_the_first_step() -> None:
    method, teacher = made()
    for epoch in range(2):
        batch = batch_of(epoch=epoch)
        method(batch, teacher(batch.images))
        if epoch == 0:
            first = method.log_z.clone()
    assert torch.equal(method.log_z, first)


def test_vectors_of_other_lengths_meet_in_training() -> None:
    method, teacher = made(feat_dim=5, negatives=3)
    batch = batch_of()
    with torch.autocast("cpu", torch.bfloat16):
        output = method(batch, teacher(batch.images))
    assert method.student_memory.dtype == torch.float32
    output.objective.backward()
    for embedding in (method.student_embedding, method.teacher_embedding):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in embedding.parameters())


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(InputError, match="tells training images apart, and there are 0"):
        alone(torch.zeros(0, dtype=torch.long))
    with pytest.raises(InputError, match="the vector that the student's classifier sees"):
        CRD(Pair(staged(), ModelSpec(4, (), None), ModelSpec(4, (), 8), labels=LABELS))
