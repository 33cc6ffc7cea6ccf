"""Training: the step, the epoch, and the state that the next step depends on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dskd.data.epoch_plan import EpochPlan, draw_plan, steps
from dskd.data.loader import Batch, Loader
from dskd.engine.cuda_graph import (
    Recorded,
    Recorder,
    buffers_in_place,
    capturable,
    detached,
    narrowed,
)
from dskd.engine.memory_usage import held_by_training, saved_for_backward
from dskd.engine.metrics import EpochMetrics
from dskd.engine.optimizer import load_state, set_rate
from dskd.errors import InputError, NonFiniteError, first_line
from dskd.methods.base import Method
from dskd.methods.contracts import StepOutput, TeacherNeeds
from dskd.models.output import ModelOutput
from dskd.runtime import distributed
from dskd.runtime.device import autocast
from dskd.runtime.nonfinite import (
    Finite,
    FiniteStateCheck,
    explained,
    facts_of,
    require_finite,
)
from dskd.settings import Precision
from dskd.teacher.outputs import CacheCounts, TeacherOutputs

REHEARSED = 8
"""Images of the step that shows whether a run can be trained."""
CHECKED_EVERY = 100
"""Steps after which a GPU is asked whether its numbers were finite: the asking waits for it."""


def train_step(
    method: Method,
    teacher_outputs: Callable[[Batch, TeacherNeeds], ModelOutput | None],
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    precision: Precision,
    finite: Finite | None = None,
) -> StepOutput:
    """One step: the teacher answers, the method says its losses, their sum is minimised.

    Several processes (`dskd.runtime.distributed`) each have a share of the batch, and all take the same step. The
    teacher's logits, losses and gradients never change a weight where one is NaN or infinite. With
    ``finite`` that is noted there, and nothing waits for it; without, it ends the step.

    Raises:
        NotFinite: Without ``finite``, one of them is NaN or infinite.
    """
    with autocast(batch.images.device, precision):
        teacher_output = teacher_outputs(batch, method.needs)
        output: StepOutput = method(batch, teacher_output)
    optimizer.zero_grad(set_to_none=True)
    output.objective.backward()  # type: ignore[no-untyped-call]
    distributed.average_gradients(method.parameters(), len(batch.labels))
    logits = teacher_output.logits if teacher_output is not None and method.needs.logits else None
    if finite is not None:
        finite.note(logits, output.losses)
    else:
        require_finite(method, batch, logits, output.losses, optimizer)
    optimizer.step()
    return output


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
        batch_size: Images a step, of all processes together.
        padding: Of the random crop, in pixels.
        flip: Mirror half of the images.
        precision: Of the forward passes; losses and weights stay in float32.
        bank: The views that each image is limited to; None for all (`dskd.data.epoch_plan.draw_views`).
        recorder: Has steps recorded once and replayed; None to take each as it is.

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
        teacher_outputs: TeacherOutputs,
        split: Loader,
        optimizer: torch.optim.Optimizer,
        learning_rate: Callable[[float], float],
        *,
        seed: int,
        epochs: int,
        batch_size: int,
        padding: int,
        flip: bool,
        precision: Precision,
        views_of_each: Tensor | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self.method, self.teacher_outputs, self.split = method, teacher_outputs, split
        self.optimizer, self.learning_rate = optimizer, learning_rate
        self.seed, self.epochs, self.batch_size = seed, epochs, batch_size
        self.padding, self.flip, self.precision = padding, flip, precision
        self.views_of_each = views_of_each
        self.steps = steps(len(split), batch_size, distributed.world_size())
        self.epoch, self.step = 0, 0
        self.metrics, self.seconds = EpochMetrics(), 0.0
        self.memory = 0
        # Several processes agree on every step, which waits for all of them anyway.
        noted = optimizer.defaults["fused"] and distributed.world_size() == 1
        self.finite = Finite(optimizer) if noted else None
        self._state = FiniteStateCheck(method, optimizer)
        self.recorder = recorder
        self._recorded: Recorded[StepOutput] | None = None

    def train_epoch(self) -> Iterator[None]:
        """The rest of the running epoch; yields after every step.

        Every step leaves the trainer in a state that `state` can save and `restore` go on from.

        Raises:
            NotFinite: A number of a step is NaN or infinite; see `check_finite`.
        """
        plan = self._plan(self.epoch)
        self.method.train()
        if self.finite is not None:
            self.finite.count_from(self.step)
        if self.recorder is not None and self._recorded is None:
            self._recorded = self._record(self.recorder)
        start = time.perf_counter()
        share = distributed.rank(), distributed.world_size()

        def planned(step: int) -> Iterator[Batch]:
            return self.split.batches(plan, self.batch_size, step, *share)

        for batch in self.teacher_outputs.following(planned, self.step, self.method.needs):
            set_rate(self.optimizer, self.lr)
            with self._measured():
                output = self._step(batch)
            self.metrics.add(batch, output)
            self.step += 1
            if self.step % CHECKED_EVERY == 0 or self.step == self.steps:
                self.check_finite()
            self.seconds += time.perf_counter() - start
            yield
            start = time.perf_counter()

    def check_finite(self) -> None:
        """Waits for the steps so far, and sees that their numbers were finite.

        On a CPU each step has seen to it already, and on a GPU this is asked now and then.

        Raises:
            NotFinite: One was not; the weights are those from before it.
        """
        if self.finite is None or (step := self.finite.steps_before_bad()) is None:
            return
        plan = self._plan(self.epoch)
        batch = next(self.split.batches(plan, self.batch_size, start=step))
        # From the same weights the same step fails again, and says why.
        train_step(self.method, self.teacher_outputs, batch, self.optimizer, self.precision)
        raise explained(facts_of(batch, self.finite.bad_parts()))

    def check_state(self) -> None:
        """Waits for the steps so far, and sees that they left nothing but finite numbers.

        That is asked before anything of the trainer is evaluated or kept.

        Raises:
            NotFinite: A number of a step was not finite, or of what is kept now.
        """
        self.check_finite()
        self._state.require(self.epoch, self.step)

    @contextmanager
    def _measured(self) -> Iterator[None]:
        """Notes what the run's first step holds in memory."""
        if self.memory:
            yield
            return
        with saved_for_backward() as kept:
            yield
        self.memory = kept.bytes + held_by_training(self.method, self.optimizer)

    def _plan(self, epoch: int) -> EpochPlan:
        images = len(self.split)
        return draw_plan(self.seed, epoch, images, self.padding, self.flip, self.views_of_each)

    def prepare(self, check: Callable[[], None] = lambda: None) -> None:
        """Lets the method train what it needs before the student's first step.

        Args:
            check: Called before each batch of it, and at its end; what it raises ends it.
        """
        start = time.perf_counter()
        self.method.train()
        self.method.prepare(partial(self._with_outputs, check))
        check()
        self.seconds += time.perf_counter() - start

    def _step(self, batch: Batch) -> StepOutput:
        """A step, replayed where the trainer has a recorder."""
        if self._recorded is None:
            return train_step(
                self.method,
                self.teacher_outputs,
                batch,
                self.optimizer,
                self.precision,
                self.finite,
            )
        with autocast(self.split.device, self.precision):
            teacher_output = self.teacher_outputs(batch, self.method.needs)
        return self._recorded(batch, narrowed(teacher_output, self.method.needs))

    def _record(self, recorder: Recorder) -> Recorded[StepOutput]:
        """Has the teacher's outputs recorded, and the student's step behind them."""
        turns = 4 if self.method.needs.rotated else 1
        self.teacher_outputs.record(turns * self.batch_size, recorder)

        def step(batch: Batch, teacher_output: ModelOutput | None) -> StepOutput:
            capturable(self.optimizer)
            with buffers_in_place(self.method):
                output = train_step(
                    self.method,
                    lambda *_: teacher_output,
                    batch,
                    self.optimizer,
                    self.precision,
                    self.finite,
                )
            return detached(output)

        return Recorded(step, self.batch_size, recorder)

    def _with_outputs(
        self, check: Callable[[], None], epochs: int
    ) -> Iterator[tuple[Batch, ModelOutput | None]]:
        """Batches of epochs behind the run's own, with the teacher's outputs.

        Each process gets the whole of them, so that all prepare the same.
        """
        for epoch in range(self.epochs, self.epochs + epochs):
            for batch in self.split.batches(self._plan(epoch), self.batch_size):
                check()
                with autocast(self.split.device, self.precision):
                    teacher_output = self.teacher_outputs(batch, self.method.needs)
                yield batch, teacher_output

    def rehearse(self) -> None:
        """Takes a step with a few images, in training mode, to see that it can be taken.

        For objects that are thrown away afterwards: their weights are changed.

        Raises:
            InputError: It cannot.
            NotFinite: A loss, a gradient or the teacher's logits are not finite.
        """
        plan = self._plan(0)
        self.method.train()
        set_rate(self.optimizer, 0.0)
        try:
            batch = next(self.split.batches(plan, min(self.batch_size, REHEARSED)))
            train_step(self.method, self.teacher_outputs, batch, self.optimizer, self.precision)
        except (InputError, NonFiniteError):
            raise
        except Exception as error:  # anybody's module may raise anything
            name = type(self.method.deployed()).__name__
            raise InputError(
                f"{name} cannot be trained on these images: {first_line(error)}"
            ) from error

    def end_epoch(self) -> None:
        """Turns to the next epoch."""
        self.epoch, self.step = self.epoch + 1, 0
        self.metrics, self.seconds = EpochMetrics(), 0.0
        self.teacher_outputs.watch.set(0.0)
        self._set_tally((0, 0))

    def _set_tally(self, counts: tuple[int, int]) -> None:
        if self.teacher_outputs.cache_counts is not None:
            self.teacher_outputs.cache_counts = CacheCounts(*counts)

    @property
    def lr(self) -> float:
        """The learning rate of the coming step."""
        return self.learning_rate(self.epoch + self.step / self.steps)

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on.

        Raises:
            NotFinite: A number was NaN or infinite: there is no next step.
        """
        self.check_state()
        return {
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "seconds": self.seconds,
            "teacher_seconds": self.teacher_outputs.watch.seconds,
            "teacher_cache_hit_rate": astuple(self.teacher_outputs.cache_counts or CacheCounts()),
            "memory": self.memory,
            "ranks": distributed.all_gather(self._own_state()),
        }

    def _own_state(self) -> dict[str, Any]:
        """What differs between the processes of a run."""
        return {
            "metrics": self.metrics.state(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes back to a state that as many processes saved."""
        self.method.load_state_dict(state["method"])
        load_state(self.optimizer, state["optimizer"])
        self.epoch, self.step = int(state["epoch"]), int(state["step"])
        own = state["ranks"][distributed.rank()]
        self.metrics.restore(own["metrics"], self.split.device)
        self.seconds = float(state["seconds"])
        self.teacher_outputs.watch.set(float(state["teacher_seconds"]))
        self._set_tally(state["teacher_cache_hit_rate"])
        self.memory = int(state["memory"])
        torch.set_rng_state(own["random"].cpu())
        if own["random_cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all([s.cpu() for s in own["random_cuda"]])
