"""Makes the trials of a study, here or by a launcher, and reads what became of them."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping

from dskd.compare.losses import RETRIED, Losses
from dskd.compare.tuning.results import TrialResult, outcome_text, settings_text
from dskd.compare.tuning.search import Search
from dskd.compare.tuning.study import Study, Trial
from dskd.compare.tuning.trial import TrialFile, TrialTask, read_outcome, write_outcome
from dskd.errors import InputError
from dskd.runtime.launchers.schedule import run_tasks
from dskd.runtime.launchers.task import Launcher, Outcome, Task, raised

log = logging.getLogger("dskd")


class Trials:
    """Makes the trials of a study.

    What became of a trial is in its folder; Optuna is told of it, and draws values by it. A trial
    without that file is made, whatever Optuna knows: it was interrupted, or its folder was removed.

    Args:
        search: The study, whose teacher is trained.
        count: How many trials there are in the end.
        launcher: Starts them; None makes them here.
        inputs: Fingerprints of the images (``data``) and the ``teacher`` of the study.
    """

    def __init__(
        self,
        search: Search,
        count: int,
        launcher: Launcher | None,
        inputs: Mapping[str, str | None],
    ) -> None:
        self.search, self.count, self.launcher, self.inputs = search, count, launcher, dict(inputs)
        seed, parallel = search.recipe.seed, launcher is not None
        self._study = Study(search.path, search.space, seed=seed, parallel=parallel)
        self._again: deque[TrialTask] = deque()
        self._losses: dict[int, Losses] = {}
        self._lost: dict[int, str] = {}

    def make(self) -> list[TrialResult]:
        """Makes the trials, and returns all.

        Raises:
            InputError: The file of a trial is damaged, or, without a launcher, a trial cannot be
                made here and now.
            Stopped: A signal asked for a stop; the states are saved.
        """
        for known in self._study.trials():
            task = self._task(known)
            found = read_outcome(task.folder)
            if found is None:
                self._again.append(task)
            elif known.state == "running":  # a kill came before it was told
                self._tell(task, found)
        if self.launcher is not None:
            run_tasks(self.launcher, self._next, self._ended)
        else:
            while (following := self._next()) is not None:
                self._ended(following, _run_here(following))
        return [self._result(self._task(one)) for one in self._study.trials()]

    def _task(self, trial: Trial) -> TrialTask:
        return TrialTask(self.search, trial.number, trial.values, self.inputs)

    def _next(self) -> Task | None:
        if not self._again:
            if len(self._study.trials()) >= self.count:
                return None
            self._again.append(self._task(self._study.ask()))
        task = self._again.popleft()
        if task.number not in self._losses:
            self._losses[task.number] = Losses(task.folder)
        return task

    def _ended(self, task: Task, outcome: Outcome) -> None:
        """Records a trial. One that was lost is tried again, and at last given up.

        Code that raises an error fails the trial for good, since it would do so again. A lost
        process does not: the values are not the reason.
        """
        assert isinstance(task, TrialTask)
        found = read_outcome(task.folder)
        if found is None and not self._losses[task.number].is_last():
            self._again.append(task)
            return
        if found is None and outcome.details:
            log.error("trial %d:\n%s", task.number, outcome.details.rstrip())
            found = TrialFile(
                state="failed",
                scores=[],
                epochs=self._losses[task.number].epochs,
                reason=f"{outcome.error}; remove {task.folder} to have it made again",
                details=outcome.details,
            )
            write_outcome(task.folder, found)
        if found is not None:
            self._tell(task, found)
            return
        self._lost[task.number] = f"{outcome.error or 'its job ended too early'}; {RETRIED}"
        self._log(task)

    def _tell(self, task: TrialTask, found: TrialFile) -> None:
        self._study.tell(task.number, found.state, found.score)
        self._log(task)

    def _log(self, task: TrialTask) -> None:
        found = self._result(task)
        log.info("trial %d: %s: %s", task.number, settings_text(found), outcome_text(found))

    def _result(self, task: TrialTask) -> TrialResult:
        """A trial that has ended, or was given up for now."""
        values = dict(task.values)
        shown = {one.key: one.shown(values[one.key]) for one in self.search.space}
        found = read_outcome(task.folder)
        if found is None:
            epochs, reason = Losses(task.folder).epochs, self._lost[task.number]
            return TrialResult(task.number, values, shown, "lost", None, (), epochs, reason)
        return TrialResult(
            task.number,
            values,
            shown,
            found.state,
            found.score,
            tuple(found.scores),
            found.epochs,
            found.reason,
            misfit=found.state == "failed" and not found.details,
        )


def _run_here(task: Task) -> Outcome:
    """Runs a trial in this process, with no other lines than warnings.

    Raises:
        InputError: It cannot be made here and now.
        OSError: The same, as on a full disk.
        Stopped: A signal asked for a stop; the state is saved.
    """
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        task()
    except (InputError, OSError):
        raise
    except Exception as error:  # the trial is the user's code too, and others must go on
        return raised(error)
    finally:
        log.setLevel(level)
    return Outcome()
