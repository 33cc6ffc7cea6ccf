"""The process of a worker: reads tasks from stdin, and writes their outcomes to stdout.

It ends when stdin is closed. If that happens during a task, because the process that launched it is
gone, the task is asked to stop.
"""

from __future__ import annotations

import functools
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import IO

from dskd.errors import first_line
from dskd.runtime.launchers.task import Outcome

Work = Callable[[], Outcome]


def main() -> None:
    """Runs tasks until stdin is closed."""
    tasks: SimpleQueue[Work | None] = SimpleQueue()
    incoming = os.fdopen(os.dup(sys.stdin.fileno()), "rb")
    outgoing = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a task prints is no outcome
    os.dup2(os.open(os.devnull, os.O_RDONLY), sys.stdin.fileno())
    busy = threading.Event()
    threading.Thread(target=_read, args=(incoming, tasks, busy), daemon=True).start()
    while (task := tasks.get()) is not None:
        outcome = task()
        busy.clear()
        pickle.dump(outcome, outgoing)
        outgoing.flush()


def _read(incoming: IO[bytes], tasks: SimpleQueue[Work | None], busy: threading.Event) -> None:
    """Puts the tasks of a stream into a queue. At the end of the stream, stops the one at work."""
    while True:
        try:
            task = pickle.load(incoming)
        except EOFError:
            if busy.is_set():
                os.kill(os.getpid(), signal.SIGTERM)
            tasks.put(None)
            return
        except Exception as error:  # such as a module that this process cannot import
            task = functools.partial(Outcome, f"{type(error).__name__}: {first_line(error)}")
        busy.set()
        tasks.put(task)


if __name__ == "__main__":
    main()
