"""Measures how the memory of streamed data sets of torch grows by their Python objects.

``python benchmarks/object_memory.py`` prints the table of docs/your-data.md: the memory of all
processes together (PSS, in which a page that n processes share counts 1/n for each), after some of
the batches of an epoch. It needs Linux, and takes about a minute and 1.5 GB.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from itertools import islice

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dskd.data.epoch_plan import draw_plan
from dskd.data.torch_dataset import TorchSplits

SAMPLES, CLASSES, WORKERS, BATCH = 1_000_000, 1000, 2, 32
STEPS = (10, 100, 500, 1000, 2000, 3000, 4000)


class Samples(Dataset[tuple[Tensor, int]]):
    """Small images of one colour, and what a data set usually holds for each image.

    Args:
        labels: Makes the labels.
        paths: Whether it holds a list of pairs of path and label, as ``ImageFolder`` does.
        count: Number of images.
    """

    classes = tuple(map(str, range(CLASSES)))

    def __init__(self, labels: Callable[[int], object], paths: bool, count: int) -> None:
        self.targets: object = labels(count)
        names = (f"train/n{i % CLASSES:08d}/{i:028d}.JPEG" for i in range(count if paths else 0))
        self.pairs = [(name, i % CLASSES) for i, name in enumerate(names)]
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        label = self.pairs[index][1] if self.pairs else int(self.targets[index])  # type: ignore[index]
        return torch.full((3, 8, 8), label % 256, dtype=torch.uint8), label


def _array(count: int) -> object:
    return np.arange(count) % CLASSES


def _list(count: int) -> object:
    return [index % CLASSES for index in range(count)]


KINDS: dict[str, tuple[Callable[[int], object], bool]] = {
    "array": (_array, False),
    "list": (_list, False),
    "pairs": (_array, True),
}


def measure(kind: str) -> None:
    """Prints a row: the memory of this process and its workers after some batches, in MB."""
    torch.set_num_threads(1)
    given = [Samples(*KINDS[kind], count) for count in (SAMPLES, 2 * BATCH)]
    data = TorchSplits(*given).read(
        size=None, channels=None, test_split=None, loading="stream", workers=WORKERS
    )
    plan = draw_plan(0, 0, SAMPLES, padding=0, flip=True)
    batches = data.train.loader(torch.device("cpu")).batches(plan, BATCH)
    here, done, found = psutil.Process(), 0, []
    for step in STEPS:
        for _ in islice(batches, step - done):
            pass
        done = step
        family = [here, *here.children()]
        assert len(family) == 1 + WORKERS
        found.append(sum(process.memory_full_info().pss for process in family) / 1e6)
    print(f"{kind:>8}", *(f"{size:8.0f}" for size in found), flush=True)


def main() -> None:
    """Measures each kind of data set in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", nargs="?", choices=KINDS)
    kind = parser.parse_args().kind
    if kind:
        measure(kind)
        return
    print(f"{'batches':>8}", *(f"{step:8}" for step in STEPS), flush=True)
    for one in KINDS:
        subprocess.run([sys.executable, __file__, one], check=True)


if __name__ == "__main__":
    main()
