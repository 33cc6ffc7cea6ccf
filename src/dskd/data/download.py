"""Download published archives into the cache folder."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import pooch
from rich.console import Console
from rich.progress import DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from dskd.errors import InputError
from dskd.storage.atomic import part_for, sweep

_MAX_BYTES = 2**30


def cache_folder(cache: Path | None) -> Path:
    """The folder of downloads and decoded images.

    Args:
        cache: The folder to use; None takes the environment variable ``DSKD_CACHE``, else the
            user's cache folder (``~/.cache/dskd`` on Linux).

    Raises:
        InputError: The folder is in the home folder of a user who has none.
    """
    chosen = cache or os.environ.get("DSKD_CACHE")
    try:
        return Path(chosen or pooch.os_cache("dskd")).expanduser().absolute()
    except RuntimeError:
        raise InputError(
            f"the cache folder {chosen or '~/.cache/dskd'} is of a user without a home folder; set "
            "the environment variable DSKD_CACHE to a folder"
        ) from None


def download(url: str, md5: str, cache: Path | None) -> Path:
    """Download an archive into the cache folder, unless it exists with the right md5.

    The bytes go to a file that ends in ``.part``. It is renamed once its md5 is verified.

    Args:
        url: Published address of the archive.
        md5: Published md5 of the archive, in hexadecimal.
        cache: See `cache_folder`.

    Returns:
        The path of the archive.

    Raises:
        InputError: The download fails, its md5 is wrong, or the folder cannot be written to.
    """
    folder = cache_folder(cache)
    name = url.rsplit("/", 1)[1]
    sweep(folder, name)
    try:
        if not _is_published(folder / name, md5):
            folder.mkdir(parents=True, exist_ok=True)
            _fetch(url, md5, folder / name)
    except Exception as error:  # requests, urllib3, pooch and the file system raise many types
        raise InputError(
            f"cannot download {url} to {folder}: {_root_cause(error)}; fetch "
            f"{name} by other means and set data.root to its folder"
        ) from error
    return folder / name


def _fetch(url: str, md5: str, path: Path) -> None:
    """Download a file; it appears under its name only if it is complete."""
    bar = _ProgressBar(path.name)
    with closing(bar), part_for(path) as part:
        pooch.HTTPDownloader(progressbar=bar)(url, str(part), None)
        if not _is_published(part, md5):
            raise ValueError(f"its md5 is {pooch.file_hash(str(part), 'md5')}, not {md5}")


def _is_published(path: Path, md5: str) -> bool:
    return path.is_file() and pooch.file_hash(str(path), "md5") == md5


def _root_cause(error: BaseException) -> str:
    """The innermost error; the outer ones only repeat it."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return f"{type(error).__name__}: {error}"


class _ProgressBar:
    """A progress bar on stderr with the interface that pooch expects; silent without a terminal."""

    def __init__(self, name: str) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), DownloadColumn(), TimeRemainingColumn())
        self.total = self._received = 0
        self._name = name
        self._progress = Progress(
            *columns, console=console, disable=not console.is_terminal, transient=True
        )

    def update(self, count: int) -> None:
        """Count about ``count`` more received bytes."""
        self._received += count
        if self._received > _MAX_BYTES:
            raise ValueError(f"received more than {_MAX_BYTES} bytes, which no archive has")
        if not self._progress.task_ids:
            self._progress.start()
            self._progress.add_task(f"downloading {self._name}", total=self.total)
        self._progress.update(self._progress.task_ids[0], advance=count)

    def reset(self) -> None:
        """Start again at zero: pooch's last `update` counts all bytes once more."""
        self._received = 0
        if self._progress.task_ids:
            self._progress.reset(self._progress.task_ids[0])

    def close(self) -> None:
        """Remove the progress bar."""
        self._progress.stop()
