"""Steps in a separate process, which no setting of this process affects."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

from interleave import CountedSteps

_steps: list[CountedSteps] = []
"""The runner, in the separate process."""


class SubprocessSteps:
    """A runner in a new process (`interleave.CountedSteps`).

    Args:
        make: Builds the runner there. The function must be picklable.
    """

    def __init__(self, make: Callable[[], CountedSteps]) -> None:
        self._process = ProcessPoolExecutor(1, get_context("spawn"))
        self.untimed, self.pause = self._process.submit(_begin, make).result()

    def step(self) -> float:
        """See `interleave.Steps.step`."""
        return float(self.call("step"))

    def work(self) -> int:
        """See `interleave.CountedSteps.work`."""
        return int(self.call("work"))

    def call(self, name: str, *arguments: Any) -> Any:
        """Calls a method of the runner.

        Args:
            name: The name of the method.
            *arguments: Its arguments, which must be picklable.
        """
        return self._process.submit(_call, name, arguments).result()

    def close(self) -> None:
        """Ends the process."""
        self._process.shutdown()


def _begin(make: Callable[[], CountedSteps]) -> tuple[int, float]:
    _steps.append(make())
    return _steps[0].untimed, _steps[0].pause


def _call(name: str, arguments: tuple[Any, ...]) -> Any:
    return getattr(_steps[0], name)(*arguments)
