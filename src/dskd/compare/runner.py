"""Runs a comparison: trains what has not ended yet, and records every result."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from dskd import methods
from dskd.compare.grid import Grid
from dskd.compare.lockstep import Callback, LockstepRun, train_in_lockstep
from dskd.compare.reader import Comparison, read_comparison
from dskd.compare.records import (
    OWN_FILES,
    ResultRecorder,
    has_ended,
    merged_facts,
    repair_rows,
    with_teacher,
    write_facts,
)
from dskd.compare.variants import MethodVariant
from dskd.data.loader import DataLoaders
from dskd.engine.build import build_run, build_teacher_outputs
from dskd.engine.build_data import load_training_data
from dskd.engine.build_model import build_model
from dskd.engine.preflight import rehearse
from dskd.engine.prepare import Prepared, build_student, check_cache, prepare_teacher
from dskd.engine.train_teacher import given_teacher, trained_teacher
from dskd.engine.unlabelled import log_unlabelled, teacher_loader
from dskd.engine.user_objects import UserObjects
from dskd.errors import InputError, NonFiniteError, Stopped, as_given, option
from dskd.methods.contracts import TeacherNeeds
from dskd.runtime import device as devices
from dskd.runtime import distributed
from dskd.runtime.compile import check_compiler
from dskd.runtime.cores import cpu_threads
from dskd.runtime.single_run import single_run
from dskd.storage.atomic import check_writable, refuse_links, remove_parts
from dskd.storage.lock import lock_folder
from dskd.storage.run_directory import RunDirectory
from dskd.storage.run_files import COMPARISON, TEACHER
from dskd.teacher.outputs import SharedOutputs, TeacherOutputs

log = logging.getLogger("dskd")


def run_grid(grid: Grid, callback: Callback, objects: UserObjects | None = None) -> Comparison:
    """Trains the runs of a grid that have not ended yet.

    Runs that are finished or failed before are left as they are.

    Args:
        grid: Methods and seeds.
        callback: Called after every step and at the end of every run.
        objects: Objects in place of names.

    Returns:
        The comparison as it is on disk afterwards.

    Raises:
        InputError: A method does not fit the models, or the folder holds something else.
        Stopped: A signal asked for a stop. The same call continues.
    """
    distributed.require_single_process("a comparison")
    try:
        with single_run(), cpu_threads(grid.recipe.train.threads):
            return _run_grid(grid, callback, objects or UserObjects())
    except Stopped as stopped:
        how = stopped.message.partition(";")[0]
        stopped.message = f"{how}; start the comparison again in the same way, and it goes on"
        raise


def _run_grid(grid: Grid, callback: Callback, objects: UserObjects) -> Comparison:
    merged_facts(grid)
    check_writable(grid.path, option("out", "FOLDER"))
    device = devices.pick(grid.recipe.train.device)
    devices.set_up(device)
    prepared = _prepare(grid, device, objects)
    data = prepared.data
    loaders = DataLoaders(data, device)
    teacher = given_teacher(prepared, loaders, [variant.method for variant in grid.variants])
    with lock_folder(grid.path, option("out", "FOLDER")):
        remove_parts(grid.path, OWN_FILES)
        facts = merged_facts(grid, data)
        if not (grid.path / COMPARISON).is_file():
            write_facts(grid.path, facts, device)
        if teacher is None:
            folder = grid.path / TEACHER
            resume = RunDirectory(folder).begun
            teacher = trained_teacher(prepared, loaders, folder, resume)
        write_facts(grid.path, with_teacher(grid.path, facts, teacher), device)
        repair_rows(grid)
        images = teacher_loader(grid.recipe.data, loaders)
        outputs = build_teacher_outputs(grid.recipe, images, teacher, prepared.needs)
        outputs.open()
        seed_runner = _SeedRunner(grid, loaders, objects, outputs, ResultRecorder(grid, callback))
        for seed in grid.seeds:
            seed_runner.run(seed)
        return read_comparison(grid.path)


def _prepare(grid: Grid, device: torch.device, objects: UserObjects) -> Prepared:
    """Loads the data, builds the teacher of all methods, and rehearses every method.

    Returns:
        A run with that teacher. Its needs are those of all methods together.

    Raises:
        InputError: A method does not fit the models. The message names it.
    """
    data = load_training_data(grid.recipe.data, objects.data)
    for note in data.notes:
        log.info(as_given(note))
    recipe = grid.recipe_with_teacher() or grid.recipe.changed(method=grid.variants[0].method)
    if recipe.train.compile:
        check_compiler(device)
    teacher = prepare_teacher(recipe, data, objects, device)
    student = build_student(recipe, data, objects)
    needs = TeacherNeeds()
    for variant in grid.variants:
        own = grid.recipe.changed(method=variant.method)
        try:
            needs |= rehearse(own, data, student, teacher.model if teacher else None)
        except InputError as error:
            raise InputError(f"{variant.label}: {error}") from error
        log_unlabelled(own, data)
    prepared = Prepared(recipe, data, student, teacher, needs)
    check_cache(prepared)
    return prepared


@dataclass
class _SeedRunner:
    """Trains the students of one seed after another."""

    grid: Grid
    loaders: DataLoaders
    objects: UserObjects
    teacher_outputs: TeacherOutputs
    callback: Callback

    def run(self, seed: int) -> None:
        """Trains the students of a seed that have not ended yet."""
        grid = self.grid
        shared = SharedOutputs(self.teacher_outputs)
        left = [v for v in grid.variants if not has_ended(grid.folder(v, seed))]
        groups = [left] if grid.share_teacher else [[variant] for variant in left]
        for group in groups:
            source = shared if grid.share_teacher else SharedOutputs(self.teacher_outputs)
            with ExitStack() as owned:
                started = [self._start(variant, seed, source, owned) for variant in group]
                train_in_lockstep([run for run in started if run is not None], self.callback)
        if shared.computed:
            log.info(
                "seed %d: %d forward passes of the teacher served %d training steps",
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
        owned.enter_context(directory.locked())
        resume = directory.begun
        directory.check_same(recipe.plain())
        directory.start(recipe.plain(), devices.environment(self.loaders.train.device))
        objects = self.objects
        student = build_model(
            recipe.student, self.loaders.data, seed, objects.student, objects.allow_code
        )
        training_run = build_run(recipe, student, self.loaders, outputs, directory)
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
