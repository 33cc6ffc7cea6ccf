"""Predict the classes of image files."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from dskd.data.folder_files import FolderFiles
from dskd.data.image_decoding import decode
from dskd.data.image_files import BadImageError, is_image
from dskd.deploy.early_exits import EarlyExits
from dskd.deploy.student import DeployedStudent
from dskd.engine.evaluate import PIXELS
from dskd.errors import InputError, printable
from dskd.models.early_exits import EarlyExitStudent
from dskd.storage.paths import as_path

_BATCH = 16
"""Images that `predict` runs at a time."""
_NAMED = 5
"""Skipped files that a report names."""


@dataclass(frozen=True)
class Batch:
    """Predictions for some images, in the order of the inputs.

    Attributes:
        images: The files, named as the user gave them.
        probabilities: float32, ``[N, K]``, on the CPU.
    """

    images: tuple[str, ...]
    probabilities: Tensor


@dataclass(frozen=True)
class BadInput:
    """An input that cannot be used.

    Attributes:
        path: As the user gave it.
        reason: Why, in a few words, for counting.
        message: What is wrong.
    """

    path: str
    reason: str
    message: str


@dataclass
class Skipped:
    """Inputs that could not be used. It holds counts and a few examples, however many there are.

    Attributes:
        reasons: How many inputs were skipped, by reason.
        first: The first few inputs, each with what is wrong.
    """

    reasons: Counter[str] = field(default_factory=Counter)
    first: list[str] = field(default_factory=list)

    def add(self, bad: BadInput) -> None:
        """Notes an input."""
        self.reasons[bad.reason] += 1
        if len(self.first) < _NAMED:
            self.first.append(f"{bad.path}: {bad.message}")

    def __len__(self) -> int:
        return self.reasons.total()

    def lines(self) -> list[str]:
        """A report: counts by reason, then the first few. Empty if nothing was skipped."""
        if not len(self):
            return []
        ordered = sorted(self.reasons.items(), key=lambda item: (-item[1], item[0]))
        counts = ", ".join(f"{count} {reason}" for reason, count in ordered)
        more = len(self) - len(self.first)
        lines = [f"skipped {len(self)}: {counts}", *(f"  {line}" for line in self.first)]
        lines += [f"  and {more} more"] if more else []
        return [printable(line) for line in lines]


@dataclass
class CountedExits:
    """Early exits, and for how many images each of them predicted.

    Attributes:
        early: The exits.
        counts: By the number of the exit.
    """

    early: EarlyExits
    counts: Counter[int] = field(default_factory=Counter)

    def probabilities(self, images: Tensor) -> Tensor:
        """The probabilities of images, which are run one by one, so that the others may stop."""
        found = []
        for image in images:
            output = self.early.student(image[None])
            self.counts[int(output.exits)] += 1
            found.append(output.logits.softmax(1))
        return torch.cat(found)

    def lines(self) -> list[str]:
        """A line with the share of the images for which each exit predicted."""
        total = max(1, self.counts.total())
        shares = ", ".join(
            f"{name} {100 * self.counts[number] / total:.1f} %"
            for number, name in enumerate(self.early.names)
        )
        return [f"predicted at: {shares}"]


def find_images(inputs: Sequence[str | Path]) -> Iterator[str | BadInput]:
    """Yields the image files of inputs: files, folders with all folders in them, and patterns.

    A file is taken whatever its suffix. In a folder, files with the suffix of an image are taken;
    hidden files and folders are left out. A pattern such as ``photos/**/*.jpg`` may match both. An
    input that exists is never read as a pattern.

    Args:
        inputs: As the user gave them.

    Yields:
        The path of an image, or an input that is missing or holds no image, in their order.
    """
    for given in inputs:
        path = os.fspath(given)
        if os.path.lexists(path):
            yield from _images_at(path)
        elif glob.has_magic(path):
            matches = sorted(glob.glob(path, recursive=True))  # noqa: PTH207 (names as given)
            if "**" in path:  # it matches the files in folders too, and follows links
                matches = [
                    match
                    for match in matches
                    if not (Path(match).is_dir() or _is_in_loop(Path(match)))
                ]
            for match in matches:
                yield from _images_at(match)
            if not matches:
                yield BadInput(path, "missing", "the pattern matches no file")
        else:
            yield BadInput(path, "missing", "there is no such file or folder")


@torch.no_grad()
def predict(
    deployed: DeployedStudent, images: Sequence[str | Path], exits: EarlyExitStudent | None = None
) -> Tensor:
    """Predict the probability of each class for image files of any size.

    Args:
        deployed: The student.
        images: Paths of the files. Each image is cropped to its central square and resized, as
            the data set ``folder`` does it.
        exits: Predicts early, one image at a time; None for the plain student.

    Returns:
        float32, ``[N, K]``.

    Raises:
        InputError: A file is missing or does not decode.
    """
    if not images:
        raise InputError("there is no image to predict; give one or more")
    parts, size, model = [], 1 if exits else _BATCH, exits or deployed.model
    for start in range(0, len(images), size):
        paths = images[start : start + size]
        batch = torch.cat([read_image(as_path(path, "image"), deployed) for path in paths])
        logits: Tensor = model(batch.to(deployed.model.mean.device)).logits
        parts.append(logits.softmax(1).cpu())
    return torch.cat(parts)


def read_image(path: Path, deployed: DeployedStudent) -> Tensor:
    """Read a file as input of the student: uint8 ``[1, C, H, W]``.

    Args:
        path: The file.
        deployed: The student.

    Raises:
        InputError: The file is missing or does not decode, or has another size and the student's
            images are not square; or the student takes neither RGB nor gray.
    """
    _check_channels(deployed)
    if not path.is_file():
        raise InputError(f"there is no image {path}; check the path")
    channels, height, width = deployed.shape
    form = replace(deployed.form, channels=channels)
    files = FolderFiles(path.parent, [path.name])
    image = decode(files, [path.name], height if height == width else None, form)
    if image.shape[2:] != (height, width):
        raise InputError(
            f"{path} is {image.shape[3]}x{image.shape[2]}, the student was trained on images of "
            f"{width}x{height}; resize it"
        )
    return image


def _check_channels(deployed: DeployedStudent) -> None:
    """Refuses a student whose images no image file holds."""
    channels = deployed.shape[0]
    if channels not in (1, 3):
        raise InputError(
            f"image files have 1 or 3 channels, and {deployed.name} takes {channels}; give its "
            f"images as a tensor [N, {channels}, H, W], as in "
            "dskd.load_deployed(run).model(images).logits"
        )


def predict_batches(
    deployed: DeployedStudent,
    inputs: Sequence[str | Path],
    skipped: Skipped,
    exits: CountedExits | None = None,
) -> Iterator[Batch]:
    """Predicts the classes of image files. Memory does not grow with the number of files.

    Args:
        deployed: The student; it runs on its device.
        inputs: Files, folders and patterns, see `find_images`.
        skipped: Notes the inputs that cannot be used.
        exits: Early exits that predict; None for the plain student.

    Raises:
        InputError: No image of the inputs can be used, or the student takes neither RGB nor gray.

    Yields:
        Predictions in the order of the inputs; the files of a folder are sorted by name.
    """
    _check_channels(deployed)  # here, as it is no fault of a single file
    device = deployed.model.mean.device
    _, height, width = deployed.shape
    size = max(1, min(500, PIXELS[device.type] // (height * width)))
    found, predicted = find_images(inputs), False
    while taken := list(islice(found, size)):
        good, images = [], []
        for one in taken:
            if isinstance(one, BadInput):
                skipped.add(one)
                continue
            try:
                images.append(read_image(Path(one), deployed))
                good.append(one)
            except InputError as error:
                skipped.add(BadInput(one, _reason(one, error), str(error)))
        if images:
            predicted = True
            yield Batch(tuple(good), _probabilities(deployed, torch.cat(images), exits))
    if not predicted:
        raise InputError(f"no image can be used: {'; '.join(skipped.lines()) or 'none was given'}")


@torch.no_grad()
def _probabilities(deployed: DeployedStudent, images: Tensor, exits: CountedExits | None) -> Tensor:
    if exits is not None:
        return exits.probabilities(images)
    logits: Tensor = deployed.model(images.to(deployed.model.mean.device)).logits
    return logits.softmax(1).cpu()


def _reason(path: str, error: InputError) -> str:
    if isinstance(error, BadImageError):
        return error.reason
    file = Path(path)
    if file.exists():
        return "of another size"
    return "dangling links" if file.is_symlink() else "missing"


def _images_at(path: str) -> Iterator[str | BadInput]:
    """The image files at a path that exists."""
    if not Path(path).is_dir():
        yield path
        return
    empty = True
    for found in _walk(path, frozenset()):
        empty = False
        yield found
    if empty:
        yield BadInput(path, "folders without images", "this folder holds no image")


def _is_in_loop(path: Path) -> bool:
    """Whether a path leads through a link back to a folder that contains the link."""
    return any(
        folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve())
        for folder in path.parents
    )


def _walk(folder: str, above: frozenset[Path]) -> Iterator[str | BadInput]:
    """The images in a folder and below, sorted; links that lead back up are not followed."""
    real = Path(folder).resolve()
    if real in above:
        return
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        yield BadInput(folder, "unreadable folders", error.strerror or str(error))
        return
    for entry in found:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _walk(entry.path, above | {real})
        elif is_image(entry.name):
            yield entry.path
