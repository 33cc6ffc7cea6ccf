"""The reference step: distillation in the style of published toolkits.

It uses float32, channels-first memory and eager mode. Each image is turned into a PIL image,
cropped, mirrored, turned into a tensor and normalised separately, in the two workers of a
DataLoader. The teacher runs in every step, with its BatchNorm layers. Loss and accuracy are read in
each step. Of this package, only the networks are used.
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
    """The transforms of one PIL image: random crop with 4 pixels of padding, mirror, normalise.

    Args:
        mean: Mean of each channel.
        std: Standard deviation of each channel.
        size: Side of the crop in pixels.

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
    """A data set that returns one image at a time.

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
    """The training step on a batch, with labels alone or with a teacher.

    Args:
        student: The network that is trained.
        teacher: Is set to evaluation mode; None for labels alone.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module | None) -> None:
        self.student = student.train()
        self.teacher = teacher.eval() if teacher is not None else None
        self.optimizer = torch.optim.SGD(
            student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4
        )

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[float, float]:
        """Trains on a batch, and returns its loss and its accuracy."""
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
    """The steps of the reference with its DataLoader (`turns.CountedSteps`).

    Args:
        step: The step.
        images: The training images.
        batch_size: Images in a step.
    """

    lead = 1  # else the work of the workers during other turns would not be timed
    rest = 0.1  # the workers finish before the next turn begins

    def __init__(self, step: ReferenceStep, images: Images, batch_size: int) -> None:
        self._step = step
        self._batches = _endless(
            DataLoader(images, batch_size, shuffle=True, num_workers=WORKERS, drop_last=True)
        )

    def step(self) -> float:
        """Takes a step. The seconds of the teacher are not measured."""
        self._step(*next(self._batches))
        return 0.0

    def work(self) -> int:
        """See `turns.CountedSteps.work`."""
        return multiply_adds(self.step)


def _endless(loader: DataLoader[tuple[Tensor, int]]) -> Iterator[Any]:
    while True:
        yield from loader
