"""Scale decoupled distillation: logits of cells, and the cells of another class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dskd.errors import InputError
from dskd.losses.logits import ce, dkd, kd
from dskd.methods.contracts import Pair
from dskd.methods.nkd import nkd_loss
from dskd.methods.sdd import SDD, Base, Form, cell_vectors, cell_weights, sdd_loss
from dskd.models.output import ModelOutput
from tests.builders import make_dataset, make_pair, staged
from tests.losses.misfits import Arguments
from tests.methods.edge_cases import check_finite_with_gradient, check_full_precision
from tests.methods.inputs import batch_of
from tests.reference_values import cases, check, parameters

ARGUMENTS = Arguments(
    {"student_logits": "B M K", "teacher_logits": "B M K", "labels": "B"},
    indices={"labels": "K"},
    numbers={
        "alpha": float("nan"),
        "beta": float("nan"),
        "complementary": float("nan"),
        "temperature": 0.0,
    },
    choices=("base", "form"),
)
DEFAULTS = {
    "base": "kd",
    "temperature": 4.0,
    "alpha": 1.0,
    "beta": 8.0,
    "complementary": 2.0,
    "form": "paper",
}
PRESETS = {
    "literature": {"ce": 0.1, "kd": 0.9, "scales": [1, 2], "warmup": 30.0},
    "code": {"ce": 0.1, "kd": 0.9, "scales": [1, 2], "form": "code"},
}

BASES: tuple[Base, ...] = get_args(Base)
FORMS: tuple[Form, ...] = get_args(Form)
LABELS = torch.tensor([0, 4, 2])


def code(regions: int, base: Base) -> Callable[..., Tensor]:
    """The authors' form for the first of the stored regions ``[B, K, R]``."""
    return lambda s, t, y: sdd_loss(
        s[..., :regions].mT, t[..., :regions].mT, y, base, 4.0, 1.0, 8.0, 2.0, "code"
    )


def copied_nkd(s: Tensor, t: Tensor, y: Tensor, gamma: float, temperature: float) -> Tensor:
    """The authors' copy of NKD for logits ``[B, R, K]``. Its second part has the label in it.

    The method does not offer it: the copy's own source and the paper leave the label out.
    """
    label = y[:, None, None].expand(*s.shape[:2], 1)
    confidence = t.softmax(2).gather(2, label)[..., 0]
    target = -confidence * s.log_softmax(2).gather(2, label)[..., 0]
    p, log_q = (t / temperature).softmax(2), (s / temperature).log_softmax(2)
    each = target - gamma * temperature**2 * (p * log_q).sum(2)
    return (cell_weights(t, y, 2.0, "code") * each).mean()


def cells_of_maps(student_map: Tensor, teacher_map: Tensor, y: Tensor) -> Tensor:
    weights = parameters("sdd_maps")
    student, teacher = (
        F.linear(
            cell_vectors(feature_map, (1, 2, 4)), weights[f"{name}.weight"], weights[f"{name}.bias"]
        )
        for name, feature_map in (("student", student_map), ("teacher", teacher_map))
    )
    return sdd_loss(student, teacher, y, form="code")


REFERENCE: dict[str, Callable[..., Tensor]] = {
    "sdd_kd_M12": code(5, "kd"),
    "sdd_kd_M124": code(21, "kd"),
    "sdd_dkd_M12": code(5, "dkd"),
    "sdd_dkd_M124": code(21, "dkd"),
    "sdd_nkd_M12": lambda s, t, y: copied_nkd(s[..., :5].mT, t[..., :5].mT, y, 8.0, 4.0),
    "sdd_nkd_M124": lambda s, t, y: copied_nkd(s.mT, t.mT, y, 8.0, 4.0),
    "sdd_nkd_T1_g1.5": lambda s, t, y: copied_nkd(s[:, None], t[:, None], y, 1.5, 1.0),
    "sdd_kd_from_maps": cells_of_maps,
}


@pytest.mark.parametrize("case", REFERENCE)
def test_value_and_gradient_are_those_of_the_reference(case: str) -> None:
    check(case, REFERENCE[case])


def test_every_case_of_the_reference_is_compared() -> None:
    assert cases("sdd") == {*REFERENCE}


