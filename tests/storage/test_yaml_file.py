"""YAML of bounded size: the limits, to the letter."""

from __future__ import annotations

from pathlib import Path

import pytest

from dskd.errors import InputError
from dskd.storage import yaml_file
from dskd.storage.yaml_file import read_yaml, read_yaml_file


def test_a_value_has_4096_letters_at_most() -> None:
    assert read_yaml("a: " + "x" * 4096, "it") == {"a": "x" * 4096}
    with pytest.raises(InputError, match="a value of more than 4096 letters"):
        read_yaml("a: " + "x" * 4097, "it")


@pytest.mark.slow
def test_a_text_has_a_megabyte_at_most(tmp_path: Path) -> None:
    comment = "#" + "x" * 2**20
    text = "a: 1\n" + comment
    assert read_yaml(text[: 2**20], "it") == {"a": 1}
    with pytest.raises(InputError, match="it is longer than 1048576 letters"):
        read_yaml(text[: 2**20 + 1], "it")
    (tmp_path / "long.yaml").write_text(text)
    with pytest.raises(InputError, match="is longer than 1048576 letters"):
        read_yaml_file(tmp_path / "long.yaml", "recipe")


def test_there_are_100000_values_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    assert yaml_file._MAX_VALUES == 100_000
    monkeypatch.setattr(yaml_file, "_MAX_VALUES", 1000)
    wide = "[" + "1," * 999 + "]"  # and the list
    assert len(read_yaml(wide, "it")) == 999
    with pytest.raises(InputError, match="more than 1000 values"):
        read_yaml(wide.replace("]", "1]"), "it")


def test_text_that_is_not_ascii_is_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes("name: Zürich".encode())
    assert read_yaml_file(tmp_path / "a.yaml", "recipe") == {"name": "Zürich"}
    (tmp_path / "a.yaml").write_bytes("name: Zürich".encode("latin1"))
    with pytest.raises(InputError, match="not text in UTF-8"):
        read_yaml_file(tmp_path / "a.yaml", "recipe")
