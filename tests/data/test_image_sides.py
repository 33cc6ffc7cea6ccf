"""How large the user's own images are."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from dskd.data import image_sides
from dskd.data.image_sides import typical_side


def side_in(root: Path) -> int | None:
    return typical_side({"name": "folder", "root": root})


def write(path: Path, width: int, height: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (width, height)).save(path)


def test_the_median_of_the_shorter_sides_counts(tmp_path: Path) -> None:
    assert side_in(tmp_path) is None
    for number, size in enumerate([(30, 20), (50, 40), (90, 900)]):
        write(tmp_path / f"class{number}/deep/a.png", *size)
    (tmp_path / "class0/broken.png").write_bytes(b"no image")
    (tmp_path / "class0/notes.txt").write_text("no image")
    assert side_in(tmp_path) == 40


def test_a_few_images_of_each_folder_are_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        for number in range(6):
            write(tmp_path / name / f"{number}.png", 8, 8)
    opened = list[Path]()

    def spied(path: Path) -> Image.Image:
        opened.append(path)
        return Image.new("L", (8, 8))

    monkeypatch.setattr("PIL.Image.open", spied)
    assert side_in(tmp_path) == 8
    assert len(opened) == 3 * image_sides.SAMPLE_PER_FOLDER
    monkeypatch.setattr(image_sides, "SAMPLE", 5)
    opened.clear()
    side_in(tmp_path)
    assert len(opened) == 5
