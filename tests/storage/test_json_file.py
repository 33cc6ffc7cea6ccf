"""JSON files are limited in size and typed; anything else is refused in one line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dskd.errors import InputError
from dskd.storage.json_file import MAX_BYTES, MAX_LOG_BYTES, read_json, read_json_lines


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def blanks(count: int) -> Callable[[Path], None]:
    """A sparse file of that many bytes."""

    def write(path: Path) -> None:
        path.touch()
        os.truncate(path, count)

    return write


def text(written: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(written.encode("utf-8", "surrogateescape"))

    return write


NO_JSON: tuple[tuple[Callable[[Path], None], str], ...] = (
    (lambda path: None, "is missing or is no plain file"),
    (Path.mkdir, "is missing or is no plain file"),
    (os.mkfifo, "is missing or is no plain file"),
    (endless, "is missing or is no plain file"),
    (blanks(6 * 10**8), r"is longer than 1[\d,]* bytes"),
    (text("\udcff"), "is damaged: it is not text in UTF-8"),
    (text("[" * 10**5), "is damaged: Invalid JSON"),
    (text(r'{"a": "\ud800"}'), "is damaged: Invalid JSON"),
    (text("[]"), "is damaged: Input should be an object"),
    (text('{"a": "x"}'), "is damaged: a: Input should be a valid integer"),
)


@pytest.mark.parametrize(("write", "message"), NO_JSON)
def test_a_file_that_is_not_valid_json_is_refused_in_one_line(
    tmp_path: Path, write: Callable[[Path], None], message: str
) -> None:
    path = tmp_path / "a.json"
    write(path)
    with pytest.raises(InputError, match=rf"a\.json {message}.*; write it again"):
        read_json(path, dict[str, int], "write it again")


def test_a_file_of_the_maximum_size_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": 1}' + " " * (MAX_BYTES - 8))
    assert read_json(path, dict[str, int], "write it again") == {"a": 1}


def test_a_log_may_be_longer_and_end_in_half_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    row = '{"a": 1}' + " " * 100
    rows = MAX_BYTES // len(row) + 1
    path.write_text('{"a": 1}\n' * rows + '{"a": 2')
    assert read_json_lines(path, dict[str, int], "write it again") == [{"a": 1}] * rows
    os.truncate(path, MAX_LOG_BYTES + 1)
    with pytest.raises(InputError, match="is longer than"):
        read_json_lines(path, dict[str, int], "write it again")
