"""Malicious archives: reading one writes no file, and archive bombs are not unpacked."""

from __future__ import annotations

import functools
import gzip
import io
import os
import struct
import tarfile
import tempfile
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple
from unittest import mock

import pytest

from dskd.data import archives, load_dataset
from dskd.errors import InputError
from tests.data.file_writers import write_cifar100, write_tar, write_tiny_imagenet, write_zip

FAMILY = "malicious archives"
_TARS, _ZIPS = ("cifar-100-python.tar.gz", "cifar100"), ("tiny-imagenet-200.zip", "tiny_imagenet")
_LIMIT = 2**20
"""Maximum unpacked size in these tests, so that bombs can be small."""
_BOMB = 32 * _LIMIT


class Case(NamedTuple):
    """An archive file and the expected outcome.

    Attributes:
        file: Name of the archive.
        dataset: The data set that it claims to be.
        make: Returns its content.
        outcome: Whether the data set is read or refused.
    """

    file: str
    dataset: str
    make: Callable[[], bytes]
    outcome: Literal["read", "refused"]


NAMES = (
    "../outside",
    "../../../../../../../../../../../../outside",
    "cifar-100-python/../../outside",
    "cifar-100-python/../../train",
    "/outside",
    "//outside",
    "/dev/null",
    "~/outside",
    "..\\..\\outside",
    "C:\\outside",
    "\\\\host\\outside",
    "..",
    ".",
    "./",
    "cifar-100-python",
    "cifar-100-python/",
    "cifar-100-python/meta/outside",
    "out\nside",
    "out\x1b]0;side\x07",
    "outside\u202eoutside",
    "x" * 5000,
    "x/" * 2000 + "outside",
)
"""Names of members that point outside the folder, or that could confuse a terminal."""

TYPES = {
    "a symlink": tarfile.SYMTYPE,
    "a hard link": tarfile.LNKTYPE,
    "a character device": tarfile.CHRTYPE,
    "a block device": tarfile.BLKTYPE,
    "a pipe": tarfile.FIFOTYPE,
    "a folder": tarfile.DIRTYPE,
    "an old sparse file": tarfile.GNUTYPE_SPARSE,
    "an unknown type": b"Z",
}
TARGETS = ("../../victim", "/etc/passwd", "train", "..", "cifar-100-python/meta", "")


