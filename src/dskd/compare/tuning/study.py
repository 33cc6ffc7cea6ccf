"""The trials of a study, by Optuna. That is the extra ``dskd[tune]``."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dskd.compare.tuning.space import Tuned
from dskd.runtime.extras import import_extra

JOURNAL = "journal.log"
"""The file with everything that Optuna knows. Several machines may write to it."""
STARTUP_TRIALS = 5
"""Trials before the first one can be pruned; also those with random values."""
State = Literal["running", "complete", "pruned", "failed"]
log = logging.getLogger("dskd")


@dataclass(frozen=True)
class Trial:
    """A trial, as the study knows it.

    Attributes:
        number: Its number, from 0.
        values: The values of the tuned settings as text, by setting.
        state: What became of it.
        score: Its validation accuracy in percent; None unless it is complete.
    """

    number: int
    values: dict[str, str]
    state: State
    score: float | None


def optuna() -> Any:
    """The library.

    Raises:
        InputError: It is not installed.
    """
    library = import_extra("optuna", "tune", "tuning needs Optuna, which is not installed;")
    library.logging.set_verbosity(library.logging.ERROR)
    return library


class Study:
    """The trials of a study, in a file.

    Args:
        folder: The folder of the study, which exists.
        space: The settings that are tuned.
        seed: Of the search.
        parallel: Whether several trials run at a time.
        warmup: Epochs of a trial before it can be pruned. Accuracies of early epochs say little.
    """

    def __init__(
        self,
        folder: Path,
        space: Sequence[Tuned],
        *,
        seed: int = 0,
        parallel: bool = False,
        warmup: int = 0,
    ) -> None:
        library = optuna()
        self._library, self._space = library, {one.key: one for one in space}
        self._distributions = {one.key: _distribution(library, one) for one in space}
        backend = library.storages.journal.JournalFileBackend(str(folder / JOURNAL))
        with _quiet():
            storage = library.storages.JournalStorage(backend)
            self._study = library.create_study(
                storage=storage,
                study_name="dskd",
                direction="maximize",
                load_if_exists=True,
                pruner=library.pruners.MedianPruner(STARTUP_TRIALS, n_warmup_steps=warmup),
            )
            self._study.sampler = library.samplers.TPESampler(
                # A study that goes on must not draw its first values again.
                seed=(seed + len(self._study.trials)) % 2**32,
                n_startup_trials=STARTUP_TRIALS,
                constant_liar=parallel,
            )

    def trials(self) -> list[Trial]:
        """All trials so far, but for those that a kill left without all of their values."""
        found = self._study.trials
        return [self._trial(one) for one in found if self._space.keys() <= one.params.keys()]

    def ask(self) -> Trial:
        """A new trial, with values that earlier ones suggest."""
        asked = self._study.ask(self._distributions)
        return self._trial(self._study.trials[asked.number])

    def _trial(self, frozen: Any) -> Trial:
        name: Any = frozen.state.name.lower().replace("fail", "failed")
        texts = {key: self._space[key].value_text(value) for key, value in frozen.params.items()}
        return Trial(frozen.number, texts, name, frozen.value if name == "complete" else None)

    def tell(self, number: int, state: State, score: float | None = None) -> None:
        """Records what became of a trial; Optuna keeps the first record of one made again."""
        states = self._library.trial.TrialState
        known = {"complete": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}
        with _quiet():
            self._study.tell(number, score, known[state], skip_if_finished=True)

    def report(self, number: int, step: int, score: float) -> bool:
        """Reports the validation accuracy after an epoch. Whether the trial should be pruned."""
        frozen = self._study.trials[number]
        trial = self._library.trial.Trial(self._study, frozen._trial_id)
        if frozen.state.is_finished():  # it is made again, and ends where it ended before
            return frozen.state.name == "PRUNED" and step >= (frozen.last_step or 0)
        if step not in frozen.intermediate_values:
            trial.report(score, step)
        return bool(trial.should_prune())


def repair_journal(folder: Path) -> None:
    """Drops a last line that a kill or a full disk left half written; Optuna stops at such a line.

    Args:
        folder: The folder of the study.
    """
    path = folder / JOURNAL
    if not path.is_file():
        return
    lock = optuna().storages.journal.JournalFileSymlinkLock(str(path))
    lock.acquire()  # a trial on another machine may write
    try:
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)
    finally:
        lock.release()


def _distribution(library: Any, one: Tuned) -> Any:
    found = library.distributions
    if one.choices:
        return found.CategoricalDistribution(one.choices)
    kind = found.IntDistribution if one.whole else found.FloatDistribution
    ends = map(int, (one.low or 0, one.high or 0)) if one.whole else (one.low, one.high)
    return kind(*ends, log=one.log)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides Optuna's remarks that a feature may change."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
