"""A finished run's student, as it ships: evaluated, asked, exported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from dskd import methods
from dskd.config.schema import DataSettings
from dskd.data import Dataset
from dskd.data.archives import FolderFiles
from dskd.data.image_decoding import decode
from dskd.data.loader import MemoryLoader
from dskd.engine.build import copied, load_data
from dskd.engine.evaluate import EvaluationResult, evaluate_accuracy
from dskd.errors import InputError, brief, unknown
from dskd.models.factory import TIMM, load_model
from dskd.models.size_check import check_size
from dskd.models.staged_model import StagedModel
from dskd.runtime.device import pick
from dskd.settings import Count, Number, Positive, Settings, validate
from dskd.storage.run_files import BEST, LAST
from dskd.storage.weights import load_weights, read_metadata, read_weights
from dskd.storage.yaml_file import read_yaml_file

Which = Literal["last", "best"]


_Extent = Annotated[Count, Field(le=4096)]


class _Facts(Settings):
    """What a student's file says of it, see `dskd.engine.training_run.TrainingRun`."""

    model: str
    options: dict[str, Any]
    classes: tuple[str, ...]
    shape: tuple[_Extent, _Extent, _Extent]
    mean: tuple[Number, ...]
    std: tuple[Positive, ...]
    method: str
    deploy_config: dict[str, Any]


@dataclass(frozen=True)
class DeployedStudent:
    """A student and what it must be fed.

    Attributes:
        model: In eval mode, on the CPU; images go in as they are, it normalises them itself.
        name: The model's name.
        classes: The name of each class, by label.
        shape: Channels, height and width of an image.
    """

    model: StagedModel
    name: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]


def load_deployed(
    run: str | Path,
    which: Which = "last",
    *,
    student: nn.Module | None = None,
    allow_code: bool = False,
) -> DeployedStudent:
    """The student of a run.

    Args:
        run: The run's folder.
        which: The weights of the ``last`` epoch, or of the ``best``.
        student: The module of a run whose student was given in Python; a copy takes the weights.
        allow_code: Whether a ``package.module:function`` model may run.

    Raises:
        InputError: There is no finished run, or the student was a module given in Python
            and is not given again.
    """
    path = Path(run) / _file(which)
    if not path.parent.is_dir():
        raise InputError(f"there is no run {run}; check the path")
    facts, weights = _read_facts(path), read_weights(path)

    def build() -> nn.Module:
        module = _build(facts, run, allow_code) if student is None else copied(student)
        return methods.find(facts.method).assemble(module, facts.deploy_config)

    if student is None and facts.model.startswith(TIMM):  # the file says how large it is
        check_size(build, facts.options, weights, str(path))
    module = build()
    load_weights(module, weights, str(path))
    model = StagedModel(module, mean=facts.mean, std=facts.std).eval()
    return DeployedStudent(model, facts.model, facts.classes, facts.shape)


def _build(facts: _Facts, run: str | Path, allow_code: bool) -> nn.Module:
    if facts.model.startswith("<"):
        raise InputError(
            f"the student of {run} was given in Python as {facts.model}; give it again, as in "
            "dskd.evaluate(run, student=module)"
        )
    channels, height, _ = facts.shape
    options = dict(facts.options)
    if facts.model.startswith(TIMM):  # its weights are in the file: nothing is downloaded again
        options.pop("pretrained", None)
    return load_model(
        facts.model,
        num_classes=len(facts.classes),
        in_channels=channels,
        size=height,
        options=options,
        allow_code=allow_code,
    )


def _file(which: Which) -> str:
    files = {"last": LAST, "best": BEST}
    if which not in files:
        raise unknown("choice of weights", which, files)
    return files[which]


def _read_facts(path: Path) -> _Facts:
    """What the file says of the student; checked, for it may have come from anywhere."""
    facts = read_metadata(path)
    try:
        return validate(_Facts, facts)
    except InputError as error:
        raise InputError(f"{path} was not written by dskd or is damaged: {error}") from None


def evaluate(
    run: str | Path,
    which: Which = "last",
    *,
    root: str | Path | None = None,
    data: Dataset | None = None,
    student: nn.Module | None = None,
    allow_code: bool = False,
) -> EvaluationResult:
    """Judges a run's student on the test split of the run's own recipe.

    Args:
        run: The run's folder.
        which: The weights of the ``last`` epoch, or of the ``best``.
        root: Where the data set lies, if not where the recipe says.
        data: The images of a run whose images were given in Python.
        student: The module of a run whose student was given in Python.
        allow_code: Whether a ``package.module:function`` model may run.

    Raises:
        InputError: There is no finished run, or its data set is not to be had.
    """
    deployed = load_deployed(run, which, student=student, allow_code=allow_code)
    settings = read_yaml_file(Path(run) / "recipe.yaml", "recipe").get("data")
    if isinstance(settings, dict) and root is not None:
        settings["root"] = root
    data = load_data(validate(DataSettings, settings or {}, "data."), data)
    for what, there, known in (
        ("classes", list(data.classes), list(deployed.classes)),
        ("[channels, height, width]", list(data.shape), list(deployed.shape)),
    ):
        if there != known:
            raise InputError(
                f"the images are not those of the run: their {what} are {brief(there)}, the "
                f"student knows {brief(known)}; give the run's own images with --root"
            )
    device = pick("auto")
    model = deployed.model.to(device)
    split = MemoryLoader(data.test, device)
    return evaluate_accuracy(model, lambda images: {"student": model(images).logits}, split)[
        "student"
    ]


@torch.no_grad()
def predict(deployed: DeployedStudent, samples: Sequence[str | Path]) -> Tensor:
    """The probability of every class, for image files of any size.

    Args:
        deployed: The student.
        images: Files; each is cropped to its middle and resized as the `folder` data set does.

    Returns:
        float32, ``[N, K]``.

    Raises:
        InputError: A file is missing or does not decode.
    """
    if not samples:
        raise InputError("there is no image to look at; give one or more")
    images = torch.cat([_image(Path(path), deployed.shape) for path in samples])
    probabilities: Tensor = deployed.model(images).logits.softmax(1)
    return probabilities


def _image(path: Path, shape: tuple[int, int, int]) -> Tensor:
    """A file as the student sees it: uint8 ``[1, C, H, W]``."""
    if not path.is_file():
        raise InputError(f"there is no image {path}; check the path")
    channels, height, width = shape
    files = FolderFiles(path.parent, [path.name])
    image = decode(files, [path.name], height if height == width else None)
    if image.shape[2:] != (height, width):
        raise InputError(
            f"{path} is {image.shape[3]}x{image.shape[2]}, the student was trained on images of "
            f"{width}x{height}; resize it"
        )
    if channels == 1:  # the luma of ITU-R 601, as Pillow's mode L
        luma = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
        return (image * luma).sum(1, keepdim=True).round().to(torch.uint8)
    return image