@functools.cache
def _good(file: str) -> bytes:
    """A small valid archive."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if file.endswith(".zip"):
            return write_zip(write_tiny_imagenet(folder, side=8), folder / file).read_bytes()
        return write_tar(write_cifar100(folder), folder / file).read_bytes()


def _tar(
    *members: tuple[tarfile.TarInfo, bytes], without: str | None = None, first: bool = False
) -> bytes:
    """A valid tar with more members, at its end or its start, and without one of its own."""
    buffer = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(_good(_TARS[0]))) as good,
        tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as tar,
    ):
        chosen = [m for m in good if m.name != without]
        own = [(m, good.extractfile(m).read() if m.isfile() else b"") for m in chosen]  # type: ignore[union-attr]
        for member, data in [*members, *own] if first else [*own, *members]:
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def _member(
    name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0
) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size, member.mode = kind, link, size, 0o6777
    return member


def _tar_cases() -> Iterator[tuple[str, Case]]:
    def case(make: Callable[[], bytes], outcome: Literal["read", "refused"]) -> Case:
        return Case(*_TARS, make, outcome)

    train = "cifar-100-python/train"
    for name in NAMES:
        extra = _member(name, size=4)
        yield f"tar: {name[:40]!a}", case(functools.partial(_tar, (extra, b"evil")), "read")
        link = _member(name, tarfile.SYMTYPE, "../victim")
        yield f"tar: a symlink {name[:40]!a}", case(functools.partial(_tar, (link, b"")), "read")
    for what, kind in TYPES.items():
        for target in TARGETS if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ("",):
            member = _member(train, kind, target)
            words = f"tar: {what} to {target!r}" if target else f"tar: {what}"
            yield (
                f"{words} in place of a file",
                case(functools.partial(_tar, (member, b""), without=train), "refused"),
            )
            yield (
                f"{words} before a file",
                case(functools.partial(_tar, (member, b""), first=True), "read"),
            )
    for what, (data, outcome) in _TAR_BOMBS.items():
        yield f"tar: {what}", case(data, outcome)


def _pax(**headers: str) -> bytes:
    member = _member("cifar-100-python/other", size=4)
    member.pax_headers = headers
    return _tar((member, b"evil"))


def _header(kind: bytes, size: int, data: bytes) -> bytes:
    """A tar with one header of a special type before the valid members."""
    block = _member("x", kind, size=size).tobuf(tarfile.GNU_FORMAT)
    return gzip.compress(block + data + gzip.decompress(_good(_TARS[0])), 1)


_TAR_BOMBS: dict[str, tuple[Callable[[], bytes], Literal["read", "refused"]]] = {
    "a large extra file": (
        lambda: _tar((_member("zeros", size=_BOMB), bytes(_BOMB)), first=True),
        "refused",
    ),
    "a large file that is read": (
        lambda: _tar((_member("cifar-100-python/train", size=_BOMB), bytes(_BOMB)), first=True),
        "refused",
    ),
    "a large file after the rest": (
        lambda: _tar((_member("zeros", size=_BOMB), bytes(_BOMB))),
        "refused",
    ),
    "zeros after the end": (lambda: _good(_TARS[0]) + gzip.compress(bytes(_BOMB)), "refused"),
    "a large extended header": (
        lambda: _header(tarfile.XHDTYPE, _BOMB, bytes(_BOMB)),
        "refused",
    ),
    "a large long name": (
        lambda: _header(tarfile.GNUTYPE_LONGNAME, _BOMB, b"x" * _BOMB),
        "refused",
    ),
    "a large long link": (
        lambda: _header(tarfile.GNUTYPE_LONGLINK, _BOMB, b"x" * _BOMB),
        "refused",
    ),
    "a header with a size beyond the end": (
        lambda: _header(tarfile.REGTYPE, 2**40, b""),
        "refused",
    ),
    "a header with a negative size": (
        lambda: gzip.compress(
            _signed(_member("cifar-100-python/train").tobuf(tarfile.GNU_FORMAT))
            + gzip.decompress(_good(_TARS[0]))
        ),
        "refused",
    ),
    "many chained headers": (
        lambda: _header(
            tarfile.XHDTYPE, 0, _member("x", tarfile.XHDTYPE).tobuf(tarfile.GNU_FORMAT) * 1900
        ),
        "refused",
    ),
    "many members": (lambda: _tar(*[(_member(f"{i}"), b"") for i in range(1100)]), "refused"),
    "a sparse file of a terabyte": (
        lambda: _pax(**{"GNU.sparse.major": "0", "GNU.sparse.size": str(2**40),
                        "GNU.sparse.map": "0,4", "path": "cifar-100-python/train"}),
        "refused",
    ),
    "a header that renames a member": (lambda: _pax(path="../outside"), "read"),
    "a header with a link target": (lambda: _pax(linkpath="../../victim"), "read"),
    "a header with a size of 30 digits": (lambda: _pax(size="9" * 30), "refused"),
    "an archive in an archive": (lambda: gzip.compress(_good(_TARS[0])), "refused"),
    "half an archive": (lambda: _good(_TARS[0])[: len(_good(_TARS[0])) // 2], "refused"),
    "a wrong checksum": (lambda: _good(_TARS[0])[:-8] + bytes(8), "refused"),
    "an empty file": (lambda: b"", "refused"),
}  # fmt: skip


def _signed(block: bytes) -> bytes:
    """A tar header with a negative size."""
    changed = block[:124] + b"\xff" * 10 + bytes(2) + block[136:148] + b" " * 8 + block[156:]
    return changed[:148] + b"%06o\0 " % sum(changed) + changed[156:]


ZIP_NAMES = (
    "../outside",
    "/outside",
    "tiny-imagenet-200/../../outside",
    "tiny-imagenet-200/train/../../../outside",
    "tiny-imagenet-200/train/n00000001/images/../../../../../outside.JPEG",
    "..\\outside",
    "C:\\outside",
    "tiny-imagenet-200/out\x1b[2Jside",
    "tiny-imagenet-200/" + "x/" * 2000,
    "tiny-imagenet-200/" + "x" * 5000,
    "tiny-imagenet-200//outside",
    "tiny-imagenet-200/train/n00000001/images/",
)


def _zip(
    *members: tuple[zipfile.ZipInfo | str, bytes],
    without: str | None = None,
    packed: int = zipfile.ZIP_DEFLATED,
) -> bytes:
    """A valid zip with more members and without one of its own."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(_good(_ZIPS[0]))) as good,
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for member in good.infolist():
            if member.filename != without:
                archive.writestr(member, good.read(member))
        for name, data in members:
            archive.writestr(name, data, packed)
    return buffer.getvalue()


_WORDS = "tiny-imagenet-200/words.txt"


