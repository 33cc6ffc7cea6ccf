"""Numbers that are NaN or infinite, of a step or of what is kept: found before they do harm."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dskd.data.loader import Batch
from dskd.errors import NonFiniteError
from dskd.runtime import distributed

PARTS = ("teacher", "loss", "gradient")
"""What of a step must be finite: the teacher's logits, each loss, each gradient."""


class Finite:
    """Marks what is not finite on the device, and keeps it from the weights.

    To ask a GPU at every step whether its numbers are finite makes it idle until the host has read
    the answer. Here the answer stays on the GPU, in ``found_inf``, which torch's fused optimizers
    read there: from the first step on that has a NaN or an infinite number they change neither
    weights nor their own state. So the weights are those from before it, whenever the host asks.
    What forward passes change by themselves (BatchNorm's statistics, a method's memories) has gone
    on until then, as it has at the first such step on a CPU: nothing of it may be kept.

    Args:
        optimizer: A fused one.

    Example:
        >>> weight = torch.ones(1, requires_grad=True)
        >>> optimizer = torch.optim.SGD([weight], 0.1, fused=True)
        >>> finite = Finite(optimizer)
        >>> for factor in (1.0, float("nan"), 1.0):
        ...     optimizer.zero_grad()
        ...     loss = (factor * weight).sum()
        ...     loss.backward()
        ...     finite.note(None, {"loss": loss})
        ...     optimizer.step()
        >>> weight.item(), finite.steps_before_bad(), finite.bad_parts()
        (0.8999999761581421, 1, ['loss', 'gradient'])
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        device = optimizer.param_groups[0]["params"][0].device
        self._optimizer = optimizer
        self._marks = torch.zeros(len(PARTS), device=device)
        self._good = torch.zeros(len(PARTS), dtype=torch.int64, device=device)
        self._any = torch.zeros((), device=device)  # float32: what the fused kernels read
        self._one = torch.ones((), device=device)
        optimizer.found_inf = self._any  # type: ignore[attr-defined]

    @torch.no_grad()
    def note(self, logits: Tensor | None, losses: Mapping[str, Tensor]) -> None:
        """Marks what is not finite of a step, gradients included, before its optimizer steps.

        Args:
            logits: The teacher's; None without a teacher.
            losses: Scalars by name.
        """
        _mark(self._marks.unbind(), self._one, logits, losses, self._optimizer)
        self._good += self._marks == 0
        torch.amax(self._marks, 0, out=self._any)

    def count_from(self, steps: int) -> None:
        """Goes on counting good steps from so many."""
        self._good.fill_(steps)

    def steps_before_bad(self) -> int | None:
        """How many steps came before the first that was not finite; None where all were.

        This waits for the device.
        """
        return int(self._good.min().item()) if self._any.item() else None

    def bad_parts(self) -> list[str]:
        """Which of `PARTS` were not finite in the first such step."""
        first = self._good.min()
        marked = ((self._marks != 0) & (self._good == first)).tolist()
        return [part for part, bad in zip(PARTS, marked, strict=True) if bad]


@torch.no_grad()
def require_finite(
    method: nn.Module,
    batch: Batch,
    logits: Tensor | None,
    losses: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Ends a step in which a number is not finite, in all processes, before its optimizer steps.

    Args:
        method: Names the parameters.
        batch: The images of the step.
        logits: The teacher's; None without a teacher.
        losses: Scalars by name.
        optimizer: Of the parameters that have gradients.

    Raises:
        NotFinite: One is NaN or infinite in one of the processes.
    """
    marks = torch.zeros(len(PARTS), device=batch.labels.device)
    _mark(marks.unbind(), marks.new_ones(()), logits, losses, optimizer)
    good = distributed.all_true(marks == 0).tolist()
    if all(good):
        return
    own = {name: loss.item() for name, loss in losses.items()}
    said = distributed.all_gather((own, batch.indices.tolist()))
    # Of the first process whose losses are bad; of the first where none are.
    shown = next(
        (all_ for all_, _ in said if not all(map(math.isfinite, all_.values()))), said[0][0]
    )
    raise explained(
        facts_of(batch, [part for part, fine in zip(PARTS, good, strict=True) if not fine])
        | {
            "losses": {name: f"{value:g}" for name, value in shown.items()},
            "gradients": [n for n, p in method.named_parameters() if _bad_gradient(p)],
            "indices": list(dict.fromkeys(itertools.chain.from_iterable(i for _, i in said))),
        }
    )


def facts_of(batch: Batch, what: Sequence[str]) -> dict[str, Any]:
    """What a batch alone tells of a step, see `NonFiniteError`."""
    facts = _facts(batch.epoch, batch.step + 1, what)
    return facts | {"indices": batch.indices.tolist()}