def base_loss(base: Base, s: Tensor, t: Tensor, label: Tensor) -> float:
    """The loss of one cell."""
    if base == "kd":
        return kd(s[None], t[None], 3.0).item()
    if base == "dkd":
        return dkd(s[None], t[None], label[None], 0.5, 2.0, 3.0).item()
    return nkd_loss(s[None], t[None], label[None], 2.0, 3.0).item()


@pytest.mark.parametrize("base", BASES)
def test_the_loss_is_the_naive_loop(base: Base) -> None:
    s, t = torch.randn(2, 3, 5, 6).double()
    sums = dict.fromkeys(FORMS, 0.0)
    for image, label in enumerate(LABELS):
        whole = t[image, 0].argmax()
        for cell in range(5):
            own = t[image, cell].argmax()
            loss = base_loss(base, s[image, cell], t[image, cell], label)
            sums["paper"] += loss * (7 if own != whole else 1)
            sums["code"] += loss * (7 if (own == label) != (whole == label) else 1)
    by_paper, by_code = (sdd_loss(s, t, LABELS, base, 3.0, 0.5, 2.0, 7.0, form) for form in FORMS)
    assert by_paper.item() == pytest.approx(sums["paper"] / 3)
    assert by_code.item() == pytest.approx(sums["code"] / (3 * 5))


def test_two_forms_differ_where_two_wrong_predictions_differ() -> None:
    logits = torch.eye(4)[None, :3]  # the predictions are 0, 1 and 2
    right_nowhere = torch.tensor([3])
    assert cell_weights(logits, right_nowhere, 5.0).tolist() == [[1, 5, 5]]
    assert cell_weights(logits, right_nowhere, 5.0, "code").tolist() == [[1, 1, 1]]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("base", BASES)
def test_one_cell_is_the_base_loss(base: Base, form: Form) -> None:
    s, t = torch.randn(2, 3, 1, 6).double()
    expected = {
        "kd": kd(s[:, 0], t[:, 0], 4.0),
        "dkd": dkd(s[:, 0], t[:, 0], LABELS, 1.0, 8.0, 4.0),
        "nkd": nkd_loss(s[:, 0], t[:, 0], LABELS, 8.0, 4.0),
    }[base]
    torch.testing.assert_close(sdd_loss(s, t, LABELS, base, form=form), expected)


@pytest.mark.parametrize("form", FORMS)
def test_shifts_and_the_order_of_images_and_cells_do_not_matter(form: Form) -> None:
    s, t = torch.randn(2, 3, 5, 6).double()
    value = sdd_loss(s, t, LABELS, form=form)
    torch.testing.assert_close(sdd_loss(s + 3, t - 2, LABELS, form=form), value)
    rows, cells = torch.tensor([2, 0, 1]), torch.tensor([0, 4, 2, 1, 3])
    moved = s[rows][:, cells], t[rows][:, cells]
    torch.testing.assert_close(sdd_loss(*moved, LABELS[rows], form=form), value)


@pytest.mark.parametrize("shape", [(1, 1, 2), (1, 5, 2), (7, 5, 2), (3, 21, 10)])
@pytest.mark.parametrize("base", BASES)
def test_large_logits_give_finite_values_and_gradients(
    shape: tuple[int, int, int], base: Base
) -> None:
    s, t = 100 * torch.randn(2, *shape).sign()
    y = torch.arange(shape[0]) % shape[2]
    check_finite_with_gradient(lambda s, t: sdd_loss(s, t, y, base), s, t)


@pytest.mark.parametrize("base", BASES)
def test_half_precision_is_computed_in_full(base: Base) -> None:
    check_full_precision(lambda s, t: sdd_loss(s, t, LABELS, base), *torch.randn(2, 3, 5, 6))


def test_arguments_that_do_not_fit_are_refused() -> None:
    logits = torch.zeros(3, 5, 6)
    with pytest.raises(InputError, match=r"logits of cells \[B, R, K\] of one shape"):
        sdd_loss(logits, torch.zeros(3, 4, 6), LABELS)
    with pytest.raises(InputError, match="unknown base loss 'nkdd'; did you mean 'nkd'"):
        sdd_loss(logits, logits, LABELS, "nkdd")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="unknown form 'papers'; did you mean 'paper'"):
        sdd_loss(logits, logits, LABELS, form="papers")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="temperature must be above 0"):
        sdd_loss(logits, logits, LABELS, temperature=0.0)


