"""Training: the step, the epoch, and the state that the next step depends on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple
from typing import Any, Literal

import torch
from torch import Tensor

from dskd import ranks
from dskd.answers import Answers, Tally
from dskd.data.plan import EpochPlan, draw_plan, steps
from dskd.data.resident import Batch, Resident
from dskd.device import Precision, autocast
from dskd.errors import InputError, first_line
from dskd.footprint import held_by_training, kept_for_backward
from dskd.methods.base import Method, StepOutput
from dskd.models.output import ModelOutput

OptimizerName = Literal["sgd", "adamw"]
REHEARSED = 8
"""Pictures of the step that shows whether a run can be trained."""


class NotFinite(ArithmeticError):
    """The objective became NaN or infinite; no weight was changed by it."""


def train_step(
    method: Method,
    answers: Answers,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    precision: Precision,
) -> StepOutput:
    """One step: the teacher answers, the method says its losses, their sum is minimised.

    Several processes (`dskd.ranks`) each have a share of the batch, and all take the same step.

    Raises:
        NotFinite: The objective is NaN or infinite. The optimizer has not stepped then.
    """
    with autocast(batch.images.device, precision):
        answer = answers(batch, method.needs)
        output: StepOutput = method(batch, answer)
    objective = output.objective
    if not ranks.everywhere(torch.isfinite(objective)):
        raise NotFinite(_why_not_finite(batch, answer, output))
    optimizer.zero_grad(set_to_none=True)
    objective.backward()  # type: ignore[no-untyped-call]
    ranks.average_gradients(method.parameters(), len(batch.labels))
    optimizer.step()
    return output


def _why_not_finite(batch: Batch, answer: ModelOutput | None, output: StepOutput) -> str:
    """What the first process says whose objective is not finite."""
    own = "" if output.objective.isfinite() else _not_finite(batch, answer, output)
    return next(filter(None, ranks.gathered(own)))


def _not_finite(batch: Batch, answer: ModelOutput | None, output: StepOutput) -> str:
    terms = ", ".join(f"{name} {loss.item():g}" for name, loss in output.losses.items())
    few = batch.indices[:5].tolist()
    where = f"on {len(batch.indices)} pictures, the first of them {few}"
    if answer is not None and not answer.logits.isfinite().all():
        return f"the teacher's logits are not finite {where}; give another teacher"
    return f"the loss is not finite ({terms}) {where}; lower train.lr"


def make_optimizer(
    method: Method,
    name: OptimizerName,
    *,
    lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
) -> torch.optim.Optimizer:
    """The optimizer of the student and of what is trained beside it.

    Raises:
        InputError: The student has no parameter that requires a gradient.
    """
    parameters = [p for p in method.parameters() if p.requires_grad]
    if not any(p.requires_grad for p in method.student.parameters()):
        raise InputError(
            "nothing of the model can learn: requires_grad is False for all its parameters"
        )
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr, weight_decay=weight_decay)
    return torch.optim.SGD(
        parameters, lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay
    )


class Meter:
    """Means over the pictures of an epoch, summed on the device; each process sums its own."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.pictures = 0

    def add(self, batch: Batch, output: StepOutput) -> None:
        """Counts a step in."""
        hits = (output.logits.argmax(1) == batch.labels).float().mean()
        values = {
            "train_loss": output.objective,
            "train_accuracy": 100 * hits,
            **{f"loss/{name}": loss for name, loss in output.losses.items()},
            **output.metrics,
        }
        for name, value in values.items():
            total = value.detach().double() * len(batch.labels)
            self.sums[name] = self.sums[name] + total if name in self.sums else total
        self.pictures += len(batch.labels)

    def means(self) -> dict[str, float]:
        """The mean of each value so far, over the pictures of all processes."""
        pictures = sum(ranks.gathered(self.pictures))
        return {name: ranks.total(own).item() / pictures for name, own in self.sums.items()}

    def mean(self, name: str) -> float:
        """The mean of one value so far, over the pictures of this process."""
        return self.sums[name].item() / self.pictures


