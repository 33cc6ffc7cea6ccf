"""The epoch loop, and the state that the next step depends on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dskd.data.augmentation import NO_AUGMENTATION, Augmentation
from dskd.data.epoch_plan import EpochPlan, draw_plan, steps
from dskd.data.loader import Batch, Loader
from dskd.engine.memory_usage import held_by_training, saved_for_backward
from dskd.engine.metrics import EpochMetrics
from dskd.engine.optimizer import load_state, set_rate
from dskd.engine.step import train_step
from dskd.methods.base import Method
from dskd.models.output import ModelOutput
from dskd.runtime import distributed
from dskd.runtime.device import autocast
from dskd.runtime.nonfinite import FiniteStateCheck
from dskd.settings import Precision
from dskd.teacher.outputs import CacheCounts, TeacherOutputs


class Trainer:
    """Trains a method epoch by epoch.

    Args:
        method: The method, on its device.
        teacher_outputs: Of the teacher, on the same device.
        loader: Of the training split, on the same device.
        optimizer: Over the method's parameters.
        learning_rate: From epochs done (with a fraction) to the rate.
        seed: Of the epoch plans.
        epochs: How many.
        batch_size: Samples a step, of all processes together.
        padding: Of the random crop, in pixels.
        flip: Mirror half of the images.
        precision: Of the forward passes. Losses and weights stay in float32.
        views_of_each: The views that each image is limited to; None for all
            (`dskd.data.epoch_plan.draw_views`).
        augmentation: What else is done with the images.

    Attributes:
        epoch: Epochs done.
        step: Steps done in the running epoch.
        steps: Steps of an epoch.
        metrics: Of the running epoch.
        seconds: Of the running epoch's steps, including the teacher's. Before the first step of
            the run: of what the method prepared.
        memory: Bytes that the run's first step held in this process, without the teacher's:
            weights and buffers, gradients, the optimizer's state, and what the forward pass saves
            for the backward pass.
    """

    def __init__(
        self,
        method: Method,
        teacher_outputs: TeacherOutputs,
        loader: Loader,
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
        augmentation: Augmentation = NO_AUGMENTATION,
    ) -> None:
        self.method, self.teacher_outputs, self.loader = method, teacher_outputs, loader
        self.optimizer, self.learning_rate = optimizer, learning_rate
        self.seed, self.epochs, self.batch_size = seed, epochs, batch_size
        self.padding, self.flip, self.precision = padding, flip, precision
        self.views_of_each, self.augmentation = views_of_each, augmentation
        self.steps = steps(len(loader), batch_size, distributed.world_size())
        self.epoch, self.step = 0, 0
        self.metrics, self.seconds = EpochMetrics(), 0.0
        self.memory = 0
        self._state_check = FiniteStateCheck(method, optimizer)
        self._parallel: nn.Module | None = None

    def synchronize(self) -> None:
        """Gives all processes the weights of rank 0, and has gradients averaged from now on."""
        if distributed.world_size() > 1:
            self._parallel = distributed.data_parallel(
                self.method, static_graph=self.method.static_graph
            )

    def train_epoch(self) -> Iterator[None]:
        """Trains the rest of the running epoch; yields after every step.

        After every step, `state` can save the trainer, and `restore` can go on from there.

        Raises:
            NonFiniteError: A number of a step is NaN or infinite.
        """
        self.method.train()
        plan, share = self.plan(self.epoch), (distributed.rank(), distributed.world_size())
        start = time.perf_counter()
        batches = self.loader.batches(plan, self.batch_size, self.step, *share)
        for batch in self.metrics.timed(batches):
            set_rate(self.optimizer, self.lr)
            with self._measuring_memory():
                output = train_step(
                    self.method,
                    self.teacher_outputs,
                    batch,
                    self.optimizer,
                    self.precision,
                    self._parallel,
                )
            self.metrics.add(batch, output)
            self.step += 1
            self.seconds += time.perf_counter() - start
            yield
            start = time.perf_counter()

    def end_epoch(self) -> None:
        """Turns to the next epoch."""
        self.epoch, self.step = self.epoch + 1, 0
        self.metrics, self.seconds = EpochMetrics(), 0.0
        self.teacher_outputs.watch.set(0.0)
        self._set_cache_counts((0, 0))

    def plan(self, epoch: int) -> EpochPlan:
        """Everything random about an epoch."""
        samples = len(self.loader)
        how = self.padding, self.flip, self.views_of_each, self.augmentation
        return draw_plan(self.seed, epoch, samples, *how)

    def prepare(self, check: Callable[[], None] = lambda: None) -> None:
        """Lets the method train what it needs before the student's first step.

        Args:
            check: Called before each batch and at the end; what it raises ends the preparation.
        """
        start = time.perf_counter()
        self.method.train()
        self.method.prepare(partial(self._epochs_with_teacher_outputs, check))
        check()
        self.seconds += time.perf_counter() - start

    def _epochs_with_teacher_outputs(
        self, check: Callable[[], None], epochs: int
    ) -> Iterator[tuple[Batch, ModelOutput | None]]:
        """Batches of epochs after the run's own. Each process gets whole batches."""
        for epoch in range(self.epochs, self.epochs + epochs):
            for batch in self.loader.batches(self.plan(epoch), self.batch_size):
                check()
                with autocast(self.loader.device, self.precision):
                    output = self.teacher_outputs(batch, self.method.needs)
                yield batch, output

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return self.learning_rate(self.epoch + self.step / self.steps)

    def check_state(self) -> None:
        """Checks that weights, buffers and optimizer state are finite.

        Raises:
            NonFiniteError: A number is NaN or infinite.
        """
        self._state_check.require(self.epoch, self.step)

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on.

        Raises:
            NonFiniteError: A number of it is NaN or infinite.
        """
        self.check_state()
        return {
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "seconds": self.seconds,
            "teacher_seconds": self.teacher_outputs.watch.seconds,
            "teacher_cache_counts": astuple(self.teacher_outputs.cache_counts or CacheCounts()),
            "memory": self.memory,
            "processes": distributed.all_gather(self._process_state()),
        }

    def _process_state(self) -> dict[str, Any]:
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
        own = state["processes"][distributed.rank()]
        self.metrics.restore(own["metrics"], self.loader.device)
        self.seconds = float(state["seconds"])
        self.teacher_outputs.watch.set(float(state["teacher_seconds"]))
        self._set_cache_counts(state["teacher_cache_counts"])
        self.memory = int(state["memory"])
        torch.set_rng_state(own["random"].cpu())
        if own["random_cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all([s.cpu() for s in own["random_cuda"]])

    def _set_cache_counts(self, counts: tuple[int, int]) -> None:
        if self.teacher_outputs.cache_counts is not None:
            self.teacher_outputs.cache_counts = CacheCounts(*counts)

    @contextmanager
    def _measuring_memory(self) -> Iterator[None]:
        """Measures what the run's first step holds in memory."""
        if self.memory:
            yield
            return
        with saved_for_backward() as saved:
            yield
        self.memory = saved.bytes + held_by_training(self.method, self.optimizer)