@pytest.mark.parametrize("size", [(4, 4), (8, 8), (7, 7), (5, 6)])
def test_each_grid_has_the_average_of_the_map(size: tuple[int, int]) -> None:
    """Unlike with adaptive pooling, whose cells overlap if the sides do not divide."""
    feature_map = torch.randn(2, 3, *size).double()
    vectors = cell_vectors(feature_map, (1, 2, 4))
    assert vectors.shape == (2, 21, 3)
    for grid in torch.split(vectors, [1, 4, 16], dim=1):
        torch.testing.assert_close(grid.mean(1), feature_map.mean((2, 3)))


def made(**settings: Any) -> tuple[SDD, Tensor, ModelOutput]:
    torch.manual_seed(0)
    data = make_dataset()
    pair, teacher = make_pair(staged("resnet8"), staged("resnet14"), data)
    assert teacher is not None
    images = data.train.images[:8]
    return SDD(pair, **settings), images, teacher(images)


def test_the_losses_are_those_of_labels_and_cells() -> None:
    method, images, taught = made(ce=0.5, kd=2.0, temperature=3.0, base="dkd", form="code")
    method.eval()
    batch = batch_of(images)
    output = method(batch, taught)
    student = method.student(images)
    assert student.last is not None
    assert taught.last is not None
    own = method.student.module.get_submodule("fc")(cell_vectors(student.last, (1, 2, 4)))
    others = method.classifier(cell_vectors(taught.last, (1, 2, 4)))
    torch.testing.assert_close(own[:, 0], student.logits)
    torch.testing.assert_close(others[:, 0], taught.logits)
    loss = sdd_loss(own, others, batch.labels, "dkd", 3.0, form="code")
    expected = {"ce": 0.5 * ce(student.logits, batch.labels), "sdd": 2 * loss}
    torch.testing.assert_close(output.losses, expected)


def test_one_grid_of_one_cell_is_classic_distillation() -> None:
    method, images, taught = made(scales=[1])
    method.eval()
    loss = method(batch_of(images), taught).losses["sdd"]
    torch.testing.assert_close(loss, kd(method.student(images).logits, taught.logits, 4.0))


def test_the_student_s_classifier_learns_from_the_cells_and_the_teacher_s_never() -> None:
    method, images, taught = made(ce=0.0)
    method(batch_of(images), taught).objective.backward()
    assert all(p.grad is None for p in method.classifier.parameters())
    for name, parameter in method.student.module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
    assert method.deployed() is method.student.module


def test_the_weight_rises_over_the_warmup() -> None:
    def value(epoch: int, warmup: float) -> float:
        method, images, taught = made(warmup=warmup)
        return float(method(batch_of(images, epoch), taught).losses["sdd"].detach())

    whole = value(0, 0.0)
    assert [value(epoch, 4.0) for epoch in (0, 3, 9)] == pytest.approx([whole / 4, whole, whole])
    assert "method.warmup changes a weight" in made(warmup=4.0)[0].uncompiled
    assert not made()[0].uncompiled


def pair_with_map(size: int) -> Pair:
    data = make_dataset(size=size)
    return make_pair(staged("resnet8"), staged("resnet14"), data)[0]


def test_grids_with_more_cells_than_positions_are_left_out_by_default() -> None:
    for size, scales in ((4, [1]), (8, [1, 2]), (12, [1, 2]), (16, [1, 2, 4])):
        assert SDD(pair_with_map(size)).scales == scales


@pytest.mark.parametrize("scales", [[], [2], [2, 1], [1, 1], [1, 3]])
def test_scales_that_do_not_fit_are_refused(scales: list[int]) -> None:
    with pytest.raises(InputError, match="scales must begin with 1 and rise to 2 at most"):
        SDD(pair_with_map(8), scales=scales)


def test_models_that_do_not_average_their_last_map_are_refused() -> None:
    pair = pair_with_map(8)
    for change in ({"average_pooled": False}, {"linear_logits": False}, {"last": None}):
        changed: Any = change
        with pytest.raises(InputError, match="sdd applies the student's classifier to parts"):
            SDD(replace(pair, student_spec=replace(pair.student_spec, **changed)))
    assert pair.teacher_spec is not None
    with pytest.raises(InputError, match="sdd applies the teacher's classifier to parts"):
        SDD(replace(pair, teacher_spec=replace(pair.teacher_spec, average_pooled=False)))
