"""Damaged checkpoints: in every byte of the header, in every field and at every boundary.

Some of them have a valid checksum and hold something other than a state.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import random
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from dskd.errors import InputError
from dskd.storage import checkpoint
from dskd.storage.checkpoint import HEADER_BYTES, MAGIC, PARTS, DamagedCheckpoint
from dskd.storage.run_directory import RunDirectory
from tests.faults import runs

FAMILY = "damaged checkpoints"
COUNT, SAMPLE = 2000, 200
Kind = Literal["flip", "zero", "truncate", "extend", "swap", "replace"]
CONTENTS: tuple[Any, ...] = (None, 5, "text", [1], {}, {"epoch": 1}, torch.zeros(3))
"""What a checkpoint holds in place of a state."""


@dataclass(frozen=True)
class Case:
    """A change to the newest of two checkpoints.

    Attributes:
        kind: ``flip`` changes bits of a byte, ``zero`` clears bytes, ``truncate`` and ``extend``
            change the length, ``swap`` exchanges two bytes. ``replace`` writes a checkpoint that
            holds something else.
        at: The position in bytes. For ``replace``, an index into `CONTENTS` and, after these, into
            the parts of a state that are left out or wrong.
        amount: The bits to change; the number of bytes to clear or append; the distance to swap.
    """

    kind: Kind
    at: int
    amount: int = 1


def cases(whole: bool = True) -> Iterator[tuple[str, Case]]:
    """All header bytes and all fields of a run's checkpoint; the rest is drawn at random."""
    wanted = COUNT if whole else SAMPLE
    for number, (where, case) in enumerate(itertools.islice(_all(), wanted)):
        yield f"{number}: {case.kind} {where}", case


def _all() -> Iterator[tuple[str, Case]]:
    size, parts = _layout()
    draw = random.Random(0)
    for at in range(HEADER_BYTES):
        yield f"header byte {at}", Case("flip", at, draw.randrange(1, 256))
    boundaries = sorted(
        {0, 1, HEADER_BYTES - 1, HEADER_BYTES, size - 1, *(end for _, _, end in parts)}
    )
    cuts = [at for at in boundaries if at < size]
    # Some of each kind come first: the test suite takes the first 200 cases.
    few = cuts[:: max(1, len(cuts) // 60)]
    yield from _truncations(few)
    for number in range(len(CONTENTS) + 2 * len(PARTS)):
        yield f"by content {number}", Case("replace", number)
    for extra in (1, 512, 65536):
        yield f"by {extra} bytes", Case("extend", size, extra)
    chosen = parts[:: max(1, len(parts) // 60)]
    for name, begin, end in (*chosen, *(part for part in parts if part not in chosen)):
        yield f"in {name}", Case("flip", draw.randrange(begin, end), 1 << draw.randrange(8))
    yield from _truncations([at for at in cuts if at not in few])
    while True:
        name, begin, end = draw.choice(parts)
        kind: Kind = draw.choice(("flip", "zero", "truncate", "swap"))
        yield f"in {name}", Case(kind, draw.randrange(begin, end), draw.randrange(1, 256))


def _truncations(places: list[int]) -> Iterator[tuple[str, Case]]:
    for at in places:
        yield f"at byte {at}", Case("truncate", at)


@cache
def _valid_checkpoints() -> tuple[bytes, bytes]:
    """The last two checkpoints of a run."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs.whole(runs.command(folder / "run", runs.images(folder / "p"), "ce"), folder)
        older, newer = checkpoint.in_order(folder / "run/checkpoints")
        return older.read_bytes(), newer.read_bytes()


@cache
def _layout() -> tuple[int, list[tuple[str, int, int]]]:
    """The size of the file, and its parts after the header: fields, their heads, and the index."""
    newer = _valid_checkpoints()[1]
    with tempfile.NamedTemporaryFile() as file:
        file.write(newer[HEADER_BYTES:])
        file.flush()
        with zipfile.ZipFile(file.name) as archive:
            infos, index = archive.infolist(), archive.start_dir
    parts = []
    for one, following in itertools.pairwise((*infos, None)):
        assert one is not None
        end = following.header_offset if following is not None else index
        middle = end - one.compress_size
        parts.append(
            (f"the head of {one.filename}", HEADER_BYTES + one.header_offset, HEADER_BYTES + middle)
        )
        if one.compress_size:
            parts.append((one.filename, HEADER_BYTES + middle, HEADER_BYTES + end))
    parts.append(("the index", HEADER_BYTES + index, len(newer)))
    return len(newer), parts


def _replaced(data: bytes, number: int) -> bytes:
    """A checkpoint of one of `CONTENTS`, or of a state with a missing or wrong part."""
    if number < len(CONTENTS):
        state = CONTENTS[number]
    else:
        state = torch.load(io.BytesIO(data[HEADER_BYTES:]), weights_only=True)
        part, wrong = divmod(number - len(CONTENTS), 2)
        name = list(PARTS)[part]
        del state[name]
        state |= {name: None} if wrong else {}
    file = io.BytesIO()
    torch.save(state, file)
    return MAGIC + hashlib.sha256(file.getvalue()).digest() + file.getvalue()


def _changed(data: bytes, case: Case) -> bytes:
    if case.kind == "replace":
        return _replaced(data, case.at)
    changed = bytearray(data)
    if case.kind == "truncate":
        return data[: case.at]
    if case.kind == "extend":
        return data + bytes(case.amount)
    if case.kind == "zero":
        changed[case.at : case.at + case.amount] = bytes(
            len(changed[case.at : case.at + case.amount])
        )
    elif case.kind == "swap":
        other = (case.at + case.amount) % len(data)
        changed[case.at], changed[other] = changed[other], changed[case.at]
    if bytes(changed) == data:  # the bytes were zero already, or equal
        changed[case.at] ^= case.amount
    return bytes(changed)


def check(case: Case, folder: Path) -> str:
    """Damages the newest of two checkpoints, then the other one too.

    Raises:
        AssertionError: The damage is not detected, the previous checkpoint is not used, or the
            run would start again.
    """
    older, newer = _valid_checkpoints()
    directory = RunDirectory(folder)
    directory.checkpoints.mkdir()
    first, second = (directory.checkpoints / f"epoch0000{n}-step0000000.checkpoint" for n in (2, 3))
    first.write_bytes(older)
    second.write_bytes(_changed(newer, case))
    with pytest.raises(DamagedCheckpoint):
        checkpoint.read(second)
    state, damaged = directory.newest_checkpoint()
    assert state is not None
    assert (state["epoch"], len(damaged)) == (2, 1)
    assert str(second) in damaged[0]
    first.write_bytes(_changed(older, Case("truncate", case.at % len(older))))
    with pytest.raises(InputError, match="every checkpoint in"):
        directory.newest_checkpoint()
    return "detected, previous one used"
