"""Wasserstein distances: the costs of classes, the transport, the Gaussians and the method."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dskd.data.loader import Batch
from dskd.errors import InputError
from dskd.losses.logits import ce
from dskd.losses.vectors import unit
from dskd.losses.wasserstein import class_distances, gaussian_distance, transport
from dskd.methods.base import decayed
from dskd.methods.contracts import TeacherNeeds
from dskd.methods.fitnet import Regressor
from dskd.methods.wkd import WKD, Bottleneck, wkd_loss
from dskd.models.output import ModelOutput
from dskd.models.spec import StageSpec
from tests.builders import make_dataset, make_pair, staged
from tests.losses.misfits import Arguments
from tests.methods.edge_cases import (
    MAPS,
    check_finite,
    check_finite_with_gradient,
    check_full_precision,
)
from tests.methods.inputs import batch_of
from tests.reference_values import CASES, cases, check, check_scaled, given, parameters

ARGUMENTS = Arguments(
    {"student_logits": "B K", "teacher_logits": "B K", "labels": "B", "cost": "K K"},
    indices={"labels": "K"},
    numbers={
        "gamma": float("nan"),
        "temperature": 0.0,
        "regularization": 0.0,
        "iterations": 0.0,
    },
)
DEFAULTS = {"gamma": 600.0, "temperature": 8.0, "regularization": 0.05, "iterations": 10}
DECAY = {"decay_from": 150.0, "decay_to": 240.0}
PRESETS = {
    "literature": {"ce": 1.0, "kd": 1.0, "gamma": 600.0, "temperature": 8.0} | DECAY,
    "features": {"ce": 1.0, "kd": 0.0, "feature": 0.08, "ratio": 4.0} | DECAY,
    "both": {
        "ce": 1.0,
        "kd": 1.0,
        "gamma": 200.0,
        "temperature": 8.0,
        "feature": 0.08,
        "ratio": 8.0,
    }
    | DECAY,
}
GENTLE = {"gamma": 10.0}

DATA = make_dataset(classes=4, per_class=6, size=16)
SPEC = StageSpec(32, 8, 8, True), StageSpec(64, 8, 8, True)


def loaded(projector: nn.Module, state: dict[str, Tensor], names: dict[str, str]) -> nn.Module:
    """The projector with a case's weights; ``names`` maps our names to theirs."""
    own = {f"layers.{ours}": state[theirs] for ours, theirs in names.items()}
    missing = projector.double().load_state_dict(own, strict=False).missing_keys
    assert {name.rpartition(".")[2] for name in missing} <= {"num_batches_tracked"}
    return projector.train()


NORM = ("weight", "bias", "running_mean", "running_var")


def whole(epoch: int) -> Callable[..., Tensor]:
    """The whole objective of the authors' code, with a cost from the teacher's classifier."""
    state = parameters("wkd_full")
    names = {"0.weight": "conv_reg.conv.weight"} | {f"1.{n}": f"conv_reg.bn.{n}" for n in NORM}
    projector = loaded(Regressor(*SPEC), state, names)
    rows = unit(state["teacher_fc.weight"])
    cost = 1 - torch.exp(-(1 - rows @ rows.T))
    share = decayed(epoch - 1, 150, 240)

    def loss(s: Tensor, f2: Tensor, t: Tensor, g3: Tensor, y: Tensor) -> Tensor:
        maps = gaussian_distance(projector(f2), g3, 8.0)
        return ce(s, y) + wkd_loss(s, t, y, cost, share * 200) + share * 0.08 * maps

    return loss


def behind_a_bottleneck(student: Tensor, teacher: Tensor) -> Tensor:
    names = {"0.weight": "conv1.weight", "0.bias": "conv1.bias"}
    names |= {"1.weight": "conv2.weight", "2.weight": "conv3.weight"}
    names |= {f"3.{name}": f"bn.{name}" for name in NORM}
    projector = loaded(Bottleneck(*SPEC, hidden=16), parameters("wkd_bottleneck"), names)
    return gaussian_distance(projector(student), teacher, 2.0, 4)


