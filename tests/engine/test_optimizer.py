"""Optimizers by name, weight decay of parts of a model, and gradient clipping."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dskd import methods
from dskd.config import recipe
from dskd.engine.dot import DOT
from dskd.engine.memory_usage import held_by_training
from dskd.engine.optimizer import clip, gradient_norm, load_state, make_optimizer, without_decay
from dskd.engine.step import train_step
from dskd.errors import InputError, NonFiniteError
from dskd.methods.base import Method
from dskd.runtime.nonfinite import FiniteStateCheck
from dskd.teacher.outputs import TeacherOutputs
from tests.builders import make_pair, staged
from tests.engine.test_accumulation import DATA, a_batch

timm_optim: Any = pytest.importorskip("timm.optim")
UNUSABLE_HERE = ("bnb", "fused", "kron")
"""They need a GPU and further packages, or are compiled for half a minute."""
USABLE = [
    name
    for name in timm_optim.list_optimizers()
    if not name.startswith(UNUSABLE_HERE) and not timm_optim.get_optimizer_info(name).second_order
]
QUICK = ("timm/sgd", "lamb", "lion", "muon", "madgrad")


def made(name: str = "sgd", **settings: Any) -> tuple[Method, torch.optim.Optimizer]:
    torch.manual_seed(0)
    pair, _ = make_pair(staged(), None, DATA)
    method = methods.find("ce")(pair).train()
    chosen = {"lr": 0.01, "momentum": 0.9, "nesterov": False, "weight_decay": 1e-3} | settings
    return method, make_optimizer(method, name, **chosen)


def steps(method: Method, optimizer: torch.optim.Optimizer, count: int) -> None:
    for _ in range(count):
        train_step(method, TeacherOutputs(None), a_batch(8), optimizer, "float32")


def assert_resumes_to_the_byte(name: str, **settings: Any) -> None:
    method, optimizer = made(name, **settings)
    steps(method, optimizer, 2)
    assert held_by_training(method, optimizer) > 0
    FiniteStateCheck(method, optimizer).require(0, 2)
    file = io.BytesIO()
    torch.save([method.state_dict(), optimizer.state_dict(), torch.get_rng_state()], file)
    steps(method, optimizer, 2)
    file.seek(0)
    weights, state, random = torch.load(file, weights_only=True)
    twin, other = made(name, **settings)
    twin.load_state_dict(weights)
    load_state(other, state)
    torch.set_rng_state(random)
    steps(twin, other, 2)
    for key, value in method.state_dict().items():
        assert torch.equal(value, twin.state_dict()[key]), key


@pytest.mark.parametrize("name", QUICK)
def test_an_optimizer_of_timm_trains_and_resumes_to_the_byte(name: str) -> None:
    method, optimizer = made(name)
    assert type(optimizer).__module__.startswith(("timm.optim", "torch.optim"))
    before = [p.detach().clone() for p in method.parameters()]
    steps(method, optimizer, 1)
    assert not any(map(torch.equal, before, method.parameters()))
    assert_resumes_to_the_byte(name)


class Tiny(nn.Module):
    """A method with a student of two layers, for tests of many optimizers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.student = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.Flatten())
        self.student.append(nn.Linear(4 * 49, 4))

    def take_steps(self, optimizer: torch.optim.Optimizer, count: int) -> None:
        batch = a_batch(8)
        for _ in range(count):
            optimizer.zero_grad()
            logits = self.student(batch.images.float() / 255)
            F.cross_entropy(logits, batch.labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()


@pytest.mark.slow
@pytest.mark.parametrize("name", USABLE)
def test_every_optimizer_of_timm_trains_and_resumes_to_the_byte(name: str) -> None:
    def tiny() -> tuple[Tiny, torch.optim.Optimizer]:
        net: Any = Tiny()
        settings: dict[str, Any] = {"lr": 0.01, "momentum": 0.9, "weight_decay": 1e-3}
        settings |= {"nesterov": False, "decay_norms_and_biases": False}
        return net, make_optimizer(net, f"timm/{name}", **settings)

    net, optimizer = tiny()
    net.take_steps(optimizer, 2)
    assert held_by_training(net, optimizer) > 0
    FiniteStateCheck(net, optimizer).require(0, 2)
    file = io.BytesIO()
    torch.save([net.state_dict(), optimizer.state_dict(), torch.get_rng_state()], file)
    net.take_steps(optimizer, 2)
    file.seek(0)
    weights, state, random = torch.load(file, weights_only=True)
    twin, other = tiny()
    twin.load_state_dict(weights)
    assert not all(map(torch.equal, twin.parameters(), net.parameters()))
    load_state(other, state)
    torch.set_rng_state(random)
    twin.take_steps(other, 2)
    assert all(map(torch.equal, twin.parameters(), net.parameters()))


def test_timm_s_own_sgd_is_not_ours() -> None:
    ours, timm_s = made("sgd")[1], made("timm/sgd")[1]
    assert ours.defaults["nesterov"] is False
    assert timm_s.defaults["nesterov"] is True


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("lamp", "train.optimizer: unknown optimizer 'lamp'; did you mean 'lamb'"),
        ("timm/lambb", "did you mean 'timm/lamb'"),
        ("sgdd", "did you mean 'sgd'"),
        ("timm/adahessian", "second derivatives"),
    ],
)
def test_an_optimizer_that_cannot_be_used_is_refused_by_the_recipe(name: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as refused:
        recipe.load("digits", [f"train.optimizer={name}"])
    assert "\n" not in str(refused.value)


def test_an_optimizer_that_cannot_be_built_is_refused_in_a_line() -> None:
    with pytest.raises(
        InputError, match=r"train={\"optimizer\": \"timm/fusedsgd\"} cannot be built here"
    ):
        made("timm/fusedsgd")


def test_nesterov_is_refused_where_it_does_nothing() -> None:
    with pytest.raises(
        InputError, match=r"train\.nesterov is a setting of train={\"optimizer\": \"sgd\"}"
    ):
        recipe.load("digits", ["train.optimizer=lamb", "train.nesterov=true"])


@pytest.mark.parametrize("name", ["sgd", "adamw", "dot", "lamb"])
def test_norms_and_biases_have_no_weight_decay_if_they_are_exempt(name: str) -> None:
    method, optimizer = made(name, decay_norms_and_biases=False)
    kinds = (nn.Conv2d, nn.Linear)
    weights = {p for m in method.modules() if isinstance(m, kinds) for p in (m.weight,)}
    decayed, exempt = ({*group["params"]} for group in optimizer.param_groups)
    assert decayed == weights
    assert exempt == {*method.parameters()} - weights
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-3, 0.0]
    assert len(made(name)[1].param_groups) == 1


