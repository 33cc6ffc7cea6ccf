"""Start Python processes that need no time to import torch.

Each is forked from a server that has imported the package, and does not wait for the disk
(`tests.no_flush`). In all other respects it is a new process. A test of the start itself, such as
of what is imported, starts an interpreter instead.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace

import PIL
import pytest
import torch
from torch.multiprocessing.spawn import start_processes

from dskd import methods

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "dskd.cli.commands",
        "dskd.cli.results",
        "dskd.engine.run",
        "dskd.compare.runner",
        "dskd.models.resnet",
        "dskd.models.size_check",
        *(f"dskd.methods.{name}" for name in methods.names()),
        *(f"PIL.{name}" for name in PIL._plugins),
        "scipy.optimize",
        "sklearn.datasets",
        "sklearn.model_selection",
        "torch._dynamo",
        "torch._inductor.config",
        "torch.distributed.run",
        "tests.builders",
        "tests.no_flush",
    ]
)
PATIENCE = 900.0
"""Seconds after which a process counts as hanging."""


class Hung(Exception):
    """A process did not end in time."""


def wait(process: BaseProcess, patience: float = PATIENCE) -> int:
    """Waits for a process and returns its exit code, which is negative after a signal.

    Raises:
        Hung: The process did not end in time and was killed.
    """
    process.join(patience)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise Hung(f"no end within {patience:.0f} s")
    return process.exitcode


def together(count: int, work: Callable[..., None], *arguments: object) -> None:
    """Calls a function in so many processes, with the number of the process as first argument."""
    start_processes(work, arguments, count, start_method="forkserver")  # type: ignore[no-untyped-call]


def start(
    words: Sequence[str],
    output: Path,
    errors: Path,
    *,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> BaseProcess:
    """Starts ``python`` with ``-m MODULE`` or ``-c CODE`` and arguments.

    Args:
        words: What follows ``python``.
        output: A file to which stdout is appended.
        errors: A file to which stderr is appended.
        folder: The working directory.
        environment: The environment; by default that of this process.
    """
    given = dict(os.environ if environment is None else environment)
    process = SERVER.Process(
        target=_main, args=(list(words), output, errors, folder or Path.cwd(), given)
    )
    process.start()
    return process


def run(
    words: Sequence[str],
    *,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """As `start`, to the end."""
    with tempfile.TemporaryDirectory() as name:
        output, errors = Path(name) / "output", Path(name) / "errors"
        code = wait(start(words, output, errors, folder=folder, environment=environment))
        return subprocess.CompletedProcess(words, code, output.read_text(), errors.read_text())


class Piped:
    """As `subprocess.Popen`, for the Python that this process runs, with pipes to it and from it.

    Args:
        words: The command, with ``-m`` or ``-c``.
        env: The environment.
        of_popen: Further arguments of `subprocess.Popen`, for the pipes and a session of its own.
    """

    def __init__(self, words: Sequence[str], *, env: Mapping[str, str], **of_popen: object) -> None:
        read_here, write_there = SERVER.Pipe(duplex=False)
        read_there, write_here = SERVER.Pipe(duplex=False)
        self._process = SERVER.Process(
            target=_piped, args=(list(words[1:]), read_there, write_there, Path.cwd(), dict(env))
        )
        self._process.start()
        self.stdin = os.fdopen(os.dup(write_here.fileno()), "wb")
        self.stdout = os.fdopen(os.dup(read_here.fileno()), "rb")
        for end in (read_here, write_there, read_there, write_here):
            end.close()

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self) -> int:
        return wait(self._process)

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()


def fork_jobs(patch: pytest.MonkeyPatch) -> None:
    """Has the launcher `dskd.runtime.launchers.processes.Processes` fork its processes."""
    forking = SimpleNamespace(Popen=Piped, PIPE=subprocess.PIPE)
    patch.setattr("dskd.runtime.launchers.processes.subprocess", forking)


def _piped(
    words: list[str],
    incoming: Connection,
    outgoing: Connection,
    folder: Path,
    environment: dict[str, str],
) -> None:
    os.setsid()
    for number, end in enumerate((incoming, outgoing)):
        os.dup2(end.fileno(), number)
        end.close()
    sys.stdin, sys.stdout = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    _become(words, folder, environment)


def _main(
    words: list[str], output: Path, errors: Path, folder: Path, environment: dict[str, str]
) -> None:
    redirect(output, errors)
    _become(words, folder, environment)


def _become(words: list[str], folder: Path, environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    torch.set_num_threads(1)
    kind, what, *arguments = words
    sys.argv = [kind, *arguments]
    if kind == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})


def redirect(output: Path, errors: Path) -> None:
    """Has this process append to files what it prints."""
    for number, path in ((1, output), (2, errors)):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdout = os.fdopen(os.dup(1), "w")
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
