"""Record the disk operations of a process, or make one of them fail.

Python reports every rename, removal and new folder to `sys.addaudithook`, whichever code causes it.
It does not report writes, so files are opened with a raw layer that does. `os.fsync` and the write
functions of `os` are replaced.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Fault = Literal["kill", "ENOSPC", "EIO"]
FAULTS: tuple[Fault, ...] = ("kill", "ENOSPC", "EIO")
_AUDIT_EVENTS = {
    "os.rename": "rename",
    "os.remove": "unlink",
    "os.rmdir": "rmdir",
    "os.mkdir": "mkdir",
    "os.chmod": "chmod",
    "os.truncate": "truncate",
    "os.link": "link",
    "os.symlink": "symlink",
    "shutil.rmtree": "rmtree",
}
_FLUSHES = ("fsync", "fdatasync")
_WRITES = ("write", "pwrite", "writev", "pwritev", "sendfile", "copy_file_range")


@dataclass
class DiskOperations:
    """Records the disk operations of this process until it ends.

    Args:
        under: The folder; operations on files elsewhere are ignored.
        at: The number of the operation that fails, from 0; None for none.
        fault: How it fails. With ``kill`` and ``ENOSPC``, a write has written half of its bytes.
        log: A file that gets one line per operation.
    """

    under: Path
    at: int | None = None
    fault: Fault = "kill"
    log: Path | None = None
    _seen: int = 0

    def __post_init__(self) -> None:
        self.under = self.under.resolve()
        self._log = _OPEN(self.log, "a", 1) if self.log is not None else None
        for name in _FLUSHES:
            if hasattr(os, name):
                setattr(os, name, self._reporting(name, getattr(os, name)))
        for name in _WRITES:
            if hasattr(os, name):
                setattr(os, name, self._reporting("write", getattr(os, name)))
        io.open = builtins.open = self._open
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in _AUDIT_EVENTS:
            self._report(_AUDIT_EVENTS[event], arguments[0])
        elif event == "open" and _creates(*arguments):
            self._report("open", arguments[0])

    def _reporting(self, kind: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(file: Any, *rest: Any, **others: Any) -> Any:
            self._report(kind, file)
            return call(file, *rest, **others)

        return wrapper

    def _open(
        self, file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **others: Any
    ) -> Any:
        """As `open`, with a raw layer that reports its writes."""
        raw_mode = mode.replace("b", "").replace("t", "")
        if not set(raw_mode) & set("wax+"):
            return _OPEN(file, mode, buffering, *rest, **others)
        raw = _Raw(file, raw_mode, others.get("closefd", True), others.get("opener"))
        raw.disk = self
        if buffering == 0:
            return raw
        size = buffering if buffering > 1 else io.DEFAULT_BUFFER_SIZE
        buffered = io.BufferedRandom(raw, size) if "+" in raw_mode else io.BufferedWriter(raw, size)
        if "b" in mode:
            return buffered
        names = ("encoding", "errors", "newline")
        given = dict(zip(names, rest, strict=False)) | {n: others[n] for n in names if n in others}
        return io.TextIOWrapper(buffered, line_buffering=buffering == 1, **given)

    def _report(self, kind: str, file: Any, torn: Callable[[], Any] | None = None) -> None:
        path = _path(file)
        if path is None or not path.is_relative_to(self.under) or _is_of_coverage(path):
            return
        if self._log is not None:
            self._log.write(f"{kind} {_stable_name(path.relative_to(self.under))}\n")
        self._seen += 1
        if self._seen - 1 != self.at:
            return
        if torn is not None and self.fault != "EIO":
            torn()
        if self.fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        code = getattr(errno, self.fault)
        raise OSError(code, os.strerror(code))


class _Raw(io.FileIO):
    disk: DiskOperations

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        half = view[: len(view) // 2]
        self.disk._report("write", self.fileno(), lambda: io.FileIO.write(self, half))
        return super().write(data)


_OPEN = builtins.open


def _is_of_coverage(path: Path) -> bool:
    """Whether ``make coverage`` writes a file, wherever a process is at work."""
    return path.name.startswith(".coverage")


def _creates(file: Any, _mode: Any, flags: Any) -> bool:
    """Whether a call of `open` may create a file."""
    return not isinstance(file, int) and isinstance(flags, int) and bool(flags & os.O_CREAT)


def _path(file: Any) -> Path | None:
    """The path of an open file or of a name; None for pipes and the like."""
    if isinstance(file, int):
        try:
            return Path(f"/proc/self/fd/{file}").readlink()
        except OSError:
            return None
    if isinstance(file, (str, bytes, os.PathLike)):
        path = Path(os.fsdecode(file)).absolute()
        return path.parent.resolve() / path.name
    return None


def _stable_name(path: Path) -> str:
    """The name of a file, without the random part of a temporary file."""
    if path.name.startswith("#"):  # a file without a name
        return path.with_name("#").as_posix()
    parts = path.name.split(".")
    if path.suffix == ".part" and len(parts) > 3:  # .NAME.RANDOM.part
        return path.with_name(".".join(parts[:-2])).as_posix()
    return path.as_posix()
