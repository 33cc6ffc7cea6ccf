"""Knowledge distillation with self-supervision: what a teacher sees in turned images."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from dskd.data.loader import Batch
from dskd.data.transforms import rotations
from dskd.engine.lr_schedule import learning_rate
from dskd.errors import InputError
from dskd.losses import logits as losses_of_logits
from dskd.losses.contrast import sskd, sskd_head, sskd_predictions
from dskd.losses.precision import full_precision
from dskd.methods.base import (
    FeatureMethod,
    Pair,
    StepOutput,
    TeacherEpochs,
    TeacherNeeds,
    check_pooled,
    require_outputs,
)
from dskd.models.output import ModelOutput
from dskd.runtime.nonfinite import require_finite
from dskd.settings import Count, Positive, Share, Weight, checked

HEAD_LR, HEAD_MOMENTUM, HEAD_DECAY = 0.05, 0.9, 5e-4
HEAD_MILESTONES = (0.5, 0.75)
"""How the teacher's head is trained: as in the authors' code, 30 and 45 of its 60 epochs."""


class SSKD(FeatureMethod):
    """How turned images resemble the others: ``ce * CE + kd * KD + ss * SS + tf * TF``.

    Student and teacher see every image as it is and turned by 90, 180 and 270 degrees. SS
    compares how much each turned image is like every image of the batch, in the eyes of a
    small head on either's pooled vector (`dskd.losses.sskd`); TF is KD on the turned images
    (`dskd.losses.sskd_predictions`). CE and KD are on the images as they are. The teacher's head
    learns first, alone, to find a turned image's own image (`dskd.losses.sskd_head`), by SGD
    with the authors' rates, and is frozen then; the student's learns with the student.

    Source: Xu, Liu, Li, Loy, ECCV 2020, arXiv 2006.07114, sections 3.1 to 3.3. Weights,
    temperatures and shares are those of its authors' code; the head's epochs are 60 there
    (``literature``), and fewer by default, which is *our choice* for short runs.

    Args:
        pair: Student and teacher, of the same classes, with pooled vectors, for square images.
        ce: Weight of the labels.
        kd: Weight of the teacher's predictions for the images as they are.
        ss: Weight of the self-supervision.
        tf: Weight of the teacher's predictions for the turned images.
        temperature: T of the predictions, turned or not.
        ss_temperature: T of the self-supervision, and of the head's own training.
        share_ss: Of the turned images that the teacher's head mistakes, those still used.
        share_tf: Of the turned images that the teacher misclassifies, those still used.
        head_epochs: For which the teacher's head is trained before the student.

    Raises:
        InputError: A setting is out of range, one of the two has no pooled vector, or the
            images are not square.
    """

    presets: ClassVar = {
        "literature": {"ce": 0.1, "kd": 0.9, "ss": 10.0, "tf": 2.7, "head_epochs": 60}
    }
    needs = TeacherNeeds(logits=True, pooled=True, rotated=True)

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
                group["lr"] = learning_rate(
                    batch.epoch - first, self.head_epochs, HEAD_LR, milestones=HEAD_MILESTONES
                )
            vectors = self.teacher_head(full_precision(_pooled(require_outputs(teacher_output))))
            loss = sskd_head(vectors, self.ss_temperature)
            loss.backward()  # type: ignore[no-untyped-call]
            logits = require_outputs(teacher_output).logits
            require_finite(self, batch, logits, {"teacher_head": loss}, optimizer)
            optimizer.step()
            optimizer.zero_grad()
        self.teacher_head.requires_grad_(False)

    def forward(self, batch: Batch, teacher: ModelOutput | None) -> StepOutput:
        """The labels' loss, the predictions' on both kinds of images, and self-supervision."""
        height, width = batch.images.shape[2:]
        if height != width:
            raise _not_square(f"these are {height}x{width}")
        teacher = require_outputs(teacher)
        student: ModelOutput = self.student(rotations(batch.images))
        images = len(batch.labels)
        logits, turned = student.logits[:images], student.logits[images:]
        taught, taught_turned = teacher.logits[:images], teacher.logits[images:]
        losses = {
            "ce": self.ce * losses_of_logits.ce(logits, batch.labels),
            "kd": self.kd * losses_of_logits.kd(logits, taught, self.temperature),
            "ss": self.ss
            * sskd(
                self.student_head(_pooled(student)),
                self.teacher_head(_pooled(teacher)),
                self.share_ss,
                self.ss_temperature,
            ),
            "tf": self.tf
            * sskd_predictions(
                turned, taught_turned, batch.labels.repeat(3), self.share_tf, self.temperature
            ),
        }
        return StepOutput(losses, logits)


def _head(length: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(length, length), nn.ReLU(), nn.Linear(length, length))


def _pooled(output: ModelOutput) -> Tensor:
    assert output.pooled is not None
    return output.pooled


def _check_square(pair: Pair) -> None:
    """Refuses images that are not square where no map of student and teacher is."""
    assert pair.teacher_spec is not None
    stages = [*pair.student_spec.stages, *pair.teacher_spec.stages]
    if stages and all(stage.height != stage.width for stage in stages):
        raise _not_square(f"the student's maps are {stages[0].height}x{stages[0].width}")


def _not_square(what: str) -> InputError:
    return InputError(
        f"sskd turns images, which must be square, and {what}; give square ones or set data.size"
    )
