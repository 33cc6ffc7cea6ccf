"""Class attention transfer: class activation maps and their loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dskd.errors import InputError
from dskd.losses.feature_maps import pool_to
from dskd.losses.logits import ce, kd
from dskd.methods.catkd import CATKD, catkd_loss, class_maps
from tests.builders import make_dataset, make_pair, staged
from tests.losses.misfits import Arguments
from tests.methods.edge_cases import MAPS, check_finite, check_full_precision
from tests.methods.inputs import batch_of
from tests.reference_values import cases, check

ARGUMENTS = Arguments(
    {"student_maps": "B C H W", "teacher_maps": "B C I J"},
    numbers={"size": 0.0},
    choices=("normalize",),
)
DEFAULTS = {"size": 2, "normalize": True}
PRESETS = {"literature": {"ce": 1.0, "kd": 0.0, "weight": 15.0, "normalize": False}}


def whole(logits: Tensor, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    return ce(logits, labels) + 15 * catkd_loss(student, teacher, 2, False)


def binarised(student: Tensor, teacher: Tensor) -> Tensor:
    """The code's variant with teacher maps of 0 and 1, which the paper uses for a study only."""
    return catkd_loss(student, (teacher > teacher.abs().mean((2, 3), keepdim=True)).double(), 2)


def of_some_classes(
    student: Tensor, teacher: Tensor, logits: Tensor, kept: int, highest: bool
) -> Tensor:
    """The code's variant with a part of the classes, which the paper uses for a study only."""
    classes = logits.topk(kept, largest=highest).indices.sort(1).values
    rows = torch.arange(len(logits))[:, None]
    return catkd_loss(student[rows, classes], teacher[rows, classes], 2)


REFERENCE: dict[str, Callable[..., Tensor]] = {
    "catkd_res2_normed": lambda s, t: catkd_loss(s, t, 2),
    "catkd_res2_plain": lambda s, t: catkd_loss(s, t, 2, False),
    "catkd_res4_normed": lambda s, t: catkd_loss(s, t, 4),
    "catkd_res4_plain": lambda s, t: catkd_loss(s, t, 4, False),
    "catkd_full": whole,
    "catkd_binarised": binarised,
    # Asked for 75 classes, the code takes 74 of the highest and 76 of the lowest.
    "catkd_top75": partial(of_some_classes, kept=74, highest=True),
    "catkd_low75": partial(of_some_classes, kept=76, highest=False),
}


@pytest.mark.parametrize("case", REFERENCE)
def test_value_and_gradient_are_those_of_the_reference(case: str) -> None:
    check(case, REFERENCE[case])


def test_every_case_of_the_reference_is_compared() -> None:
    assert cases("catkd") == {*REFERENCE}


@pytest.mark.parametrize("normalize", [True, False])
def test_the_loss_is_the_naive_loop(normalize: bool) -> None:
    student, teacher = torch.randn(3, 2, 4, 4).double(), torch.randn(3, 2, 8, 8).double()
    total = 0.0
    for image in range(3):
        for one in range(2):
            cells = []
            for maps in (student[image, one], teacher[image, one]):
                step = len(maps) // 2
                quarters = [
                    maps[y : y + step, x : x + step].mean() for y in (0, step) for x in (0, step)
                ]
                vector = torch.stack(quarters)
                cells.append(vector / vector.square().sum().sqrt() if normalize else vector)
            total += (cells[0] - cells[1]).square().sum().item()
    found = catkd_loss(student, teacher, 2, normalize)
    assert found.item() == pytest.approx(total / (3 * 2 * 4))


def test_scaled_maps_are_equal_where_they_are_normalised() -> None:
    maps = torch.rand(2, 3, 4, 4)
    assert catkd_loss(maps, 3 * maps).item() == pytest.approx(0, abs=1e-12)
    assert catkd_loss(maps, 3 * maps, normalize=False).item() > 0.1


