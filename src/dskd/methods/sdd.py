"""Scale decoupled distillation: the classifier is applied to parts of the last map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from dskd.data.loader import Batch
from dskd.errors import InputError
from dskd.losses.checks import (
    check_choice,
    check_indices,
    check_number,
    check_same_shape,
    check_temperature,
)
from dskd.losses.feature_maps import pool_to
from dskd.losses.logits import ce as cross_entropy
from dskd.losses.logits import dkd as dkd_loss
from dskd.losses.logits import kd as kd_loss
from dskd.losses.precision import in_full_precision
from dskd.methods.base import RAMPED, TARGET_SPLIT, LogitMethod, ramp
from dskd.methods.checks import check_classes, check_classifier
from dskd.methods.contracts import Pair, StepOutput, TeacherNeeds, require_outputs
from dskd.methods.nkd import nkd_loss
from dskd.models.output import ModelOutput
from dskd.models.spec import ModelSpec
from dskd.settings import Count, Epochs, Positive, Weight, checked

Base = Literal["kd", "dkd", "nkd"]
"""The loss of a cell."""
Form = Literal["paper", "code"]
"""Whose definition of the loss over all cells."""
SCALES = (1, 2, 4)
"""Cells on each side, if no scales are set."""


@in_full_precision
def sdd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    base: Base = "kd",
    temperature: float = 4.0,
    alpha: float = 1.0,
    beta: float = 8.0,
    complementary: float = 2.0,
    form: Form = "paper",
) -> Tensor:
    """Scale decoupled distillation: ``mean_b sum_r w_br L(z_s,br, z_t,br)`` over the cells r.

    The first cell is the whole map. ``w`` is ``complementary`` for a cell whose prediction by the
    teacher is not that of its first cell, and 1 for all others (`cell_weights`). L is the loss
    ``base`` of one cell: classic distillation, `dskd.losses.dkd` or `dskd.losses.nkd`.

    Source: Wei, Luo, Luo, Scale Decoupled Distillation, CVPR 2024, arXiv 2403.13512, equations 8
    to 10, for ``form="paper"``. The authors' code, ``form="code"``, divides the sum by the number
    of cells, and its complementary cells are those of which exactly one of the two predictions is
    right. Their copy of NKD leaves the label among the other classes. Here it is NKD's own loss.

    Args:
        student_logits: ``[B, R, K]``, of R cells.
        teacher_logits: ``[B, R, K]``, of the same cells.
        labels: int64, ``[B]``.
        base: The loss L.
        temperature: T of L, above 0.
        alpha: Weight of the label's part in ``dkd``.
        beta: Weight of the other classes in ``dkd`` and in ``nkd``, where it is the gamma.
        complementary: Weight of the complementary cells, the paper's beta.
        form: ``paper`` or ``code``.

    Raises:
        InputError: ``base`` or ``form`` does not exist, the temperature is not above 0, the shapes
            do not fit, or, on the CPU, a label is not one of the classes.

    Example:
        >>> logits = torch.tensor([[[1.0, 2.0, 3.0], [3.0, 1.0, 2.0]]])
        >>> sdd_loss(logits, logits, torch.tensor([2])).item()
        0.0
    """
    check_choice("base loss", base, get_args(Base))
    check_temperature(temperature)
    check_number("alpha", alpha)
    check_number("beta", beta)
    check_same_shape(student_logits, teacher_logits, "logits of cells [B, R, K]")
    images, _, classes = student_logits.shape
    check_indices(labels, (images,), classes, "labels [B]")
    weights = cell_weights(teacher_logits, labels, complementary, form)
    student, teacher = student_logits.flatten(0, 1), teacher_logits.flatten(0, 1)
    label = labels[:, None].expand_as(weights).flatten()
    if base == "kd":
        losses = kd_loss(student, teacher, temperature, reduction="none")
    elif base == "dkd":
        losses = dkd_loss(student, teacher, label, alpha, beta, temperature, reduction="none")
    else:
        losses = nkd_loss(student, teacher, label, beta, temperature, reduction="none")
    weighted = weights * losses.view_as(weights)
    return weighted.sum(1).mean() if form == "paper" else weighted.mean()


def cell_weights(
    teacher_logits: Tensor, labels: Tensor, complementary: float = 2.0, form: Form = "paper"
) -> Tensor:
    """The weight of each cell: ``complementary`` or 1; see `sdd_loss`.

    Args:
        teacher_logits: ``[B, R, K]``; the first cell is the whole map.
        labels: int64, ``[B]``; read by the form ``code`` alone.
        complementary: Weight of the complementary cells.
        form: ``paper``: another class than the whole map's is predicted. ``code``: exactly one of
            the two predictions is right.

    Returns:
        ``[B, R]``.

    Raises:
        InputError: ``form`` does not exist.

    Example:
        >>> logits = torch.eye(3)[None]  # three cells, three predictions
        >>> cell_weights(logits, torch.tensor([2]))
        tensor([[1., 2., 2.]])
        >>> cell_weights(logits, torch.tensor([2]), form="code")
        tensor([[1., 1., 2.]])
    """
    check_choice("form", form, get_args(Form))
    check_number("complementary", complementary)
    predicted = teacher_logits.argmax(2)
    compared = predicted if form == "paper" else predicted == labels[:, None]
    differs = compared != compared[:, :1]
    return 1 + (complementary - 1) * differs.to(teacher_logits.dtype)


def cell_vectors(feature_map: Tensor, scales: Sequence[int]) -> Tensor:
    """The average of each cell of a map, scale by scale and row by row.

    Args:
        feature_map: ``[B, D, H, W]``.
        scales: m for ``m x m`` cells.

    Returns:
        ``[B, R, D]`` with ``R = sum m^2``.

    Example:
        >>> cell_vectors(torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]]), [1, 2]).flatten().tolist()
        [3.0, 1.0, 2.0, 3.0, 6.0]
    """
    cells = [pool_to(feature_map, scale, scale).flatten(2) for scale in scales]
    return torch.cat(cells, dim=2).mT


class SDD(LogitMethod):
    """Predictions of parts of the image: ``ce * CE + kd * sum_r w_r L(z_s,r, z_t,r)``.

    The last map of student and teacher is averaged over the cells of several grids, such as 1x1,
    2x2 and 4x4. The model's own classifier gives each cell its logits ``z_r``. Those of the 1x1
    grid are the model's logits. A cell has a larger weight if the teacher predicts another class
    for it than for the whole image. See `dskd.losses.sdd`. Nothing is added to the student.

    Source: Wei, Luo, Luo, Scale Decoupled Distillation, CVPR 2024, arXiv 2403.13512, equations 6 to
    11 and section 4.1. The paper has the grids 1, 2 and 4 for students of another architecture than
    the teacher's, and 1 and 2 for similar ones. Complementary cells have the weight 2. ``ce`` and
    ``kd`` are those of KD. The weight of the cells rises over the first 30 of 240 epochs. The
    preset ``literature`` has these values for resnet32x4-resnet8x4, and ``code`` has those of the
    authors' code for the same pair (see ``form``). With ``base=dkd`` the authors weight the labels
    by 1.

    If the side of a map is not a multiple of the number of cells, the cells of the authors'
    adaptive pooling overlap. Here they never do, and the average of a grid is the average of the
    map: *our choice*. Grids with more cells than a map has positions are left out by default: *our
    choice* too. If only the whole map is left, a line in the log says so.

    Args:
        pair: Student and teacher, of the same classes. Both average their last map and end in a
            linear layer.
        base: The loss of a cell: ``kd``, ``dkd`` or ``nkd``.
        temperature: T of that loss.
        ce: Weight of the labels.
        kd: Weight of all cells together.
        alpha: Weight of the label's part in ``dkd``.
        beta: Weight of the other classes in ``dkd`` and ``nkd``.
        complementary: Weight of cells for which the teacher predicts another class than for the
            whole image.
        scales: Cells on each side of the grids, beginning with 1; None for 1, 2 and 4 as far as
            the maps have so many positions.
        form: ``paper``: the sum over the cells, and cells of another class count more. ``code``:
            the mean, and cells count more if either they or the whole image are classified
            correctly, but not both.
        warmup: Epochs over which the weight of the cells rises.

    Raises:
        InputError: A setting is out of range, or one of the two does not average its last map or
            does not end in a linear layer.
    """

    needs = TeacherNeeds(last=True)
    presets: ClassVar = {
        "literature": {"ce": 0.1, "kd": 0.9, "scales": [1, 2], "warmup": 30.0},
        "code": {"ce": 0.1, "kd": 0.9, "scales": [1, 2], "form": "code"},
    }

    @checked
    def __init__(
        self,
        pair: Pair,
        *,
        base: Base = "kd",
        temperature: Positive = 4.0,
        ce: Weight = 1.0,
        kd: Weight = 1.0,
        alpha: Weight = 1.0,
        beta: Weight = 8.0,
        complementary: Weight = 2.0,
        scales: list[Count] | None = None,
        form: Form = "paper",
        warmup: Epochs = 0.0,
    ) -> None:
        super().__init__(pair, ce, kd, temperature)
        self.classifier = check_classifier(pair)
        self.scales = _scales(pair, scales)
        self.loss_settings = base, temperature, alpha, beta, complementary, form
        self.warnings = _only_the_whole(base) if kd and self.scales == [1] else ()
        self.warmup = warmup
        self.uncompiled = RAMPED if warmup else ""
        self.hard_labels = _hard_labels(base, form)

    def forward(self, batch: Batch, teacher: ModelOutput | None) -> StepOutput:
        """The loss of the labels and of the cells, with its weight in this epoch."""
        student: ModelOutput = self.student(batch.images)
        own = self._cell_logits(student, self.student.linear_classifier)
        taught = self._cell_logits(require_outputs(teacher), self.classifier)
        # An image without a label gets one that is not read; see `_hard_labels` for the others.
        loss = sdd_loss(own, taught, batch.labels.clamp_min(0), *self.loss_settings)
        losses = {
            "ce": self.ce * cross_entropy(student.logits, batch.targets),
            "sdd": self.kd * ramp(batch.epoch, self.warmup) * loss,
        }
        return StepOutput(losses, student.logits)

    def _cell_logits(self, output: ModelOutput, classifier: nn.Linear | None) -> Tensor:
        """The logits of each cell of the last map, ``[B, R, K]``."""
        assert classifier is not None, "the constructor checks this"
        assert output.last is not None, "the constructor checks this"
        logits: Tensor = classifier(cell_vectors(output.last, self.scales))
        return logits


def _hard_labels(base: Base, form: Form) -> str:
    """Why the loss needs one class for each image; empty if it does not."""
    if form == "code":
        return "with method.form=code it weights the parts of an image by its class"
    return TARGET_SPLIT if base != "kd" else ""


def _only_the_whole(base: Base) -> tuple[str, ...]:
    """A line for `Method.warnings` if there are no parts of the map."""
    return (
        f"sdd compares the whole last map alone, as method.name={base} does, since its smaller "
        "side or method.scales is 1; take larger images or more scales for parts of it",
    )


def _scales(pair: Pair, scales: list[int] | None) -> list[int]:
    """The scales, after checking that both models can give logits of so many cells."""
    side = min(_side(pair.student_spec, "student"), _side(check_classes(pair), "teacher"))
    if scales is None:
        return [scale for scale in SCALES if scale <= side]
    if scales != sorted({1, *scales}) or scales[-1] > side:
        raise InputError(
            f"scales must begin with 1 and rise to {side} at most, the side of the smaller last "
            f"map, got {scales}"
        )
    return scales


def _side(spec: ModelSpec, what: str) -> int:
    """The shorter side of the last map, whose average goes into a linear layer."""
    if spec.last is None or not spec.average_pooled or not spec.linear_logits:
        raise InputError(
            f"sdd applies the {what}'s classifier to parts of its last map, and the {what}'s "
            "logits are not those of a linear layer on the average of that map; take another method"
        )
    return min(spec.last.height, spec.last.width)
