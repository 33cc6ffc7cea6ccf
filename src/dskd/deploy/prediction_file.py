"""Write predictions as CSV, JSON or JSON lines, row by row."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TextIO

from dskd.deploy.predict import Batch
from dskd.errors import InputError, option
from dskd.storage.atomic import replacing

Format = Literal["csv", "json", "jsonl"]
"""``csv`` has one row per image; ``json`` is one list; ``jsonl`` has one object per line."""

_FORMATS: tuple[Format, ...] = ("csv", "json", "jsonl")

Row = tuple[str, list[tuple[str, float]]]
"""An image, and its most likely classes with their probabilities."""


def rows(batches: Iterable[Batch], classes: Sequence[str], top: int) -> Iterator[Row]:
    """The most likely classes of each image.

    Args:
        batches: The predictions.
        classes: Name of each class.
        top: Classes per image, at most.
    """
    for batch in batches:
        best = batch.probabilities.topk(min(top, len(classes)), dim=1)
        for image, values, labels in zip(
            batch.images, best.values.tolist(), best.indices.tolist(), strict=True
        ):
            yield image, [(classes[k], v) for v, k in zip(values, labels, strict=True)]


def choose_format(form: str | None, path: Path | None) -> Format | None:
    """The format of predictions: the one that was asked for, else by the suffix of the file.

    Args:
        form: A format, ``table``, or None if none was asked for.
        path: The file; None for stdout.

    Returns:
        None for a table on stdout.

    Raises:
        InputError: A file cannot hold a table, or neither format nor suffix is known.
    """
    if form is None and path is not None:
        form = path.suffix.lower().removeprefix(".")
    if path is None and form in (None, "table"):
        return None
    for known in _FORMATS:
        if form == known:
            return known
    raise InputError(
        f"a file of predictions is csv, json or jsonl, not {form or 'without a suffix'}; "
        f"give one of them as its suffix or with {option('format', 'csv')}"
    )


def write_rows(
    found: Iterable[Row], form: Format, top: int, path: Path | None, what: str = "image"
) -> int:
    """Writes predictions row by row, in UTF-8. Bytes of a file name that are no text stay.

    Args:
        found: The rows.
        form: The format.
        top: Classes per image.
        path: The file, which is replaced when all rows are written; None writes to stdout.
        what: The name of the column that says what is predicted.

    Returns:
        The number of rows.

    Raises:
        InputError: The folder of the file does not exist.
    """
    with _opened(path) as file:
        if form == "csv":
            return _write_csv(found, top, file, what)
        return _write_json(found, form == "jsonl", file, what)


def _write_csv(found: Iterable[Row], top: int, file: TextIO, what: str) -> int:
    writer = csv.writer(file, lineterminator="\n")
    columns = (f"{name}_{k + 1}" for k in range(top) for name in ("class", "probability"))
    writer.writerow([what, *columns])
    count = 0
    for image, classes in found:
        writer.writerow([image, *(cell for name, p in classes for cell in (name, f"{p:.6g}"))])
        count += 1
    return count


def _write_json(found: Iterable[Row], lines: bool, file: TextIO, what: str) -> int:
    if not lines:
        file.write("[")
    count = 0
    for count, (image, classes) in enumerate(found, 1):
        row = {
            what: image,
            "classes": [{"class": name, "probability": float(f"{p:.6g}")} for name, p in classes],
        }
        separator = "" if lines else ("\n" if count == 1 else ",\n")
        file.write(f"{separator}{json.dumps(row)}" + ("\n" if lines else ""))
    if not lines:
        file.write("\n]\n")
    return count


@contextmanager
def _opened(path: Path | None) -> Iterator[TextIO]:
    if path is None:
        binary = getattr(sys.stdout, "buffer", None)
        if binary is None:  # replaced by a caller, such as io.StringIO
            yield sys.stdout
            return
        sys.stdout.flush()
        text = io.TextIOWrapper(binary, "utf-8", "surrogateescape", newline="")
        try:
            yield text
        finally:
            text.detach()  # flushes, and leaves stdout open
        return
    if not path.parent.is_dir():
        raise InputError(f"there is no folder {path.parent}; create it first")
    if path.is_dir():
        raise InputError(f"{path} is a folder; name a file in it")
    with replacing(path) as file:
        text = io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="")
        yield text
        text.detach()
