"""The epoch loop, and the state that the next step depends on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from dskd.data.augmentation import NO_AUGMENTATION, Augmentation
from dskd.data.epoch_plan import EpochPlan
from dskd.data.loader import Batch, Loader
from dskd.engine.accumulation import count_parts, process_sizes
from dskd.engine.average import StudentAverage
from dskd.engine.loss_scaler import LossScaler
from dskd.engine.memory_usage import measured_step
from dskd.engine.metrics import EpochMetrics
from dskd.engine.optimizer import set_rate
from dskd.engine.step import train_step
from dskd.engine.trainer_state import TrainerState
from dskd.methods.base import Method
from dskd.methods.contracts import StepOutput
from dskd.models.int8_rounding import Int8Rounding
from dskd.models.output import ModelOutput
from dskd.runtime import distributed
from dskd.runtime.device import autocast
from dskd.runtime.nonfinite import FiniteStateCheck
from dskd.settings import Precision
from dskd.teacher.outputs import TeacherOutputs


class Trainer(TrainerState):
    """Trains a method epoch by epoch.

    Args:
        method: The method, on its device.
        teacher_outputs: Of the teacher, on the same device.
        loader: Of the training split, on the same device.
        optimizer: Over the method's parameters.
        learning_rate: From epochs done (with a fraction) to the rate.
        seed: Of the epoch plans.
        epochs: How many.
        batch_size: Samples of a forward pass, of all processes together.
        padding: Of the random crop, in pixels.
        flip: Mirror half of the images.
        precision: Of the forward passes. Losses and weights stay in float32.
        views_of_each: The views that each image is limited to; None for all
            (`dskd.data.epoch_plan.draw_views`).
        augmentation: What else is done with the images.
        accumulate: Batches whose gradients are added up for a step.
        clip_norm: Highest norm of all gradients together; None for any norm.
        average: The moving average of the student; None for none.
        targets: Mixes the batches of the run's epochs, and gives them what cross-entropies learn;
            None for the images and labels as they are.

    Attributes:
        epoch: Epochs done.
        step: Steps done in the running epoch.
        steps: Steps of an epoch.
        metrics: Of the running epoch.
        seconds: Of the running epoch's steps, including the teacher's. Before the first step of
            the run: of what the method prepared.
        epoch_samples: Samples of the newest whole epoch, of all processes; 0 before it.
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
        accumulate: int = 1,
        clip_norm: float | None = None,
        targets: Callable[[Batch], Batch] | None = None,
        average: StudentAverage | None = None,
    ) -> None:
        self.method, self.teacher_outputs, self.loader = method, teacher_outputs, loader
        self.optimizer, self.learning_rate = optimizer, learning_rate
        self.seed, self.epochs, self.batch_size = seed, epochs, batch_size
        self.padding, self.flip, self.precision = padding, flip, precision
        self.views_of_each, self.augmentation = views_of_each, augmentation
        self.accumulate, self.clip_norm, self.targets = accumulate, clip_norm, targets
        world = distributed.world_size()
        self.steps = loader.steps(self.step_size, world)
        self.average = average
        self.scaler = LossScaler(loader.device) if precision == "float16" else None
        self.epoch, self.step = 0, 0
        self.metrics, self.seconds = EpochMetrics(), 0.0
        self.memory = self.epoch_samples = 0
        averaged = average.module if average is not None else None
        self._state_check = FiniteStateCheck(method, optimizer, averaged)
        self._parallel: nn.Module | None = None

    @property
    def step_size(self) -> int:
        """Samples of a step, of all processes together."""
        return self.batch_size * self.accumulate

    def synchronize(self) -> None:
        """Gives all processes the weights of rank 0, and has gradients averaged from now on."""
        if distributed.world_size() > 1:
            # A fixed graph would have to be averaged in every backward pass.
            static = self.method.static_graph and self.accumulate == 1
            self._parallel = distributed.data_parallel(self.method, static_graph=static)

    def train_epoch(self) -> Iterator[None]:
        """Trains the rest of the running epoch; yields after every step.

        After every step, `state` can save the trainer, and `restore` can go on from there.

        Raises:
            NonFiniteError: A number of a step is NaN or infinite.
        """
        self.method.train()
        share = distributed.rank(), distributed.world_size()
        plan = self.plan(self.epoch, self.step_size, share[1])
        start = time.perf_counter()
        batches = self.loader.batches(plan, self.step_size, self.step, *share)
        for loaded in self.metrics.timed(distributed.of_this_process(batches)):
            batch = self.with_targets(loaded)
            set_rate(self.optimizer, self.lr)
            averaged = self.average.module if self.average is not None else None
            with measured_step(self.memory, self.method, self.optimizer, averaged) as measured:
                output = self.take_step(batch)
            self._share_ranges()
            self.memory = measured.bytes
            if self.average is not None:
                self.average.update(self.method)
            self.metrics.add(batch, output)
            self.step += 1
            self.seconds += time.perf_counter() - start
            yield
            start = time.perf_counter()

    def _share_ranges(self) -> None:
        """Gives all processes the ranges of rank 0 (``train.int8_rounding``), as a checkpoint does.

        BatchNorm's statistics may differ until they are used; these are used in every step.
        """
        if distributed.world_size() > 1:
            kinds = (one for one in self.method.modules() if isinstance(one, Int8Rounding))
            distributed.broadcast(range_ for one in kinds for range_ in one.buffers())

    def with_targets(self, batch: Batch) -> Batch:
        """The batch as the run trains on it: mixed, and with the targets of cross-entropies."""
        return batch if self.targets is None else self.targets(batch)

    def take_step(self, batch: Batch) -> StepOutput:
        """Trains on a batch of `with_targets`, at the rate that the optimizer has.

        Raises:
            NonFiniteError: A number of the step is NaN or infinite.
        """
        world = distributed.world_size()
        return train_step(
            self.method,
            self.teacher_outputs,
            batch,
            self.optimizer,
            self.precision,
            self._parallel,
            parts=count_parts(
                batch.global_size,
                self.batch_size,
                self.accumulate,
                world,
                fewest=min(process_sizes(batch, world)),
            ),
            clip_norm=self.clip_norm,
            scaler=self.scaler,
        )

    def plan(self, epoch: int, batch_size: int, world_size: int = 1) -> EpochPlan:
        """Everything random about an epoch, for `Loader.batches` of these sizes."""
        how = self.padding, self.flip, self.views_of_each, self.augmentation
        return self.loader.draw_plan(self.seed, epoch, how, batch_size, world_size)

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
            plan = self.plan(epoch, self.batch_size)
            for batch in self.loader.batches(plan, self.batch_size):
                check()
                with autocast(self.loader.device, self.precision):
                    output = self.teacher_outputs(batch, self.method.needs)
                yield batch, output

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return self.learning_rate(self.epoch + self.step / self.steps)
