"""N-to-one matching: the loss, the transform, the student whose classifier takes it on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dskd
from dskd.engine.sync_batchnorm import synchronized
from dskd.errors import InputError
from dskd.losses.logits import ce, kd
from dskd.methods.norm import NORM, Schedule, Transform, norm_loss, normalized_logits
from dskd.models.output import ModelOutput
from dskd.models.staged_model import StagedModel
from tests.builders import make_dataset, make_pair, staged
from tests.losses.misfits import Arguments
from tests.methods.edge_cases import MAPS, check_finite, check_full_precision
from tests.methods.inputs import batch_of
from tests.reference_values import CASES, cases, check, given, parameters

ARGUMENTS = Arguments({"student_map": "B D H W", "teacher_map": "B C I J"})
WEIGHTS = {"ce": 0.1, "kd": 0.0, "weight": 1.0, "segments": 8}
PRESETS = {
    "literature": WEIGHTS,
    "code": WEIGHTS | {"logit_scale": 2.5, "schedule": "cifar100"},
}

DATA = make_dataset(size=16)


def reference_transform() -> Transform:
    transform = Transform(64, 64, 8).double()
    counts = {k: v for k, v in transform.state_dict().items() if k.endswith("_tracked")}
    names = {"up": "widen", "down": "narrow"}
    weights = {
        f"{names[part]}.{rest}": value
        for part, _, rest in (key.partition(".") for key in parameters("norm_transform"))
        for value in (parameters("norm_transform")[f"{part}.{rest}"],)
    }
    transform.load_state_dict(weights | counts)
    return transform


def whole(s: Tensor, map_s: Tensor, t: Tensor, map_t: Tensor, y: Tensor) -> Tensor:
    """The authors' objective in epoch 5."""
    own, taught = normalized_logits(s, 2.5), normalized_logits(t, 2.5)
    return 0.1 * ce(own, y) + 0.9 * kd(own, taught, 4.0) + 0.1 * norm_loss(map_s, map_t)


REFERENCE: dict[str, Callable[..., Tensor]] = {
    "norm_N4": norm_loss,
    "norm_N4_teacher_larger": norm_loss,
    "norm_N4_imagenet_student_larger": norm_loss,
    "norm_transform_N8": lambda s, t: norm_loss(reference_transform()(s)[1], t),
    "norm_full_epoch5": whole,
}


@pytest.mark.parametrize("case", REFERENCE)
def test_value_and_gradient_are_those_of_the_reference(case: str) -> None:
    check(case, REFERENCE[case])


def test_every_case_of_the_reference_is_compared() -> None:
    assert cases("norm") == {*REFERENCE}


def test_the_transformed_map_is_that_of_the_reference() -> None:
    transformed, _ = reference_transform()(given("f3"))
    further = CASES["norm_transform_N8"]["further"]
    assert transformed.norm().item() == pytest.approx(further["residual_output_norm"])
    assert transformed.flatten()[:4].tolist() == pytest.approx(further["residual_output_first4"])


# The loss


def test_the_loss_is_the_naive_loop() -> None:
    student, teacher = torch.randn(2, 6, 3, 3).double(), torch.randn(2, 2, 3, 3).double()
    total = 0.0
    for first in (0, 2, 4):
        segment = student[:, first : first + 2]
        squares = [(s - t) ** 2 for s, t in zip(segment.flatten(), teacher.flatten(), strict=True)]
        total += float(sum(squares)) / len(squares)
    assert norm_loss(student, teacher).item() == pytest.approx(total)


def test_one_segment_is_the_mean_of_the_squares() -> None:
    student, teacher = torch.randn(2, 2, 3, 4, 4)
    torch.testing.assert_close(norm_loss(student, teacher), F.mse_loss(student, teacher))


def test_the_larger_of_two_maps_is_max_pooled() -> None:
    small, large = torch.randn(2, 3, 2, 4), torch.randn(2, 3, 4, 4)
    pooled = torch.maximum(large[:, :, ::2], large[:, :, 1::2])
    expected = (small - pooled).square().mean()
    torch.testing.assert_close(norm_loss(small, large), expected)
    torch.testing.assert_close(norm_loss(large, small), expected)


