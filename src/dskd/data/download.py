"""Fetching a published archive, once."""

from __future__ import annotations

import os
from pathlib import Path

import pooch

from dskd.errors import InputError


def cache_folder(cache: Path | None) -> Path:
    """Where downloads and decoded pictures are kept.

    Args:
        cache: The folder to use; None takes the environment variable ``DSKD_CACHE``, else the
            user's cache folder (``~/.cache/dskd`` on Linux).
    """
    chosen = cache or os.environ.get("DSKD_CACHE") or pooch.os_cache("dskd")
    return Path(chosen).expanduser().absolute()


def download(url: str, md5: str, cache: Path | None) -> Path:
    """Fetch an archive into the cache folder unless it is there already.

    The bytes go to a temporary file, which gets its name only once its md5 is right.

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
    pooch.get_logger().setLevel("WARNING")
    try:
        return Path(pooch.retrieve(url, known_hash=f"md5:{md5}", fname=name, path=folder))
    except Exception as error:  # requests, urllib3, pooch and the file system each raise their own
        raise InputError(
            f"cannot download {url} to {folder}: {type(error).__name__}: {error}; "
            f"fetch {name} by other means and set data.root to its folder"
        ) from error
