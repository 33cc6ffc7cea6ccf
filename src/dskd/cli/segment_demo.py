"""The demo of segmentation: students of few masks, of masks and seeds, and of all masks."""

from __future__ import annotations

import io
import logging
from pathlib import Path

from dskd.cli.demo import free_folder
from dskd.engine.run import run_job
from dskd.engine.tasks.segmentation.job import SegmentationJob
from dskd.engine.tasks.segmentation.overlay import draw_rows
from dskd.engine.tasks.segmentation.recipe import RECIPES, data_settings
from dskd.engine.tasks.segmentation.sources import load_images
from dskd.engine.tasks.segmentation.student import evaluate, load_student
from dskd.errors import option
from dskd.storage.atomic import check_writable, replace_file

log = logging.getLogger("dskd")

NOTE = (
    "One seed and few test images: differences of several points are noise here. Epochs are chosen "
    "by the validation split. The decoder for seeds learns slowly: in so short a run it stays "
    "behind masks alone."
)
_STUDENTS = {
    "masks": ("few masks", ["method.name=masks"]),
    "mixed": ("few masks and seeds", []),
    "all-masks": ("all masks", ["method={name: masks, all_images: true}"]),
}
_SHORT = ["data.size=64", "train.batch_size=4", "train.epochs=15"]
"""For images that are given: they may be large and many."""
_SHOWN = 4
"""Test images that are drawn."""


def run_demo(out: Path, data: str = "shapes") -> tuple[Path, list[str], list[list[str]]]:
    """Trains three students with the same images, and draws their predictions.

    Args:
        out: Folder of the runs. If it exists, ``-2``, ``-3`` and so on is appended.
        data: ``shapes``, or a folder of images and masks.

    Returns:
        The file of the drawing, and the columns and rows of the table.

    Raises:
        InputError: ``out`` has no name of its own, the images cannot be used, or MONAI is not
            installed.
    """
    out = free_folder(out)
    check_writable(out, option("out", "FOLDER"))
    own = [] if data == "shapes" else _SHORT
    rows = []
    for name, (label, changes) in _STUDENTS.items():
        log.info("%s", label)
        settings = [*data_settings(data), *own, *changes, f"out={out / name}"]
        result = run_job(SegmentationJob(RECIPES.load("shapes", settings)))
        for score in evaluate(result.path):
            distance = "-" if score.hd95 is None else f"{score.hd95:.1f}"
            rows.append([label, score.name, f"{score.dice:.1f}", distance, f"{result.seconds:.1f}"])
    columns = ["learned from", "class", "Dice, %", "HD95, pixels", "seconds"]
    return _draw(out), columns, rows


def _draw(out: Path) -> Path:
    """Draws test images with their masks, and with what each student predicts."""
    students = [load_student(out / name) for name in _STUDENTS]
    test = load_images(students[0].recipe.split_data).test
    chosen = test.examples(_SHOWN)
    images = [test.images[index].numpy() for index in chosen]
    masks = [[student.predict(image) for image in images] for student in students]
    stream = io.BytesIO()
    truth = [test.masks[index].numpy() for index in chosen]
    draw_rows(images, [truth, *masks]).save(stream, "PNG")
    replace_file(out / "predictions.png", stream.getvalue())
    return out / "predictions.png"