def test_maps_whose_sides_do_not_divide_are_averaged() -> None:
    """Every position then counts the same."""
    large = torch.randn(2, 3, 7, 7)
    small = torch.zeros(2, 3, 3, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(norm_loss(small, large), small)
    torch.testing.assert_close(gradient.sum((2, 3)) / -2, large.mean((2, 3)) / (2 * 3))


@pytest.mark.parametrize("kind", MAPS)
def test_extreme_maps_give_finite_values_and_gradients(kind: str) -> None:
    check_finite(lambda s, t: norm_loss(s.repeat(1, 2, 1, 1), t), MAPS[kind], 1e4)


def test_half_precision_is_computed_in_full() -> None:
    check_full_precision(norm_loss, torch.randn(2, 6, 4, 4), torch.randn(2, 3, 8, 8))


def test_maps_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="multiple of the teacher's channels, got 7 of the stud"):
        norm_loss(torch.zeros(2, 7, 4, 4), torch.zeros(2, 3, 4, 4))
    with pytest.raises(InputError, match="got 3 of the student, 6 of the teacher"):
        norm_loss(torch.zeros(2, 3, 4, 4), torch.zeros(2, 6, 4, 4))
    with pytest.raises(InputError, match="of the same images are needed"):
        norm_loss(torch.zeros(2, 3, 4, 4), torch.zeros(3, 3, 4, 4))


def test_normalised_logits_have_the_same_mean_and_deviation_for_all_images() -> None:
    logits = torch.tensor([[1.0, 2.0, 6.0], [-50.0, 0.0, 50.0], [3.0, 3.0, 3.0]])
    found = normalized_logits(logits, 2.5)
    torch.testing.assert_close(found.mean(1), torch.zeros(3), rtol=0, atol=1e-5)
    spread = found.std(1, correction=0)
    torch.testing.assert_close(spread, torch.tensor([2.5, 2.5, 0.0]), rtol=1e-4, atol=1e-4)


# The method


def made(student: str = "resnet8", **settings: Any) -> tuple[NORM, Tensor, ModelOutput]:
    pair, teacher = make_pair(staged(student), staged("resnet14"), DATA)
    assert teacher is not None
    images = DATA.train.images[:8]
    return NORM(pair, **settings), images, teacher(images)


@pytest.mark.parametrize("scale", [None, 2.5])
def test_the_losses_are_those_of_labels_predictions_and_maps(scale: float | None) -> None:
    method, images, taught = made(
        ce=0.5, kd=2.0, weight=3.0, temperature=2.0, segments=3, logit_scale=scale
    )
    method.eval()
    last, batch = method.student(images).last, batch_of(images)
    classifier = method.student.linear_classifier
    assert classifier is not None
    widened = method.transform.widen(last)
    assert widened.shape[1] == 3 * 64
    logits = classifier((method.transform.narrow(widened) + last).mean((2, 3)))
    compared = [logits, taught.logits]
    if scale:
        compared = [scale * F.layer_norm(one, (4,), eps=1e-7) for one in compared]
    assert taught.last is not None
    expected = {
        "ce": 0.5 * ce(compared[0], batch.labels),
        "kd": 2 * kd(compared[0], compared[1], 2.0),
        "norm": 3 * norm_loss(widened, taught.last),
    }
    found = method(batch, taught)
    torch.testing.assert_close(found.losses, expected)
    torch.testing.assert_close(found.logits, logits)


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [
        ("constant", {0: 1, 300: 1}),
        ("cifar100", {0: 0.1, 9: 0.1, 10: 0.5, 20: 1, 179: 1, 180: 0.5, 210: 0.1, 300: 0.1}),
        ("imagenet", {0: 0.1, 5: 0.5, 15: 0.9, 59: 0.9, 60: 0.5, 80: 0.1}),
    ],
)
def test_the_schedule_changes_the_weight_of_the_maps_alone(
    schedule: Schedule, shares: dict[int, float]
) -> None:
    method, images, taught = made(schedule=schedule)
    method.eval()
    whole = made()[0]
    whole.load_state_dict(method.state_dict())
    expected = whole.eval()(batch_of(images), taught).losses
    for epoch, share in shares.items():
        found = method(batch_of(images, epoch), taught).losses
        assert found["norm"].item() == pytest.approx(share * expected["norm"].item())
        assert torch.equal(found["ce"], expected["ce"])
    assert bool(method.uncompiled) is (schedule != "constant")
    assert schedule in get_args(Schedule)


def unsettled(method: NORM) -> NORM:
    """A method whose BatchNorm layers are not those of a fresh one."""
    for part in method.modules():
        if isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None
            assert part.running_var is not None
            part.running_mean.uniform_(-0.5, 0.5)
            part.running_var.uniform_(0.2, 3)
            nn.init.uniform_(part.weight, 0.5, 2)
            nn.init.uniform_(part.bias, -0.5, 0.5)
    return method


@pytest.mark.parametrize("student", ["resnet8", "wrn_16_1", "MobileNetV2", "vgg8"])
def test_the_classifier_takes_on_the_transform(student: str) -> None:
    method, images, taught = made(student, segments=4)
    unsettled(method).eval()
    expected = method(batch_of(images), taught).logits
    merged = method.classifier_logits(images)["student"]
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(merged, method.student(images).logits, rtol=1e-2)
    shipped = method.deployed().eval()
    assert torch.equal(shipped(method.student.normalize(images)), merged)


