"""Runs a study: trains the teacher, then the trials, then the best configuration."""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import yaml

from dskd.compare.reader import read_result
from dskd.compare.statistics import interval
from dskd.compare.tuning.results import (
    TrialResult,
    TuningResult,
    outcome_text,
    settings_text,
    write_trials,
)
from dskd.compare.tuning.search import FACTS, Search, read_facts
from dskd.compare.tuning.space import check_space
from dskd.compare.tuning.study import Study, optuna
from dskd.compare.tuning.trial import (
    BestTask,
    TeacherTask,
    TrialFile,
    TrialTask,
    read_outcome,
    write_outcome,
)
from dskd.data.loader import DataLoaders
from dskd.engine import method_code
from dskd.engine.prepare import prepare
from dskd.engine.train_teacher import given_teacher
from dskd.errors import InputError, Stopped, option
from dskd.runtime import device as devices
from dskd.runtime import distributed
from dskd.runtime.launchers.schedule import run_tasks
from dskd.runtime.launchers.task import Launcher, Outcome, Task
from dskd.storage.atomic import check_writable, is_part, remove_parts, replace_file
from dskd.storage.diff import differences
from dskd.storage.lock import LOCK, LOCK_PID, lock_folder
from dskd.storage.run_directory import RunDirectory
from dskd.storage.run_files import RESULT, TEACHER

log = logging.getLogger("dskd")

BEST = "best.yaml"
"""The recipe of the best configuration."""
OWN_FILES = (FACTS, BEST, "trials.csv", "trials.json", LOCK_PID)
"""The files of the study itself, which a kill may leave half written."""
MOST_LOSSES = 2
"""Losses of its process after which a trial counts as failed."""


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
    if trials < 1:
        raise InputError(f"trials: at least one is needed, got {trials}")
    optuna()
    check_space(search.recipe, search.space)
    try:
        return _tune(search, trials, launcher)
    except Stopped as stopped:
        how = stopped.message.partition(";")[0]
        stopped.message = f"{how}; start tuning again in the same way, and it goes on"
        raise


def _tune(search: Search, trials: int, launcher: Launcher | None) -> TuningResult:
    facts = _checked_facts(search)
    check_writable(search.path, option("out", "FOLDER"))
    facts |= _rehearse(search)
    facts = _checked_facts(search, facts)
    with ExitStack() as held:
        if launcher is not None:  # before anything is written
            log.info(launcher.open())
            held.callback(launcher.close)
        held.enter_context(lock_folder(search.path, option("out", "FOLDER")))
        remove_parts(search.path, OWN_FILES)
        replace_file(search.path / FACTS, (json.dumps(facts, indent=2) + "\n").encode())
        if search.trains_teacher and not RunDirectory(search.path / TEACHER).finished:
            elsewhere = launcher if launcher is not None and launcher.elsewhere else None
            _run_all([TeacherTask(search)], elsewhere, "the teacher cannot be trained")
        ended = (run.parent for run in search.path.glob(f"trials/*/seed*/{RESULT}"))
        method_code.warn_of_ended(search.recipe.method.name, ended, search.path)
        made = _Trials(search, trials, launcher).make()
        write_trials(search.path, made, search.recipe.data.metric)
        best = _best(made)
        return _train_best(search, made, best, launcher)


