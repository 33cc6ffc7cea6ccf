"""Multi-level logit distillation: predictions of images, similarity of images and of classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from dskd.data.loader import Batch
from dskd.losses.checks import check_lists, check_number, check_same_shape, check_temperature
from dskd.losses.logits import kd as kd_loss
from dskd.losses.precision import in_full_precision
from dskd.methods.base import LogitMethod
from dskd.methods.contracts import Pair
from dskd.settings import Positive, Weight, checked

Temperatures = Annotated[tuple[Positive, ...], Field(min_length=1)]
"""One or more temperatures."""


@in_full_precision
def mlkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperatures: Sequence[float] = (2.0, 3.0, 4.0, 5.0, 6.0),
    instance_level: float = 1.0,
    batch_level: float = 1.0,
    class_level: float = 1.0,
    standardize: bool = False,
) -> Tensor:
    """Multi-level logit distillation: ``sum_T (instance + batch + class level at T)``.

    ``P`` and ``Q`` ``[B, K]`` are the softmax of the teacher's and the student's logits at T.

    - instance level: ``T^2 KL(P || Q)``, the mean over the images
    - batch level: ``|P P^T - Q Q^T|_F^2 / B``, the similarity of every pair of images
    - class level: ``|P^T P - Q^T Q|_F^2 / K``, the similarity of every pair of classes

    Source: Jin, Wang, Lin, Multi-Level Logit Distillation, CVPR 2023. The three levels, summed over
    several temperatures ("prediction augmentation"), are the paper's. ``T^2``, which the last two
    levels do not have, and the five temperatures are those of the authors' code.

    Args:
        student_logits: ``[B, K]``.
        teacher_logits: ``[B, K]``.
        temperatures: The temperatures, each above 0.
        instance_level: Weight of the instance level.
        batch_level: Weight of the batch level.
        class_level: Weight of the class level.
        standardize: Standardise the logits of the instance level, as `dskd.losses.lskd` does.

    Raises:
        InputError: A temperature is not above 0, there is none, a weight is not a number, or the
            shapes differ.

    Example:
        >>> logits = torch.tensor([[1.0, 2.0, 3.0]])
        >>> mlkd_loss(logits, logits).item()
        0.0
    """
    for name, weight in (
        ("instance_level", instance_level),
        ("batch_level", batch_level),
        ("class_level", class_level),
    ):
        check_number(name, weight)
    check_same_shape(student_logits, teacher_logits, "logits [B, K]")
    check_lists(temperatures=temperatures)
    terms = []
    for temperature in temperatures:
        check_temperature(temperature)
        q = F.softmax(student_logits / temperature, dim=1)
        p = F.softmax(teacher_logits / temperature, dim=1)
        terms += [
            instance_level * kd_loss(student_logits, teacher_logits, temperature, standardize),
            batch_level * (q @ q.T - p @ p.T).square().sum() / q.shape[0],
            class_level * (q.T @ q - p.T @ p).square().sum() / q.shape[1],
        ]
    return torch.stack(terms).sum()


class MLKD(LogitMethod):
    """Three levels at several temperatures: ``ce * CE + kd * sum_T (instance + batch + class)``.

    The instance level is classic distillation. The batch level compares the similarity of every
    pair of images in the batch, by their predictions. The class level compares the similarity of
    every pair of classes. See `dskd.losses.mlkd`.

    Source: Jin, Wang, Lin, Multi-Level Logit Distillation, CVPR 2023. The default is the paper's
    objective, one view of each image and no masks. The authors' code differs from it:

    - It trains on a second, strongly augmented view of each image. This view enters the
      cross-entropy. The code also adds a second instance-level loss, and three of its five
      temperatures use this view in place of the first. Here there is one view of each image,
      because a second one would need another forward pass of the teacher.
    - It masks images and classes about which the teacher is uncertain. But the masks multiply
      losses that are already averaged, so they only scale these losses, by 0.5.

    The class level is not divided by the size of the batch, so it grows with ``(B / K)^2``. It is
    small for 64 images of 100 classes, as published (with a learning rate of 0.025), and dominates
    for 64 images of 10 classes. On the digits with a rate of 0.05, the student stays near chance;
    take a smaller ``class_level`` or a smaller rate.

    The preset ``code`` is the authors' objective with one image as both views. ``literature`` has
    the weights of their code for CIFAR-100 in the paper's objective.

    Args:
        pair: Student and teacher, of the same classes.
        temperatures: The temperatures of all levels.
        ce: Weight of the labels.
        kd: Weight of the three levels together.
        instance_level: Weight of the instance level.
        batch_level: Weight of the batch level.
        class_level: Weight of the class level.

    Raises:
        InputError: A setting is out of range, or the classes differ.
    """

    presets: ClassVar = {
        "literature": {"ce": 0.1, "kd": 0.9},
        "code": {
            "ce": 0.2,  # 0.1 for each of the two views
            "kd": 0.9,
            "instance_level": 1.5,  # 1, and 0.5 where it is masked
            "batch_level": 0.5,
            "class_level": 0.5,
        },
    }

    @checked
    def __init__(
        self,
        pair: Pair,
        *,
        temperatures: Temperatures = (2.0, 3.0, 4.0, 5.0, 6.0),
        ce: Weight = 1.0,
        kd: Weight = 1.0,
        instance_level: Weight = 1.0,
        batch_level: Weight = 1.0,
        class_level: Weight = 1.0,
    ) -> None:
        super().__init__(pair, ce, kd, temperatures[0])
        self.temperatures = tuple(temperatures)
        self.levels = instance_level, batch_level, class_level

    def logit_losses(
        self, batch: Batch, student_logits: Tensor, teacher_logits: Tensor
    ) -> dict[str, Tensor]:
        """The loss of the three levels."""
        loss = mlkd_loss(student_logits, teacher_logits, self.temperatures, *self.levels)
        return {"mlkd": self.kd * loss}