def test_the_classifier_takes_on_a_transform_that_several_processes_synchronise() -> None:
    method, images, _ = made(segments=4)
    unsettled(method).eval()
    expected = method.classifier_logits(images)["student"]
    converted = synchronized(method)
    assert isinstance(converted.transform.widen[1], nn.SyncBatchNorm)
    assert torch.equal(converted.classifier_logits(images)["student"], expected)


def test_the_deployed_student_is_a_copy_that_learns_no_more() -> None:
    method, images, taught = made()
    before = {key: value.clone() for key, value in method.state_dict().items()}
    shipped = method.deployed()
    with torch.no_grad():
        for parameter in shipped.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())
    assert method(batch_of(images), taught).objective.isfinite()
    assert all(key.startswith("transform.") for key in method.auxiliary_state_dict())


def test_a_view_of_the_deployed_student_shares_all_but_the_classifier() -> None:
    method, *_ = made()
    unsettled(method)
    view, shipped = method.deployed_view(), method.deployed()
    expected, own = shipped.state_dict(), method.student.module.state_dict(keep_vars=True)
    for key, value in view.state_dict(keep_vars=True).items():
        assert torch.equal(value, expected[key])
        assert (value is own[key]) != key.startswith(f"{method.student.classifier}.")


def test_the_narrow_layer_learns_from_the_predictions_alone() -> None:
    method, images, taught = made(ce=0.0, kd=0.0)
    method(batch_of(images), taught).objective.backward()
    widen, narrow = method.transform.widen[0].weight, method.transform.narrow[0].weight
    assert isinstance(widen, nn.Parameter)
    assert isinstance(narrow, nn.Parameter)
    assert widen.grad is not None
    assert widen.grad.any()
    assert narrow.grad is None or not narrow.grad.any()


class Net(nn.Module):
    """A user's classifier, with or without a bias, and a norm before it."""

    def __init__(self, bias: bool = True, norm: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU())
        self.norm = nn.LayerNorm(6) if norm else nn.Identity()
        self.head = nn.Linear(6, 4, bias=bias)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(self.body(images).mean((2, 3))))
        return logits


def own(net: Net, *stages: str) -> StagedModel:
    return StagedModel(net, stages, mean=(0.5,) * 3, std=(0.25,) * 3)


def test_a_user_s_module_is_student_and_teacher() -> None:
    pair, teacher = make_pair(own(Net(), "body"), own(Net(norm=True), "body"), DATA)
    assert teacher is not None
    method, images = NORM(pair), DATA.train.images[:8]
    assert method(batch_of(images), teacher(images)).objective.isfinite()
    shipped = method.eval().deployed()
    assert isinstance(shipped, Net)
    expected = method.classifier_logits(images)["student"]
    assert torch.equal(shipped(method.student.normalize(images)), expected)


@pytest.mark.parametrize(
    "student",
    [own(Net(bias=False), "body"), own(Net(norm=True), "body"), own(Net())],
    ids=["no bias", "norm", "no stage"],
)
def test_a_student_whose_classifier_cannot_take_it_on_is_refused(student: StagedModel) -> None:
    pair, _ = make_pair(student, staged("resnet14"), DATA)
    with pytest.raises(InputError, match="not those of a linear layer with a bias on the average"):
        NORM(pair)


def test_a_teacher_without_a_map_is_refused() -> None:
    pair, _ = make_pair(staged(), staged("resnet14"), DATA)
    assert pair.teacher_spec is not None
    without = replace(pair, teacher_spec=replace(pair.teacher_spec, last=None))
    with pytest.raises(
        InputError, match=r"the teacher has none; name it with teacher={.*\"stages\": \[\"a"
    ):
        NORM(without)


@pytest.mark.slow
def test_a_run_ships_the_student_that_was_evaluated(tmp_path: Path) -> None:
    """Its file has the plain student's keys, and the transform alone is counted as extra."""
    result = dskd.distill(
        student="resnet8",
        teacher={"name": "resnet14", "epochs": 1},
        data=DATA,
        method={"name": "norm", "preset": "literature"},
        train={"epochs": 2, "batch_size": 8, "lr": 0.05, "device": "cpu"},
        out=tmp_path / "run",
    )
    plain = staged("resnet8").module
    assert result.parameters == sum(p.numel() for p in plain.parameters())
    assert result.extra_parameters == 2 * 64 * 8 * 64 + 2 * (8 * 64 + 64)
    loaded = dskd.load_deployed(result.path).model
    assert loaded.module.state_dict().keys() == plain.state_dict().keys()
    predictions = loaded(DATA.test.images).logits.argmax(1)
    accuracy = 100 * (predictions == DATA.test.labels).double().mean().item()
    assert result.test_accuracy == pytest.approx(accuracy)
