"""Runs entries one after the other within a time budget, and records each of them at once.

A worker process runs the entries and writes what each of them found into a JSON file. If an entry
raises, its error is recorded. If an entry takes too long or ends the process, `supervise` records
that, and starts a new worker for the entries that are left.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import subprocess
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dskd.storage.atomic import replace_file

Result = dict[str, Any]
MIN_SECONDS = 10.0
"""No entry begins with less time left, nor with less than half of its own time."""
SOFT_SHARE = 0.8
"""The share of its time after which an entry should come to its end."""
_TAIL = 2000
"""Characters of an error that are recorded."""


@dataclass(frozen=True)
class Entry:
    """Something to check or to measure.

    Attributes:
        seconds: Its worker is ended if it takes longer.
        work: From the `time.monotonic` at which it should come to its end to what it found, plain
            values with a ``status``.
    """

    seconds: float
    work: Callable[[float], Result]


def run_entries(
    entries: Mapping[str, Entry],
    out: Path,
    deadline: float,
    clean_up: Callable[[], None] = lambda: None,
) -> None:
    """In the worker: runs the entries that the file does not have yet.

    Args:
        entries: By name.
        out: The JSON file that `supervise` began.
        deadline: By `time.time`.
        clean_up: Is called after each entry. If it raises, the worker ends.
    """
    for name, entry in entries.items():
        left = deadline - time.time()
        if name in read(out)["entries"]:
            continue
        if left < max(MIN_SECONDS, entry.seconds / 2):
            continue
        _record(out, name, {"status": "running"})
        seconds, start = min(entry.seconds, left), time.monotonic()
        faulthandler.dump_traceback_later(seconds, exit=True)
        try:
            found = entry.work(start + SOFT_SHARE * seconds)
        except Exception as error:
            found = {"status": "error", "error": describe(error)}
        faulthandler.cancel_dump_traceback_later()
        took = round(time.monotonic() - start, 1)
        _record(out, name, found | {"took_seconds": took})
        print(f"{name}: {found['status']}, {took} s", flush=True)
        clean_up()


def supervise(
    command: Sequence[str], names: Sequence[str], out: Path, deadline: float, facts: Result
) -> Result:
    """Starts workers until all entries are recorded or the time is over.

    Args:
        command: Starts a worker, which calls `run_entries` with the same file and deadline.
        names: Of all entries.
        out: The JSON file, which is replaced.
        deadline: By `time.time`.
        facts: More values for the file.

    Returns:
        The content of the file. An entry that did not fit into the time is ``not measured``, and so
        is one that ran when the time was over.
    """
    result: Result = facts | {"entries": {}}
    _write(out, result)
    with tempfile.TemporaryDirectory() as folder:
        while len(result["entries"]) < len(names) and deadline - time.time() > MIN_SECONDS:
            known = len(result["entries"])
            code, errors = _run_worker(command, deadline, folder)
            result = read(out)
            if len(result["entries"]) == known:  # no entry began
                result |= {"error": errors} if code else {}
                break
            in_time = time.time() < deadline - 1
            ended = {"status": "error", "error": errors} if in_time else {"status": "not measured"}
            for entry in result["entries"].values():
                if entry["status"] == "running":
                    entry |= ended
            _write(out, result)
    result["entries"] = {n: result["entries"].get(n, {"status": "not measured"}) for n in names}
    _write(out, result)
    return result


def _run_worker(command: Sequence[str], deadline: float, folder: str) -> tuple[int, str]:
    """Runs a worker until it ends, at most until the deadline.

    Args:
        command: Starts it.
        deadline: By `time.time`.
        folder: Its folder for temporary files.

    Returns:
        Its exit code, and the end of its stderr.
    """
    # A file, not a pipe: a process that outlives the worker would keep a pipe open.
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, stderr=errors, start_new_session=True, env={**os.environ, "TMPDIR": folder}
        )
        try:
            with suppress(subprocess.TimeoutExpired):
                process.wait(deadline - time.time())
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and all that it started
            code = process.wait()
        errors.seek(0)
        return code, f"the worker ended with {code}; {errors.read()[-_TAIL:]}"


def failed(result: Result) -> bool:
    """Whether an entry failed or could not run."""
    states = [entry["status"] for entry in result["entries"].values()]
    return "error" in result or "failed" in states or "error" in states


def read(out: Path) -> Result:
    """The content of the file."""
    result: Result = json.loads(out.read_text())
    return result


def describe(error: BaseException) -> str:
    """The end of an error's traceback."""
    return "".join(traceback.format_exception(error))[-_TAIL:]


def _record(out: Path, name: str, found: Result) -> None:
    result = read(out)
    result["entries"][name] = found
    _write(out, result)


def _write(out: Path, result: Result) -> None:
    replace_file(out, (json.dumps(result, indent=1) + "\n").encode())
