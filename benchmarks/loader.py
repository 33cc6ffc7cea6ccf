"""Images per second of three loaders: ``make bench-loader DATA=FOLDER``.

All of them crop at random, resize, flip and normalise the same JPEG or PNG files, with as many
worker processes:

- ``dskd`` streams (`dskd.data.stream_loader.StreamLoader`), and normalises the batches;
- ``torchvision`` has ImageFolder, RandomResizedCrop, RandomHorizontalFlip, ToTensor and Normalize
  in a DataLoader;
- ``timm`` has ``timm.data.create_loader``, without its colour jitter.

They take turns, so other work on the machine slows all of them, and every round gives a ratio.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms

from dskd.data.augmentation import IMAGENET_CROP, Augmentation
from dskd.data.epoch_plan import draw_plan
from dskd.data.file_split import FileSplit
from dskd.data.folder_files import ListedFiles
from dskd.data.path_list import PathList
from dskd.data.pixels import RGB
from dskd.runtime import device

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CPU = torch.device("cpu")
STARTED = 4
"""Batches at the start of a turn that are not timed: the workers have just started."""


def dskd_batches(folder: Path, size: int, batch_size: int, workers: int) -> Iterator[Tensor]:
    """Batches of our loader."""
    found = torchvision.datasets.ImageFolder(str(folder))
    names = PathList(str(Path(path).relative_to(folder)) for path, _ in found.samples)
    nothing = np.zeros(len(names), np.int64)
    files = ListedFiles(folder, names, nothing, nothing)
    labels = torch.tensor([label for _, label in found.samples])
    split = FileSplit(files, labels, (3, size, size), True, RGB, workers)
    augmentation = Augmentation(crop_scale=IMAGENET_CROP, interpolation="bilinear")
    plan = draw_plan(0, 0, len(split), flip=True, augmentation=augmentation)
    mean, std = (torch.tensor(values).view(3, 1, 1) * 255 for values in (MEAN, STD))
    for batch in split.loader(CPU).batches(plan, batch_size):
        yield batch.images.float().sub_(mean).div_(std)


def torchvision_batches(folder: Path, size: int, batch_size: int, workers: int) -> Iterator[Tensor]:
    """Batches of torchvision's classes in torch's DataLoader."""
    augment = transforms.Compose(
        [
            transforms.RandomResizedCrop(size),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    images = torchvision.datasets.ImageFolder(str(folder), augment)
    for batch, _ in DataLoader(images, batch_size, shuffle=True, num_workers=workers):
        yield batch


def timm_batches(folder: Path, size: int, batch_size: int, workers: int) -> Iterator[Tensor]:
    """Batches of timm's loader."""
    timm_data: Any = importlib.import_module("timm.data")
    loader = timm_data.create_loader(
        timm_data.ImageDataset(str(folder)),
        input_size=(3, size, size),
        batch_size=batch_size,
        is_training=True,
        color_jitter=0.0,
        interpolation="bilinear",
        mean=MEAN,
        std=STD,
        num_workers=workers,
        persistent_workers=False,
        device=CPU,
    )
    for batch, _ in loader:
        yield batch


LOADERS: dict[str, Callable[[Path, int, int, int], Iterator[Tensor]]] = {
    "dskd": dskd_batches,
    "torchvision": torchvision_batches,
    "timm": timm_batches,
}


def images_per_second(batches: Iterator[Tensor], count: int, size: int) -> float:
    """The rate of a loader that starts now, over ``count`` batches."""
    for _ in islice(batches, STARTED):
        pass
    start, images = time.perf_counter(), 0
    for batch in islice(batches, count):
        assert batch.dtype == torch.float32
        assert batch.shape[1:] == (3, size, size)
        images += len(batch)
    if not images:
        raise SystemExit("the folder has too few images; lower --batch-size or --batches")
    return images / (time.perf_counter() - start)


def measure(folder: Path, options: argparse.Namespace) -> dict[str, list[float]]:
    """Images per second of each loader in each round."""
    rates: dict[str, list[float]] = {name: [] for name in LOADERS}
    for number in range(options.rounds):
        order = list(LOADERS)
        for name in order[number % len(order) :] + order[: number % len(order)]:
            batches = LOADERS[name](folder, options.size, options.batch_size, options.workers)
            rate = images_per_second(batches, options.batches, options.size)
            del batches  # ends its workers before the next turn
            rates[name].append(rate)
    return rates


def table(rates: dict[str, list[float]]) -> str:
    """Rates and ratios as lines of text: the median of the rounds, and their range."""
    lines = [f"{'loader':<12} {'images/s':>24} {'dskd is faster by a factor of':>34}"]
    for name, values in rates.items():
        ratios = [own / other for own, other in zip(rates["dskd"], values, strict=True)]
        shown = "" if name == "dskd" else _spread(ratios, ".2f")
        lines.append(f"{name:<12} {_spread(values, '.0f'):>24} {shown:>34}")
    return "\n".join(lines)


def _spread(values: list[float], form: str) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def enlarge(folder: Path, into: Path, width: int, height: int) -> None:
    """Write all images of class folders once more, as JPEG files of another size."""
    for path, _ in torchvision.datasets.ImageFolder(str(folder)).samples:
        target = into / Path(path).parent.name / f"{Path(path).stem}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            resized = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        resized.save(target, quality=90)


def main() -> None:
    """Measures, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="images in one folder for each class")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batches", type=int, default=20, help="timed in each turn")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--enlarge", nargs=2, type=int, metavar=("WIDTH", "HEIGHT"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    device.set_up(CPU)  # as every run does; it serves all three loaders
    print(f"{options.workers} workers, {options.size} pixels, {options.rounds} rounds", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder.absolute()
        if options.enlarge:
            enlarge(folder, Path(temporary), *options.enlarge)
            folder = Path(temporary)
        print(table(measure(folder, options)))


if __name__ == "__main__":
    main()
