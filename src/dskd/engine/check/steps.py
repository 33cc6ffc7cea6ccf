"""Take a few training steps with copies: losses, gradients, speed and memory."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dskd.data.loader import Batch
from dskd.engine.check.findings import LossFindings, StepFindings
from dskd.engine.keep_exits import stage_paths
from dskd.engine.memory_usage import held_by_training, saved_for_backward
from dskd.engine.optimizer import set_rate
from dskd.engine.trainer import Trainer
from dskd.errors import NonFiniteError
from dskd.methods.base import Method
from dskd.models.eval_mode import eval_mode
from dskd.models.output import ModelOutput
from dskd.runtime import cores
from dskd.runtime.device import autocast

STEPS = 20
"""Training steps, at most."""
FEWEST = 2
"""Training steps, however slow they are."""
GROWTH_STEPS = 9
"""Training steps from which on a growing loss counts."""
SECONDS = 8.0
"""Time for the steps of a model."""
SMALL = 8
"""Images of the batch whose losses and gradients are shown."""
GROWS = 3.0
"""The mean loss of the last third of the steps over that of the first third: too large. In sound
runs the loss may grow to one and a half in the first steps."""


def check_losses(trainer: Trainer) -> list[LossFindings]:
    """The size of each loss term, and of its gradient at the student's stages and logits.

    The numbers are those of one small batch, before the first step.

    Args:
        trainer: Its weights stay; buffers may change.
    """
    trainer.method.train()
    batch = _first_batch(trainer, min(SMALL, trainer.step_size))
    with _outputs_of(trainer.method) as outputs, autocast(_device(trainer), trainer.precision):
        teacher = trainer.teacher_outputs(batch, trainer.method.needs)
        losses = trainer.method(batch, teacher).losses
    places = _places(trainer.method, outputs)
    return [
        LossFindings(name, float(loss.detach()), _gradients(loss, places))
        for name, loss in losses.items()
    ]


def _first_batch(trainer: Trainer, size: int) -> Batch:
    """A batch of the run's first epoch with the targets of cross-entropies."""
    return trainer.with_targets(next(trainer.loader.batches(trainer.plan(0, size), size)))


def _device(trainer: Trainer) -> torch.device:
    return trainer.loader.device


@contextmanager
def _outputs_of(method: Method) -> Iterator[list[ModelOutput]]:
    """Collects the outputs of the student in the block."""
    outputs: list[ModelOutput] = []

    def keep(_module: nn.Module, _inputs: Any, output: ModelOutput) -> None:
        outputs.append(output)

    handle = method.student.register_forward_hook(keep)
    try:
        yield outputs
    finally:
        handle.remove()


def _places(method: Method, outputs: list[ModelOutput]) -> dict[str, list[Tensor]]:
    """The stages and the logits of all forward passes of the student, by name."""
    if not outputs:
        return {}
    names = stage_paths(method.student)
    places = {
        name: [output.stages[number] for output in outputs]
        for number, name in enumerate(names[: len(outputs[0].stages)])
    }
    return places | {"logits": [output.logits for output in outputs]}


def _gradients(loss: Tensor, places: dict[str, list[Tensor]]) -> dict[str, float]:
    """The norm of the gradient of a loss at each place; 0 where none arrives."""
    flat = [one for tensors in places.values() for one in tensors]
    wanted = [one for one in flat if one.requires_grad]
    found: dict[int, Tensor] = {}
    if loss.requires_grad and wanted:
        gradients = torch.autograd.grad(loss, wanted, retain_graph=True, allow_unused=True)
        pairs = zip(wanted, gradients, strict=True)
        found = {id(one): gradient for one, gradient in pairs if gradient is not None}
    return {
        name: math.sqrt(
            sum(float(found[id(one)].float().square().sum()) for one in tensors if id(one) in found)
        )
        for name, tensors in places.items()
    }


