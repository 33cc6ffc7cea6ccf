"""A student that predicts early: at the first branch whose confidence passes its threshold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dskd.models.cost import counted_operations
from dskd.models.eval_mode import eval_mode, no_gradients
from dskd.models.feature_maps import to_feature_map
from dskd.models.logits import find_logits
from dskd.models.staged_model import StagedModel

NEVER = 2.0
"""The threshold of an exit that is switched off: it does not run."""
AtExit = Callable[[int, Tensor], None]
"""Takes the number of an exit, from 0, and the feature map of its stage."""


class ExitOutput(NamedTuple):
    """The output of a student with early exits.

    Attributes:
        logits: ``[B, K]``; those of an exit are divided by its temperature.
        exits: int64, ``[B]``: the exit that predicted, from 0; the number of exits stands for the
            student's own classifier.
    """

    logits: Tensor
    exits: Tensor


class _AllPredicted(Exception):
    """Every image of the batch has its prediction: the later layers need not run."""


class EarlyExitStudent(nn.Module):
    r"""Predicts at the first exit whose calibrated confidence passes its threshold.

    Exit l has the logits ``z_l`` of the branch on its stage, a temperature ``T_l`` and a threshold
    ``t_l``. Its confidence is ``c_l = max_k softmax(z_l / T_l)_k``. An image gets ``z_l / T_l`` of
    the first exit with ``c_l >= t_l``, or the student's own logits if there is none. The layers
    after an exit do not run once every image of the batch has its prediction, so a batch of one
    image takes the least time. With thresholds above 1, the student itself predicts; with `NEVER`,
    the branch does not even run.

    Source: Teerapittayanon, McDanel, Kung, BranchyNet, ICPR 2016, arXiv 1709.01686, has exits with
    thresholds (of the entropy). The confidence as criterion is that of Huang et al., Multi-Scale
    Dense Networks, ICLR 2018, arXiv 1703.09844. The temperature is that of Guo et al., On
    Calibration of Modern Neural Networks, ICML 2017, arXiv 1706.04599.

    Args:
        model: The student.
        branches: From the map of a stage to logits, by the path of the submodule that ends the
            stage, shallow to deep.
        temperatures: T_l of each branch, above 0.
        thresholds: t_l of each branch, 0 or more.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 3))
        >>> model = StagedModel(net, mean=(0.5,), std=(0.5,))
        >>> branch = nn.Sequential(nn.Flatten(), nn.Linear(72, 3))
        >>> student = EarlyExitStudent(model, {"0": branch}, [1.0], [0.0]).eval()
        >>> student(torch.zeros(4, 1, 8, 8)).exits.tolist()
        [0, 0, 0, 0]
    """

    def __init__(
        self,
        model: StagedModel,
        branches: Mapping[str, nn.Module],
        temperatures: Sequence[float],
        thresholds: Sequence[float],
    ) -> None:
        super().__init__()
        assert len(branches) == len(temperatures) == len(thresholds), "one of each for every exit"
        self.model, self.stages = model, tuple(branches)
        self.branches = nn.ModuleList(branches.values())
        self.temperatures, self.thresholds = tuple(temperatures), tuple(thresholds)

    @property
    def active(self) -> tuple[int, ...]:
        """The exits that run."""
        return tuple(number for number, one in enumerate(self.thresholds) if one < NEVER)

    def forward(self, images: Tensor) -> ExitOutput:
        """The logits of each image, and the exit that gave them.

        Args:
            images: uint8 ``[B, C, H, W]``, or floating point from 0 to 1.
        """
        found: list[tuple[int, Tensor]] = []
        taken = torch.full((len(images),), len(self.branches), device=self.model.mean.device)

        def predict(number: int, feature_map: Tensor) -> None:
            if self.thresholds[number] >= NEVER:
                return
            logits = self.exit_logits(number, feature_map)
            found.append((number, logits))
            confident = logits.softmax(1).amax(1) >= self.thresholds[number]
            taken[confident & (taken == len(self.branches))] = number
            if bool((taken < len(self.branches)).all()):
                raise _AllPredicted

        with suppress(_AllPredicted):
            found.append((len(self.branches), self._run(images, predict)))
        logits = torch.zeros_like(found[0][1])
        for number, values in found:
            logits = torch.where((taken == number)[:, None], values, logits)
        return ExitOutput(logits, taken)

    def all_logits(self, images: Tensor) -> list[Tensor]:
        """The logits of every active exit, divided by its temperature, and then the student's own.

        Args:
            images: As for `forward`.
        """
        found: list[Tensor] = []

        def record(number: int, feature_map: Tensor) -> None:
            if self.thresholds[number] < NEVER:
                found.append(self.exit_logits(number, feature_map))

        own = self._run(images, record)
        return [*found, own]

    def exit_logits(self, number: int, feature_map: Tensor) -> Tensor:
        """The logits of an exit, divided by its temperature.

        Args:
            number: Of the exit, from 0.
            feature_map: Of its stage.
        """
        branch = self.branches[number]
        logits: Tensor = find_logits(branch(feature_map), feature_map.shape[0], branch)
        return logits / self.temperatures[number]

    def _run(self, images: Tensor, at_exit: AtExit) -> Tensor:
        """The student's own logits; ``at_exit`` is called whenever a stage has run."""
        with self._hooks(images, at_exit):
            logits: Tensor = self.model(images).logits
        return logits

    @contextmanager
    def _hooks(self, images: Tensor, at_exit: AtExit) -> Iterator[None]:
        def call(number: int, output: Any) -> None:
            name = self.stages[number]
            at_exit(number, to_feature_map(output, name, images, *self.model.map_form))

        handles = [
            self.model.module.get_submodule(name).register_forward_hook(
                lambda _module, _inputs, output, number=number: call(number, output)
            )
            for number, name in enumerate(self.stages)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


@dataclass(frozen=True)
class ExitCosts:
    """Multiply-adds of the convolutions and matrix products for one image.

    Attributes:
        until: Of the student up to the stage of each exit.
        branches: Of each branch.
        student: Of the whole student, without branches.
    """

    until: tuple[int, ...]
    branches: tuple[int, ...]
    student: int

    def paths(self, thresholds: Sequence[float]) -> list[int]:
        """The multiply-adds until each exit has predicted, and those until the student has.

        Args:
            thresholds: Of each exit; with `NEVER`, the branch does not run.

        Example:
            >>> ExitCosts((10, 20), (3, 4), 50).paths([0.5, NEVER])
            [13, 23, 53]
        """
        done, paths = 0, []
        for until, branch, threshold in zip(self.until, self.branches, thresholds, strict=True):
            done += branch if threshold < NEVER else 0
            paths.append(until + done)
        return [*paths, self.student + done]


def exit_costs(student: EarlyExitStudent, shape: Sequence[int]) -> ExitCosts:
    """Counts the multiply-adds of a student with exits. It runs once on zeros.

    Args:
        student: Its thresholds do not matter.
        shape: ``(C, H, W)`` of an image.
    """
    counts: list[tuple[int, int]] = []
    image = torch.zeros(1, *shape, device=student.model.mean.device)
    with eval_mode(student), no_gradients(student), counted_operations() as counter:

        def count(number: int, feature_map: Tensor) -> None:
            before = counter.get_total_flops()
            student.exit_logits(number, feature_map)
            counts.append((before, counter.get_total_flops() - before))

        student._run(image, count)
    total, done, until = counter.get_total_flops(), 0, []
    for before, branch in counts:
        until.append((before - done) // 2)  # a multiplication and an addition count as two
        done += branch
    branches = tuple(branch // 2 for _, branch in counts)
    return ExitCosts(tuple(until), branches, (total - done) // 2)
