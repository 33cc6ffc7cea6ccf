"""Load a trained student, and predict with it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import nn

from dskd import methods
from dskd.config.schema import ValueRange
from dskd.data.augmentation import Interpolation
from dskd.data.pixels import RGB, PixelForm
from dskd.deploy.hub import CARD, WEIGHTS, HubStudent
from dskd.errors import InputError, continuing, unknown, weights_option
from dskd.methods import outside
from dskd.models.catalog import HF, LIBRARIES
from dskd.models.factory import load_model
from dskd.models.plain_copy import plain_copy
from dskd.models.size_check import check_size
from dskd.models.staged_model import StagedModel
from dskd.settings import Count, Number, Positive, Settings, Share, validate
from dskd.storage.paths import as_path
from dskd.storage.run_files import (
    BEST,
    COMPARISON,
    EMA,
    FAILED,
    LAST,
    RECIPE,
    RESULT,
    comparison_of,
)
from dskd.storage.weights import load_weights, read_metadata, read_weights
from dskd.storage.yaml_file import read_yaml_file

log = logging.getLogger("dskd")

Which = Literal["last", "best", "ema"]
"""The weights of the last epoch, of the epoch with the best accuracy, or their moving average."""

_Extent = Annotated[Count, Field(le=4096)]


class _Pixels(Settings):
    """How the images of a run were read from their files."""

    value_range: ValueRange | None = None
    crop_pct: Share = 1.0
    interpolation: Interpolation | None = None


class _Metadata(Settings):
    """The metadata of a student's file, see `dskd.engine.training_run.TrainingRun`."""

    model: str
    options: dict[str, Any]
    classes: tuple[str, ...]
    shape: tuple[_Extent, _Extent, _Extent]
    mean: tuple[Number, ...]
    std: tuple[Positive, ...]
    method: str
    deploy_config: dict[str, Any]
    pixels: _Pixels = _Pixels()


@dataclass(eq=False)
class DeployedStudent(HubStudent):
    """A trained student, its classes and the shape of its images.

    Attributes:
        model: The student in evaluation mode, on the CPU. It takes uint8 images and normalises
            them itself.
        name: Name of the model.
        classes: Name of each class, by label.
        shape: Channels, height and width of an image.
        form: What the pixels of an image file become.
        metadata: What its file says about it, to build it again.
        run: Folder of the run that trained it; None if it comes from elsewhere.
        which: The weights of the run.
        card: The model card that came with it.

    Example:
        >>> import dskd, tempfile
        >>> run = dskd.train("resnet8", data={"name": "digits", "fraction": 0.1}, epochs=1,
        ...     out=tempfile.mkdtemp())
        >>> folder = tempfile.mkdtemp()
        >>> _ = dskd.load_deployed(run.path).save_pretrained(folder)
        >>> dskd.DeployedStudent.from_pretrained(folder).name
        'resnet8'
    """

    model: StagedModel
    name: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    form: PixelForm = RGB
    metadata: Mapping[str, Any] = field(default_factory=dict, repr=False)
    run: Path | None = None
    which: Which = "last"
    card: str | None = field(default=None, repr=False)


def load_deployed(
    run: str | Path,
    which: Which | None = None,
    *,
    student: nn.Module | None = None,
    allow_code: bool = False,
) -> DeployedStudent:
    """Load the student of a run, or of a file.

    Args:
        run: Folder of the run, a ``.safetensors`` file of a student, or a folder of
            ``save_pretrained``.
        which: Load the weights of the ``last`` or of the ``best`` epoch, or the moving average
            ``ema``. None chooses as `chosen_weights` does.
        student: The module, if it was given in Python; a copy gets the weights.
        allow_code: Whether a model ``package.module:function`` may run.

    Raises:
        InputError: There is no finished run, or its student was given in Python and is not given
            again.
    """
    folder = as_path(run, "run")
    saved = (folder / WEIGHTS).is_file() and not (folder / RECIPE).is_file()
    if folder.is_file() or saved:
        if which is not None:
            raise InputError(f"{folder} has one student; do not choose weights")
        load = load_folder if saved else load_file
        return load(folder, student=student, allow_code=allow_code)
    if not folder.is_dir():
        raise InputError(f"there is no run {folder}; check the path")
    which = which or chosen_weights(folder)
    path = folder / _file(which)
    if not path.is_file():
        if which == "ema" and (folder / LAST).is_file():
            raise InputError(f"{folder} has no averaged weights; train with train.ema=0.999, or so")
        raise _missing(path)
    if which != "best" and _is_unfinished(folder):
        raise _missing(path)  # it is there from before, with fewer epochs than the recipe says
    loaded = load_file(path, run=str(run), student=student, allow_code=allow_code)
    return replace(loaded, run=folder, which=which)