REFERENCE: dict[str, Callable[..., Tensor]] = {
    "wkdl_T8": lambda s, t, cost: transport(s, t, cost, 8.0),
    "wkdl_T2": lambda s, t, cost: transport(s, t, cost, 2.0),
    "wkdl_T4_iter3": lambda s, t, cost: transport(s, t, cost, 4.0, iterations=3),
    "wkdl_T4_lambda0.2": lambda s, t, cost: transport(s, t, cost, 4.0, 0.2),
    "wkdl_sep_T8_g600": lambda s, t, y, cost: wkd_loss(s, t, y, cost, 600.0, 8.0),
    "wkdl_sep_T2_g30": lambda s, t, y, cost: wkd_loss(s, t, y, cost, 30.0, 2.0),
    "wkdl_sep_T8_g1": lambda s, t, y, cost: wkd_loss(s, t, y, cost, 1.0, 8.0),
    "wkdf_grid1_ratio4": lambda s, t: gaussian_distance(s, t, 4.0, 1),
    "wkdf_grid4_ratio3": lambda s, t: gaussian_distance(s, t, 3.0, 4),
    "wkdf_grid2_ratio2": lambda s, t: gaussian_distance(s, t, 2.0, 2),
    "wkdf_bottleneck_grid4": behind_a_bottleneck,
    "wkd_lf_full_epoch1": lambda *inputs: whole(1)(*inputs),
    "wkd_lf_full_epoch200": lambda *inputs: whole(200)(*inputs),
    "wkd_cka_cost": lambda features: class_distances(features).sum(),
}


@pytest.mark.parametrize("case", REFERENCE)
def test_value_and_gradient_are_those_of_the_reference(case: str) -> None:
    check(case, REFERENCE[case])


def test_every_case_of_the_reference_is_compared() -> None:
    assert cases("wkd") | cases("wkdl") | cases("wkdf") == {*REFERENCE}


def test_the_distance_of_each_two_classes_is_that_of_the_reference() -> None:
    expected = torch.tensor(CASES["wkd_cka_cost"]["matrix"], dtype=torch.float64)
    torch.testing.assert_close(class_distances(given("wkd_feats").detach()), expected)


@pytest.mark.parametrize("temperature", [2, 8])
def test_large_logits_have_the_values_of_the_reference(temperature: float) -> None:
    cost = given("wkd_cost").detach()
    check_scaled(f"wkdl_T{temperature}", lambda s, t, _: transport(s, t, cost, temperature))


@pytest.mark.slow
def test_the_published_ten_iterations_are_far_from_the_limit_and_a_hundred_are_near() -> None:
    s, t, cost = (given(name).detach() for name in ("logits_s", "logits_t", "wkd_cost"))
    ten, hundred, limit = (transport(s, t, cost, iterations=n).item() for n in (10, 100, 2000))
    assert ten < 0.6 * limit
    assert hundred == pytest.approx(limit, rel=0.01)


def test_the_flow_is_that_of_a_naive_loop_without_the_label() -> None:
    s, t = torch.randn(2, 3, 5).double()
    labels, cost = torch.tensor([4, 0, 2]), torch.rand(5, 5).double()
    total = 0.0
    for own, taught, label in zip(s, t, labels, strict=True):
        kept = [c for c in range(5) if c != label]
        p, q = (taught[kept] / 3).softmax(0), (own[kept] / 3).softmax(0)
        prices = cost[kept][:, kept] + 1e-8
        kernel, u = (-prices / 0.1).exp(), torch.full((4,), 0.25).double()
        for _ in range(5):
            v = torch.stack([p[j] / ((u * kernel[:, j]).sum() + 1e-8) for j in range(4)])
            u = torch.stack([q[i] / ((v * kernel[i]).sum() + 1e-8) for i in range(4)])
        moved = sum(u[i] * kernel[i, j] * v[j] * prices[i, j] for i in range(4) for j in range(4))
        total += float(-taught.softmax(0)[label] * own.log_softmax(0)[label] + 7 * moved)
    found = wkd_loss(s, t, labels, cost, 7.0, 3.0, 0.1, 5)
    assert found.item() == pytest.approx(total / 3)