class Trainer:
    """A method at work: everything that the next step depends on, and the loop that takes it.

    Args:
        method: The method, on its device.
        answers: Of the teacher, on the same device.
        split: The training split, on the same device.
        optimizer: Over the method's parameters.
        learning_rate: From epochs done (with a fraction) to the rate.
        seed: Of the epoch plans.
        epochs: How many.
        batch_size: Pictures a step, of all processes together.
        padding: Of the random crop, in pixels.
        flip: Mirror half of the pictures.
        precision: Of the forward passes; losses and weights stay in float32.
        bank: The views that each picture is limited to; None for all (`dskd.data.plan.draw_bank`).

    Attributes:
        seconds: Of the running epoch's steps, the teacher's included, and before the first of the
            run, of what the method prepared.
        memory: Bytes that the run's first step held in this process, the teacher's own aside:
            weights and buffers, gradients, the optimizer's state, and what the forward pass keeps
            for the gradients.
    """

    def __init__(
        self,
        method: Method,
        answers: Answers,
        split: Resident,
        optimizer: torch.optim.Optimizer,
        learning_rate: Callable[[float], float],
        *,
        seed: int,
        epochs: int,
        batch_size: int,
        padding: int,
        flip: bool,
        precision: Precision,
        bank: Tensor | None = None,
    ) -> None:
        self.method, self.answers, self.split = method, answers, split
        self.optimizer, self.learning_rate = optimizer, learning_rate
        self.seed, self.epochs, self.batch_size = seed, epochs, batch_size
        self.padding, self.flip, self.precision = padding, flip, precision
        self.bank = bank
        self.steps = steps(len(split), batch_size, ranks.world())
        self.epoch, self.step = 0, 0
        self.meter, self.seconds = Meter(), 0.0
        self.memory = 0

    def train_epoch(self) -> Iterator[None]:
        """The rest of the running epoch; yields after every step.

        Every step leaves the trainer in a state that `state` can save and `restore` go on from.
        """
        plan = self._plan(self.epoch)
        self.method.train()
        start = time.perf_counter()
        share = ranks.rank(), ranks.world()
        for batch in self.split.planned(plan, self.batch_size, self.step, *share):
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr
            with self._measured():
                output = train_step(
                    self.method, self.answers, batch, self.optimizer, self.precision
                )
            self.meter.add(batch, output)
            self.step += 1
            self.seconds += time.perf_counter() - start
            yield
            start = time.perf_counter()

    @contextmanager
    def _measured(self) -> Iterator[None]:
        """Notes what the run's first step holds in memory."""
        if self.memory:
            yield
            return
        with kept_for_backward() as kept:
            yield
        self.memory = kept.bytes + held_by_training(self.method, self.optimizer)

    def _plan(self, epoch: int) -> EpochPlan:
        pictures = len(self.split)
        return draw_plan(self.seed, epoch, pictures, self.padding, self.flip, self.bank)

    def prepare(self) -> None:
        """Lets the method train what it needs before the student's first step."""
        start = time.perf_counter()
        self.method.train()
        self.method.prepare(self._answered)
        self.seconds += time.perf_counter() - start

    def _answered(self, epochs: int) -> Iterator[tuple[Batch, ModelOutput | None]]:
        """Batches of epochs behind the run's own, with the teacher's answers.

        Each process gets the whole of them, so that all prepare the same.
        """
        for epoch in range(self.epochs, self.epochs + epochs):
            for batch in self.split.planned(self._plan(epoch), self.batch_size):
                with autocast(self.split.device, self.precision):
                    answer = self.answers(batch, self.method.needs)
                yield batch, answer

    def rehearse(self) -> None:
        """Takes a step with a few pictures, in training mode, to see that it can be taken.

        For objects that are thrown away afterwards: their weights are changed.

        Raises:
            InputError: It cannot, or the teacher's logits are not finite.
        """
        plan = self._plan(0)
        self.method.train()
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0
        try:
            batch = next(self.split.planned(plan, min(self.batch_size, REHEARSED)))
            train_step(self.method, self.answers, batch, self.optimizer, self.precision)
        except InputError:
            raise
        except Exception as error:  # anybody's module may raise anything
            name = type(self.method.deployed()).__name__
            raise InputError(
                f"{name} cannot be trained on these pictures: {first_line(error)}"
            ) from error

    def end_epoch(self) -> None:
        """Turns to the next epoch."""
        self.epoch, self.step = self.epoch + 1, 0
        self.meter, self.seconds = Meter(), 0.0
        self.answers.watch.set(0.0)
        self._set_tally((0, 0))

    def _set_tally(self, counts: tuple[int, int]) -> None:
        if self.answers.tally is not None:
            self.answers.tally = Tally(*counts)

    @property
    def lr(self) -> float:
        """The learning rate of the coming step."""
        return self.learning_rate(self.epoch + self.step / self.steps)

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "seconds": self.seconds,
            "teacher_seconds": self.answers.watch.seconds,
            "teacher_hits": astuple(self.answers.tally or Tally()),
            "memory": self.memory,
            "ranks": ranks.gathered(self._own_state()),
        }

    def _own_state(self) -> dict[str, Any]:
        """What differs between the processes of a run."""
        return {
            "sums": {name: total.cpu() for name, total in self.meter.sums.items()},
            "pictures": self.meter.pictures,
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes back to a state that as many processes saved."""
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.step = state["epoch"], state["step"]
        own, device = state["ranks"][ranks.rank()], self.split.device
        self.meter.sums = {name: total.to(device) for name, total in own["sums"].items()}
        self.meter.pictures = own["pictures"]
        self.seconds = state["seconds"]
        self.answers.watch.set(state["teacher_seconds"])
        self._set_tally(state["teacher_hits"])
        self.memory = state["memory"]
        torch.set_rng_state(own["random"].cpu())
        if own["random_cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all([s.cpu() for s in own["random_cuda"]])