def test_parameters_that_a_timm_model_names_have_no_weight_decay() -> None:
    class WithPositions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pos_embed = nn.Parameter(torch.zeros(1, 4, 8))
            self.layer = nn.Linear(8, 8)

        def no_weight_decay(self) -> set[str]:
            return {"pos_embed"}

    part = WithPositions()
    assert without_decay(nn.Sequential(part)) == {part.pos_embed, part.layer.bias}


def with_gradients(optimizer: torch.optim.Optimizer, value: float) -> list[Tensor]:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, value)
    return parameters


@pytest.mark.parametrize(("highest", "expected"), [(0.5, 0.5), (1e9, None)])
def test_gradients_are_clipped_to_a_norm(highest: float, expected: float | None) -> None:
    optimizer = made()[1]
    parameters = with_gradients(optimizer, 0.1)
    count = sum(p.numel() for p in parameters)
    norm = gradient_norm(optimizer)
    assert norm.item() == pytest.approx(0.1 * count**0.5, rel=1e-4)
    clip(optimizer, highest, norm)
    after = gradient_norm(optimizer).item()
    assert after == pytest.approx(expected or norm.item(), rel=1e-4)


def test_both_gradients_of_dot_are_clipped_by_the_norm_of_their_sum() -> None:
    optimizer = made("dot")[1]
    assert isinstance(optimizer, DOT)
    first = with_gradients(optimizer, 0.1)[0]
    optimizer.distillation_gradients[first] = torch.full_like(first, 0.7)
    norm = gradient_norm(optimizer)
    clip(optimizer, float(norm) / 2, norm)
    torch.testing.assert_close(first.grad, torch.full_like(first, 0.05))
    torch.testing.assert_close(
        optimizer.distillation_gradients[first], torch.full_like(first, 0.35)
    )


def test_a_clipped_step_is_small_and_says_the_norm() -> None:
    method, optimizer = made(momentum=0.0, weight_decay=0.0, lr=1.0)
    before = torch.cat([p.detach().flatten() for p in method.parameters()])
    output = train_step(
        method, TeacherOutputs(None), a_batch(8), optimizer, "float32", clip_norm=1e-3
    )
    after = torch.cat([p.detach().flatten() for p in method.parameters()])
    assert output.metrics["gradient_norm"].item() > 1e-2
    assert (after - before).norm().item() == pytest.approx(1e-3, rel=1e-2)


def test_a_norm_beyond_float32_is_an_error_and_changes_nothing() -> None:
    method, optimizer = made()
    forward = method.forward

    def steep(batch: Any, teacher: Any) -> Any:
        output = forward(batch, teacher)
        return output._replace(losses={"ce": 1e25 * output.losses["ce"]})

    method.forward = steep  # type: ignore[method-assign]
    before = [p.detach().clone() for p in method.parameters()]
    with pytest.raises(NonFiniteError, match="the gradient is not finite"):
        train_step(method, TeacherOutputs(None), a_batch(8), optimizer, "float32", clip_norm=1.0)
    assert all(map(torch.equal, before, method.parameters()))