def test_moving_to_a_similar_class_costs_less() -> None:
    cost = torch.tensor([[0.0, 0.1, 0.9], [0.1, 0.0, 0.9], [0.9, 0.9, 0.0]])
    first, second, third = 20 * torch.eye(3)
    near = transport(first[None], second[None], cost, 1.0, iterations=1000)
    far = transport(first[None], third[None], cost, 1.0, iterations=1000)
    assert near.item() == pytest.approx(0.1, rel=1e-3)
    assert far.item() == pytest.approx(0.9, rel=1e-3)


def test_the_order_of_images_and_classes_does_not_matter() -> None:
    s, t = torch.randn(2, 4, 5).double()
    y, cost = torch.tensor([0, 4, 2, 0]), torch.rand(5, 5).double()
    rows, columns = torch.tensor([2, 0, 3, 1]), torch.tensor([4, 1, 0, 3, 2])
    moved = columns.argsort()[y][rows]
    turned = cost[columns][:, columns]
    found = wkd_loss(s[rows][:, columns], t[rows][:, columns], moved, turned)
    torch.testing.assert_close(found, wkd_loss(s, t, y, cost))


@pytest.mark.parametrize("grid", [1, 2])
def test_the_gaussians_are_those_of_a_naive_loop(grid: int) -> None:
    s, t = torch.randn(2, 3, 4, 4).double() + 5, torch.randn(2, 3, 8, 8).double()
    total = 0.0
    for image in range(2):
        for y in range(grid):
            for x in range(grid):
                for channel in range(3):
                    cells = []
                    for maps in (s, t):
                        step = maps.shape[2] // grid
                        part = maps[image, channel][y * step :, x * step :][:step, :step]
                        cells.append((part.mean(), (part.var() + 1e-5).sqrt()))
                    (m_s, d_s), (m_t, d_t) = cells
                    total += float(3 * (m_s - m_t) ** 2 + (d_s - d_t) ** 2)
    found = gaussian_distance(s, t, 3.0, grid)
    assert found.item() == pytest.approx(total / (2 * grid**2))


def test_a_variance_far_from_zero_means_keeps_its_digits() -> None:
    maps = torch.rand(2, 3, 4, 4)
    near, far = (gaussian_distance(maps + by, 2 * maps, ratio=0.0) for by in (0, 512))
    torch.testing.assert_close(far, near, rtol=1e-3, atol=0)


def test_cells_that_cross_positions_have_the_mean_of_their_parts() -> None:
    s, t = torch.rand(1, 1, 3, 3).double(), torch.zeros(1, 1, 2, 2).double()
    means = gaussian_distance(s, t, 1.0, 5) - gaussian_distance(s, t, 0.0, 5)
    weights = torch.tensor([[2 / 3, 1 / 3, 0], [0, 1 / 3, 2 / 3]]).double()
    expected = (weights @ s[0, 0] @ weights.T).square().mean()
    torch.testing.assert_close(means, expected)


@pytest.mark.parametrize("values", MAPS)
def test_extreme_maps_give_finite_values_and_gradients(values: str) -> None:
    check_finite(lambda s, t: gaussian_distance(s, t, 4.0, 2), MAPS[values], 1e5)


@pytest.mark.parametrize("shape", [(1, 2), (1, 100), (7, 2), (8, 10)])
@pytest.mark.parametrize("cost", [torch.zeros_like, torch.ones_like])
def test_large_logits_give_finite_values_and_gradients(
    shape: tuple[int, int], cost: Callable[[Tensor], Tensor]
) -> None:
    s, t = 100 * torch.randn(2, *shape).sign()
    y, prices = torch.arange(shape[0]) % shape[1], cost(torch.eye(shape[1]))
    for temperature in (1.0, 8.0):
        check_finite_with_gradient(
            lambda s, t, at=temperature: wkd_loss(s, t, y, prices, temperature=at), s, t
        )


def test_half_precision_is_computed_in_full() -> None:
    y, cost = torch.tensor([0, 4, 2, 0]), torch.rand(5, 5)
    check_full_precision(lambda s, t: wkd_loss(s, t, y, cost), *torch.randn(2, 4, 5))
    check_full_precision(gaussian_distance, *torch.randn(2, 2, 3, 4, 4))


