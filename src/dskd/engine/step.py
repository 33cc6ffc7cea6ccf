"""The training step: teacher outputs, losses, backward pass, check, update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from dskd.data.loader import Batch
from dskd.engine.dot import DOT
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
) -> StepOutput:
    """Takes one training step on a batch.

    1. The teacher's outputs for the batch: from its forward pass, or from the cache.
    2. The method's named losses; their sum is the objective.
    3. The gradients, averaged over all processes. `DOT` takes those of the labels and of all other
       losses separately.
    4. A check that teacher logits, losses and gradients are finite. If not, no weight changes.
    5. The optimizer's update.

    Args:
        method: The student and the parts that are trained with it.
        teacher_outputs: Computes the teacher's outputs, or reads them from the cache.
        batch: This process's samples.
        optimizer: The optimizer of the method's parameters.
        precision: The precision of the forward passes. Losses and weights stay in float32.
        parallel: The method as `dskd.runtime.distributed.data_parallel` wrapped it; None for one
            process.

    Raises:
        NonFiniteError: A number is NaN or infinite.
    """
    separate = optimizer if isinstance(optimizer, DOT) else None
    forward: Callable[..., Any] = parallel if parallel is not None and not separate else method
    with autocast(batch.images.device, precision):
        teacher = teacher_outputs(batch, method.needs)
        output: StepOutput = forward(batch, teacher)
    optimizer.zero_grad(set_to_none=True)
    _backward(output, batch, separate, parallel is not None)
    logits = teacher.logits if teacher is not None and method.needs.logits else None
    further = separate.distillation_gradients if separate else {}
    require_finite(method, batch, logits, output.losses, optimizer, further)
    optimizer.step()
    return output


def _backward(output: StepOutput, batch: Batch, separate: DOT | None, is_parallel: bool) -> None:
    """Computes the gradients of a step, averaged over all processes."""
    scale = distributed.local_loss_scale(len(batch.labels), batch.global_size)
    if separate is not None:
        separate.take_gradients(output.losses, scale)
        return
    objective = output.objective
    if is_parallel:
        objective = objective * scale
    objective.backward()  # type: ignore[no-untyped-call]
