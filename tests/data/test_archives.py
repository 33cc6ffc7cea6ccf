"""Files in folders and archives: how deep a folder is read, and how large a file may be."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from dskd.data import archives
from dskd.data.archives import ZipFiles
from dskd.data.folder_files import FolderFiles
from dskd.errors import InputError


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_folder_is_listed_down_to_a_depth(tmp_path: Path, depth: int) -> None:
    folder = tmp_path / "a/b/c/d"
    folder.mkdir(parents=True)
    for place in (folder, *folder.parents[:4]):
        (place / "file").write_bytes(b"1")
    (tmp_path / "other").mkdir()
    found = set(FolderFiles(tmp_path, ["a"], depth).names)
    everything = ["a/", "a/file", "a/b/", "a/b/file", "a/b/c/", "a/b/c/file", "a/b/c/d/"]
    assert found == set(everything[: 1 + 2 * depth])


def test_a_member_of_a_zip_archive_may_be_as_large_as_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "_MAX_UNPACKED", 100)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("top/fits", bytes(100))
        archive.writestr("top/more", bytes(101))
    files = ZipFiles(tmp_path / "a.zip", "top/")
    assert files.read("fits") == bytes(100)
    with pytest.raises(InputError, match="more has more than 100 bytes"):
        files.read("more")
