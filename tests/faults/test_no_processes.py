"""One process decodes, trains and writes, so a killed run leaves no process behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from dskd.config import recipe
from dskd.config.schema import Recipe
from dskd.data import image_decoding, image_files
from dskd.engine import run
from dskd.engine.trainer import Trainer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set as an image folder."""
    for split, count in (("train", 80), ("val", 2)):
        for label in ("dark", "light"):
            place = tmp_path / "images" / split / label
            place.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (8, 8), (number, number, number)).save(place / f"{number}.png")
    return tmp_path / "images"


def load_recipe(folder: Path) -> Recipe:
    return recipe.load(
        "digits",
        [
            f"data={{name: folder, root: {folder}}}",
            "student.name=resnet8",
            "teacher=null",
            "method={name: ce}",
            "train={epochs: 1, batch_size: 32, device: cpu}",
            f"out={folder.parent / 'run'}",
        ],
    )


@pytest.mark.slow
def test_a_run_starts_no_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = psutil.Process().children(recursive=True)
    started: set[psutil.Process] = set()
    threads: set[int] = set()
    read, train_epoch = image_files.read_image, Trainer.train_epoch

    def look() -> None:
        started.update(set(psutil.Process().children(recursive=True)) - set(before))

    def watched(*args: Any) -> Any:
        threads.add(threading.get_ident())
        look()
        return read(*args)

    def trained(self: Trainer) -> Iterator[None]:
        for _ in train_epoch(self):
            look()
            yield

    monkeypatch.setattr(image_decoding, "read_image", watched)
    monkeypatch.setattr(Trainer, "train_epoch", trained)
    run.train(load_recipe(folder))
    look()
    assert not started
    assert len(threads) > 1, "only the main thread decoded images"


def test_an_error_in_a_decoding_thread_ends_the_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = image_files.read_image

    def dying(files: Any, name: str, *more: Any) -> Any:
        if "70" in name:
            raise MemoryError("in a thread")
        return read(files, name, *more)

    monkeypatch.setattr(image_decoding, "read_image", dying)
    with pytest.raises(MemoryError, match="in a thread"):
        run.train(load_recipe(folder))
    assert not (folder.parent / "run").exists()