def _checked_facts(search: Search, known: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The content of ``study.json``.

    Raises:
        InputError: The folder holds another study, or other files.
    """
    facts, path = {**search.facts(), **(known or {})}, search.path
    fix = f"choose another folder with {option('out', 'FOLDER')}"
    if not (path / FACTS).is_file():
        if path.is_dir() and any(map(_is_foreign, path.iterdir())):
            raise InputError(f"{path} holds other files; {fix}")
        return facts
    there = read_facts(path)
    same = {key: there[key] for key in facts if key != "recipe" and there.get(key) is not None}
    found = [
        search.recipe.differences(there["recipe"], ignored=("out",)),
        differences(same, {key: facts[key] for key in same}),
    ]
    if listed := "; ".join(filter(None, found)):
        raise InputError(f"{path} holds another study: {listed}; {fix}")
    return facts


def _is_foreign(path: Any) -> bool:
    return path.name not in (LOCK, LOCK_PID) and not is_part(path.name, OWN_FILES)


def _rehearse(search: Search) -> dict[str, Any]:
    """Loads the images, and takes a step with the recipe as it is. Nothing is written.

    Returns:
        The fingerprint of the images, and that of a teacher that is given.
    """
    recipe = search.recipe
    device = devices.pick(recipe.train.device)
    devices.set_up(device, recipe.train.precision)
    data = search.data()
    for note in data.notes:
        log.info(note)
    log.info(
        "for all trials, %d validation images take the place of the test split", len(data.test)
    )
    prepared = prepare(recipe, data, search.objects, device)
    teacher = given_teacher(prepared, DataLoaders(data, device), [recipe.method])
    given = {} if teacher is None else {"teacher": teacher.fingerprint()}
    return {"data": data.fingerprint(), **given}


def _run_all(tasks: Sequence[Task], launcher: Launcher | None, failure: str) -> None:
    """Runs tasks, and each a second time if its process is lost.

    Raises:
        InputError: One fails; the message starts with ``failure``.
    """
    if launcher is None:
        for task in tasks:
            task()
        return
    waiting, losses = deque(tasks), dict.fromkeys(map(id, tasks), 0)

    def ended(task: Task, outcome: Outcome) -> None:
        if outcome.error is not None:
            losses[id(task)] += 1
            if losses[id(task)] >= MOST_LOSSES:
                raise InputError(f"{failure}: {outcome.error}")
            waiting.append(task)

    run_tasks(launcher, lambda: waiting.popleft() if waiting else None, ended)


class _Trials:
    """Makes the trials of a study.

    Args:
        search: The study, whose teacher is trained.
        count: How many trials there are in the end.
        launcher: Starts them; None makes them here.
    """

    def __init__(self, search: Search, count: int, launcher: Launcher | None) -> None:
        self.search, self.count, self.launcher = search, count, launcher
        seed = search.recipe.seed
        self._study = Study(search.path, search.space, seed=seed, parallel=launcher is not None)
        running = [one for one in self._study.trials() if one.state == "running"]
        self._again = deque(TrialTask(search, one.number, one.values) for one in running)
        self._losses: dict[int, int] = {}

    def make(self) -> list[TrialResult]:
        """Makes the trials, and returns all."""
        for one in list(self._again):
            if read_outcome(self.search.folder(one.number)):  # a kill came before it was told
                self._again.remove(one)
                self._ended(one, Outcome())
        if self.launcher is not None:
            run_tasks(self.launcher, self._next, self._ended)
        else:
            while (task := self._next()) is not None:
                self._ended(task, _run_here(task))
        return [self._result(one.number, one.values) for one in self._study.trials()]

    def _next(self) -> Task | None:
        if self._again:
            return self._again.popleft()
        if len(self._study.trials()) >= self.count:
            return None
        trial = self._study.ask()
        return TrialTask(self.search, trial.number, trial.values)

    def _ended(self, task: Task, outcome: Outcome) -> None:
        """Records a trial; one whose process was lost is started again."""
        assert isinstance(task, TrialTask)
        number, folder = task.number, self.search.folder(task.number)
        found = read_outcome(folder)
        if found is None:
            self._losses[number] = self._losses.get(number, 0) + 1
            if self._losses[number] < MOST_LOSSES:
                self._again.append(task)
                return
            if outcome.details:
                log.error("trial %d:\n%s", number, outcome.details.rstrip())
            reason = outcome.error or "its job ended too early"
            found = TrialFile(state="failed", scores=[], epochs=0, reason=reason)
            write_outcome(folder, found)
        score = sum(found.scores) / len(found.scores) if found.state == "complete" else None
        self._study.tell(number, found.state, score)
        result = self._result(number, dict(task.values))
        log.info("trial %d: %s: %s", number, settings_text(result), outcome_text(result))

    def _result(self, number: int, values: dict[str, str]) -> TrialResult:
        found = read_outcome(self.search.folder(number))
        assert found is not None, "all trials have ended"
        score = sum(found.scores) / len(found.scores) if found.state == "complete" else None
        scores = tuple(found.scores)
        return TrialResult(number, values, found.state, score, scores, found.epochs, found.reason)


def _run_here(task: Callable[[], None]) -> Outcome:
    """Runs a trial in this process, with no other lines than warnings."""
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        task()
    finally:
        log.setLevel(level)
    return Outcome()


def _best(trials: Sequence[TrialResult]) -> TrialResult:
    """The complete trial with the highest validation accuracy, the first of several.

    Raises:
        InputError: No trial is complete.
    """
    complete = [one for one in trials if one.val_accuracy is not None]
    if not complete:
        reason = next((one.reason for one in trials if one.reason), "all were pruned")
        raise InputError(f"no trial came to its end ({reason}); tune other ranges")
    return max(complete, key=lambda one: (one.val_accuracy, -one.number))


def _train_best(
    search: Search, trials: Sequence[TrialResult], best: TrialResult, launcher: Launcher | None
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
    _run_all(tasks, launcher, "the best configuration cannot be trained")
    accuracy = interval([read_result(folder)["test_accuracy"] for folder in folders])
    made = search.best_folder(best.number, 0).parents[1].iterdir()
    tested = tuple(sorted(int(folder.name.removeprefix("trial")) for folder in made))
    found = search.path, tuple(trials), best, search.path / BEST, accuracy, tested
    return TuningResult(*found, metric=search.recipe.data.metric)
