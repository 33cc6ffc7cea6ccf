"""The operations of a process on the disk: recorded, and made to fail one at a time.

Python tells of every rename, removal and new folder by itself (`sys.addaudithook`), whichever code
asks for it. Of writes it does not: files are opened with a raw layer that does. `os.fsync` and the
writes of `os` are replaced.
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
_AUDITED = {
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
class Disk:
    """Watches this process from now on, for good: for processes that end soon.

    Args:
        under: Operations on files elsewhere are nobody's business.
        at: The number of the operation that fails, from 0; None for none.
        fault: How it fails. A write that is killed or finds no room has written half.
        log: A file that gets a line for each operation.
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
                setattr(os, name, self._watched(name, getattr(os, name)))
        for name in _WRITES:
            if hasattr(os, name):
                setattr(os, name, self._watched("write", getattr(os, name)))
        io.open = builtins.open = self._open
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in _AUDITED:
            self._happens(_AUDITED[event], arguments[0])
        elif event == "open" and _makes(*arguments):
            self._happens("open", arguments[0])

    def _watched(self, kind: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(file: Any, *rest: Any, **others: Any) -> Any:
            self._happens(kind, file)
            return call(file, *rest, **others)

        return wrapper

    def _open(
        self, file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **others: Any
    ) -> Any:
        """As `open`, over a raw layer that tells of its writes."""
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

    def _happens(self, kind: str, file: Any, torn: Callable[[], Any] | None = None) -> None:
        path = _path(file)
        if path is None or not path.is_relative_to(self.under):
            return
        if self._log is not None:
            self._log.write(f"{kind} {_settled(path.relative_to(self.under))}\n")
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
    disk: Disk

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        half = view[: len(view) // 2]
        self.disk._happens("write", self.fileno(), lambda: io.FileIO.write(self, half))
        return super().write(data)


_OPEN = builtins.open


def _makes(file: Any, _mode: Any, flags: Any) -> bool:
    """Whether an opening may make a file."""
    return not isinstance(file, int) and isinstance(flags, int) and bool(flags & os.O_CREAT)


def _path(file: Any) -> Path | None:
    """Where a file lies; None for what is no file of a folder."""
    if isinstance(file, int):
        try:
            return Path(f"/proc/self/fd/{file}").readlink()
        except OSError:
            return None
    if isinstance(file, (str, bytes, os.PathLike)):
        path = Path(os.fsdecode(file)).absolute()
        return path.parent.resolve() / path.name
    return None


def _settled(path: Path) -> str:
    """A temporary file's name without what is random in it."""
    if path.name.startswith("#"):  # a file that never had a name
        return path.with_name("#").as_posix()
    parts = path.name.split(".")
    if path.suffix == ".part" and len(parts) > 3:  # .NAME.RANDOM.part
        return path.with_name(".".join(parts[:-2])).as_posix()
    return path.as_posix()