def check_steps(
    trainer: Trainer, trained: str, warmup: float, seconds: float = SECONDS
) -> StepFindings:
    """Takes a few steps at the learning rate of the run. The trainer's weights change.

    A run with a warmup reaches its rate in the second half of the steps. If the batch of the run
    takes too long on this device, smaller batches are taken; only a loss that is not finite is a
    problem then.

    Args:
        trainer: Of the run, without a cache.
        trained: ``student`` or ``teacher``.
        warmup: Epochs of the warmup of the learning rate.
        seconds: For all steps.
    """
    trainer.method.train()
    losses: list[float] = []
    size = small = min(SMALL, trainer.step_size)
    try:
        set_rate(trainer.optimizer, 0.0)
        batch = _first_batch(trainer, small)
        with saved_for_backward() as saved:
            trainer.take_step(batch)  # the first call is slower
        spent = _seconds_of(lambda: trainer.take_step(batch), _device(trainer))
        size = _batch_size(trainer.step_size, small, spent, seconds / (FEWEST + 2))
        activations = saved.bytes_without(trainer.method.parameters())
        fixed = held_by_training(trainer.method, trainer.optimizer)
        state = _nbytes(trainer.state())
        model_bytes = _nbytes(trainer.method.deployed().state_dict())
        before = cores.times()
        timed = step_seconds, loading, _ = _timed_steps(trainer, size, warmup, seconds, losses)
        waiting = cores.waiting_share(before, cores.times())
        trainer.check_state()
    except NonFiniteError as error:
        return StepFindings(trained, size, losses, problem=str(error))
    found = StepFindings(
        trained,
        size,
        losses,
        *timed,
        fixed_bytes=fixed,
        saved_bytes=activations * trainer.step_size // small,
        state_bytes=state,
        model_bytes=model_bytes,
        evaluation_seconds=_evaluation_seconds(trainer) + step_seconds * loading / size,
        waiting=waiting if _device(trainer).type == "cpu" else 0.0,
    )
    return replace(found, problem=_growth(losses) if size == trainer.step_size else "")


def _batch_size(most: int, small: int, spent: float, allowed: float) -> int:
    """The images of a step that takes no longer than allowed, if that is possible.

    Args:
        most: Of a step of the run.
        small: Of a step that was timed.
        spent: Its time.
        allowed: The time for a step.

    Example:
        >>> _batch_size(64, 8, 0.5, 1.25), _batch_size(64, 8, 9.0, 1.25)
        (16, 8)
    """
    while most > small and most * spent / small > allowed:
        most = max(small, most // 2)
    return most


def _seconds_of(work: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - start


def _evaluation_seconds(trainer: Trainer) -> float:
    """The time to evaluate an image that is loaded."""
    images = trainer.loader.probe(SMALL)
    with eval_mode(trainer.method), torch.no_grad():
        trainer.method.classifier_logits(images)  # the first call is slower
        spent = _seconds_of(lambda: trainer.method.classifier_logits(images), _device(trainer))
    return spent / len(images)


def _wait(device: torch.device) -> None:
    """Waits until a GPU has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _timed_steps(
    trainer: Trainer, size: int, warmup: float, seconds: float, losses: list[float]
) -> tuple[float, float, float]:
    """Takes steps until the time is over; adds their losses.

    Returns:
        The time of a step, and the shares of loading and of the teacher's outputs.
    """
    # The rate of smaller batches is smaller in proportion (Goyal et al., 2017, arXiv:1706.02677).
    rate = trainer.learning_rate(warmup) * size / trainer.step_size
    begun = time.perf_counter()
    loading, watch, steps = 0.0, trainer.teacher_outputs.watch, 0
    with closing(_batches(trainer, size)) as batches:  # workers end with it
        first = trainer.with_targets(next(batches))  # workers start with the first batch
        if size > SMALL:
            trainer.take_step(first)  # the first step of a size is slower
        trainer.optimizer.state.clear()  # the momentum of the steps so far, which the run has not
        watch.set(0.0)
        start = time.perf_counter()
        while steps < STEPS and (steps < FEWEST or time.perf_counter() - begun < seconds):
            asked = time.perf_counter()
            batch = trainer.with_targets(next(batches))
            loading += time.perf_counter() - asked
            share = min(1.0, (steps + 1) / (STEPS / 2)) if warmup else 1.0
            set_rate(trainer.optimizer, rate * share)
            losses.append(float(trainer.take_step(batch).objective.detach()))
            steps += 1
        _wait(_device(trainer))
        total = time.perf_counter() - start
    return total / steps, loading / total, min(1.0, watch.seconds / total)


def _batches(trainer: Trainer, size: int) -> Generator[Batch, None, None]:
    """The batches of the run from its first epoch on."""
    epoch = 0
    while True:
        yield from trainer.loader.batches(trainer.plan(epoch, size), size)
        epoch += 1


def _growth(losses: list[float]) -> str:
    """Why the losses of the steps are none to go on with; empty if they are.

    A loss that has grown and falls again is no reason: the first steps of a sound run may do that.
    """
    if len(losses) < GROWTH_STEPS:
        return ""
    third = len(losses) // 3
    first, middle, last = (
        sum(part) / third for part in (losses[:third], losses[third : 2 * third], losses[-third:])
    )
    if last <= GROWS * first or last < middle:
        return ""
    return f"the loss grows from {first:.3g} to {last:.3g} in {len(losses)} steps"


def _nbytes(state: Any) -> int:
    """Bytes of all tensors in nested dictionaries and lists."""
    if isinstance(state, Tensor):
        return state.nbytes
    values = state.values() if isinstance(state, dict) else state
    if isinstance(values, str | bytes) or not hasattr(values, "__iter__"):
        return 0
    return sum(map(_nbytes, values))
