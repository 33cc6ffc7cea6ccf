"""Compare the names of classes, as users write them."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from dskd.data.image_source import some
from dskd.errors import InputError, printable


def compare_classes(part: str, where: str, train: Sequence[str], other: Sequence[str]) -> list[str]:
    """Compares the classes of a split with those of the training images.

    Args:
        part: Name of the split.
        where: Names the split in an error.
        train: The classes of the training images.
        other: The classes of the split.

    Returns:
        A note on classes that the split lacks, if there are any.

    Raises:
        InputError: The training images lack a class of the split.
    """
    missing, extra = sorted(set(train) - set(other)), sorted(set(other) - set(train))
    for one in extra:
        for twin in train:
            if _plain(one) == _plain(twin):
                raise InputError(
                    f"{where} has the class {_quoted(one)} where train has "
                    f"{_quoted(twin)}: they differ only in {_difference(one, twin)}; rename one"
                )
    if extra:
        raise InputError(
            f"{where} has the classes {some(extra)}, which train lacks; remove them, "
            "or add them to train"
        )
    return [f"{part} lacks the classes {some(missing)}: trained, and never tested"] * bool(missing)


def alike(classes: Sequence[str]) -> list[str]:
    """Notes on classes whose names differ only in form."""
    first: dict[str, str] = {}
    notes = []
    for name in classes:
        twin = first.setdefault(_plain(name), name)
        if twin != name:
            notes.append(
                f"the classes {_quoted(twin)} and {_quoted(name)} differ only in "
                f"{_difference(twin, name)}; they count as two"
            )
    return notes


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold().strip()


def _difference(one: str, other: str) -> str:
    if unicodedata.normalize("NFC", one) == unicodedata.normalize("NFC", other):
        return "their Unicode form"
    if one.strip() == other.strip():
        return "spaces at an end"
    return "upper and lower case" if one.casefold() == other.casefold() else "case, form or spaces"


def _quoted(name: str) -> str:
    return ascii(name) if name != unicodedata.normalize("NFC", name) else repr(printable(name))
