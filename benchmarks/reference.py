"""The reference step: distillation in the style of published toolkits.

It uses float32, channels-first memory and eager mode. Each image is turned into a PIL image,
cropped, mirrored, turned into a tensor and normalised separately, in the two workers of a
DataLoader. The teacher runs in every step, with its BatchNorm layers. Loss and accuracy are read in
each step. Of this package, only the networks are used.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from machine import multiply_adds
from noise import CPU, noise_data
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms as T

from dskd.data.dataset import Samples
from dskd.models.zoo import build

WORKERS = 2
TEMPERATURE = 4.0


def transforms(mean: Sequence[float], std: Sequence[float], size: int) -> Any:
    """The transforms of one PIL image: random crop with 4 pixels of padding, mirror, normalise.

    Args:
        mean: Mean of each channel.
        std: Standard deviation of each channel.
        size: Side of the crop in pixels.
    """
    steps = [T.RandomCrop(size, padding=4), T.RandomHorizontalFlip(), T.ToTensor()]
    return T.Compose([*steps, T.Normalize(mean, std)])


class Images(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """A data set that returns one image at a time.

    Args:
        split: The images.
        transform: From a PIL image to a tensor.
    """

    def __init__(self, split: Samples, transform: Any) -> None:
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


class ReferenceSteps:
    """The steps of the reference with its DataLoader (`interleave.CountedSteps`).

    Args:
        step: The step, with its models on the device.
        images: The training images.
        batch_size: Images in a step.
        device: The device of the models.
        workers: Processes of the DataLoader.
    """

    untimed = 1  # else the work of the workers during other turns would not be timed
    pause = 0.1  # the workers finish before the next turn begins

    def __init__(
        self,
        step: ReferenceStep,
        images: Images,
        batch_size: int,
        device: torch.device = CPU,
        workers: int = WORKERS,
    ) -> None:
        self._step, self._device = step, device
        loader = DataLoader(
            images,
            batch_size,
            shuffle=True,
            num_workers=workers,
            drop_last=True,
            pin_memory=device.type == "cuda",
        )
        self._batches = _endless(loader)

    def step(self) -> float:
        """Takes a step. The seconds of the teacher are not measured."""
        images, labels = (part.to(self._device, non_blocking=True) for part in next(self._batches))
        self._step(images, labels)
        return 0.0

    def time_steps(self, count: int, untimed: int) -> float:
        """Takes untimed steps, then timed ones, and returns the mean seconds of the timed ones.

        Args:
            count: Number of timed steps.
            untimed: Number of untimed steps.
        """
        for _ in range(untimed):
            self.step()
        start = time.perf_counter()
        for _ in range(count):
            self.step()  # it reads its loss, so it waits for the device
        return (time.perf_counter() - start) / count

    def peak_memory(self) -> int:
        """The most bytes that this process had on the GPU; 0 on a CPU."""
        return torch.cuda.max_memory_allocated() if self._device.type == "cuda" else 0

    def work(self) -> int:
        """See `interleave.CountedSteps.work`."""
        return multiply_adds(self.step)


def reference_steps(
    pair: str,
    method: str,
    samples: int,
    batch_size: int,
    device: str = "cpu",
    workers: int = WORKERS,
) -> ReferenceSteps:
    """The steps of the reference on images of noise, with an untrained teacher.

    On a GPU, cuDNN chooses the fastest algorithms, as in published toolkits. Its convolutions
    compute in float32, as those of dskd, and not in TF32.

    Args:
        pair: Teacher and student.
        method: ``kd``, or ``ce`` for labels alone.
        samples: Number of training images.
        batch_size: Images in a step.
        device: ``cpu`` or ``cuda``.
        workers: Processes of the DataLoader.
    """
    data, place = noise_data(samples), torch.device(device)
    torch.backends.cudnn.benchmark = place.type == "cuda"
    torch.backends.cudnn.allow_tf32 = False
    teacher, student = (
        build(part, num_classes=len(data.classes)).to(place) for part in pair.split("-")
    )
    step = ReferenceStep(student, teacher if method == "kd" else None)
    images = Images(data.train, transforms(data.mean, data.std, data.shape[1]))
    return ReferenceSteps(step, images, batch_size, place, workers)


def _endless(loader: DataLoader[tuple[Tensor, int]]) -> Iterator[Any]:
    while True:
        yield from loader
