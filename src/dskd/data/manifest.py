"""A manifest: a table with the path, the label and perhaps the split of each image."""

from __future__ import annotations

import csv
import json
import os
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dskd.data.archives import MEMORY_CHECKED, existing_path, read_bytes
from dskd.data.catalog import MANIFESTS
from dskd.data.dataset import Dataset
from dskd.data.folder_files import ListedFiles
from dskd.data.image_source import TRAIN, ImageFiles, rows_of
from dskd.data.image_table import ImageTable, Row, read_table, split_problem
from dskd.data.own_images import load_images
from dskd.data.path_list import PathList
from dskd.data.read_options import ReadOptions
from dskd.errors import InputError, brief, first_line, printable
from dskd.runtime.extras import import_extra
from dskd.runtime.memory import require_memory

Values = tuple[str, str, str, str, str]
"""Path, label and split of a row, where it is, and why it cannot be used (empty if it can)."""


class ManifestFiles(ImageFiles):
    """The files that a manifest lists.

    Args:
        root: The manifest. Paths are relative to its folder.
        table: What it says.
        facts: int64, ``[N, 3]``: size and times of change of each file.
    """

    def __init__(self, root: Path, table: ImageTable, facts: NDArray[np.int64]) -> None:
        self.root, self.names = root, table.names
        self._facts = facts
        self.stamp = table.stamp(facts.tobytes())

    def where(self, name: str) -> str:
        """See `Files.where`."""
        return str(self.root.parent / name)

    def read(self, name: str) -> bytes:
        """See `Files.read`."""
        path = self.root.parent / name
        try:
            size = path.stat().st_size
        except OSError as error:
            raise InputError(f"cannot read {path}: {error}") from error
        if size > MEMORY_CHECKED:
            require_memory(size, f"the bytes of {path}")
        return read_bytes(path, str(path))

    def facts_of(self, names: PathList) -> NDArray[np.int64]:
        """See `ImageFiles.facts_of`."""
        return self._facts[rows_of(names, self.names)]

    def part(self, names: PathList) -> ListedFiles:
        """See `ImageFiles.part`."""
        facts = self.facts_of(names)
        return ListedFiles(self.root.parent, names, facts[:, 0].copy(), facts[:, 1].copy())


def load(root: Path | None, options: ReadOptions, cache_dir: Path | None) -> Dataset:
    """Load the images that a manifest lists.

    The manifest is a CSV, TSV, JSON lines or Parquet file with the columns ``path``, ``label`` and
    perhaps ``split``, or as ``options`` name them. Paths are relative to its folder. Labels are the
    names of the classes, which are sorted: numbers by size, all others as text. A split is called
    as the folder of a split is, see `dskd.data.image_folder.load`.

    Args:
        root: The manifest.
        options: How it and the images are read.
        cache_dir: The cache folder, see `dskd.data.download.cache_folder`.

    Raises:
        InputError: It cannot be read or lacks a column, or images cannot be used.
    """
    if root is None:
        raise InputError("data.root is missing: the data set 'manifest' needs a .csv file or so")
    path = existing_path(root)
    facts = array("q")
    rows = _checked(path, read_values(path, options), facts)
    table = read_table(rows, str(path), options.skip_bad)
    own = np.frombuffer(facts, np.int64).reshape(-1, 3)[table.rows]
    has_split = len(set(table.splits.tolist())) > 1
    no_test = "" if has_split else f"{path} has no split val or test"
    source = table.source("manifest", ManifestFiles(path, table, own), no_test=no_test)
    return load_images(source, options, cache_dir)


def _checked(path: Path, values: Iterator[Values], facts: array[int]) -> Iterator[Row]:
    """The rows, each with its problem; adds size and times of the files without one."""
    for name, label, split, line, problem in values:
        if not name:
            yield Row(line, "", TRAIN, problem or "no path")
            continue
        name = os.path.normpath(name)
        shown = f"{name} ({line})"
        if problem:
            yield Row(shown, "", TRAIN, problem)
        elif problem := split_problem(split):
            yield Row(f"{shown}: {printable(split)}" if split else shown, "", TRAIN, problem)
        elif not label:
            yield Row(shown, "", TRAIN, "no label")
        else:
            try:
                found = (path.parent / name).stat()
            except (OSError, ValueError):
                yield Row(shown, "", TRAIN, "missing")
                continue
            if found.st_size:
                facts.extend((found.st_size, found.st_mtime_ns, found.st_ctime_ns))
                yield Row(name, label, split)
            else:
                yield Row(shown, "", TRAIN, "empty")


