"""Evaluate a trained student on the test split of its run."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from torch import nn

from dskd.config.schema import DataSettings
from dskd.data import Dataset
from dskd.deploy.student import DeployedStudent, Which, load_deployed
from dskd.engine.build_data import load_data
from dskd.engine.evaluate import EvaluationResult, evaluate_accuracy
from dskd.engine.given_data import DataArgument, given_images
from dskd.engine.teacher_labels import with_stored_labels
from dskd.errors import InputError, brief, option, printable
from dskd.runtime.device import pick
from dskd.settings import validate
from dskd.storage.paths import as_path
from dskd.storage.run_files import RECIPE, TEST_IMAGES
from dskd.storage.yaml_file import read_yaml_file

log = logging.getLogger("dskd")


def evaluate(
    run: str | Path,
    which: Which | None = None,
    *,
    root: str | Path | None = None,
    data: DataArgument | None = None,
    student: nn.Module | None = None,
    allow_code: bool = False,
) -> EvaluationResult:
    """Evaluate the student of a run on the test split of the run's recipe.

    Args:
        run: Folder of the run.
        which: As for `load_deployed`.
        root: Folder of the data set, in place of the recipe's.
        data: The data set, if it was given in Python, in the same form.
        student: The module, if it was given in Python.
        allow_code: Whether a model ``package.module:function`` may run.

    Raises:
        InputError: There is no finished run, or its data set cannot be loaded.
    """
    deployed = load_deployed(run, which, student=student, allow_code=allow_code)
    loaded = load_evaluated(run, deployed, root, data)
    device = pick("auto")
    model = deployed.model.to(device)
    results = evaluate_accuracy(
        model, lambda images: {"student": model(images).logits}, loaded.test.loader(device)
    )
    return replace(results["student"], metric=loaded.metric)


def load_run_data(
    run: str | Path,
    deployed: DeployedStudent,
    root: str | Path | None = None,
    data: DataArgument | None = None,
) -> Dataset:
    """The images of a run.

    Args:
        run: Folder of the run.
        deployed: Its student.
        root: Folder of the data set, in place of the recipe's.
        data: The data set, if it was given in Python, in the same form.

    Raises:
        InputError: They cannot be loaded, or are others than those of the run.
    """
    if deployed.run is None:
        raise InputError(f"{run} names no images; give the folder of a run")
    settings = read_yaml_file(as_path(run, "run") / RECIPE, "recipe").get("data")
    if isinstance(settings, dict) and root is not None:
        settings["root"] = root
    loaded = load_data(validate(DataSettings, settings or {}, "data."), given_images(data))
    loaded = with_stored_labels(loaded, as_path(run, "run"))
    for what, found, expected in (
        ("classes", list(loaded.classes), list(deployed.classes)),
        ("[channels, height, width]", list(loaded.shape), list(deployed.shape)),
    ):
        if found != expected:
            raise InputError(
                f"the images are not those of the run: their {what} are {brief(found)}, the "
                f"student has {brief(expected)}; give the run's own images with "
                f"{option('root', 'FOLDER')}"
            )
    return loaded


def load_evaluated(
    run: str | Path,
    deployed: DeployedStudent,
    root: str | Path | None = None,
    data: DataArgument | None = None,
) -> Dataset:
    """The images of `load_run_data`, with a warning of those that `check_split` refuses."""
    loaded = load_run_data(run, deployed, root, data)
    try:
        check_split(run, loaded)
    except InputError as error:
        log.warning("%s", error)
    return loaded


def check_split(run: str | Path, data: Dataset) -> None:
    """Refuses test images that were not held out when the run was trained.

    Args:
        run: Folder of the run.
        data: Its images as they are now.

    Raises:
        InputError: There are some: images were added or removed, or another part is held out.
    """
    listed = as_path(run, "run") / TEST_IMAGES
    if not data.test_is_held_out or not listed.is_file():
        return
    before = {*listed.read_text(encoding="utf-8").splitlines()}
    others = sum(printable(name) not in before for name in data.test.names)
    if others:
        raise InputError(
            f"{others} of the {len(data.test)} test images were not held out when this run was "
            "trained, so it may have learned from them: images were added or removed, or "
            f"data.test_split differs; {listed} lists its own"
        )
