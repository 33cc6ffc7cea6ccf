"""The optimizer DOT: the published steps, two gradients in every method, resuming, refusals."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dskd import methods
from dskd.config import recipe
from dskd.config.schema import Recipe
from dskd.data.epoch_plan import draw_plan
from dskd.data.loader import Batch, MemoryLoader
from dskd.engine import run
from dskd.engine.dot import DOT, separated
from dskd.engine.memory_usage import held_by_training
from dskd.engine.optimizer import load_state, make_optimizer
from dskd.engine.prepare import teacher_recipe
from dskd.engine.step import train_step
from dskd.errors import InputError, NonFiniteError, Stopped, on_command_line
from dskd.methods.base import Method
from dskd.methods.contracts import StepOutput
from dskd.runtime import distributed
from dskd.teacher.outputs import TeacherOutputs
from tests.builders import make_dataset, make_pair, staged, stop_at
from tests.methods import declared
from tests.reference_values import FACTS, given
from tests.runtime.test_distributed import CPU, made_method, parallel, together

CASES: dict[str, Any] = json.loads((FACTS / "losses2.json").read_text())["optimizer"]
Step = Callable[[dict[str, nn.Parameter], int], None]
DATA = make_dataset(classes=4, per_class=6, size=16)
BUFFERS = {"task_momentum": "task_momentum", "kd_momentum": "distillation_momentum"}


def set_given(weights: dict[str, nn.Parameter], step: int) -> dict[Tensor, Tensor]:
    """The stored gradients of a step, for the weights that have them."""
    second: dict[Tensor, Tensor] = {}
    for name, weight in weights.items():
        if name != "kd_only":
            weight.grad = given("dot_task_grads").detach()[step]
        if name != "task_only":
            second[weight] = given("dot_kd_grads").detach()[step]
    return second


def regression(weights: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """The two losses of the linear model."""
    predicted = given("dot_x").detach() @ weights["W"].T + weights["b"]
    targets = {"ce": given("dot_y").detach(), "kd": given("dot_y_teacher").detach()}
    return {name: 0.5 * (predicted - y).square().sum() / 8 for name, y in targets.items()}


@pytest.mark.parametrize("case", CASES)
def test_every_step_is_that_of_the_authors_code(case: str) -> None:
    fact = CASES[case]
    settings, linear = fact["settings"], case == "dot_linear"
    starts = {
        key.removeprefix("weights."): value
        for key, value in fact["steps"][0].items()
        if key.startswith("weights.")
    }
    shapes = {"W": (3, 4)}
    weights = {
        name: nn.Parameter(torch.tensor(start, dtype=torch.float64).view(shapes.get(name, (-1,))))
        for name, start in starts.items()
    }
    keys = ("momentum", "delta", "weight_decay")
    optimizer = DOT(weights.values(), 0.1, **{key: settings[key] for key in keys})
    for step, expected in enumerate(fact["steps"][1:]):
        rate = (0.1 if step < 4 else 0.01) if linear else settings["lr"]
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        if linear:
            optimizer.take_gradients(regression(weights))
        else:
            optimizer.distillation_gradients = set_given(weights, step)
        optimizer.step()
        for name, weight in weights.items():
            found = {"weights": weight.detach()} | {
                theirs: optimizer.state[weight].get(ours) for theirs, ours in BUFFERS.items()
            }
            for key, value in found.items():
                numbers = expected[f"{key}.{name}"]
                assert (value is None) == (numbers is None), (step, key, name)
                if value is not None:
                    np.testing.assert_allclose(value.flatten(), numbers, rtol=1e-12, atol=1e-14)


def test_with_delta_0_it_is_sgd_on_the_sum_of_the_losses() -> None:
    ends = []
    for kind in (DOT, torch.optim.SGD):
        weights = {"W": given("dot_W0"), "b": given("dot_b0")}
        leaves: Any = {name: nn.Parameter(value.detach()) for name, value in weights.items()}
        optimizer: Any
        if kind is DOT:
            optimizer = DOT(leaves.values(), 0.1, delta=0.0, weight_decay=0.1)
        else:
            optimizer = torch.optim.SGD(leaves.values(), 0.1, momentum=0.9, weight_decay=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            losses = regression(leaves)
            if kind is DOT:
                optimizer.take_gradients(losses)
            else:
                torch.stack([*losses.values()]).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        ends.append(leaves["W"].detach())
    torch.testing.assert_close(*ends)


def made(name: str, **settings: Any) -> tuple[Method, TeacherOutputs, DOT, Batch]:
    torch.manual_seed(0)
    pair, frozen = make_pair(staged("resnet8"), staged("resnet8"), DATA)
    method = methods.find(name)(pair, **declared.small(name) | settings).train()
    outputs = TeacherOutputs(frozen)
    plan = draw_plan(0, 0, len(DATA.train), 2, True)
    batches = list(MemoryLoader(DATA.train, CPU).batches(plan, 8))
    epoch = [(batch, outputs(batch, method.needs)) for batch in batches]
    method.prepare(lambda epochs: iter(epoch * epochs))
    return method, outputs, dot_of(method), batches[0]


def dot_of(method: Method) -> DOT:
    optimizer = make_optimizer(
        method, "dot", lr=0.01, momentum=0.9, nesterov=False, weight_decay=1e-3, dot_delta=0.05
    )
    assert isinstance(optimizer, DOT)
    return optimizer


def test_the_settings_of_a_run_reach_the_optimizer() -> None:
    group = made("kd")[2].param_groups[0]
    found = {key: group[key] for key in ("lr", "momentum", "delta", "weight_decay")}
    assert found == {"lr": 0.01, "momentum": 0.9, "delta": 0.05, "weight_decay": 1e-3}


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in methods.names() if methods.find(n).needs_teacher])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_two_gradients_of_every_method_are_those_of_its_losses(
    name: str, precision: Any
) -> None:
    method, outputs, optimizer, batch = made(name)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        output = method(batch, outputs(batch, method.needs))
    parameters = [p for p in method.parameters() if p.requires_grad]
    whole = torch.autograd.grad(output.objective, parameters, retain_graph=True)
    optimizer.take_gradients(output.losses)
    for parameter, expected in zip(parameters, whole, strict=True):
        parts = [parameter.grad, optimizer.distillation_gradients.get(parameter)]
        total = torch.stack([part for part in parts if part is not None]).sum(0)
        scale = sum(float(part.norm()) for part in parts if part is not None)
        tolerance = 0.03 if precision == "bfloat16" else 1e-4
        assert float((total - expected).norm()) <= tolerance * scale + 1e-6
    before = [p.detach().clone() for p in parameters]
    optimizer.step()
    assert all(p.isfinite().all() for p in parameters)
    assert not all(map(torch.equal, before, parameters))


def test_the_labels_loss_alone_is_the_task() -> None:
    method, outputs, optimizer, batch = made("at", kd=2.0)
    output = method(batch, outputs(batch, method.needs))
    parameters = [p for p in method.parameters() if p.requires_grad]
    expected = torch.autograd.grad(output.losses["ce"], parameters, retain_graph=True)
    optimizer.take_gradients(output.losses)
    for parameter, gradient in zip(parameters, expected, strict=True):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, gradient)


def test_a_bad_distillation_gradient_changes_nothing_and_is_named() -> None:
    method, outputs, optimizer, batch = made("kd")
    train_step(method, outputs, batch, optimizer, "float32")
    before = [p.detach().clone() for p in method.parameters()]
    buffers = [value.clone() for s in optimizer.state.values() for value in s.values()]
    forward = method.forward

    def spoiled(batch: Batch, teacher: Any) -> StepOutput:
        output = forward(batch, teacher)
        assert method.student.linear_classifier is not None
        weight = method.student.linear_classifier.weight
        # Its value is 0, its gradient infinite.
        output.losses["kd"] = output.losses["kd"] + (weight - weight.detach()).sum().abs().sqrt()
        return output

    method.forward = spoiled  # type: ignore[method-assign]
    with pytest.raises(NonFiniteError, match=r"the gradient of student\.module\.fc\.weight is not"):
        train_step(method, outputs, batch, optimizer, "float32")
    assert all(map(torch.equal, before, method.parameters()))
    after = [value for s in optimizer.state.values() for value in s.values()]
    assert all(map(torch.equal, buffers, after))


def test_memory_counts_both_gradients_and_both_buffers() -> None:
    method, outputs, optimizer, batch = made("kd")
    train_step(method, outputs, batch, optimizer, "float32")
    weights = sum(p.nbytes for p in method.parameters())
    buffers = sum(b.nbytes for b in method.buffers())
    assert held_by_training(method, optimizer) == 5 * weights + buffers


def test_a_saved_state_goes_on_to_the_byte() -> None:
    method, outputs, optimizer, batch = made("at")
    for _ in range(2):
        train_step(method, outputs, batch, optimizer, "float32")
    saved = {k: v.clone() for k, v in method.state_dict().items()}
    state = copy.deepcopy(optimizer.state_dict())
    twin, _, other, _ = made("at")
    twin.load_state_dict(saved)
    load_state(other, state)
    for one, its in ((method, optimizer), (twin, other)):
        train_step(one, outputs, batch, its, "float32")
    for key, value in method.state_dict().items():
        assert torch.equal(value, twin.state_dict()[key]), key


SMALL = [
    "data.fraction=0.1",
    "student.name=resnet8",
    "teacher.name=resnet8",
    "teacher.epochs=1",
    "train.epochs=2",
    "train.batch_size=32",
    "method={name: kd}",
    "train.optimizer=dot",
]


def plan(out: Path, *changes: str) -> Recipe:
    return recipe.load("digits", [*SMALL, f"out={out}", *changes])


@pytest.mark.slow
def test_a_run_resumes_to_the_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run.distill(plan(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        stop_at(patch, 1, 2)
        with pytest.raises(Stopped):
            run.distill(plan(tmp_path / "parts"))
    run.distill(plan(tmp_path / "parts"), resume=True)
    whole, parts = (tmp_path / part / "student.safetensors" for part in ("whole", "parts"))
    assert whole.read_bytes() == parts.read_bytes()


def test_the_teacher_is_trained_by_sgd(tmp_path: Path) -> None:
    train = teacher_recipe(plan(tmp_path, "train.dot_delta=0.05")).train
    assert (train.optimizer, train.dot_delta, train.momentum) == ("sgd", 0.075, 0.9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["method={name: ce}"], "the method 'ce' has no teacher; set train.optimizer=sgd"),
        (["train.nesterov=true"], "train.optimizer=dot has no Nesterov momentum"),
        (["train.compile=true"], "torch compiles one backward pass of a step"),
        (["train.dot_delta=0.1"], "0.1 moves the momentum 0.9 below 0 or to 1 and more"),
        (["train.momentum=0.05"], "0.075 moves the momentum 0.05 below 0"),
        (["train.optimizer=sgd", "train.dot_delta=0.1"], "dot_delta needs train.optimizer=dot"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    tmp_path: Path, changes: list[str], message: str
) -> None:
    with on_command_line(), pytest.raises(InputError) as refused:
        plan(tmp_path / "run", *changes)
    assert message in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_training_by_labels_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="and this method gives ce; take train"):
        run.train(plan(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_losses_without_labels_cannot_be_separated() -> None:
    with pytest.raises(InputError, match="this method gives kd, at"):
        separated({"kd": torch.zeros(()), "at": torch.zeros(())})


def both_gradients(name: str) -> dict[str, tuple[Tensor | None, Tensor | None]]:
    """Of one step with nine images: five and four for two processes."""
    method, outputs = made_method(name)
    shared = (distributed.rank(), distributed.world_size())
    data = make_dataset(per_class=6)
    epoch = draw_plan(0, 0, len(data.train.labels), 2, True)
    batch = next(MemoryLoader(data.train, CPU).batches(epoch, 9, 0, *shared))
    optimizer = DOT([p for p in method.parameters() if p.requires_grad], 0.0)
    train_step(method, outputs, batch, optimizer, "float32", parallel(method))
    second = optimizer.distillation_gradients
    return {n: (p.grad, second.get(p)) for n, p in method.named_parameters() if p.requires_grad}


def _write_gradients(out: Path) -> None:
    with distributed.process_group(CPU):
        found = {name: both_gradients(name) for name in ("kd", "at", "fitnet")}
        if distributed.rank() == 0:
            torch.save(found, out / "found.pt")


@pytest.mark.slow
@pytest.mark.distributed
def test_several_processes_have_the_gradients_of_one(tmp_path: Path) -> None:
    together(2, _write_gradients, tmp_path)
    for name, found in torch.load(tmp_path / "found.pt").items():
        expected = both_gradients(name)
        assert found.keys() == expected.keys()
        for key, pair in expected.items():
            for ours, theirs in zip(found[key], pair, strict=True):
                assert (ours is None) == (theirs is None), (name, key)
                if theirs is not None:
                    scale = theirs.abs().max().clamp_min(1.0).item()
                    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * scale)
