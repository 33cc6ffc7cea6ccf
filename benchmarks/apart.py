"""Steps in a separate process, which no setting of this process affects."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from turns import CountedSteps

_steps: list[CountedSteps] = []
"""The runner, in the separate process."""


class Apart:
    """A runner in a new process (`turns.CountedSteps`).

    Args:
        make: Builds the runner there. The function must be picklable.
    """

    def __init__(self, make: Callable[[], CountedSteps]) -> None:
        self._process = ProcessPoolExecutor(1, get_context("spawn"))
        self.lead, self.rest = self._process.submit(_begin, make).result()

    def step(self) -> float:
        """See `turns.Steps.step`."""
        return self._process.submit(_step).result()

    def work(self) -> int:
        """See `turns.CountedSteps.work`."""
        return self._process.submit(_work).result()


def _begin(make: Callable[[], CountedSteps]) -> tuple[int, float]:
    _steps.append(make())
    return _steps[0].lead, _steps[0].rest


def _step() -> float:
    return _steps[0].step()


def _work() -> int:
    return _steps[0].work()
