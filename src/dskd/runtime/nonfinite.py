"""Detect NaN and Inf before they reach the weights or a file."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from dskd.errors import NonFiniteError
from dskd.runtime import distributed

PARTS = ("teacher", "loss", "gradient")
"""What a step checks: the teacher's logits, each loss, each gradient."""
REMEDY = "lower train.lr or raise train.warmup"
"""What usually helps, as errors say it."""


class StepSamples(Protocol):
    """What an error says about a step; `dskd.data.loader.Batch` has it.

    Attributes:
        samples: The word for the samples.
    """

    samples: ClassVar[str]

    @property
    def indices(self) -> Tensor:
        """Index of each sample in the split, int64 ``[B]``."""

    @property
    def epoch(self) -> int:
        """From 0."""

    @property
    def step(self) -> int:
        """From 0."""


@torch.no_grad()
def require_finite(
    method: nn.Module,
    batch: StepSamples,
    teacher_logits: Tensor | None,
    losses: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    further: Mapping[Tensor, Tensor] = MappingProxyType({}),
    gradient_norm: Tensor | None = None,
    may_overflow: bool = False,
) -> bool:
    """Raises before the optimizer steps if a number of this step is NaN or infinite.

    The check reads one number back from the device, so it waits for the backward pass. All
    processes of a run raise together.

    Args:
        method: Its parameter names appear in the error.
        batch: The samples of the step.
        teacher_logits: None without a teacher.
        losses: Scalars by name.
        optimizer: Owns the parameters whose gradients are checked.
        further: Second gradients of some of its parameters, which are checked too.
        gradient_norm: The norm of all gradients, if it was computed; it is checked in their place.
        may_overflow: Whether gradients that are not finite are no error.

    Returns:
        Whether the gradients are finite.

    Raises:
        NonFiniteError: A number is NaN or infinite in one of the processes.
    """
    finite = distributed.all_true(
        _finite_parts(teacher_logits, losses, optimizer, further, gradient_norm)
    ).tolist()
    if all(finite[: len(PARTS) - may_overflow]):
        return bool(finite[-1])
    own = {name: loss.item() for name, loss in losses.items()}
    of_all = distributed.all_gather((own, batch.indices.tolist()))
    # The losses of the first process whose losses are bad; of process 0 if none are.
    shown = next(
        (said for said, _ in of_all if not all(map(math.isfinite, said.values()))), of_all[0][0]
    )
    raise nonfinite_error(
        step_facts(batch, [part for part, fine in zip(PARTS, finite, strict=True) if not fine])
        | {
            "losses": {name: f"{value:g}" for name, value in shown.items()},
            "gradients": _bad_gradients(method, further),
            "indices": list(dict.fromkeys(itertools.chain.from_iterable(i for _, i in of_all))),
        },
        batch.samples,
    )


def _finite_parts(
    teacher_logits: Tensor | None,
    losses: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    further: Mapping[Tensor, Tensor],
    norm: Tensor | None,
) -> Tensor:
    """Whether each of `PARTS` is finite, bool ``[3]``."""
    loss = torch.stack([loss.detach() for loss in losses.values()])
    if norm is None:
        norm = _largest_gradient(optimizer, further, loss)
    teacher = loss.new_zeros(()) if teacher_logits is None else teacher_logits.abs().amax()
    return torch.stack([teacher.isfinite(), loss.isfinite().all(), norm.isfinite()])


def _largest_gradient(
    optimizer: torch.optim.Optimizer, further: Mapping[Tensor, Tensor], loss: Tensor
) -> Tensor:
    """The largest absolute value of all gradients; of the losses if there is no gradient.

    NaN and Inf pass through it, and it cannot overflow.
    """
    gradients = [
        parameter.grad
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.grad is not None
    ]
    gradients += further.values()
    return torch.nn.utils.get_total_norm(gradients or [loss], norm_type=math.inf)


def step_facts(batch: StepSamples, what: Sequence[str]) -> dict[str, Any]:
    """What a batch alone says about a step (see `NonFiniteError.facts`)."""
    facts = _facts(batch.epoch, batch.step + 1, what)
    return facts | {"indices": batch.indices.tolist()}


def _facts(epoch: int, step: int, what: Sequence[str]) -> dict[str, Any]:
    """The facts of an error at a step. ``epoch`` counts from 0 here and from 1 in the facts."""
    return {
        "epoch": epoch + 1,
        "step": step,
        "what": list(what),
        "losses": {},
        "gradients": [],
        "state": [],
        "indices": [],
    }


