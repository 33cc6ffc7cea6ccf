"""Trains some runs of a comparison that have one seed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch

from dskd import methods
from dskd.compare.grid import Grid
from dskd.compare.lockstep import Callback, LockstepRun, train_in_lockstep
from dskd.compare.same_inputs import check_inputs
from dskd.compare.variants import MethodVariant
from dskd.engine import method_code
from dskd.engine.task import RunRecipe
from dskd.engine.training_run import TrainingRun
from dskd.errors import NonFiniteError
from dskd.methods.contracts import TeacherNeeds
from dskd.storage.atomic import refuse_links
from dskd.storage.run_directory import RunDirectory
from dskd.storage.run_files import LOST
from dskd.teacher.outputs import SharedOutputs, TeacherOutputs

log = logging.getLogger("dskd")

BuildRun = Callable[[RunRecipe, TeacherOutputs, RunDirectory], TrainingRun]
"""Builds the training run of a recipe with a fresh student, the teacher's outputs and a folder."""


@dataclass
class GroupRunner:
    """Trains the students of one seed.

    Attributes:
        grid: The comparison.
        device: That trains.
        build: Builds the run of a student.
        teacher_outputs: Where the outputs of the teacher come from.
        needs: Which of them all methods read together.
        callback: Called after every step and at the end of every run.
        wait: Seconds to wait for a process that still holds the folder of a run.
        fingerprints: Those that images (``data``) and ``teacher`` must have; empty for any.
    """

    grid: Grid
    device: torch.device
    build: BuildRun
    teacher_outputs: TeacherOutputs
    needs: TeacherNeeds
    callback: Callback
    wait: float = 0.0
    fingerprints: dict[str, str | None] = field(default_factory=dict)

    def run(self, variants: Sequence[MethodVariant], seed: int) -> None:
        """Trains students of a seed: in lockstep if they share the teacher, else in turn."""
        shares = self.grid.share_teacher
        shared = SharedOutputs(self.teacher_outputs, self.needs)
        for group in [variants] if shares else [[variant] for variant in variants]:
            alone = len(group) == 1
            source = SharedOutputs(self.teacher_outputs) if alone else shared
            with ExitStack() as owned:
                started = [self._start(variant, seed, source, owned) for variant in group]
                train_in_lockstep([run for run in started if run is not None], self.callback)
        if shared.computed:
            log.info(
                "seed %d: the students shared %d forward passes of the teacher in %d steps",
                *(seed, shared.computed, shared.requests),
            )

    def _start(
        self, variant: MethodVariant, seed: int, source: SharedOutputs, owned: ExitStack
    ) -> LockstepRun | None:
        """Starts or resumes a run, and owns its folder; None if it fails in its preparation."""
        needs_teacher = methods.find(variant.method.name).needs_teacher
        outputs = source.for_student() if needs_teacher else TeacherOutputs(None)
        recipe = self.grid.recipe_of(variant, seed)
        directory = RunDirectory(self.grid.folder(variant, seed))
        refuse_links(directory.path.parent, directory.path)
        owned.enter_context(directory.locked(self.wait))
        resume = directory.begun
        directory.check_same(recipe)
        facts = method_code.environment(recipe, self.device)
        method_code.warn_if_changed(directory.path, variant.method.name, facts)
        directory.start(recipe.plain(), facts)
        (directory.path / LOST).unlink(missing_ok=True)
        training_run = self.build(recipe, outputs, directory)
        check_inputs(training_run.fingerprints, self.fingerprints, "comparison")
        failure = None
        try:
            training_run.begin(resume)
        except NonFiniteError as error:
            failure = str(error)
        run = LockstepRun(variant.label, seed, training_run)
        if failure is None:
            return run
        self.callback.on_end(run, failure)
        return None
