"""Runs a study: trains the teacher, then the trials, then the best configuration."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

import torch
import yaml

from dskd.compare.losses import run_all
from dskd.compare.reader import read_result
from dskd.compare.statistics import interval
from dskd.compare.tuning.facts import BEST, OWN_FILES, merged_facts, write_facts
from dskd.compare.tuning.results import TrialResult, TuningResult, settings_text, write_trials
from dskd.compare.tuning.search import Search, of_trials
from dskd.compare.tuning.space import check_space
from dskd.compare.tuning.study import optuna, repair_journal
from dskd.compare.tuning.trial import BestTask, TeacherTask
from dskd.compare.tuning.trials import Trials
from dskd.data.loader import DataLoaders
from dskd.engine import method_code
from dskd.engine.preflight import check_processes
from dskd.engine.prepare import prepare, prepare_teacher
from dskd.engine.train_teacher import given_teacher
from dskd.errors import InputError, Stopped, option
from dskd.runtime import device as devices
from dskd.runtime import distributed
from dskd.runtime.launchers.task import Launcher
from dskd.storage.atomic import check_writable, remove_parts, replace_file
from dskd.storage.lock import lock_folder
from dskd.storage.run_directory import RunDirectory
from dskd.storage.run_files import RESULT
from dskd.teacher.frozen import FrozenTeacher

log = logging.getLogger("dskd")


def tune(search: Search, trials: int, launcher: Launcher | None = None) -> TuningResult:
    """Makes trials until there are as many, and trains the best configuration with the test split.

    Trials that were made before stay, and those that were interrupted go on.

    Args:
        search: The study.
        trials: How many trials there are in the end.
        launcher: Starts the trials in other processes; None makes them here, one after the other.

    Raises:
        InputError: A setting cannot be tuned, there is no validation split, the folder holds
            something else, or no trial came to its end.
        Stopped: A signal asked for a stop. The same call continues.
    """
    distributed.require_single_process("tuning")
    check_trials(trials)
    optuna()
    check_space(search.recipe, search.space)
    try:
        return _tune(search, trials, launcher)
    except Stopped as stopped:
        how = stopped.message.partition(";")[0]
        stopped.message = f"{how}; start tuning again in the same way, and it goes on"
        raise


def check_trials(trials: int) -> None:
    """Refuses a number of trials that is none.

    Raises:
        InputError: It is no whole number of 1 or more.
    """
    if not isinstance(trials, int) or trials < 1:
        raise InputError(f"trials: a number of at least 1 is needed, got {trials!r}")


def _tune(search: Search, trials: int, launcher: Launcher | None) -> TuningResult:
    merged_facts(search, {})
    check_writable(search.path, option("out", "FOLDER"))
    inputs = _rehearse(search)
    with ExitStack() as held:
        if launcher is not None:  # before anything is written
            log.info(launcher.open())
            held.callback(launcher.close)
        held.enter_context(lock_folder(search.path, option("out", "FOLDER")))
        remove_parts(search.path, OWN_FILES)
        repair_journal(search.path)
        facts = merged_facts(search, inputs)
        for run in [run for number in search.tested() for run in search.tested_runs(number)]:
            run.check_data(inputs["tested_data"])
        write_facts(search.path, facts)
        if search.trains_teacher:
            inputs["teacher"] = _train_teacher(search, launcher)
            write_facts(search.path, merged_facts(search, inputs))
        ended = (run.parent for run in search.path.glob(f"trials/*/seed*/{RESULT}"))
        method_code.warn_of_ended(search.recipe.method.name, ended, search.path)
        shared = {key: inputs.get(key) for key in ("data", "teacher")}
        made = Trials(search, trials, launcher, shared).make()
        write_trials(search.path, made, search.recipe.data.metric)
        best = _best(made)
        return _train_best(search, made, best, launcher, inputs["tested_data"])


def _rehearse(search: Search) -> dict[str, str]:
    """Loads the images, and takes a step with the recipe as it is. Nothing is written.

    Returns:
        The fingerprints of the images of trials, of the images with the test split, and of a
        teacher that is given (see `dskd.compare.tuning.facts.StudyFacts`).
    """
    recipe = search.recipe
    device = devices.pick(recipe.train.device)
    check_processes(recipe, device)
    devices.set_up(device, recipe.train.precision)
    tested = search.tested_data()
    data = of_trials(tested)
    for note in data.notes:
        log.info(note)
    log.info(
        "for all trials, %d validation images take the place of the test split", len(data.test)
    )
    # The last runs have validation images, on which early exits are calibrated. Those of a trial
    # have the place of the test images, and were held out as those are.
    both = replace(data, validation=data.test, test_is_held_out=True)
    prepared = prepare(recipe, both, search.objects, device)
    teacher = given_teacher(prepared, DataLoaders(both, device), [recipe.method])
    given = {} if teacher is None else {"teacher": teacher.fingerprint()}
    return {"data": data.fingerprint(), "tested_data": tested.fingerprint(), **given}


def _train_teacher(search: Search, launcher: Launcher | None) -> str:
    """Trains the teacher of the study, unless that was done, and returns its fingerprint."""
    task = TeacherTask(search)
    if not RunDirectory(task.folder).finished:
        if launcher is not None and launcher.elsewhere:
            run_all([task], launcher, "the teacher cannot be trained")
        else:
            task()
    recipe, objects, device = search.own_recipe, search.objects, torch.device("cpu")
    teacher = prepare_teacher(recipe, search.data(), objects, device, show_stages=False)
    assert teacher is not None, "the study trains it"
    return FrozenTeacher(teacher.model).fingerprint()


def _best(trials: Sequence[TrialResult]) -> TrialResult:
    """The complete trial with the highest validation accuracy, the first of several.

    Raises:
        InputError: No trial is complete.
    """
    complete = [one for one in trials if one.val_accuracy is not None]
    if not complete:
        failed = [one for one in trials if one.reason]
        if other := next((one for one in failed if not one.misfit), None):
            raise InputError(f"no trial came to its end: {other.reason}")
        reason = failed[0].reason if failed else "all were pruned"
        raise InputError(f"no trial came to its end ({reason}); tune other ranges")
    return max(complete, key=lambda one: (one.val_accuracy, -one.number))


def _train_best(
    search: Search,
    trials: Sequence[TrialResult],
    best: TrialResult,
    launcher: Launcher | None,
    fingerprint: str,
) -> TuningResult:
    """Writes the best configuration, and trains it with the test split."""
    # With the teacher of the study: one that is trained first would have the tuned schedule.
    plain = search.recipe_of(best.values, search.seeds[0], search.path).plain()
    del plain["out"]
    text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    header = f"# The best of {len(trials)} trials: {settings_text(best)}\n"
    replace_file(search.path / BEST, (header + text).encode())
    folders = [search.best_folder(best.number, seed) for seed in search.seeds]
    tasks = [
        BestTask(search, search.recipe_of(best.values, seed, folder))
        for seed, folder in zip(search.seeds, folders, strict=True)
    ]
    if launcher is not None:
        run_all(tasks, launcher, "the best configuration cannot be trained")
    else:
        for task in tasks:
            task()
    for folder in folders:  # another machine may have other images
        RunDirectory(folder).check_data(fingerprint)
    accuracy = interval([read_result(folder)["test_accuracy"] for folder in folders])
    found = search.path, tuple(trials), best, search.path / BEST, accuracy, search.tested()
    return TuningResult(*found, metric=search.recipe.data.metric)
