"""Training in float16: the loss is scaled, and steps that overflow are skipped and counted."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from dskd.config import recipe
from dskd.config.schema import Recipe
from dskd.engine import loss_scaler, run
from dskd.engine.loss_scaler import LossScaler, check_float16
from dskd.engine.step import train_step
from dskd.errors import InputError, NonFiniteError, Stopped, on_command_line
from dskd.methods.base import Method
from dskd.teacher.outputs import TeacherOutputs
from tests.builders import stop_at
from tests.engine.test_targets import CPU, a_batch, made


def step(method: Method, scaler: LossScaler, optimizer: torch.optim.Optimizer, **more: Any) -> Any:
    return train_step(
        method, TeacherOutputs(None), a_batch(8), optimizer, "float16", scaler=scaler, **more
    )


def weights(method: Method) -> list[torch.Tensor]:
    return [p.detach().clone() for p in method.parameters()]


def steep(method: Method, factor: float) -> None:
    """Multiplies the loss's gradients, not its value."""
    forward = method.forward

    def changed(batch: Any, teacher: Any) -> Any:
        output = forward(batch, teacher)
        loss = output.losses["ce"]
        return output._replace(losses={"ce": factor * loss - (factor - 1) * loss.detach()})

    method.forward = changed  # type: ignore[method-assign]


@pytest.mark.parametrize("parts", [1, 3])
def test_a_step_in_float16_has_about_the_gradient_of_float32(parts: int) -> None:
    found = []
    for precision, scaler in (("float32", None), ("float16", LossScaler(CPU))):
        method, outputs = made("kd")
        optimizer = torch.optim.SGD(method.parameters(), 0.1)
        train_step(
            method,
            outputs,
            a_batch(8),
            optimizer,
            precision,  # type: ignore[arg-type]
            parts=parts,
            scaler=scaler,
        )
        gradients = [p.grad for p in method.parameters() if p.grad is not None]
        found.append(torch.cat([gradient.flatten() for gradient in gradients]))
    exact, half = found
    assert not torch.equal(exact, half)
    assert float((exact - half).norm() / exact.norm()) < 0.1


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_a_step_that_overflows_is_skipped_and_halves_the_scale(clip_norm: float | None) -> None:
    method, _ = made("ce")
    optimizer = torch.optim.SGD(method.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    scaler = LossScaler(CPU)
    step(method, scaler, optimizer, clip_norm=clip_norm)
    assert scaler.skipped == 0
    steep(method, 1e35)
    before, scale = weights(method), scaler.state()["scaler"]["scale"]
    output = step(method, scaler, optimizer, clip_norm=clip_norm)
    assert scaler.skipped == 1
    assert scaler.state()["scaler"]["scale"] == scale / 2
    assert all(map(torch.equal, before, weights(method)))
    assert all(math.isfinite(value.item()) for value in output.metrics.values())
    assert output.objective.isfinite()


def test_a_fused_optimizer_does_not_see_a_step_that_overflows() -> None:
    """In its first step it would make a momentum, and leave it as the memory was."""
    method, _ = made("ce")
    optimizer = torch.optim.SGD(method.parameters(), 0.1, momentum=0.9, fused=True)
    steep(method, 1e35)
    step(method, scaler := LossScaler(CPU), optimizer)
    assert scaler.skipped == 1
    assert not optimizer.state


def test_an_overflow_that_no_scale_prevents_is_an_error() -> None:
    method, _ = made("ce")
    optimizer = torch.optim.SGD(method.parameters(), 0.1)
    scaler = LossScaler(CPU)
    forward = method.forward

    def infinite(batch: Any, teacher: Any) -> Any:
        output, weight = forward(batch, teacher), next(method.parameters())
        # Its value is 0, its gradient infinite.
        root = (weight - weight.detach()).sum().abs().sqrt()
        return output._replace(losses={"ce": output.losses["ce"] + root})

    method.forward = infinite  # type: ignore[method-assign]
    before = weights(method)
    for _ in range(16):  # from 65536 to 1
        step(method, scaler, optimizer)
    assert scaler.skipped == 16
    with pytest.raises(NonFiniteError, match=r"the gradient of .* is not finite"):
        step(method, scaler, optimizer)
    assert all(map(torch.equal, before, weights(method)))


def test_a_loss_that_is_not_finite_is_an_error_at_any_scale() -> None:
    method, _ = made("ce")
    forward = method.forward

    def spoiled(batch: Any, teacher: Any) -> Any:
        output = forward(batch, teacher)
        return output._replace(losses={"ce": output.losses["ce"] * math.nan})

    method.forward = spoiled  # type: ignore[method-assign]
    optimizer = torch.optim.SGD(method.parameters(), 0.1)
    scaler = LossScaler(CPU)
    with pytest.raises(NonFiniteError, match="the loss is not finite"):
        step(method, scaler, optimizer)
    assert scaler.skipped == 0


def test_a_saved_scaler_goes_on() -> None:
    method, _ = made("ce")
    optimizer = torch.optim.SGD(method.parameters(), 0.0)
    scaler, other = LossScaler(CPU), LossScaler(CPU)
    step(method, scaler, optimizer)
    steep(method, 1e35)
    step(method, scaler, optimizer)
    other.restore(scaler.state())
    assert other.state() == scaler.state()
    assert other.skipped == 1


def half_run(out: Path, *changes: str) -> Recipe:
    settings = ["data.fraction=0.1", "train.epochs=3", "train.batch_size=32", "teacher=null"]
    half = ["student.name=resnet8", "method={name: ce}", "train.precision=float16", f"out={out}"]
    return recipe.load("digits", [*settings, *half, *changes])


@pytest.mark.slow
def test_a_run_in_float16_counts_skipped_steps_and_resumes_to_the_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run.distill(half_run(tmp_path / "whole"))
    rows = [json.loads(line) for line in (result.path / "metrics.jsonl").read_text().splitlines()]
    assert all(type(row["skipped_steps"]) is int for row in rows)
    with monkeypatch.context() as patch:
        stop_at(patch, 1, 1)
        with pytest.raises(Stopped):
            run.distill(half_run(tmp_path / "parts"))
    run.distill(half_run(tmp_path / "parts"), resume=True)
    files = [tmp_path / part / "student.safetensors" for part in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_device_without_float16_is_refused_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    check_float16(CPU)

    def missing(*_: Any) -> Any:
        raise RuntimeError('"conv" not implemented for\n Half')

    monkeypatch.setattr(loss_scaler, "autocast", missing)
    message = r"precision=float16: torch cannot train in it"
    with on_command_line(), pytest.raises(InputError, match=message) as refused:
        check_float16(CPU)
    assert "\n" not in str(refused.value)


def test_dot_takes_two_gradients_and_refuses_float16() -> None:
    with pytest.raises(InputError, match="scales one loss of a step"):
        recipe.load("digits", ["train.optimizer=dot", "train.precision=float16"])
