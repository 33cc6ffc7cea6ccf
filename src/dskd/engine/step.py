"""The training step: teacher outputs, losses, backward pass, check, update."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dskd.data.loader import Batch
from dskd.engine.accumulation import joined, split
from dskd.engine.dot import DOT
from dskd.engine.loss_scaler import LossScaler
from dskd.engine.optimizer import clip, gradient_norm
from dskd.methods.base import Method
from dskd.methods.contracts import StepOutput, TeacherNeeds
from dskd.models.output import ModelOutput
from dskd.runtime import distributed
from dskd.runtime.device import autocast
from dskd.runtime.nonfinite import require_finite
from dskd.settings import Precision

GetTeacherOutputs = Callable[[Batch, TeacherNeeds], ModelOutput | None]
"""Takes a batch and the needs of a method, and gives the teacher's outputs."""


def train_step(
    method: Method,
    teacher_outputs: GetTeacherOutputs,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    precision: Precision,
    parallel: nn.Module | None = None,
    *,
    parts: int = 1,
    clip_norm: float | None = None,
    scaler: LossScaler | None = None,
) -> StepOutput:
    """Takes one training step on a batch.

    1. The teacher's outputs for the batch: from its forward pass, or from the cache.
    2. The method's named losses; their sum is the objective.
    3. The gradients, averaged over all processes. `DOT` takes those of the labels and of all other
       losses separately.
    4. A check that teacher logits, losses and gradients are finite. If not, no weight changes.
    5. The gradients are clipped, and the optimizer updates the weights.

    If the batch is trained in parts, 1 to 3 are done for each part, and the gradients are added up
    to those of the mean loss over the whole batch.

    Args:
        method: The student and the parts that are trained with it.
        teacher_outputs: Computes the teacher's outputs, or reads them from the cache.
        batch: This process's samples.
        optimizer: The optimizer of the method's parameters.
        precision: The precision of the forward passes. Losses and weights stay in float32.
        parallel: The method as `dskd.runtime.distributed.data_parallel` wrapped it; None for one
            process.
        parts: In how many parts the batch is trained (`dskd.engine.accumulation`).
        clip_norm: Highest norm of all gradients together; None for any norm.
        scaler: Scales the loss, for float16. A step whose gradients overflow is skipped.

    Returns:
        The losses, the logits and the metrics of the whole batch.

    Raises:
        NonFiniteError: A number is NaN or infinite.
    """
    optimizer.zero_grad(set_to_none=True)
    outputs: list[StepOutput] = []
    teachers: list[Tensor] = []
    batches = split(batch, parts)
    run = _Run(method, teacher_outputs, optimizer, precision, parallel, scaler)
    for part in batches:
        share = part.global_size / batch.global_size
        output, logits = run.add_gradients(part, share, last=part is batches[-1])
        outputs.append(output if parts == 1 else _detached(output))
        teachers += [] if logits is None else [logits]
    output = joined(outputs, [len(part.labels) for part in batches])
    return run.update(batch, _cat(teachers), output, clip_norm)


@dataclass(frozen=True)
class _Run:
    """What the parts of a step have in common; see `train_step`."""

    method: Method
    teacher_outputs: GetTeacherOutputs
    optimizer: torch.optim.Optimizer
    precision: Precision
    parallel: nn.Module | None
    scaler: LossScaler | None

    @property
    def separate(self) -> DOT | None:
        """The optimizer that takes two gradients."""
        return self.optimizer if isinstance(self.optimizer, DOT) else None

    def add_gradients(
        self, batch: Batch, share: float, *, last: bool
    ) -> tuple[StepOutput, Tensor | None]:
        """Adds the gradients of a part of a step.

        Args:
            batch: This process's samples of the part.
            share: Of the part, of all samples of the step.
            last: Whether to average the gradients of all parts over all processes.

        Returns:
            The output of the method, and the teacher's logits if it reads them.
        """
        method, parallel = self.method, self.parallel
        forward: Callable[..., Any] = method if parallel is None or self.separate else parallel
        with distributed.averaging_gradients(parallel, last):
            with autocast(batch.images.device, self.precision):
                teacher = self.teacher_outputs(batch, method.needs)
                output: StepOutput = forward(batch, teacher)
            self._backward(output, batch, share)
        return output, teacher.logits if teacher is not None and method.needs.logits else None

    def _backward(self, output: StepOutput, batch: Batch, share: float) -> None:
        """Adds the gradients of a batch, averaged over all processes, times its share."""
        scale = distributed.local_loss_scale(len(batch.labels), batch.global_size) * share
        if self.separate is not None:
            self.separate.take_gradients(output.losses, scale)
            return
        objective = output.objective
        if self.parallel is not None or share != 1:
            objective = objective * scale
        if self.scaler is not None:
            objective = self.scaler.scale(objective)
        objective.backward()  # type: ignore[no-untyped-call]

    def update(
        self, batch: Batch, teacher: Tensor | None, output: StepOutput, clip_norm: float | None
    ) -> StepOutput:
        """Checks the numbers of a step, clips its gradients and updates the weights."""
        optimizer, scaler = self.optimizer, self.scaler
        if scaler is not None:
            scaler.unscale(optimizer)
        finite = require_finite(
            self.method,
            batch,
            teacher,
            output.losses,
            optimizer,
            self.separate.distillation_gradients if self.separate else {},
            norm := gradient_norm(optimizer) if clip_norm is not None else None,
            may_overflow=scaler is not None and scaler.may_skip,
        )
        if clip_norm is not None and norm is not None:
            clip(optimizer, clip_norm, norm)
            shown = norm.nan_to_num(0.0, 0.0)  # a skipped step counts as 0 in the mean
            output = output._replace(metrics={**output.metrics, "gradient_norm": shown})
        if scaler is None:
            optimizer.step()
        elif finite:
            scaler.step(optimizer)
        else:
            scaler.skip()
        return output


def _cat(logits: list[Tensor]) -> Tensor | None:
    """The logits of all parts; None if there are none."""
    return torch.cat(logits) if len(logits) > 1 else next(iter(logits), None)


def _detached(output: StepOutput) -> StepOutput:
    """A copy without its graph: the next part may overwrite the memory of a CUDA graph."""
    losses = {name: loss.detach().clone() for name, loss in output.losses.items()}
    metrics = {name: value.clone() for name, value in output.metrics.items()}
    return StepOutput(losses, output.logits.detach().clone(), metrics)