class FiniteStateCheck:
    """Checks that a method's state and its optimizer's state are finite.

    A loss and its gradient can be finite while the update by them overflows; so can a running
    statistic of BatchNorm. Buffers that start as infinite, such as masks, are not checked.

    Args:
        method: Before its first step.
        optimizer: Of its parameters.
        average: The moving average of what the method deploys; None for none.
    """

    def __init__(
        self,
        method: nn.Module,
        optimizer: torch.optim.Optimizer,
        average: nn.Module | None = None,
    ) -> None:
        self._method, self._optimizer = method, optimizer
        parts = {"": method} if average is None else {"": method, "the average of ": average}
        self._parts = [(prefix, one, nonfinite_buffers(one)) for prefix, one in parts.items()]

    def require(self, epoch: int, step: int) -> None:
        """Raises if the state is not finite. Waits for the device once.

        Args:
            epoch: The running epoch, from 0.
            step: Steps taken in it.

        Raises:
            NonFiniteError: A number is NaN or infinite in one of the processes.
        """
        names, values = zip(*self._checked(), strict=True)
        # Minimum and maximum are NaN if one number is; one pass over each tensor, no copy.
        extremes = [one for value in values for one in value.aminmax()]
        fine = torch.stack([one.to(values[0].device) for one in extremes]).isfinite()
        fine = fine.view(-1, 2).all(1)
        if distributed.all_true(fine.all()).item():
            return
        bad = list(itertools.compress(names, fine.logical_not().tolist()))
        named = itertools.chain.from_iterable(distributed.all_gather(bad))
        raise nonfinite_error(
            _facts(epoch, step, ["state"]) | {"state": list(dict.fromkeys(named))}
        )

    def _checked(self) -> Iterator[tuple[str, Tensor]]:
        """Every real tensor of the state by name."""
        named: list[tuple[str, Any]] = []
        for prefix, module, exempt in self._parts:
            values = module.state_dict().items()
            named += [(f"{prefix}{name}", value) for name, value in values if name not in exempt]
        for name, parameter in self._method.named_parameters():
            state = self._optimizer.state.get(parameter, {})
            named += [(f"{key} of {name}", value) for key, value in state.items()]
        for name, value in named:
            if isinstance(value, Tensor) and value.numel():
                if value.is_complex():
                    yield name, torch.view_as_real(value)
                elif value.is_floating_point():
                    yield name, value


def nonfinite_buffers(module: nn.Module) -> set[str]:
    """The names of the buffers that hold a number which is not finite, such as a mask."""
    return {name for name, buffer in module.named_buffers() if not bool(buffer.isfinite().all())}


def nonfinite_logits_error(epoch: int, step: int) -> NonFiniteError:
    """The error for a student whose weights are finite but whose logits are not.

    Args:
        epoch: The last epoch, from 0.
        step: Its last step, from 1.
    """
    return nonfinite_error(_facts(epoch, step, ["logits"]))


def nonfinite_error(facts: Mapping[str, Any], samples: str = "images") -> NonFiniteError:
    """The error that says these facts in one line.

    Args:
        facts: See `NonFiniteError.facts`.
        samples: The word for the samples.
    """
    indices, losses, names = facts["indices"], facts["losses"], facts["gradients"]
    where = f"on {len(indices)} {samples}, the first of them {indices[:5]}"
    terms = ", ".join(f"{name} {value}" for name, value in losses.items())
    terms = terms and f" ({terms})"
    after = f"after step {facts['step']} of epoch {facts['epoch']}"
    if "state" in facts["what"]:
        text = (
            f"not finite {after}, though loss and gradient were: {_first(facts['state'])}; {REMEDY}"
        )
    elif "logits" in facts["what"]:
        text = f"the logits are not finite {after}, though the weights are; {REMEDY}"
    elif "teacher" in facts["what"]:
        text = f"the teacher's logits are not finite {where}; give another teacher"
    elif "loss" in facts["what"]:
        text = f"the loss is not finite{terms} {where}; {REMEDY}"
    else:
        of = f" of {_first(names)}" if names else ""
        text = f"the gradient{of} is not finite, though the loss is{terms}, {where}; {REMEDY}"
    return NonFiniteError(text, facts)


def _first(names: Sequence[str]) -> str:
    return f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else names[0]


def _bad_gradients(method: nn.Module, further: Mapping[Tensor, Tensor]) -> list[str]:
    """The names of the parameters that have a gradient which is not finite."""
    return [
        name
        for name, parameter in method.named_parameters()
        for gradient in (parameter.grad, further.get(parameter))
        if gradient is not None and not bool(gradient.isfinite().all())
    ]
