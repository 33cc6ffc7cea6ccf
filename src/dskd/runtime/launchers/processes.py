"""Tasks in other processes of this machine.

A worker is a Python process of its own (`dskd.runtime.launchers.worker`), so that a program without
a ``__main__`` guard can start some. Tasks travel by cloudpickle, with classes that a notebook has
defined. A worker takes one task after another.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor

import cloudpickle
import torch

from dskd.errors import InputError, first_line
from dskd.runtime.launchers.task import Launched, Outcome, Task


class Processes:
    """Starts tasks in a fixed number of processes.

    Args:
        jobs: Number of processes.
        threads: Threads that torch uses in each; None for an equal share of those of this process.
        gpus: Number of GPUs to share out, one for each process in turn; None for all that torch
            sees, 0 for none.
    """

    elsewhere = False

    def __init__(self, jobs: int, threads: int | None = None, gpus: int | None = None) -> None:
        self.limit = jobs
        self.threads = threads or max(1, torch.get_num_threads() // jobs)
        self.gpus = torch.cuda.device_count() if gpus is None else gpus
        self._pool = ThreadPoolExecutor(jobs)  # threads that wait for the workers
        self._idle: list[_Worker] = []
        self._slots = list(range(jobs))

    def open(self) -> str:
        """See `Launcher.open`."""
        where = f"on {self.gpus} GPU{'s' * (self.gpus > 1)}, " if self.gpus else ""
        threads = f"{self.threads} thread{'s' * (self.threads > 1)} each"
        return f"{self.limit} jobs at a time on this machine, {where}{threads}"

    def submit(self, task: Task) -> _RunningInWorker:
        """See `Launcher.submit`.

        Raises:
            InputError: The task holds an object that cannot be pickled.
        """
        try:
            message = cloudpickle.dumps(Launched(task))
        except Exception as error:  # pickling calls the user's code
            raise InputError(
                f"an object of this call cannot be sent to another process "
                f"({first_line(error)}); drop the option jobs"
            ) from error
        worker = self._idle.pop() if self._idle else self._start()
        return _RunningInWorker(self, worker, self._pool.submit(worker.call, message))

    def _start(self) -> _Worker:
        slot = self._slots.pop()
        return _Worker(slot, _environment(slot, self.gpus, self.threads))

    def release(self, worker: _Worker) -> None:
        """Takes back a worker whose task has ended; a dead one is replaced by the next task."""
        if worker.alive:
            self._idle.append(worker)
        else:
            self._slots.append(worker.slot)

    def close(self) -> None:
        """See `Launcher.close`."""
        for worker in self._idle:
            worker.end()
        self._idle.clear()
        self._pool.shutdown()


class _Worker:
    """A process that takes tasks."""

    def __init__(self, slot: int, environment: dict[str, str]) -> None:
        self.slot = slot
        command = [sys.executable, "-m", "dskd.runtime.launchers.worker"]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches this process only, which then stops all
        )

    @property
    def alive(self) -> bool:
        """Whether it can take another task."""
        return self.process.poll() is None

    def call(self, message: bytes) -> Outcome:
        """Has it run a task, and waits for the outcome. Runs in a thread."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(message)
            self.process.stdin.flush()
            outcome = pickle.load(self.process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError):
            return Outcome(_death(self.process.wait()))
        assert isinstance(outcome, Outcome)
        return outcome

    def end(self) -> None:
        """Ends it between two tasks."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


class _RunningInWorker:
    """A task in a worker."""

    def __init__(self, owner: Processes, worker: _Worker, future: Future[Outcome]) -> None:
        self._owner, self._worker, self._future = owner, worker, future

    def done(self) -> bool:
        """See `Running.done`."""
        return self._future.done()

    def outcome(self) -> Outcome:
        """See `Running.outcome`."""
        outcome = self._future.result()
        self._owner.release(self._worker)
        return outcome

    def stop(self) -> None:
        """See `Running.stop`."""
        self._worker.process.terminate()

    def kill(self) -> None:
        """See `Running.kill`."""
        self._worker.process.kill()
        self._worker.process.wait()


def _environment(slot: int, gpus: int, threads: int) -> dict[str, str]:
    """The environment of a worker: it imports what this process can, and sees one GPU if any."""
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    environment["OMP_NUM_THREADS"] = str(threads)  # torch reads it when it is imported
    if gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
        environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[slot % gpus]
    return environment


def _death(code: int) -> str:
    """Why a worker is gone."""
    if code >= 0:
        return f"its process ended with exit code {code}"
    try:
        return f"its process was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"its process was killed by signal {-code}"
