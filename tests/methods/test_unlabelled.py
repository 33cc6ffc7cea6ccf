"""Every method on steps in which some images have no label."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dskd import methods
from dskd.config import recipe
from dskd.data import Split
from dskd.data.loader import NO_LABEL, Batch
from dskd.engine.preflight import rehearse
from dskd.engine.targets import SoftTargets
from dskd.errors import InputError
from dskd.methods.base import Method
from dskd.methods.contracts import StepOutput
from dskd.testing import batches
from tests.builders import make_dataset, staged
from tests.methods.test_every_method import DATA, NAMES, made

TAUGHT = [name for name in NAMES if methods.find(name).needs_teacher]
JOINED = replace(DATA, unlabelled=Split.unlabelled(make_dataset(size=16, seed=1).train.images))
UNKNOWN = torch.tensor([False, True, True, False, True, False, False, True])


def without_labels(batch: Batch) -> Batch:
    """The batch, of whose eight images four have no label, as a run trains on it."""
    labels = batch.labels.masked_fill(UNKNOWN, NO_LABEL)
    return SoftTargets(4)(replace(batch, labels=labels, kinds=(4, 4)))


def label_loss(method: Method, output: StepOutput, labels: Tensor) -> Tensor:
    """The weighted cross-entropy of the labelled images alone."""
    weight: Any = method.ce
    loss: Tensor = weight * F.cross_entropy(output.logits[~UNKNOWN].float(), labels[~UNKNOWN])
    return loss


def gradients(method: Method, objective: Tensor) -> dict[str, Tensor]:
    named = {name: p for name, p in method.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(objective, list(named.values()), allow_unused=True)
    return {name: g for name, g in zip(named, found, strict=True) if g is not None}


@pytest.mark.parametrize("name", TAUGHT)
def test_labels_are_learned_of_labelled_images_and_the_teacher_of_all(name: str) -> None:
    """The same losses by hand: cross-entropy over four images, all other losses over eight."""
    (method, outputs), (reference, _) = made(name), made(name)
    reference.load_state_dict(method.state_dict())
    if method.hard_labels:
        pytest.skip("it is refused")
    batch = batches(DATA)[0]
    teacher = outputs(batch, method.needs)
    found: StepOutput = method(without_labels(batch), teacher)
    whole: StepOutput = reference(batch, teacher)
    by_labels = label_loss(reference, whole, batch.labels)
    torch.testing.assert_close(found.losses["ce"], by_labels)
    for key in whole.losses.keys() - {"ce"}:
        assert torch.equal(found.losses[key], whole.losses[key]), f"{key} reads labels: say so"
    others = [loss for key, loss in whole.losses.items() if key != "ce"]
    expected = gradients(reference, torch.stack([by_labels, *others]).sum())
    own = gradients(method, found.objective)
    assert own.keys() == expected.keys()
    for key, value in expected.items():
        scale = max(1.0, value.abs().max().item())
        torch.testing.assert_close(own[key], value, rtol=1e-4, atol=1e-5 * scale, msg=key)


@pytest.mark.parametrize("name", TAUGHT)
def test_a_method_that_needs_labels_is_refused_and_no_other(name: str) -> None:
    plan = recipe.load("digits", [f"method.name={name}", "train.batch_size=8"])
    method, _ = made(name)
    if not method.hard_labels:
        rehearse(plan, JOINED, staged(), staged("resnet14"))
        return
    with pytest.raises(InputError, match=r"data\.unlabelled gives images without labels") as caught:
        rehearse(plan, JOINED, staged(), staged("resnet14"))
    assert method.hard_labels in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["ce", "dsn", "byot"])
def test_a_method_without_a_teacher_is_trained_on_labelled_images(name: str) -> None:
    plan = recipe.load("digits", [f"method.name={name}", "train.batch_size=8"])
    rehearse(plan, JOINED, staged(), None)


@pytest.mark.parametrize("per", ["batch", "sample"])
def test_branches_of_dskd_learn_labels_of_labelled_images(per: str) -> None:
    """With equal weights, the loss is a sum of means over four and over eight images."""
    settings: dict[str, Any] = {"gamma": 0.7, "allocation": "uniform", "weights_per": per}
    (method, outputs), (reference, _) = made("dskd", **settings), made("dskd", **settings)
    reference.load_state_dict(method.state_dict())
    batch = batches(DATA)[0]
    teacher = outputs(batch, method.needs)
    found: StepOutput = method(without_labels(batch), teacher)
    whole: StepOutput = reference(batch, teacher)
    branches: Any = reference
    with torch.no_grad():
        stages = reference.student(batch.images).stages
        logits = [branch.logits for branch in branches.branch_outputs(stages)]
    known = ~UNKNOWN
    four = sum(F.cross_entropy(z[known], batch.labels[known]) for z in logits)
    eight = sum(F.cross_entropy(z, batch.labels) for z in logits)
    expected = whole.losses["shallow"] + 0.7 * (four - eight)
    torch.testing.assert_close(found.losses["shallow"], expected, rtol=1e-4, atol=1e-4)
