"""Where the samples of a shard are, and what their labels are."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from dskd.data.image_files import is_image
from dskd.data.image_table import Row
from dskd.data.read_options import ReadOptions
from dskd.data.shard_list import Shard
from dskd.errors import InputError

_MAX_LABEL = 2**20
"""Most bytes of a label."""


class Place(NamedTuple):
    """Where the bytes of a member are in its shard."""

    offset: int
    size: int


_Members = dict[str, list[Place]]
"""The members of a sample by their suffix in lower case; ``x.jpg`` and ``x.JPG`` have the same."""


def read_samples(shard: Shard, options: ReadOptions) -> Iterator[tuple[Row, Place]]:
    """The samples of a shard, each a run of members whose names differ in the suffix only.

    Args:
        shard: The shard.
        options: Which members are the image and the label.

    Raises:
        InputError: It is damaged.
    """
    with shard.path.open("rb") as file:
        key, members = "", _Members()
        for name, member in _members(shard.path, file):
            folder, slash, last = name.rpartition("/")
            stem, dot, suffix = last.partition(".")
            if not stem or not dot:  # hidden, or no part of a sample
                continue
            if folder + slash + stem != key:
                if members:
                    yield _sample(shard, file, key, members, options)
                key, members = folder + slash + stem, {}
            members.setdefault(suffix.lower(), []).append(member)
        if members:
            yield _sample(shard, file, key, members, options)


def first_images(shard: Path) -> Iterator[bytes]:
    """The images of a shard, one after the other."""
    with shard.open("rb") as file:
        for name, member in _members(shard, file):
            if is_image(name):
                yield _bytes_at(file, member)


def _members(path: Path, file: IO[bytes]) -> Iterator[tuple[str, Place]]:
    """Name and place of each file in a tar."""
    size = path.stat().st_size
    try:
        with path.open("rb") as own, tarfile.open(fileobj=own, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # each would stay in memory
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError(f"{member.name} is cut off")
                if member.isreg() and not member.issparse():
                    yield (
                        member.name.removeprefix("./"),
                        Place(member.offset_data, member.size),
                    )
            # After a damaged header, tarfile ends as if that were all.
            if any(_bytes_at(own, Place(tar.offset, tarfile.BLOCKSIZE))):
                raise tarfile.ReadError(f"it is damaged at byte {tar.offset}")
    except (tarfile.TarError, OSError, ValueError) as error:
        raise InputError(f"cannot read the shard {path}: {error}; fetch it again") from error


def _bytes_at(file: IO[bytes], member: Place) -> bytes:
    file.seek(member.offset)
    return file.read(member.size)


def _sample(
    shard: Shard, file: IO[bytes], key: str, members: _Members, options: ReadOptions
) -> tuple[Row, Place]:
    """A sample as the row of a table."""
    suffixes = [suffix for suffix in members if "." not in suffix and is_image(f"x.{suffix}")]
    if options.image_column:
        suffixes = [options.image_column.lower()]
    images = [(suffix, place) for suffix in suffixes for place in members.get(suffix, [])]
    name = f"{shard.name}/{key}"
    if len(images) != 1:
        return Row(name, "", problem="several images" if images else "no image"), Place(0, 0)
    label, problem = _label(file, members, options.label_column)
    ((suffix, place),) = images
    problem = problem or ("" if place.size else "empty")
    return Row(f"{name}.{suffix}", label, shard.split, problem), place


def _label(file: IO[bytes], members: _Members, chosen: str | None) -> tuple[str, str]:
    """The label of a sample, and why it has none."""
    for suffix in (chosen.lower(), "json") if chosen else ("cls", "json", "txt"):
        places = members.get(suffix, [])
        if len(places) > 1:
            return "", "several labels"
        try:
            text = _text(file, places[0]) if places else None
            if text is not None and suffix == "json":
                text = _value(text, chosen or "label")
        except ValueError:  # no UTF-8 or no JSON
            return "", "damaged label"
        if text is not None:
            label = text.strip()
            return label, "" if label else "no label"
    return "", "no label"


def _value(text: str, key: str) -> str | None:
    """The value of a key of a JSON object as text; None if there is none."""
    found = json.loads(text)
    value = found.get(key) if isinstance(found, dict) else None
    if isinstance(value, list | dict):
        raise ValueError("it is no label")
    return None if value is None else str(value)


def _text(file: IO[bytes], member: Place) -> str:
    if member.size > _MAX_LABEL:
        raise ValueError("it is too long")
    return _bytes_at(file, member).decode()