def _facts(epoch: int, step: int, what: Sequence[str]) -> dict[str, Any]:
    """What is known of the step alone; its epoch is counted from 0."""
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
    """Sees that what is kept of a run is finite: all that its method saves, and the optimizer's.

    A loss and its gradient may be finite, and the update by them overflow; so may a statistic of
    BatchNorm. Buffers that a method begins with as infinite, such as masks, may stay so.

    Args:
        method: Before its first step.
        optimizer: Of its parameters.
    """

    def __init__(self, method: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._method, self._optimizer = method, optimizer
        self._left_out = {n for n, b in method.named_buffers() if not bool(b.isfinite().all())}

    def require(self, epoch: int, step: int) -> None:
        """Waits for the device, once.

        Args:
            epoch: The running one, from 0.
            step: How many of its steps were taken.

        Raises:
            NotFinite: A number is NaN or infinite, in one of the processes.
        """
        names, values = zip(*self._kept(), strict=True)
        # Both are NaN where one number is; a pass over all of them without a copy.
        extremes = [one for value in values for one in value.aminmax()]
        fine = torch.stack([one.to(values[0].device) for one in extremes]).isfinite()
        fine = fine.view(-1, 2).all(1)
        if distributed.all_true(fine.all()).item():
            return
        bad = list(itertools.compress(names, fine.logical_not().tolist()))
        named = itertools.chain.from_iterable(distributed.all_gather(bad))
        raise explained(_facts(epoch, step, ["state"]) | {"state": list(dict.fromkeys(named))})

    def _kept(self) -> Iterator[tuple[str, Tensor]]:
        """What may be bad, by name: real numbers."""
        named = [(n, v) for n, v in self._method.state_dict().items() if n not in self._left_out]
        for name, parameter in self._method.named_parameters():
            own = self._optimizer.state.get(parameter, {})
            named += [(f"{key} of {name}", value) for key, value in own.items()]
        for name, value in named:
            if isinstance(value, Tensor) and value.numel():
                if value.is_complex():
                    yield name, torch.view_as_real(value)
                elif value.is_floating_point():
                    yield name, value


def nonfinite_logits_error(epoch: int, step: int) -> NonFiniteError:
    """The error of a student whose weights are finite, and its logits are not.

    Args:
        epoch: The last one, from 0.
        step: Its last one, from 1.
    """
    return explained(_facts(epoch, step, ["logits"]))


def explained(facts: Mapping[str, Any]) -> NonFiniteError:
    """The error that says facts in one line."""
    indices, losses, names = facts["indices"], facts["losses"], facts["gradients"]
    where = f"on {len(indices)} images, the first of them {indices[:5]}"
    terms = ", ".join(f"{name} {value}" for name, value in losses.items())
    terms = terms and f" ({terms})"
    after = f"after step {facts['step']} of epoch {facts['epoch']}"
    if "state" in facts["what"]:
        text = (
            f"not finite {after}, though loss and gradient were: {_first(facts['state'])}; lower "
            "train.lr"
        )
    elif "logits" in facts["what"]:
        text = f"the logits are not finite {after}, though the weights are; lower train.lr"
    elif "teacher" in facts["what"]:
        text = f"the teacher's logits are not finite {where}; give another teacher"
    elif "loss" in facts["what"]:
        text = f"the loss is not finite{terms} {where}; lower train.lr"
    else:
        of = f" of {_first(names)}" if names else ""
        text = f"the gradient{of} is not finite, though the loss is{terms}, {where}; lower train.lr"
    return NonFiniteError(text, facts)


def _first(names: Sequence[str]) -> str:
    return f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else names[0]


def _mark(
    marks: Sequence[Tensor],
    one: Tensor,
    logits: Tensor | None,
    losses: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Sets a mark, float32, to 1 for each of `PARTS` that is not finite; waits for nothing.

    torch's check for gradient scaling does it, one kernel for all gradients. It also multiplies
    them, by ``one`` here, which leaves every bit as it is.
    """
    parts = (
        [] if logits is None else [logits.clone()],  # a teacher's answer may be others' too
        [torch.stack([loss.detach() for loss in losses.values()])],
        list(_gradients(optimizer)),
    )
    for found, values in zip(marks, parts, strict=True):
        for dtype in {value.dtype for value in values}:
            same = [value for value in values if value.dtype == dtype]
            torch._amp_foreach_non_finite_check_and_unscale_(same, found, one)


def _gradients(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if (gradient := parameter.grad) is not None:
                yield torch.view_as_real(gradient) if gradient.is_complex() else gradient


def _bad_gradient(parameter: nn.Parameter) -> bool:
    return parameter.grad is not None and not bool(parameter.grad.isfinite().all())
