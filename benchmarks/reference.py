"""The reference step: distillation as the field's toolkits do it, written from a description.

float32, channels first in memory, eager; every image is turned into a PIL image, cropped,
mirrored, turned into a tensor and normalised by itself, in the two workers of a DataLoader; the
teacher, with its BatchNorm, runs in every step; the loss and the accuracy are read each step.
Nothing of this package's training is in it but the networks.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from machine import multiply_adds
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from dskd.data import Split
from dskd.errors import InputError

WORKERS = 2
TEMPERATURE = 4.0


def transforms(mean: Sequence[float], std: Sequence[float], size: int) -> Any:
    """Random crop under 4 pixels of zeros, mirror, tensor, normalise: of one PIL image.

    Raises:
        InputError: torchvision is not installed.
    """
    try:
        T = importlib.import_module("torchvision.transforms")
    except ImportError as error:
        raise InputError(
            f"the reference step needs torchvision ({error}); pip install 'dskd[timm]'"
        ) from error
    steps = [T.RandomCrop(size, padding=4), T.RandomHorizontalFlip(), T.ToTensor()]
    return T.Compose([*steps, T.Normalize(mean, std)])


class Images(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Images given one at a time, as the field's data sets do.

    Args:
        split: The images.
        transform: From a PIL image to a tensor.
    """

    def __init__(self, split: Split, transform: Any) -> None:
        self.data = split.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.targets = split.labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.data[index])), self.targets[index]


class ReferenceStep:
    """What a toolkit does with a batch: labels alone, or labels and a teacher.

    Args:
        student: With its own weights, which are trained.
        teacher: In eval mode from then on; None for labels alone.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module | None) -> None:
        self.student = student.train()
        self.teacher = teacher.eval() if teacher is not None else None
        self.optimizer = torch.optim.SGD(
            student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4
        )

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[float, float]:
        """Trains on a batch; its loss and its accuracy."""
        logits = self.student(images)
        loss = F.cross_entropy(logits, labels)
        if self.teacher is not None:
            with torch.no_grad():
                teacher_output = self.teacher(images)
            loss = loss + self._divergence(logits, teacher_output)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        accuracy = (logits.argmax(1) == labels).float().mean()
        return loss.item(), accuracy.item()

    @staticmethod
    def _divergence(logits: Tensor, teacher_output: Tensor) -> Tensor:
        student = F.log_softmax(logits / TEMPERATURE, dim=1)
        teacher = F.softmax(teacher_output / TEMPERATURE, dim=1)
        return F.kl_div(student, teacher, reduction="batchmean") * TEMPERATURE**2


class ReferenceTraining:
    """The reference's steps, fed by its DataLoader (`turns.Steps`).

    Args:
        step: The step.
        images: To learn from.
        batch_size: Images a step.
    """

    lead = 1  # what the workers did in the others' turns would be free
    rest = 0.1  # and they are to be done when the others' turns begin

    def __init__(self, step: ReferenceStep, images: Images, batch_size: int) -> None:
        self._step = step
        self._batches = _endless(
            DataLoader(images, batch_size, shuffle=True, num_workers=WORKERS, drop_last=True)
        )

    def step(self) -> float:
        """Takes a step; the teacher's part is not told apart."""
        self._step(*next(self._batches))
        return 0.0

    def work(self) -> int:
        """See `turns.CountedSteps.work`."""
        return multiply_adds(self.step)


def _endless(loader: DataLoader[tuple[Tensor, int]]) -> Iterator[Any]:
    while True:
        yield from loader
