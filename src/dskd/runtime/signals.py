"""Stop a run after Ctrl-C or SIGTERM at the end of the current step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from dskd.errors import Quit
from dskd.runtime import distributed


class StopRequest:
    """Records whether a signal has asked the run to stop. It is true once one has.

    Attributes:
        signal: The number of the first signal; None before it.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """Records the first signal; a second one stops the run at once.

        Under torchrun, later signals are ignored: the cluster and torchrun each send one, and
        torchrun kills processes that are too slow.
        """
        if self.signal is not None and distributed.launched_world_size() == 1:
            raise Quit(number)
        self.signal = self.signal or number


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Turns SIGINT and SIGTERM into a request to stop, while the block runs.

    Only the main thread can handle signals. In any other thread, the request is never set.

    Yields:
        The request. The block reads it at places where the run can stop.

    Raises:
        Quit: A second signal arrived.
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
    except RuntimeError as error:
        if distributed.is_loss(error):
            before.clear()  # torchrun now sends SIGTERM to the rest: let them report the loss first
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
