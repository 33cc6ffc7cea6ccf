"""Segmentation from Python: ``dskd.segment``, which needs the extra ``dskd[segmentation]``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dskd.api.task import alone, compare, resolved, run_in_python, shared
from dskd.compare.summary import Summary
from dskd.config.contradictions import keys_of_teacher, warn_of_unused_training
from dskd.deploy.predict_masks import predict_mask
from dskd.engine.arguments import Section
from dskd.engine.result import Result
from dskd.engine.tasks.finished import Which
from dskd.engine.tasks.segmentation.job import SegmentationJob
from dskd.engine.tasks.segmentation.metrics import ClassScores
from dskd.engine.tasks.segmentation.recipe import RECIPES, data_settings
from dskd.engine.tasks.segmentation.student import evaluate as evaluate_run
from dskd.engine.tasks.segmentation.student import load_student
from dskd.storage.paths import as_path, one_or_more

Model = Section
"""A network: its settings."""


def distill(
    student: Model | None = None,
    *,
    teacher: Model | None = None,
    data: str | Path | Section | None = None,
    method: str | Section | None = None,
    epochs: int | None = None,
    train: Section | None = None,
    seed: int | None = None,
    recipe: str | Path | Section | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    verbose: int = 1,
) -> Result:
    """Trains with masks and seeds, where one decoder teaches another, or from a large teacher.

    Args:
        student: Settings of the U-Net, as in ``{"width": 16}``.
        teacher: The same, for ``kd`` and ``dskd``; it is trained first, unless it has a
            ``checkpoint``.
        data: A folder with ``img`` and ``mask``, ``shapes`` for generated images, or settings.
        method: A name, as in ``mixed``, or settings, as in ``{"name": "mixed", "kl": 0}``; by
            default the recipe's, or ``mixed``.
        epochs: Short for ``train={"epochs": ...}``.
        train: Settings of the training, as in ``{"epochs": 10, "lr": 0.01}``.
        seed: The seed of everything random; by default the recipe's, or 0.
        recipe: A shipped recipe (``cardiac`` or ``shapes``), a YAML file, or its content as a
            mapping. The arguments change it.
        out: The run's folder; by default the recipe's, or ``<method>-seed<seed>`` in
            ``runs/segment/<recipe>``.
        resume: Continue an interrupted run.
        overwrite: Replace an existing run.
        verbose: As for `dskd.distill`.

    Raises:
        InputError: An argument cannot be used.

    Example:
        >>> import dskd, tempfile
        >>> result = dskd.segment.distill(
        ...     {"width": 2}, data={"name": "shapes", "size": 16}, epochs=1,
        ...     out=tempfile.mkdtemp(), verbose=0,
        ... )
        >>> result.method, result.metric
        ('segment/mixed', 'dice')
    """
    parts = {"student": student, "teacher": teacher, "data": data}
    settings = {"method": method, "epochs": epochs, "train": train, "seed": seed, "out": out}
    own = resolved(RECIPES, data_settings, *RECIPES.read(recipe), parts, settings)
    RECIPES.check_teaches(own, keys_of_teacher(teacher))
    return run_in_python(SegmentationJob(own), resume, overwrite, verbose)


def train(
    student: Model | None = None,
    *,
    data: str | Path | Section | None = None,
    epochs: int | None = None,
    train: Section | None = None,
    seed: int | None = None,
    recipe: str | Path | Section | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    verbose: int = 1,
) -> Result:
    """Trains a network on the masks alone.

    Args:
        student: As for `distill`.
        data: As for `distill`.
        epochs: As for `distill`.
        train: As for `distill`.
        seed: As for `distill`.
        recipe: As for `distill`; its teacher and its method are ignored.
        out: As for `distill`; the method is ``masks``.
        resume: As for `distill`.
        overwrite: As for `distill`.
        verbose: As for `distill`.

    Raises:
        InputError: An argument cannot be used.

    Example:
        >>> import dskd, tempfile
        >>> result = dskd.segment.train({"width": 2}, data={"name": "shapes", "size": 16}, epochs=1,
        ...     out=tempfile.mkdtemp(), verbose=0)
        >>> result.method
        'segment/masks'
    """
    parts = {"student": student, "data": data}
    settings = {"method": None, "epochs": epochs, "train": train, "seed": seed, "out": out}
    own = resolved(RECIPES, data_settings, *alone(RECIPES, recipe), parts, settings)
    return run_in_python(SegmentationJob(own), resume, overwrite, verbose)


def compare_methods(
    student: Model | None = None,
    *,
    teacher: Model | None = None,
    data: str | Path | Section | None = None,
    methods: str | Sequence[str] = "masks,mixed",
    seeds: int = 3,
    epochs: int | None = None,
    train: Section | None = None,
    seed: int | None = None,
    recipe: str | Path | Section | None = None,
    out: str | Path | None = None,
    jobs: int | None = None,
    launcher: str | Section = "processes",
    verbose: int = 1,
) -> list[Summary]:
    """Compares methods: trains by each method at each seed.

    Finished runs stay: the same call continues, and more methods or seeds extend a comparison.

    Args:
        student: As for `distill`.
        teacher: As for `distill`. It is trained once.
        data: As for `distill`.
        methods: Names, also with settings: ``"masks,mixed"`` or a list.
        seeds: The number of seeds: ``seed``, ``seed + 1`` and so on.
        epochs: As for `distill`.
        train: As for `distill`.
        seed: The first seed, and that of the teacher. None means the recipe's, or 0.
        recipe: As for `distill`; settings of its method hold where that is compared.
        out: Folder of the comparison; by default ``segment-<recipe>`` in ``runs/compare``.
        jobs: Number of processes, each for students of one seed. None for one, on a cluster for any
            number.
        launcher: As for `dskd.compare_methods`.
        verbose: As for `distill`.

    Returns:
        One summary per method in the folder. Differences are those to ``masks``.

    Raises:
        InputError: An argument cannot be used.

    Example:
        >>> import dskd, tempfile
        >>> (masks,) = dskd.segment.compare_methods(
        ...     {"width": 2}, data={"name": "shapes", "size": 16}, methods="masks", epochs=1,
        ...     seeds=1, out=tempfile.mkdtemp(), verbose=0,
        ... )
        >>> masks.label, masks.metric
        ('masks', 'dice')
    """
    parts = {"student": student, "teacher": teacher, "data": data}
    settings = {"method": None, "epochs": epochs, "train": train, "seed": seed, "out": None}
    own = resolved(RECIPES, data_settings, *shared(RECIPES, recipe, teacher), parts, settings)
    warn_of_unused_training(own.teacher, keys_of_teacher(teacher))
    return compare(own, methods, seeds, out, jobs, launcher, verbose)


def evaluate(run: str | Path, which: Which = "best") -> list[ClassScores]:
    """Measures Dice and HD95 of the student of a finished run on the test split of its data.

    Args:
        run: The folder of the run.
        which: The weights of the ``last`` epoch, or of the ``best`` one by validation Dice.

    Returns:
        The scores of each class but the background.

    Raises:
        InputError: There is no finished run of segmentation, or its data cannot be read.
    """
    return evaluate_run(as_path(run, "run"), which)


def predict(
    run: str | Path, images: str | Path | Sequence[str | Path], which: Which = "best"
) -> list[NDArray[np.uint8]]:
    """Predicts the class of every pixel of image files.

    Args:
        run: The folder of the run.
        images: Path of a file, or of several, of any size.
        which: As for `evaluate`.

    Returns:
        uint8 ``[H, W]`` for each image, with 0 for the background.

    Raises:
        InputError: There is no finished run of segmentation, or a file is missing or does not
            decode.

    Example:
        >>> import dskd, tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> out = Path(tempfile.mkdtemp())
        >>> run = dskd.segment.train({"width": 2}, data={"name": "shapes", "size": 16}, epochs=1,
        ...     out=out, verbose=0).path
        >>> Image.new("L", (20, 30)).save(out / "image.png")
        >>> [mask.shape for mask in dskd.segment.predict(run, [out / "image.png"])]
        [(30, 20)]
    """
    student = load_student(as_path(run, "run"), which)
    return [predict_mask(student, as_path(one, "images"))[1] for one in one_or_more(images)]