def load_file(
    path: Path,
    *,
    run: str | None = None,
    student: nn.Module | None = None,
    allow_code: bool = False,
) -> DeployedStudent:
    """Load the student of a file.

    Args:
        path: The file, as a run or ``dskd export --format safetensors`` writes it.
        run: Names the run in errors; None for the file itself.
        student: The module, if it was given in Python; a copy gets the weights.
        allow_code: Whether a model ``package.module:function`` may run.

    Raises:
        InputError: The file holds no student, or it cannot be built.
    """
    plain = read_metadata(path)
    metadata, weights = _validated(plain, path), read_weights(path)

    def build() -> nn.Module:
        named = run or str(path)
        module = _build(metadata, named, allow_code) if student is None else plain_copy(student)
        if not metadata.deploy_config and outside.is_named(metadata.method):
            return module  # so that the method need not be here
        with outside.code_allowed(allow_code):
            return methods.find(metadata.method).assemble(module, metadata.deploy_config)

    if student is None and metadata.model.startswith(LIBRARIES):  # its options determine its size
        check_size(build, metadata.options, weights, str(path))
    module = build()
    load_weights(module, weights, str(path))
    model = StagedModel(module, mean=metadata.mean, std=metadata.std).eval()
    form = PixelForm(**metadata.pixels.model_dump())
    return DeployedStudent(model, metadata.model, metadata.classes, metadata.shape, form, plain)


def load_folder(
    folder: Path, *, student: nn.Module | None = None, allow_code: bool = False
) -> DeployedStudent:
    """Load the student of a folder that ``save_pretrained`` wrote, with its model card.

    Args:
        folder: The folder.
        student: As for `load_file`.
        allow_code: As for `load_file`.

    Raises:
        InputError: As `load_file`.
    """
    loaded = load_file(folder / WEIGHTS, student=student, allow_code=allow_code)
    card = folder / CARD
    if not card.is_file():
        return loaded
    return replace(loaded, card=card.read_text(encoding="utf-8", errors="replace"))


def _is_unfinished(run: Path) -> bool:
    """Whether a run is training, or was stopped: perhaps one that takes more epochs."""
    return (run / RECIPE).is_file() and not (run / RESULT).is_file()


def _missing(path: Path) -> InputError:
    """The error about a student that is not there, with the way to get it."""
    folder = path.parent
    if (folder / COMPARISON).is_file():
        return InputError(f"{folder} is a comparison; give the folder of one of its runs")
    if not (folder / RECIPE).is_file():
        return InputError(f"{folder} holds no run; check the path")
    if (folder / FAILED).is_file():
        return InputError(f"the run in {folder} failed, and {folder / FAILED} says why")
    names = _names(read_yaml_file(folder / RECIPE, "recipe"))
    if comparison_of(folder):
        how = "start its comparison again in the same way"
    elif any(name.startswith("<") for name in names):  # of objects
        how = "make the same call in Python again with resume=True"
    else:
        how = continuing(folder, any(":" in name for name in names))  # as in package.module:object
    if (folder / RESULT).is_file():
        return InputError(
            f"{path} is gone; remove {folder / RESULT}; then, to have it written again, {how}"
        )
    best = f", or take its best epoch so far with {weights_option('best')}"
    return InputError(
        f"the run in {folder} is not finished; to continue it, {how}"
        + (best if (folder / BEST).is_file() and path.name != BEST else "")
    )


def _names(recipe: Mapping[str, Any]) -> list[str]:
    """What a recipe calls its images, its models and its method."""
    parts = [recipe.get(key) for key in ("data", "student", "teacher", "method")]
    return [str(part.get("name")) for part in parts if isinstance(part, dict)]


def _build(metadata: _Metadata, run: str, allow_code: bool) -> nn.Module:
    if metadata.model.startswith("<"):
        raise InputError(
            f"the student of {run} was given in Python as {metadata.model}; give it again there: "
            "dskd.evaluate, dskd.predict and dskd.export take it, as in "
            f"dskd.evaluate({run!r}, student=module)"
        )
    channels, height, _ = metadata.shape
    return load_model(
        metadata.model,
        num_classes=len(metadata.classes),
        in_channels=channels,
        size=height,
        options=metadata.options,
        allow_code=allow_code,
    )


def chosen_weights(run: Path) -> Which:
    """The weights of a run that are used if none are asked for.

    The moving average if the run has one (``train.ema``), which a line says; else those of the last
    epoch.
    """
    if not (run / EMA).is_file():
        return "last"
    log.info(
        "using the averaged weights of %s (train.ema); %s takes those of the last epoch",
        *(run, weights_option("last")),
    )
    return "ema"


def file_stem(which: Which) -> str:
    """The name of the student's files, without a suffix.

    Example:
        >>> file_stem("best")
        'student_best'
    """
    return Path(_file(which)).stem


def _file(which: Which) -> str:
    files = {"last": LAST, "best": BEST, "ema": EMA}
    if which not in files:
        raise unknown("choice of weights", which, files)
    return files[which]


def _validated(metadata: Mapping[str, Any], path: Path) -> _Metadata:
    """The metadata of a file, which may be untrusted."""
    if (task := metadata.get("task")) in methods.TASKS:
        raise InputError(f"{path} is a student of {task}; use the commands of `dskd {task}`")
    try:
        found = validate(_Metadata, metadata)
        if found.model.startswith(HF):  # nothing is fetched because a file names it
            raise InputError("it names a model of the Hub")
        return found
    except InputError as error:
        raise InputError(f"{path} was not written by dskd or is damaged: {error}") from None
