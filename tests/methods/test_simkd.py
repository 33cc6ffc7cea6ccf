"""The reused teacher classifier: its loss, its inputs, the deployed student, any pair of models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dskd.errors import InputError
from dskd.losses.feature_maps import pool_to
from dskd.methods import simkd
from dskd.methods.contracts import Pair, StepOutput
from dskd.methods.simkd import SimKD, simkd_loss
from dskd.models.catalog import ZOO
from dskd.models.output import ModelOutput
from dskd.models.spec import ModelSpec, StageSpec, describe
from dskd.models.staged_model import StagedModel
from dskd.teacher.frozen import FrozenTeacher
from tests.builders import make_dataset, make_pair, staged
from tests.losses.misfits import Arguments
from tests.methods.edge_cases import MAPS, check_finite, check_full_precision
from tests.methods.inputs import batch_of
from tests.reference_values import CASES, cases, check, given, parameters

ARGUMENTS = Arguments({"student_map": "B C H W", "teacher_map": "B C I J"})
PRESETS = {"literature": {"ce": 0.0, "kd": 0.0, "weight": 1.0}}

DATA = make_dataset(size=32)


def unsettled(model: StagedModel) -> StagedModel:
    """A model whose BatchNorms and classifier are not those of a fresh one."""
    for part in model.module.modules():
        if isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None
            part.running_mean.uniform_(-0.2, 0.2)
            nn.init.uniform_(part.bias, -0.5, 0.5)
    if model.linear_classifier is not None and model.linear_classifier.bias is not None:
        nn.init.uniform_(model.linear_classifier.bias)
    return model


def made(
    student: str | StagedModel = "resnet8", teacher: str | StagedModel = "resnet14", **settings: Any
) -> tuple[SimKD, FrozenTeacher]:
    models = [staged(m) if isinstance(m, str) else m for m in (student, teacher)]
    pair, frozen = make_pair(models[0], unsettled(models[1]), DATA)
    assert frozen is not None
    return SimKD(pair, **settings), frozen


class Net(nn.Module):
    """A user's classifier; its vector is the average of its last map, or not."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(6, 8, 3, 4, 1), nn.ReLU())
        self.norm = nn.LayerNorm(8) if norm else nn.Identity()
        self.head = nn.Linear(8, 4, bias=not norm)

    def forward(self, images: Tensor) -> Tensor:
        vector = self.norm(self.two(self.one(images)).mean((2, 3)))
        logits: Tensor = self.head(vector)
        return logits


def own(norm: bool = False, stages: list[str] | None = None) -> StagedModel:
    return StagedModel(Net(norm), stages or ["one", "two"], mean=(0.5,) * 3, std=(0.25,) * 3)


# The loss


def test_the_loss_is_the_naive_mean_of_squares() -> None:
    student, teacher = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    expected = sum(
        (s - t) ** 2
        for s, t in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True)
    )
    assert simkd_loss(student, teacher).item() == pytest.approx(expected / student.numel())


def test_the_larger_of_two_maps_is_pooled() -> None:
    small, large = torch.randn(2, 3, 4, 6), torch.randn(2, 3, 8, 6)
    pooled = (large[:, :, ::2] + large[:, :, 1::2]) / 2
    expected = (small - pooled).square().mean()
    torch.testing.assert_close(simkd_loss(small, large), expected)
    torch.testing.assert_close(simkd_loss(large, small), expected)


@pytest.mark.parametrize("kind", MAPS)
def test_values_and_gradients_are_finite(kind: str) -> None:
    check_finite(simkd_loss, MAPS[kind], largest_gradient=1e4)


def test_half_precision_is_computed_in_full() -> None:
    check_full_precision(simkd_loss, torch.randn(2, 3, 5, 7), torch.randn(2, 3, 4, 2))


def test_maps_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="of the same images are needed"):
        simkd_loss(torch.ones(2, 3, 4, 4), torch.ones(3, 3, 4, 4))
    with pytest.raises(InputError, match="same channels are needed, got 3 of the student, 5 of"):
        simkd_loss(torch.ones(2, 3, 4, 4), torch.ones(2, 5, 4, 4))


# The reference values


def reference_method() -> SimKD:
    classifier = nn.Linear(64, 100).double()
    classifier.load_state_dict(parameters("simkd_cls"))
    last = StageSpec(64, 8, 8, True)
    student = ModelSpec(100, (last,), 64, last=last)
    teacher = ModelSpec(100, (last,), 64, last=last, average_pooled=True, linear_logits=True)
    method = SimKD(Pair(staged(), student, teacher, classifier)).double()
    method.reused.take(classifier)  # in double precision
    projector = method.reused.projector
    counts = {k: v for k, v in projector.state_dict().items() if k.endswith("_tracked")}
    weights = parameters("simkd")
    projector.load_state_dict({k.removeprefix("transfer."): w for k, w in weights.items()} | counts)
    return method


def test_value_and_gradient_are_those_of_the_reference() -> None:
    method = reference_method()

    def loss(last: Tensor, target: Tensor) -> Tensor:
        given_map = ModelOutput(last, (last,), None, last)
        method.student.register_forward_hook(lambda *_: given_map)
        teacher_output = ModelOutput(torch.zeros(32, 100), (target,), target.mean((2, 3)), target)
        output: StepOutput = method(batch_of(torch.zeros(32, 3, 2, 2)), teacher_output)
        return output.losses["simkd"]

    check("simkd", loss)
    assert cases("simkd") == {"simkd"}


