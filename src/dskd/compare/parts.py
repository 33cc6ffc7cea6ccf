"""What a comparison needs of its data and models before it trains students."""

from __future__ import annotations

from collections.abc import Callable, Sized
from dataclasses import dataclass
from typing import Protocol

import torch

from dskd.compare.grid import Grid
from dskd.compare.group import BuildRun
from dskd.methods.contracts import TeacherNeeds
from dskd.teacher.frozen import FrozenTeacher
from dskd.teacher.outputs import TeacherOutputs


class ComparedData(Protocol):
    """What a comparison reads of a data set as a whole."""

    @property
    def test(self) -> Sized:
        """The test split."""

    def fingerprint(self) -> str:
        """A hash of all samples and labels."""


@dataclass(frozen=True)
class ComparisonParts:
    """The loaded data of a comparison, and functions for what its task builds in its own way.

    Attributes:
        data_of: The data set, by seed. It is the same for all seeds, unless each has its own split.
        build: Builds the run of a student.
        teacher: The teacher that was given; None if it is trained first, or if there is none.
        trains_teacher: Whether the comparison trains the teacher.
        train_teacher: Trains the teacher of the comparison, unless that was done; None without one.
        open_outputs: The outputs of the frozen teacher, ready for the first step.
        needs: Which outputs of the teacher all methods read together.
    """

    data_of: Callable[[int], ComparedData]
    build: BuildRun
    teacher: FrozenTeacher | None
    trains_teacher: bool
    train_teacher: Callable[[], FrozenTeacher | None]
    open_outputs: Callable[[FrozenTeacher | None], TeacherOutputs]
    needs: TeacherNeeds


def task_parts(grid: Grid, device: torch.device) -> ComparisonParts:
    """What a comparison of another task than images needs. The tasks need extras.

    Args:
        grid: The comparison.
        device: That trains.

    Raises:
        InputError: The data cannot be read, or a method does not fit. The message names it.
    """
    if grid.task == "graphs":
        from dskd.compare.graphs import graph_parts

        return graph_parts(grid, device)
    from dskd.compare.segmentation import segmentation_parts

    return segmentation_parts(grid, device)