def test_the_smaller_map_decides_about_the_cells() -> None:
    small, large = torch.rand(2, 3, 2, 1), torch.rand(2, 3, 6, 5)
    expected = catkd_loss(small, pool_to(large, 2, 1), 4)
    torch.testing.assert_close(catkd_loss(small, large, 4), expected)


@pytest.mark.parametrize("values", MAPS)
@pytest.mark.parametrize("normalize", [True, False])
def test_extreme_maps_give_finite_values_and_gradients(values: str, normalize: bool) -> None:
    check_finite(lambda s, t: catkd_loss(s, t, 2, normalize), MAPS[values], 1e4)


def test_half_precision_is_computed_in_full() -> None:
    check_full_precision(catkd_loss, *torch.randn(2, 2, 3, 4, 4))


def test_arguments_that_do_not_fit_are_refused() -> None:
    maps = torch.zeros(2, 3, 4, 4)
    with pytest.raises(InputError, match="maps of the same channels are needed"):
        catkd_loss(maps, torch.zeros(2, 4, 4, 4))
    with pytest.raises(InputError, match="size must be a finite number and at least 1"):
        catkd_loss(maps, maps, 0)
    normalize: Any = "no"
    with pytest.raises(InputError, match="normalize must be true or false"):
        catkd_loss(maps, maps, normalize=normalize)


def test_the_average_of_the_class_maps_is_the_logits_without_the_bias() -> None:
    layer, maps = nn.Linear(5, 3), torch.randn(2, 5, 4, 4)
    expected = layer(maps.mean((2, 3))) - layer.bias
    torch.testing.assert_close(class_maps(maps, layer).mean((2, 3)), expected)


@pytest.mark.parametrize(("size", "pixels"), [(2, 16), (3, 32), (100, 16)])
def test_the_losses_are_those_of_labels_predictions_and_maps(size: int, pixels: int) -> None:
    data = make_dataset(size=pixels)
    pair, teacher = make_pair(staged(), staged("resnet14"), data)
    assert teacher is not None
    method = CATKD(pair, ce=0.5, kd=2.0, weight=3.0, temperature=2.0, size=size).eval()
    batch = batch_of(data.train.images[:6])
    taught, student = teacher(batch.images), method.student(batch.images)
    classifier = method.student.linear_classifier
    assert classifier is not None
    assert teacher.model.linear_classifier is not None
    maps = (
        class_maps(student.last, classifier),
        class_maps(taught.last, teacher.model.linear_classifier),
    )
    expected = {
        "ce": 0.5 * ce(student.logits, batch.labels),
        "kd": 2 * kd(student.logits, taught.logits, 2.0),
        "catkd": 3 * catkd_loss(*maps, size),
    }
    torch.testing.assert_close(method(batch, taught).losses, expected)


def test_the_student_s_classifier_learns_from_the_maps_and_the_teacher_s_never() -> None:
    data = make_dataset(size=16)
    pair, teacher = make_pair(staged(), staged("resnet14"), data)
    assert teacher is not None
    method = CATKD(pair, ce=0.0, kd=0.0)
    batch = batch_of(data.train.images[:6])
    method(batch, teacher(batch.images)).losses["catkd"].backward()
    classifier = method.student.linear_classifier
    assert classifier is not None
    assert classifier.weight.grad is not None
    assert classifier.weight.grad.any()
    assert classifier.bias.grad is None
    assert all(p.grad is None for p in method.classifier.parameters())


def test_models_that_do_not_average_their_last_map_are_refused() -> None:
    pair = make_pair(staged(), staged("resnet14"), make_dataset(size=16))[0]
    for change in ({"average_pooled": False}, {"linear_logits": False}, {"last": None}):
        changed: Any = change
        with pytest.raises(InputError, match="catkd applies the student's classifier to each"):
            CATKD(replace(pair, student_spec=replace(pair.student_spec, **changed)))
    assert pair.teacher_spec is not None
    with pytest.raises(InputError, match="catkd applies the teacher's classifier to each"):
        CATKD(replace(pair, teacher_spec=replace(pair.teacher_spec, average_pooled=False)))