def test_arguments_that_do_not_fit_are_refused() -> None:
    logits, y, maps = torch.zeros(2, 3), torch.tensor([0, 1]), torch.zeros(2, 3, 4, 4)
    with pytest.raises(InputError, match=r"two of 3 classes is needed, \[3, 3\], got \[2, 2\]"):
        wkd_loss(logits, logits, y, torch.zeros(2, 2))
    with pytest.raises(InputError, match="grid must be a finite number and at least 1"):
        gaussian_distance(maps, maps, grid=0)
    with pytest.raises(InputError, match="maps of the same channels are needed"):
        gaussian_distance(maps, torch.zeros(2, 4, 4, 4))


def made(**settings: Any) -> tuple[WKD, Callable[[Tensor], ModelOutput]]:
    pair, teacher = make_pair(staged(), staged("resnet14"), DATA)
    assert teacher is not None
    return WKD(pair, **settings), teacher


def prepared(**settings: Any) -> tuple[WKD, Callable[[Tensor], ModelOutput]]:
    method, teacher = made(**settings)

    def epochs(count: int) -> Iterator[tuple[Batch, ModelOutput]]:
        order = torch.randperm(len(DATA.train))
        for rows in torch.split(order, 7) * count:
            images = DATA.train.images[rows]
            batch = Batch(images, DATA.train.labels[rows], rows, rows, rows, 0, 0)
            yield batch, teacher(images)

    method.prepare(epochs)
    return method, teacher


@pytest.mark.parametrize("cost", ["features", "logits"])
@pytest.mark.parametrize("most", [3, 500])
def test_the_cost_comes_from_the_teacher_s_outputs_for_each_class(cost: Any, most: int) -> None:
    method, teacher = prepared(cost=cost, cost_images=most, kappa=2.0)
    taught = teacher(DATA.train.images)
    outputs = taught.pooled if cost == "features" else taught.logits
    assert outputs is not None
    of_classes = torch.stack([outputs[DATA.train.labels == c][:most] for c in range(4)])
    expected = 1 - torch.exp(-2 * class_distances(of_classes))
    torch.testing.assert_close(method.cost, expected, rtol=1e-4, atol=1e-5)
    assert "cost" in method.auxiliary_state_dict()


def test_the_cost_can_come_from_the_teacher_s_classifier_alone() -> None:
    pair = make_pair(staged(), staged("resnet14"), DATA)[0]
    method = WKD(pair, cost="classifier")
    before = method.cost.clone()
    method.prepare(lambda _: pytest.fail("no teacher output is needed"))
    assert pair.teacher_classifier is not None
    weight = pair.teacher_classifier.weight
    rows = weight / weight.norm(dim=1, keepdim=True)
    torch.testing.assert_close(before, 1 - torch.exp(rows @ rows.T - 1), rtol=1e-4, atol=1e-6)
    assert method.needs == TeacherNeeds(logits=True)


def test_a_class_of_equal_outputs_is_far_from_all() -> None:
    features = torch.rand(3, 4, 2)
    features[0] = 1.0
    assert class_distances(features)[0].tolist() == [0, 1, 1]


def test_the_losses_are_those_of_labels_predictions_and_maps() -> None:
    method, teacher = prepared(ce=0.5, kd=2.0, gamma=3.0, temperature=4.0, feature=5.0, ratio=2.0)
    method.eval()
    batch = batch_of(DATA.train.images[:6])
    student, taught = method.student(batch.images), teacher(batch.images)
    assert taught.last is not None
    logits = student.logits, taught.logits
    maps = gaussian_distance(method.projector(student.last), taught.last, 2.0)
    expected = {
        "ce": 0.5 * ce(student.logits, batch.labels),
        "wkd": 2 * wkd_loss(*logits, batch.labels, method.cost, 3.0, 4.0),
        "feature": 5 * maps,
    }
    torch.testing.assert_close(method(batch, taught).losses, expected)


