"""Find the tar files that patterns and URLs name, and copy those that cannot be read in place."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import fsspec

from dskd.data.download import cache_folder
from dskd.data.image_source import TRAIN
from dskd.data.image_table import SPLITS
from dskd.errors import InputError, first_line
from dskd.storage.atomic import part_for, replace_file

log = logging.getLogger("dskd")

_GROUP = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_COMPRESSED = {".gz": "gzip", ".tgz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd"}


@dataclass(frozen=True)
class Shard:
    """A tar file of samples.

    Attributes:
        name: Name of the shard, without the folder that all share.
        path: The file that is read.
        split: The split of its samples.
        changed: Time of the last change of a local file, in nanoseconds; a hash of the content of
            a remote one. The size alone would not do: tar files are padded.
    """

    name: str
    path: Path
    split: str
    changed: int

    @property
    def size(self) -> int:
        """Its bytes."""
        return self.path.stat().st_size


def expand_braces(pattern: str) -> list[str]:
    """The texts that a pattern with ``{0000..0009}`` or ``{a,b}`` stands for, as in a shell.

    Example:
        >>> expand_braces("{train,val}-{08..10}.tar")[:4]
        ['train-08.tar', 'train-09.tar', 'train-10.tar', 'val-08.tar']
        >>> expand_braces("a{b}.tar")
        ['a{b}.tar']
    """
    for group in _GROUP.finditer(pattern):
        if found := _RANGE.fullmatch(group[1]):
            low, high = found.groups()
            width = len(low) if low.startswith("0") else 0
            choices = [f"{number:0{width}}" for number in range(int(low), int(high) + 1)]
        elif "," in group[1]:
            choices = group[1].split(",")
        else:
            continue
        head, tail = pattern[: group.start()], pattern[group.end() :]
        return [text for one in choices for text in expand_braces(f"{head}{one}{tail}")]
    return [pattern]


def find_shards(root: Path | None, patterns: Sequence[str], cache_dir: Path | None) -> list[Shard]:
    """The shards in the order of the patterns; those that need it are copied.

    Args:
        root: The folder of local patterns.
        patterns: Paths or URLs, with braces and ``*``. A folder stands for its ``.tar`` files.
        cache_dir: The cache folder, see `dskd.data.download.cache_folder`.

    Raises:
        InputError: A shard is missing or cannot be fetched, or some say in their name of which
            split they are, and others do not.
    """
    places = _found(root, patterns)
    names = _short(places)
    paths = _in_place(places, cache_folder(cache_dir) / "shards")
    return [
        Shard(name, path, split, _changed(place, path))
        for name, path, split, place in zip(names, paths, _splits(places), places, strict=True)
    ]


def local_shards(root: Path | None, patterns: Sequence[str]) -> list[Path]:
    """The shards that can be read in place; none if there is a URL.

    Args:
        root: As for `find_shards`.
        patterns: As for `find_shards`.

    Raises:
        InputError: A shard is missing.
    """
    if any("://" in pattern for pattern in patterns):
        return []
    return [Path(place) for place in _found(root, patterns) if not _is_copied(place)]


def _found(root: Path | None, patterns: Sequence[str]) -> list[str]:
    """The paths and URLs that patterns stand for, each once."""
    found: dict[str, None] = {}
    for pattern in patterns:
        for text in expand_braces(pattern):
            found |= dict.fromkeys(_remote(text) if "://" in text else _local(root, text))
    return list(found)


def _local(root: Path | None, text: str) -> list[str]:
    """The files that match a pattern, sorted."""
    path = Path(root or "", text).expanduser().absolute()
    if path.is_dir():
        path = path / "*.tar"
    if path.is_file():
        return [str(path)]
    if found := sorted(filter(os.path.isfile, glob.glob(str(path), recursive=True))):  # noqa: PTH207
        return found
    raise InputError(f"there is no shard {path}; check data.shards and data.root")


def _remote(url: str) -> list[str]:
    """The URLs that match a pattern, sorted, in the form of their file system."""
    try:
        files, path = fsspec.core.url_to_fs(url)
        names = sorted(files.glob(path)) if glob.has_magic(url) else [path]
        found = [files.unstrip_protocol(name) for name in names]
    except Exception as error:  # each file system raises its own
        raise _unreachable(url, error) from error
    if not found:
        raise InputError(f"there is no shard {url}; check data.shards")
    return found


def _unreachable(url: str, error: Exception) -> InputError:
    return InputError(f"cannot read {url}: {first_line(error)}; check data.shards and the network")


def _short(places: Sequence[str]) -> list[str]:
    """The paths without the folders that all share."""
    folders = [place.rpartition("/")[0].split("/") for place in places]
    levels = (len(set(level)) == 1 for level in zip(*folders, strict=False))
    shared = sum(takewhile(bool, levels))
    return ["/".join(place.split("/")[shared:]) for place in places]


def _splits(places: Sequence[str]) -> list[str]:
    """The split of each shard: a word of its name, or else the name of its folder."""
    for named in (
        [_split_in(place.rpartition("/")[2]) for place in places],
        [_exactly(place.split("/")[-2]) for place in places],
    ):
        if all(named):
            return named
        if any(named):
            one = places[named.index("")]
            raise InputError(
                f"the name of the shard {one} has no split (train, val or test), and those of "
                "others have one; rename it, or name the shards of one split in data.shards"
            )
    return [TRAIN] * len(places)


def _split_in(name: str) -> str:
    """The split that a file name has as a word; empty if there is none, or several."""
    words = {word for word in re.split(r"[^a-z]+", name.lower()) if word in SPLITS}
    return words.pop() if len(words) == 1 else ""


def _exactly(name: str) -> str:
    return name if name in SPLITS else ""


def _in_place(places: Sequence[str], folder: Path) -> list[Path]:
    """The path of each shard, after fetching and unpacking those that need it."""
    paths = [folder / _copy_name(place) if _is_copied(place) else Path(place) for place in places]
    wanted = [(place, path) for place, path in zip(places, paths, strict=True) if not path.exists()]
    if wanted:
        log.info("copying %d shards into %s, once, as %s", len(wanted), folder, wanted[0][0])
    for place, path in wanted:
        folder.mkdir(parents=True, exist_ok=True)
        _mark_file(path).unlink(missing_ok=True)  # of a copy that was removed
        try:
            compression = _COMPRESSED.get(Path(place).suffix.lower())
            source = fsspec.open(place, "rb", compression=compression)
            with source as file, part_for(path) as part, part.open("wb") as copy:
                shutil.copyfileobj(file, copy, 2**20)
        except Exception as error:  # each file system and compression raises its own
            raise _unreachable(place, error) from error
    return paths


def _changed(place: str, path: Path) -> int:
    """`Shard.changed` of a shard that is read at ``path``."""
    return _mark(path) if "://" in place else Path(place).stat().st_mtime_ns


def _mark(copy: Path) -> int:
    """A hash of the content of a fetched copy, which is the same on all machines of a run.

    It is kept beside the copy, which never changes.
    """
    kept = _mark_file(copy)
    with contextlib.suppress(OSError, ValueError):
        return int(kept.read_text(), 16)
    digest = hashlib.sha256()
    with copy.open("rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    mark = digest.hexdigest()[:15]  # so that it fits into int64
    with contextlib.suppress(OSError):  # a full disk costs the next run the time
        replace_file(kept, mark.encode())
    return int(mark, 16)


def _mark_file(copy: Path) -> Path:
    return copy.with_suffix(".sha256")


def _is_copied(place: str) -> bool:
    """Whether a shard must be copied: it is remote, or compressed and has no random access."""
    return "://" in place or Path(place).suffix.lower() in _COMPRESSED


def _copy_name(place: str) -> str:
    key = place if "://" in place else f"{place} {Path(place).stat().st_mtime_ns}"
    stem = Path(place).name.split(".")[0]
    return f"{stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.tar"