def _mode(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, mode << 16
    return info


def _forged(offset: int, value: bytes, where: bytes = b"PK\x01\x02", **made: int) -> bytes:
    """A zip with changed bytes in the header of its last member, ``words.txt``."""
    data = bytearray(_zip((_WORDS, b"a" * _BOMB), without=_WORDS, **made))
    start = data.rindex(where) + offset
    data[start : start + len(value)] = value
    return bytes(data)


_FOUR = struct.Struct("<I").pack
_ZIP_BOMBS: dict[str, Callable[[], bytes]] = {
    "a large word list": lambda: _zip((_WORDS, b"a" * _BOMB), without=_WORDS),
    "a large word list, bzip2": lambda: _zip(
        (_WORDS, b"a" * _BOMB), without=_WORDS, packed=zipfile.ZIP_BZIP2
    ),
    "a large word list, lzma": lambda: _zip(
        (_WORDS, b"a" * _BOMB), without=_WORDS, packed=zipfile.ZIP_LZMA
    ),
    "a word list that claims to be small": lambda: _forged(24, _FOUR(10)),
    "a word list that claims to be small, bzip2": lambda: _forged(
        24, _FOUR(10), packed=zipfile.ZIP_BZIP2
    ),
    "a word list that claims to be huge": lambda: _forged(24, _FOUR(2**32 - 2)),
    "a word list with a wrong offset": lambda: _forged(42, _FOUR(2**31)),
    "an encrypted word list": lambda: _forged(8, b"\x01\x00"),
    "an unknown compression method": lambda: _forged(10, b"\x63\x00"),
    "an unsupported version": lambda: _forged(6, b"\xff\xff"),
    "a wrong end record": lambda: _forged(12, _FOUR(2**31), b"PK\x05\x06"),
    "half an archive": lambda: _good(_ZIPS[0])[: len(_good(_ZIPS[0])) // 2],
    "an empty file": lambda: b"",
    "a large image": lambda: _zip(
        ("tiny-imagenet-200/train/n00000001/images/z.JPEG", bytes(_BOMB))
    ),
    "a link in place of an image": lambda: _zip(
        (_mode("tiny-imagenet-200/train/n00000001/images/z.JPEG", 0o120777), b"../../victim")
    ),
    "an image outside the folder": lambda: _zip(
        ("tiny-imagenet-200/val/val_annotations.txt", b"../../victim\tn00000001\n"),
        without="tiny-imagenet-200/val/val_annotations.txt",
    ),
    "the parent folder as an image": lambda: _zip(
        ("tiny-imagenet-200/val/val_annotations.txt", b"..\tn00000001\n"),
        without="tiny-imagenet-200/val/val_annotations.txt",
    ),
}


def _zip_cases() -> Iterator[tuple[str, Case]]:
    for name in ZIP_NAMES:
        yield f"zip: {name[:40]!a}", Case(*_ZIPS, functools.partial(_zip, (name, b"evil")), "read")
    for kind, mode in (("symlink", 0o120777), ("device", 0o060666), ("pipe", 0o010666)):
        info = _mode(f"tiny-imagenet-200/{kind}", mode)
        yield f"zip: a {kind}", Case(*_ZIPS, functools.partial(_zip, (info, b"../victim")), "read")
    for what, make in _ZIP_BOMBS.items():
        yield f"zip: {what}", Case(*_ZIPS, make, "refused")


def cases(whole: bool = True) -> Iterator[tuple[str, Case]]:
    """All archives."""
    yield from _tar_cases()
    yield from _zip_cases()


def check(case: Case, folder: Path) -> str:
    """Loads a data set from the archive, which may write decoded images into the cache only.

    Args:
        case: The archive.
        folder: An empty folder.

    Returns:
        The outcome.

    Raises:
        AssertionError: The outcome is another one, or a file was written or changed.
    """
    file, dataset, make, outcome = case
    work, victim = folder / "a" / "b", folder / "victim"
    work.mkdir(parents=True)
    victim.write_text("here\n")
    (work / file).write_bytes(make())
    before, start = sorted(folder.rglob("*")), Path.cwd()
    tracemalloc.start()
    os.chdir(work)
    try:
        with mock.patch.object(archives, "_MAX_UNPACKED", _LIMIT):
            if outcome == "refused":
                with pytest.raises(InputError) as refused:
                    load_dataset(dataset, root=Path(file), cache_dir=folder / "cache")
                assert str(refused.value).isprintable(), "the message must be one line"
                assert len(str(refused.value)) < 1000, "the message must be short"
            else:
                load_dataset(dataset, root=Path(file), cache_dir=folder / "cache")
        assert tracemalloc.get_traced_memory()[1] < _BOMB / 2, "the bomb was unpacked"
    finally:
        os.chdir(start)
        tracemalloc.stop()
    after = [
        path for path in sorted(folder.rglob("*")) if folder / "cache" not in (path, path.parent)
    ]
    assert after == before, "something was written"
    assert victim.read_text() == "here\n", "something was changed"
    return outcome
