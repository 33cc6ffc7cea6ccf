"""`dskd.testing` finds methods that break their contract, and says what to change."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dskd import testing
from dskd.data.loader import Batch
from dskd.errors import NonFiniteError
from dskd.methods.base import LogitMethod
from dskd.methods.contracts import Pair, StepOutput
from dskd.methods.kd import KD
from dskd.models.output import ModelOutput


class Plain(LogitMethod):
    """A method that keeps its contract."""

    def __init__(self, pair: Pair, **settings: Any) -> None:
        super().__init__(pair, ce=1.0, kd=1.0)

    def logit_losses(
        self, batch: Batch, student_logits: Tensor, teacher_logits: Tensor
    ) -> dict[str, Tensor]:
        return {"plain": (student_logits.float() - teacher_logits.float()).square().mean()}


class Draws(Plain):
    def forward(self, batch: Batch, teacher: ModelOutput | None) -> StepOutput:
        output = super().forward(batch, teacher)
        return output._replace(losses=output.losses | {"noise": torch.rand(())})


class Forgets(Plain):
    steps = 0

    def forward(self, batch: Batch, teacher: ModelOutput | None) -> StepOutput:
        self.steps += 1
        output = super().forward(batch, teacher)
        return output._replace(losses={k: v * self.steps for k, v in output.losses.items()})


class Idle(Plain):
    def __init__(self, pair: Pair, **settings: Any) -> None:
        super().__init__(pair)
        self.unused = nn.Linear(2, 2)


class Peeks(Plain):
    def forward(self, batch: Batch, teacher: ModelOutput | None) -> StepOutput:
        assert teacher is not None
        output = super().forward(batch, teacher)
        assert teacher.pooled is not None
        return output._replace(losses=output.losses | {"peek": teacher.pooled.mean()})


class ShipsAnother(Plain):
    def deployed(self) -> nn.Module:
        twin = copy.deepcopy(super().deployed())
        nn.init.zeros_(next(twin.parameters()))
        return twin


class HalfPrecision(Plain):
    def logit_losses(
        self, batch: Batch, student_logits: Tensor, teacher_logits: Tensor
    ) -> dict[str, Tensor]:
        return {"plain": (student_logits - teacher_logits).square().mean().to(student_logits.dtype)}


class DividesByZero(Plain):
    def logit_losses(
        self, batch: Batch, student_logits: Tensor, teacher_logits: Tensor
    ) -> dict[str, Tensor]:
        return {"plain": (student_logits * 0).square().sum().sqrt()}


@pytest.mark.parametrize(
    ("kind", "check", "message"),
    [
        (Draws, testing.steps_do_not_depend_on_the_random_state, "draw random numbers from batch"),
        (Forgets, testing.resume_is_exact, "keep what a step depends on in parameters or buffers"),
        (Idle, testing.parts_learn_and_the_student_ships, "no loss reaches .*unused.weight"),
        (Peeks, testing.reads_only_what_it_declares, "needs must name every output"),
        (ShipsAnother, testing.shipped_student_is_the_evaluated_one, "deployed.. must give"),
        (HalfPrecision, testing.losses_stay_in_float32, "in_full_precision"),
        (DividesByZero, testing.small_batches_and_two_classes_work, "NaN|not finite|nan"),
    ],
)
def test_what_breaks_the_contract_is_found(
    kind: type[Plain], check: testing.Check, message: str
) -> None:
    with pytest.raises((AssertionError, NonFiniteError), match=message):
        check(kind, {})
    check(Plain, {})


@pytest.mark.slow
def test_a_method_that_keeps_its_contract_passes_all_checks() -> None:
    testing.check_method(Plain)
    testing.check_method(KD, {"temperature": 2.0})
