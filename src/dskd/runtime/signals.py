"""Ctrl-C and SIGTERM between two steps, not within one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from dskd.errors import ProcessLost, Quit
from dskd.runtime import distributed


class StopRequest:
    """Whether a signal has asked for a stop."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """Notes the first signal; a second one stops at once.

        Not so under torchrun: a cluster and torchrun both send one, and torchrun kills what is
        too slow.
        """
        if self.signal is not None and distributed.launched_world_size() == 1:
            raise Quit(number)
        self.signal = self.signal or number


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """While the block runs, signals ask for a stop instead of making one.

    Only the main thread can handle signals: in another the request is never set.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {
        number: signal.signal(number, request.handle) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield request
    except ProcessLost:
        before.clear()  # torchrun now asks all that are left to end: first they say why
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