def test_two_images_of_a_class_make_all_classes_the_same() -> None:
    """So the cost would be 0: the reason for three."""
    assert class_distances(torch.randn(4, 2, 8)).max() < 1e-5
    assert class_distances(torch.randn(4, 3, 8)).max() > 1e-3


def test_few_images_of_a_class_are_told() -> None:
    pair = make_pair(staged(), staged("resnet14"), DATA)[0]
    (line,) = WKD(pair).warnings
    assert line.startswith("wkd compares the classes by 6 training images of each")
    enough = replace(pair, labels=torch.arange(4).repeat_interleave(10))
    assert not WKD(enough).warnings
    assert WKD(enough, cost_images=9).warnings
    assert not WKD(pair, cost="classifier").warnings
    assert not WKD(pair, kd=0.0, feature=1.0).warnings


def test_the_maps_alone_need_no_predictions_and_no_cost() -> None:
    method, teacher = made(kd=0.0, feature=1.0)
    method.prepare(lambda _: pytest.fail("no teacher output is needed"))
    assert method.needs == TeacherNeeds(last=True)
    batch = batch_of(DATA.train.images[:6])
    assert [*method(batch, teacher(batch.images)).losses] == ["ce", "feature"]


def test_the_weights_fall_by_half_a_cosine() -> None:
    def values(epoch: int) -> dict[str, float]:
        torch.manual_seed(0)
        method, teacher = prepared(gamma=3.0, feature=1.0, decay_from=2.0, decay_to=6.0)
        method.eval()
        output = method(batch_of(DATA.train.images[:6], epoch), teacher(DATA.train.images[:6]))
        return {name: loss.item() for name, loss in output.losses.items()}

    start, later, end = values(1), values(3), values(5)
    assert later["feature"] == pytest.approx(0.5 * start["feature"])
    assert end["feature"] == 0
    assert later["wkd"] - end["wkd"] == pytest.approx(0.5 * (start["wkd"] - end["wkd"]), rel=1e-4)
    assert end["wkd"] > 0  # the label's part stays
    assert "method.decay_to changes weights" in made(decay_to=6.0)[0].uncompiled
    assert not made()[0].uncompiled


def test_the_weight_at_each_epoch_is_the_published_one() -> None:
    found = [decayed(epoch - 1, 150, 240) for epoch in (1, 150, 195, 240, 300)]
    assert found == pytest.approx([1, 1, 0.5, 0, 0])
    assert decayed(1000, 0, 0) == 1


def test_a_projector_has_no_relu_before_a_map_with_negative_values() -> None:
    for nonnegative in (True, False):
        bottleneck = Bottleneck(SPEC[0], replace(SPEC[1], nonnegative=nonnegative), 4)
        assert isinstance(bottleneck.layers[-1], nn.ReLU) == nonnegative
    assert isinstance(made(feature=1.0, hidden=4)[0].projector, Bottleneck)


def test_settings_that_do_not_fit_are_refused() -> None:
    pair = make_pair(staged(), staged("resnet14"), DATA)[0]
    assert pair.teacher_spec is not None
    with pytest.raises(InputError, match="decay_to must be after decay_from=3, got 2"):
        WKD(pair, decay_from=3.0, decay_to=2.0)
    with pytest.raises(InputError, match="decay_from needs decay_to"):
        WKD(pair, decay_from=3.0)
    few = replace(pair, labels=torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 3]))
    with pytest.raises(
        InputError, match=r"class 1 has 2 where 3 are needed; set method={..., \"cost\""
    ):
        WKD(few)
    with pytest.raises(InputError, match=r"2} is too small: wkd compares classes by 3 images"):
        WKD(pair, cost_images=2)
    assert WKD(few, cost="classifier").cost.max() < 1
    with pytest.raises(InputError, match=r"set method={..., \"cost\": \"logits\"}"):
        WKD(replace(pair, teacher_spec=replace(pair.teacher_spec, pooled=None)))
    with pytest.raises(
        InputError, match=r"the student has none; name one with student={.*\"stages"
    ):
        WKD(replace(pair, student_spec=replace(pair.student_spec, last=None)), feature=1.0)
    assert math.isfinite(float(WKD(pair).cost.sum()))