def read_values(path: Path, options: ReadOptions) -> Iterator[Values]:
    """The values of each row of a manifest, see `Values`.

    Args:
        path: The manifest; its suffix says what it is.
        options: Names of the columns.

    Raises:
        InputError: It cannot be read, or lacks a column.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path} is no manifest; give a file {', '.join(MANIFESTS)}")
    try:
        yield from reader(path, _Columns(path, options))
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({error.reason}); save it as UTF-8") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error}") from error


class _Columns:
    """The names of the columns of a manifest."""

    def __init__(self, path: Path, options: ReadOptions) -> None:
        self.path = path
        self.image = options.image_column or "path"
        self.label = options.label_column or "label"
        self.split = options.split_column or "split"
        self._has_split = False
        self._needed = {"image": self.image, "label": self.label}
        if options.split_column:
            self._needed["split"] = options.split_column

    def check(self, found: Sequence[str]) -> None:
        """Refuses a table without a needed column."""
        self._has_split = self.split in found
        for kind, name in self._needed.items():
            if name not in found:
                raise InputError(
                    f"{self.path} has no column {name!r}, but {brief(list(found))}; add it, or set "
                    f"data.{kind}_column"
                )
            if list(found).count(name) > 1:
                raise InputError(f"{self.path} has two columns {name!r}; rename one")

    def values(self, row: Mapping[str, Any], where: str, problem: str = "") -> Values:
        """The values of a row.

        Raises:
            InputError: It has a split, and the first row has none.
        """
        if self.split in row and not self._has_split:
            raise InputError(
                f"{self.path}, {where} has {self.split!r}, and the first row has not; give it to "
                "every row"
            )
        split = _text(row.get(self.split)).strip() if self._has_split else TRAIN
        label = _text(row.get(self.label)).strip()
        return _text(row.get(self.image)), label, split, where, problem


def _text(value: Any) -> str:
    """A value of a table as text; what is missing is empty."""
    if value is None or value != value:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _read_text_table(path: Path, columns: _Columns) -> Iterator[Values]:
    """The rows of a CSV or TSV file. Semicolons separate if the first line has no comma."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        first = file.readline()
        file.seek(0)
        tabs = path.suffix.lower() == ".tsv"
        separator = "\t" if tabs else ";" if ";" in first and "," not in first else ","
        rows = _fields(
            path, csv.reader(file, delimiter=separator, skipinitialspace=True, strict=True)
        )
        header = [name.strip() for name in next(rows, ("", []))[1]]
        columns.check(header)
        for line, fields in rows:
            if any(fields):
                row = dict(zip(header, fields, strict=False))
                more = "more fields than columns" if any(fields[len(header) :]) else ""
                yield columns.values({name: row.get(name) for name in header}, line, more)


def _fields(path: Path, reader: Any) -> Iterator[tuple[str, list[str]]]:
    """The line where each row of a text table ends, and its fields.

    Raises:
        InputError: The quotes of a row are wrong. They would join the rows below to it.
    """
    end = 0
    try:
        for fields in reader:
            end = reader.line_num
            yield f"line {end}", fields
    except csv.Error as error:
        raise InputError(
            f"{path}, line {end + 1}: {error}; put quotes around the whole text, and double "
            "those within it"
        ) from error


def _read_json_lines(path: Path, columns: _Columns) -> Iterator[Values]:
    """The rows of a file with one JSON object in each line."""
    with path.open(encoding="utf-8-sig") as file:
        is_checked = False
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise InputError(f"{path}, line {number}: {error}; write one JSON object") from None
            if not isinstance(row, dict):
                raise InputError(f"{path}, line {number}: {brief(row)} is no JSON object")
            if not is_checked:
                columns.check(list(row))
                is_checked = True
            for value in (row.get(columns.image), row.get(columns.label)):
                if isinstance(value, list | dict):
                    raise InputError(f"{path}, line {number}: {brief(value)} is no text or number")
            yield columns.values(row, f"line {number}")


def _read_parquet(path: Path, columns: _Columns) -> Iterator[Values]:
    """The rows of a Parquet file, some at a time."""
    import_extra("pyarrow.parquet", "parquet", f"{path} needs the package pyarrow;")
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            names = file.schema_arrow.names
            columns.check(names)
            wanted = {columns.image, columns.label, columns.split} & {*names}
            for name in sorted(wanted):
                _check_type(path, name, file.schema_arrow.field(name).type)
            number = 0
            for batch in file.iter_batches(columns=sorted(wanted)):
                for row in batch.to_pylist():
                    number += 1
                    yield columns.values(row, f"row {number}")
    except ArrowException as error:
        raise InputError(f"cannot read {path}: {first_line(error)}") from error


def _check_type(path: Path, name: str, type_: Any) -> None:
    """Refuses a column of a Parquet file whose values are no text and no numbers."""
    from pyarrow import types

    values = type_.value_type if types.is_dictionary(type_) else type_
    if types.is_nested(values) or "binary" in str(values):
        raise InputError(
            f"{path}: the column {name!r} has the type {brief(str(type_))}, and text or numbers "
            "are needed; name another one with data.image_column, data.label_column or "
            "data.split_column, or read a folder of files that hold images with data.name=hf"
        )


_READERS: Mapping[str, Callable[[Path, _Columns], Iterator[Values]]] = {
    ".csv": _read_text_table,
    ".tsv": _read_text_table,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".parquet": _read_parquet,
}
