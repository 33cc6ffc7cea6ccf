"""Runs a comparison: trains what has not ended yet, and records every result."""

from __future__ import annotations

import logging
from contextlib import ExitStack

import torch

from dskd.compare.grid import Grid
from dskd.compare.group import GroupRunner
from dskd.compare.images import image_runs, open_outputs
from dskd.compare.jobs import Jobs, train_teacher
from dskd.compare.lockstep import Callback
from dskd.compare.parts import ComparisonParts, task_parts
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
from dskd.data.loader import DataLoaders
from dskd.engine import method_code
from dskd.engine.preflight import check_processes, check_split_size, rehearse
from dskd.engine.prepare import (
    Prepared,
    build_student,
    check_cache,
    check_device,
    prepare_teacher,
)
from dskd.engine.teacher_labels import training_data
from dskd.engine.train_teacher import given_teacher, trained_teacher
from dskd.engine.unlabelled import log_unlabelled
from dskd.engine.user_objects import UserObjects
from dskd.errors import InputError, Stopped, as_given, option
from dskd.methods.contracts import TeacherNeeds
from dskd.runtime import device as devices
from dskd.runtime import distributed
from dskd.runtime.cores import cpu_threads
from dskd.runtime.launchers.task import Launcher
from dskd.runtime.single_run import single_run
from dskd.storage.atomic import check_writable, remove_parts
from dskd.storage.lock import lock_folder
from dskd.storage.run_directory import RunDirectory
from dskd.storage.run_files import COMPARISON, TEACHER

log = logging.getLogger("dskd")


def run_grid(
    grid: Grid,
    callback: Callback,
    objects: UserObjects | None = None,
    launcher: Launcher | None = None,
) -> Comparison:
    """Trains the runs of a grid that have not ended yet.

    Runs that are finished or failed before are left as they are.

    Args:
        grid: Methods and seeds.
        callback: Called after every step and at the end of every run.
        objects: Objects in place of names.
        launcher: Starts the runs in other processes (see `dskd.compare.jobs`); None trains them
            here. The results are the same.

    Returns:
        The comparison as it is on disk afterwards.

    Raises:
        InputError: A method does not fit the models, or the folder holds something else.
        Stopped: A signal asked for a stop. The same call continues.
    """
    distributed.require_single_process("a comparison")
    try:
        with single_run(), cpu_threads(grid.recipe.train.threads):
            return _run_grid(grid, callback, objects or UserObjects(), launcher)
    except Stopped as stopped:
        how = stopped.message.partition(";")[0]
        stopped.message = f"{how}; start the comparison again in the same way, and it goes on"
        raise


def _run_grid(
    grid: Grid, callback: Callback, objects: UserObjects, launcher: Launcher | None
) -> Comparison:
    merged_facts(grid)
    check_writable(grid.path, option("out", "FOLDER"))
    device = devices.pick(grid.recipe.train.device)
    devices.set_up(device, grid.recipe.train.precision)
    parts = _parts(grid, device, objects)
    teacher = parts.teacher
    with ExitStack() as held:
        if launcher is not None:  # before anything is written
            log.info(launcher.open())
            held.callback(launcher.close)
        held.enter_context(lock_folder(grid.path, option("out", "FOLDER")))
        remove_parts(grid.path, OWN_FILES)
        facts = merged_facts(grid, parts.data_of)
        if not (grid.path / COMPARISON).is_file():
            write_facts(grid, facts, device)
        if teacher is None:
            # Where its students will be trained.
            elsewhere = launcher is not None and launcher.elsewhere and parts.trains_teacher
            if launcher and elsewhere and not RunDirectory(grid.path / TEACHER).finished:
                train_teacher(grid, objects, launcher)
            teacher = parts.train_teacher()
        facts = with_teacher(grid.path, facts, teacher)
        write_facts(grid, facts, device)
        repair_rows(grid)
        for variant in grid.variants:
            folders = (grid.folder(variant, seed) for seed in grid.seeds)
            ended = filter(has_ended, folders)
            method_code.warn_of_ended(variant.method.name, ended, grid.path / variant.folder)
        recorder = ResultRecorder(grid, callback)
        if launcher is not None:
            shared = ("teacher",) if grid.splits_by_seed else ("data", "teacher")
            fingerprints = {key: facts[key] for key in shared}
            Jobs(grid, launcher, recorder, objects, parts.needs, fingerprints).train()
            return read_comparison(grid.path)
        outputs = parts.open_outputs(teacher)
        runner = GroupRunner(grid, device, parts.build, outputs, parts.needs, recorder)
        for seed in grid.seeds:
            runner.run([v for v in grid.variants if not has_ended(grid.folder(v, seed))], seed)
        return read_comparison(grid.path)


def _parts(grid: Grid, device: torch.device, objects: UserObjects) -> ComparisonParts:
    """Loads the data, builds the teacher of all methods, and rehearses every method."""
    if grid.task:
        return task_parts(grid, device)
    prepared = _prepare(grid, device, objects)
    loaders = DataLoaders(prepared.data, device)
    directory = RunDirectory(grid.path / TEACHER)
    return ComparisonParts(
        lambda _: prepared.data,
        image_runs(loaders, objects),
        given_teacher(prepared, loaders, [variant.method for variant in grid.variants]),
        prepared.teacher is not None and prepared.teacher.training is not None,
        lambda: trained_teacher(prepared, loaders, directory.path, directory.begun),
        lambda teacher: open_outputs(grid, loaders, teacher, prepared.needs),
        prepared.needs,
    )


def _prepare(grid: Grid, device: torch.device, objects: UserObjects) -> Prepared:
    """Loads the data, builds the teacher of all methods, and rehearses every method.

    Returns:
        A run with that teacher. Its needs are those of all methods together.

    Raises:
        InputError: A method does not fit the models. The message names it.
    """
    data = training_data(grid.recipe_of_all(), objects)
    for note in data.notes:
        log.info(as_given(note))
    check_split_size(data)
    recipe = grid.recipe_of_all()
    check_processes(recipe, device)
    check_device(recipe.train, device)
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
