"""Knowledge distillation with self-supervision: the student learns from rotated images too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dskd.data.loader import Batch
from dskd.data.transforms import rotations
from dskd.errors import InputError
from dskd.losses.checks import (
    check_labels,
    check_number,
    check_same_batch,
    check_same_shape,
    check_temperature,
    check_tensor,
    described,
)
from dskd.losses.logits import kd
from dskd.losses.precision import full_precision, in_full_precision
from dskd.methods.base import FeatureMethod
from dskd.methods.checks import check_pooled
from dskd.methods.contracts import Pair, StepOutput, TeacherEpochs, TeacherNeeds, require_outputs
from dskd.models.output import ModelOutput
from dskd.runtime.nonfinite import require_finite
from dskd.settings import Count, Positive, Share, Weight, checked

VIEWS = 4
"""An image, and the image rotated by 90, 180 and 270 degrees."""

HEAD_LR, HEAD_MOMENTUM, HEAD_DECAY = 0.05, 0.9, 5e-4
"""How the teacher's head is trained, as in the authors' code."""
HEAD_MILESTONES = (0.5, 0.75)
"""The learning rate falls to a tenth at these shares of the epochs: at 30 and 45 of the 60."""


@in_full_precision
def sskd_loss(
    student: Tensor, teacher: Tensor, share: float = 0.75, temperature: float = 0.5
) -> Tensor:
    r"""Self-supervision: how similar is a rotated image to each image of the batch?

    ``T^2 KL(softmax(c_t / T) || softmax(c_s / T))``, where ``c`` are the cosines between the vector
    of a rotated image and those of all images that are not rotated. It is averaged over the
    trusted rotated images: those for which the teacher finds the right image, and ``share`` of the
    others, those with the smallest error first.

    Source: Xu, Liu, Li, Loy, Knowledge Distillation Meets Self-Supervision, ECCV 2020,
    arXiv 2006.07114, section 3.2 (the loss L_ss). ``T^2`` and the mean over trusted images are
    those of the authors' code.

    Args:
        student: Vectors ``[4 B, D_s]`` of the student's self-supervision head, in the order of
            `dskd.data.transforms.rotations`.
        teacher: Vectors ``[4 B, D_t]`` of the teacher's head.
        share: Share of the rotated images that the teacher mistakes, from 0 to 1.
        temperature: T, above 0.

    Raises:
        InputError: The shapes do not fit, the temperature is not above 0, or the share is not from
            0 to 1.

    Example:
        >>> vectors = torch.rand(8, 3)
        >>> round(sskd_loss(vectors, 2 * vectors).item(), 6)
        0.0
    """
    check_number("share", share, least=0, most=1)
    check_same_batch(student, teacher, 2, "vectors [4 B, D]")
    targets = rotated_similarities(teacher)
    divergence = kd(rotated_similarities(student), targets, temperature, reduction="none")
    return _mean_over(divergence, trusted(targets, _own(targets), share))


@in_full_precision
def sskd_predictions(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    share: float = 1.0,
    temperature: float = 4.0,
) -> Tensor:
    r"""Classic distillation on rotated images.

    ``T^2 KL(softmax(z_t / T) || softmax(z_s / T))``, averaged over the trusted rotated images:
    those that the teacher classifies correctly, and ``share`` of the others, those with the
    smallest error first.

    Source: Xu et al., ECCV 2020 (`sskd_loss`), section 3.2 (the loss L_T).

    Args:
        student_logits: Logits of rotated images only, ``[R, K]``.
        teacher_logits: ``[R, K]``.
        labels: int64 ``[R]``.
        share: Share of the rotated images that the teacher mistakes, from 0 to 1.
        temperature: T, above 0.

    Raises:
        InputError: The shapes do not fit, the temperature is not above 0, the share is not from 0
            to 1, or, on the CPU, a label is not one of the classes.

    Example:
        >>> logits = torch.tensor([[1.0, 2.0, 3.0]])
        >>> sskd_predictions(logits, logits, torch.tensor([2])).item()
        0.0
    """
    check_number("share", share, least=0, most=1)
    check_same_shape(student_logits, teacher_logits, "logits [B, K]")
    check_labels(labels, student_logits)
    divergence = kd(student_logits, teacher_logits, temperature, reduction="none")
    return _mean_over(divergence, trusted(teacher_logits, labels, share))


@in_full_precision
def sskd_head(vectors: Tensor, temperature: float = 0.5) -> Tensor:
    r"""The loss of a self-supervision head: find the image that a rotated image comes from.

    Cross-entropy of ``softmax(c / T)``, with the cosines ``c`` of `sskd_loss`.

    Source: Xu et al., ECCV 2020 (`sskd_loss`), section 3.1 (contrastive prediction). The
    temperature is the paper's; the authors' code trains the teacher's head at 1.

    Args:
        vectors: ``[4 B, D]``, in the order of `dskd.data.transforms.rotations`.
        temperature: T, above 0.

    Raises:
        InputError: The shape does not fit, or the temperature is not above 0.

    Example:
        >>> sskd_head(torch.rand(4, 3)).item()  # a single image is always found
        0.0
    """
    check_temperature(temperature)
    similarities = rotated_similarities(vectors)
    return F.cross_entropy(similarities / temperature, _own(similarities))


def rotated_similarities(vectors: Tensor) -> Tensor:
    """The cosines between each rotated image and each image that is not rotated, ``[3 B, B]``.

    Args:
        vectors: ``[4 B, D]``, in the order of `dskd.data.transforms.rotations`.

    Raises:
        InputError: They are not vectors of four views of each image.
    """
    check_tensor(vectors, f"vectors [{VIEWS} B, D] of every image and its rotations")
    if len(vectors) % VIEWS:
        raise InputError(
            f"vectors [{VIEWS} B, D] of every image and its rotations are needed, "
            f"got {described(vectors)}"
        )
    images = len(vectors) // VIEWS
    units = F.normalize(vectors)
    return units[images:] @ units[:images].T


def _own(similarities: Tensor) -> Tensor:
    """The column of the image that each rotated image comes from: int64 ``[3 B]``."""
    images = similarities.shape[1]
    return torch.arange(images, device=similarities.device).repeat(VIEWS - 1)


def trusted(scores: Tensor, truth: Tensor, share: float) -> Tensor:
    """The rows of a teacher's scores to learn from: all right ones, and wrong ones of small error.

    The error of a row is the number of entries that score above the true one. Of the wrong rows,
    ``floor(share * count)`` are trusted; of two equally wrong rows, the earlier one comes first.
    The function never waits for the device.

    Source: Xu et al., ECCV 2020 (`sskd_loss`), section 3.3 (selective transfer).

    Args:
        scores: ``[R, K]``.
        truth: int64 ``[R]``, the true column of each row.
        share: Share of the wrong rows, from 0 to 1.

    Returns:
        bool ``[R]``.

    Example:
        >>> scores = torch.tensor([[3.0, 2.0, 1.0]]).expand(3, -1)
        >>> trusted(scores, torch.tensor([2, 0, 1]), 0.5).tolist()
        [False, True, True]
    """
    errors = (scores > scores.gather(1, truth[:, None])).sum(1)
    place = errors.argsort(stable=True).argsort()
    wrong = (errors > 0).sum()
    return place < len(scores) - wrong + (share * wrong.double()).floor()


def _mean_over(values: Tensor, rows: Tensor) -> Tensor:
    """The mean of the values in the given rows; 0 if there is none."""
    return torch.where(rows, values, 0).sum() / rows.sum().clamp_min(1)


class SSKD(FeatureMethod):
    """Similarities of rotated images: ``ce * CE + kd * KD + ss * SS + tf * TF``.

    Student and teacher see every image as it is and rotated by 90, 180 and 270 degrees. SS compares
    the similarity of each rotated image to each image of the batch; a small head on the pooled
    vector of either model computes it (`dskd.losses.sskd`). TF is KD on the rotated images
    (`dskd.methods.sskd.sskd_predictions`). CE and KD use the images that are not rotated. The
    teacher's head is trained first, alone, to find the image that a rotated image comes from
    (`dskd.methods.sskd.sskd_head`), by SGD with the authors' rates. Then it is frozen; the
    student's head is trained with the student.

    Source: Xu, Liu, Li, Loy, ECCV 2020, arXiv 2006.07114, sections 3.1 to 3.3. Weights,
    temperatures and shares are those of the authors' code. It trains the head for 60 epochs
    (``literature``); the smaller default is *our choice* for short runs.

    Args:
        pair: Student and teacher, of the same classes, with pooled vectors, for square images.
        ce: Weight of the labels.
        kd: Weight of the teacher's predictions for images that are not rotated.
        ss: Weight of the self-supervision.
        tf: Weight of the teacher's predictions for rotated images.
        temperature: T of the predictions for all images.
        ss_temperature: T of the self-supervision and of the training of the teacher's head.
        share_ss: The teacher's head matches some rotated images with a wrong image. This share of
            them is used, those with the smallest error first.
        share_tf: The teacher misclassifies some rotated images. This share of them is used, those
            with the smallest error first.
        head_epochs: Number of epochs for the teacher's head, before the student is trained.

    Raises:
        InputError: A setting is out of range, one of the two has no pooled vector, or the
            images are not square.
    """

    learns_from = "relations"
    prediction_weights: ClassVar = ("kd", "tf")
    presets: ClassVar = {
        "literature": {"ce": 0.1, "kd": 0.9, "ss": 10.0, "tf": 2.7, "head_epochs": 60}
    }
    needs = TeacherNeeds(logits=True, pooled=True, rotated=True)

    hard_labels = "it trusts the teacher's predictions by the rank of the class of an image"

    @checked
    def __init__(
        self,
        pair: Pair,
        *,
        ce: Weight = 1.0,
        kd: Weight = 1.0,
        ss: Weight = 10.0,
        tf: Weight = 2.7,
        temperature: Positive = 4.0,
        ss_temperature: Positive = 0.5,
        share_ss: Share = 0.75,
        share_tf: Share = 1.0,
        head_epochs: Count = 10,
    ) -> None:
        super().__init__(pair, ce, kd, temperature)
        student, teacher = check_pooled(pair)
        _check_square(pair)
        self.ss, self.tf, self.ss_temperature = ss, tf, ss_temperature
        self.share_ss, self.share_tf, self.head_epochs = share_ss, share_tf, head_epochs
        self.student_head = _head(student)
        self.teacher_head = _head(teacher).requires_grad_(False)

    @classmethod
    def reads_classes(cls, settings: Mapping[str, Any]) -> bool:
        """By the weights of the predictions, for images that are rotated or not."""
        return super().reads_classes(settings) or bool(settings["tf"])

    def prepare(self, teacher_epochs: TeacherEpochs) -> None:
        """Trains the teacher's head."""
        self.teacher_head.requires_grad_(True)
        optimizer = torch.optim.SGD(
            self.teacher_head.parameters(), momentum=HEAD_MOMENTUM, weight_decay=HEAD_DECAY
        )
        first: int | None = None
        for batch, teacher_output in teacher_epochs(self.head_epochs):
            first = batch.epoch if first is None else first
            for group in optimizer.param_groups:
                group["lr"] = _head_lr(batch.epoch - first, self.head_epochs)
            teacher = require_outputs(teacher_output)
            loss = sskd_head(
                self.teacher_head(full_precision(_pooled(teacher))), self.ss_temperature
            )
            loss.backward()  # type: ignore[no-untyped-call]
            require_finite(self, batch, teacher.logits, {"teacher_head": loss}, optimizer)
            optimizer.step()
            optimizer.zero_grad()
        self.teacher_head.requires_grad_(False)

    def forward(self, batch: Batch, teacher: ModelOutput | None) -> StepOutput:
        """The losses of labels, predictions and self-supervision."""
        height, width = batch.images.shape[2:]
        if height != width:
            raise _not_square(f"these are {height}x{width}")
        teacher = require_outputs(teacher)
        student: ModelOutput = self.student(rotations(batch.images))
        images = len(batch.labels)
        logits, rotated = student.logits[:images], student.logits[images:]
        taught, taught_rotated = teacher.logits[:images], teacher.logits[images:]
        losses = self.distillation_losses(batch, logits, taught)
        losses["ss"] = self.ss * sskd_loss(
            self.student_head(_pooled(student.before_dropout() if self.drops_pooled else student)),
            self.teacher_head(_pooled(teacher)),
            self.share_ss,
            self.ss_temperature,
        )
        labels = batch.labels.repeat(VIEWS - 1)
        losses["tf"] = self.tf * sskd_predictions(
            rotated, taught_rotated, labels, self.share_tf, self.temperature
        )
        return StepOutput(losses, logits)


def _head(length: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(length, length), nn.ReLU(), nn.Linear(length, length))


def _head_lr(epoch: int, epochs: int) -> float:
    passed = sum(epoch >= round(share * epochs) for share in HEAD_MILESTONES)
    return float(HEAD_LR * 0.1**passed)


def _pooled(output: ModelOutput) -> Tensor:
    assert output.pooled is not None
    return output.pooled


def _check_square(pair: Pair) -> None:
    """Refuses images that are not square if no map of student and teacher is."""
    assert pair.teacher_spec is not None
    stages = [*pair.student_spec.stages, *pair.teacher_spec.stages]
    if stages and all(stage.height != stage.width for stage in stages):
        raise _not_square(f"the student's maps are {stages[0].height}x{stages[0].width}")


def _not_square(what: str) -> InputError:
    return InputError(
        f"sskd rotates images, which must be square, and {what}; give square ones or set data.size"
    )
