"""Fetching a published archive, once."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import pooch
from rich.console import Console
from rich.progress import DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from dskd.errors import InputError
from dskd.storage.atomic import part_for, sweep

_LARGEST = 2**30


def cache_folder(cache: Path | None) -> Path:
    """Where downloads and decoded images are kept.

    Args:
        cache: The folder to use; None takes the environment variable ``DSKD_CACHE``, else the
            user's cache folder (``~/.cache/dskd`` on Linux).

    Raises:
        InputError: It begins with ``~`` and the name of nobody who has a home folder.
    """
    chosen = cache or os.environ.get("DSKD_CACHE") or pooch.os_cache("dskd")
    try:
        return Path(chosen).expanduser().absolute()
    except RuntimeError:
        raise InputError(
            f"the cache folder {chosen} is of a user without a home folder; set DSKD_CACHE"
        ) from None


def download(url: str, md5: str, cache: Path | None) -> Path:
    """Fetch an archive into the cache folder unless it is there already.

    The bytes go to a file that ends in ``.part``, which gets its name only once its md5 is right.
    One that is there is used only if its md5 is right.

    Args:
        url: The published address.
        md5: The published md5 of the archive, in hexadecimal.
        cache: See `cache_folder`.

    Returns:
        The archive's path.

    Raises:
        InputError: The network, the server, the md5 or the folder is not as it should be.
    """
    folder = cache_folder(cache)
    name = url.rsplit("/", 1)[1]
    sweep(folder, name)
    try:
        if not _is_published(folder / name, md5):
            folder.mkdir(parents=True, exist_ok=True)
            _fetch(url, md5, folder / name)
    except Exception as error:  # requests, urllib3, pooch and the file system each raise their own
        raise InputError(
            f"cannot download {url} to {folder}: {_root(error)}; fetch "
            f"{name} by other means and set data.root to its folder"
        ) from error
    return folder / name


def _fetch(url: str, md5: str, path: Path) -> None:
    """Fetches a file that is then whole and as published, or not there."""
    bar = _Bar(path.name)
    with closing(bar), part_for(path) as part:
        pooch.HTTPDownloader(progressbar=bar)(url, str(part), None)
        if not _is_published(part, md5):
            raise ValueError(f"its md5 is {pooch.file_hash(str(part), 'md5')}, not {md5}")


def _is_published(path: Path, md5: str) -> bool:
    return path.is_file() and pooch.file_hash(str(path), "md5") == md5


def _root(error: BaseException) -> str:
    """What went wrong in the first place: the layers above it only repeat it."""
    while below := error.__cause__ or error.__context__:
        error = below
    return f"{type(error).__name__}: {error}"


class _Bar:
    """A download's progress on stderr, as pooch drives it; nothing where that is no terminal."""

    def __init__(self, name: str) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), DownloadColumn(), TimeRemainingColumn())
        self.total = self._came = 0
        self._name = name
        self._progress = Progress(
            *columns, console=console, disable=not console.is_terminal, transient=True
        )

    def update(self, count: int) -> None:
        """``count`` more bytes came, or about as many."""
        self._came += count
        if self._came > _LARGEST:
            raise ValueError(f"more than {_LARGEST} bytes came, which no published archive has")
        if not self._progress.task_ids:
            self._progress.start()
            self._progress.add_task(f"downloading {self._name}", total=self.total)
        self._progress.update(self._progress.task_ids[0], advance=count)

    def reset(self) -> None:
        """Called at the end, before the last `update`, which counts all bytes again."""
        self._came = 0
        if self._progress.task_ids:
            self._progress.reset(self._progress.task_ids[0])

    def close(self) -> None:
        """The download is over."""
        self._progress.stop()