def test_logits_are_those_of_the_reference() -> None:
    _, logits = reference_method().reused(given("f3"))
    expected = torch.tensor(CASES["simkd"]["further"]["pred_row0_first10"]).double()
    torch.testing.assert_close(logits[0, :10].detach(), expected, rtol=1e-5, atol=1e-6)


# The input of the classifier


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_the_teacher_s_features_give_the_teacher_s_logits(name: str) -> None:
    """For every network of the zoo, with any layers between its last stage and its classifier."""
    method, teacher = made("resnet8", name)
    teacher_output = teacher(DATA.test.images[:3])
    target = method.target(teacher_output)
    assert (method.needs.last, method.needs.pooled) == (True, False)
    seen = method.reused.classifier(target.mean((2, 3)))
    torch.testing.assert_close(seen, teacher_output.logits, rtol=1e-4, atol=1e-5)
    assert method.plan.nonnegative


@pytest.mark.parametrize("name", ["wrn_16_1", "vgg8", "MobileNetV2"])
@pytest.mark.parametrize("size", [28, 48])
def test_a_perfect_projection_has_the_teacher_s_logits_at_any_size(name: str, size: int) -> None:
    """Also where the two maps' sizes do not divide."""
    data = make_dataset(size=size)
    pair, teacher = make_pair(staged("ShuffleV2"), unsettled(staged(name)), data)
    assert teacher is not None
    method = SimKD(pair)
    teacher_output = teacher(data.test.images[:3])
    projected = pool_to(method.target(teacher_output), *method.plan.size)
    seen = method.reused.classifier(projected.mean((2, 3)))
    torch.testing.assert_close(seen, teacher_output.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "teacher",
    [
        lambda: own(norm=True),
        lambda: own(stages=["one"]),
        lambda: StagedModel(Net(), [], mean=(0,) * 3, std=(1,) * 3),
    ],
    ids=["norm", "shallow", "no stages"],
)
def test_a_vector_that_is_not_the_average_of_a_map_is_the_target(
    teacher: Callable[[], StagedModel],
) -> None:
    method, frozen = made("resnet8", teacher())
    assert (method.needs.last, method.needs.pooled) == (False, True)
    assert not method.plan.nonnegative
    teacher_output = frozen(DATA.test.images[:3])
    target = method.target(teacher_output)
    assert target.shape == (3, 8, 1, 1)
    torch.testing.assert_close(method.reused.classifier(target.flatten(1)), teacher_output.logits)
    assert method(batch_of(DATA.test.images[:3]), teacher_output).objective.isfinite()
    projected, _ = method.reused(method.student(DATA.test.images[:3]).last)
    assert projected.shape == (3, 8, 8, 8)
    assert (projected < 0).any()


def test_the_last_stage_of_a_wrapped_teacher_is_used_if_its_average_is_the_vector() -> None:
    method, frozen = made("resnet8", own())
    assert method.needs.last
    teacher_output = frozen(DATA.test.images[:3])
    assert method.target(teacher_output) is teacher_output.stages[-1]
    assert method.plan.size == (4, 4)


def test_a_spec_says_whether_the_vector_is_the_average_of_the_last_map() -> None:
    images = DATA.test.images[:4]
    last = describe(staged("wrn_16_2"), images).last
    assert last == StageSpec(128, 8, 8, nonnegative=True)  # its last stage has negative values
    assert describe(own(), images).pooled_nonnegative
    assert not describe(own(norm=True), images).average_pooled
    assert describe(own(stages=["one"]), images).last == StageSpec(6, 16, 16, True)


# Training


def test_all_but_the_classifier_learns_from_the_features() -> None:
    method, teacher = made(ce=0.0, kd=0.0)
    batch = batch_of(DATA.train.images[:8])
    before = {k: v.clone() for k, v in method.reused.classifier.state_dict().items()}
    output = method(batch, teacher(batch.images))
    output.objective.backward()
    assert torch.equal(before["weight"], method.reused.classifier.weight)
    for name, parameter in method.named_parameters():
        frozen = name.startswith("reused.classifier")
        assert parameter.requires_grad is not frozen
        assert frozen or (parameter.grad is not None and parameter.grad.any()), name


def test_the_losses_are_those_of_the_reused_classifier_s_logits() -> None:
    method, teacher = made(ce=2.0, kd=0.5)
    method.eval()
    batch = batch_of(DATA.train.images[:8])
    teacher_output = teacher(batch.images)
    output = method(batch, teacher_output)
    logits = method.classifier_logits(batch.images)["student"]
    assert torch.equal(output.logits, logits)
    torch.testing.assert_close(output.losses["ce"], 2 * F.cross_entropy(logits, batch.labels))
    assert output.losses.keys() == {"ce", "kd", "simkd"}


def test_the_factor_makes_the_projector_narrower() -> None:
    assert [made(factor=factor)[0].plan.width for factor in (1, 2, 8, 999)] == [64, 32, 8, 1]


def test_a_projector_beyond_all_memory_is_refused_in_a_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(simkd, "LARGEST", 1000)
    with pytest.raises(InputError, match=r"^method\.factor: .* more than 1,000; raise"):
        made(factor=2)


def test_the_projector_computes_in_channels_last() -> None:
    pair, _ = make_pair(staged("resnet8"), staged("resnet14"), make_dataset())
    projector = SimKD(pair).reused.projector
    kernels = [layer.weight for layer in projector if isinstance(layer, nn.Conv2d)]
    large = [kernel for kernel in kernels if kernel.shape[2] > 1]
    assert large
    assert all(k.is_contiguous(memory_format=torch.channels_last) for k in large)
