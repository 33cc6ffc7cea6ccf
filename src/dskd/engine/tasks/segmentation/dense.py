"""Distillation at every pixel: a small segmentation network learns from a large one."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dskd.data.loader import Batch
from dskd.engine.tasks.segmentation.base import SegmentationMethod
from dskd.engine.tasks.segmentation.losses import pixel_cross_entropy, pixel_kd
from dskd.engine.tasks.segmentation.unet import init_convolution
from dskd.losses.allocation import Allocation, weighted_stages
from dskd.losses.feature_maps import feature_loss
from dskd.methods.base import LearnsFrom
from dskd.methods.branches import BranchOutput, MapAdapter
from dskd.methods.checks import at_same_depth, check_stages, shallow_stages
from dskd.methods.contracts import Pair, StepOutput, TeacherNeeds, require_outputs
from dskd.models.output import ModelOutput
from dskd.models.spec import StageSpec
from dskd.settings import Count, Positive, Weight, checked


class PixelKD(SegmentationMethod):
    """The teacher's predictions at every pixel: ``L = ce CE(z_s, y) + kd T^2 KL(p_t || p_s)``.

    See `dskd.engine.tasks.segmentation.losses.pixel_kd`.

    Args:
        pair: Student and teacher, of the same classes.
        ce: Weight of the masks.
        kd: Weight of the teacher's predictions.
        temperature: T of the predictions.
    """

    needs = TeacherNeeds(logits=True)
    needs_teacher: ClassVar[bool] = True
    learns_from: ClassVar[LearnsFrom] = "logits"

    @checked
    def __init__(
        self,
        pair: Pair,
        *,
        ce: Weight = 1.0,
        kd: Weight = 1.0,
        temperature: Positive = 4.0,
    ) -> None:
        super().__init__(pair)
        check_stages(pair)
        self.ce, self.kd, self.temperature = ce, kd, temperature

    def forward(self, batch: Batch, teacher: ModelOutput | None) -> StepOutput:
        """The losses of the masks and of the teacher's predictions."""
        return self.at_output(self.student(batch.images).logits, batch, require_outputs(teacher))

    def at_output(self, logits: Tensor, batch: Batch, teacher: ModelOutput) -> StepOutput:
        """The two losses of the student's own logits."""
        losses = {
            "ce": self.ce * pixel_cross_entropy(logits, batch.labels),
            "kd": self.kd * pixel_kd(logits, teacher.logits, self.temperature),
        }
        return StepOutput(losses, logits)


class DenseBranch(nn.Module):
    """An adapter and a 1x1 convolution on a stage: ``F_l -> A_l(F_l) -> z_l``.

    The adapter is that of DSKD for images. The logits are those of the adapted map's positions,
    and are interpolated to the size of the image.

    Args:
        stage: The student's stage.
        target: The teacher's map that supervises it.
        num_classes: Number of classes.

    Example:
        >>> branch = DenseBranch(StageSpec(4, 8, 8, True), StageSpec(16, 8, 8, True), 2)
        >>> output = branch(torch.zeros(1, 4, 8, 8), (32, 32))
        >>> output.logits.shape, output.map.shape
        (torch.Size([1, 2, 32, 32]), torch.Size([1, 16, 8, 8]))
    """

    def __init__(self, stage: StageSpec, target: StageSpec, num_classes: int) -> None:
        super().__init__()
        self.adapter = MapAdapter(stage, target)
        self.classifier = nn.Conv2d(target.channels, num_classes, 1).apply(init_convolution)

    def forward(self, feature_map: Tensor, size: tuple[int, int]) -> BranchOutput:
        """The branch's logits and map, from the stage's map.

        Args:
            feature_map: ``[B, C_l, H_l, W_l]``.
            size: Height and width of the logits.
        """
        adapted: Tensor = self.adapter(feature_map)
        logits = F.interpolate(self.classifier(adapted), size, mode="bilinear", align_corners=False)
        return BranchOutput(logits, adapted)


class DenseDSKD(PixelKD):
    """DSKD at every pixel: ``L = ce CE + kd KD + sum_l w_l (alpha P_l + beta M_l)``.

    CE and KD are those of `PixelKD`. Stage l of the encoder has a `DenseBranch` during training.
    P_l compares its logits with the teacher's at every pixel, as KD does, and M_l compares its map
    with the teacher's map of the same stage. The weights w_l depend on the losses
    (`dskd.losses.allocation.allocate`). The plain student is deployed.

    Source: Luo, Chen, Wang, Knowledge Distillation with Deep Supervision, IJCNN 2023,
    arXiv 2202.07846, reconstructed from its abstract. It is about the classes of images; to predict
    every pixel in place of the image is *our choice*.

    Args:
        pair: Student and teacher, of the same classes.
        ce: Weight of the masks.
        kd: Weight of the teacher's predictions at the output.
        temperature: T of all predictions.
        alpha: Weight of the predictions on stages.
        beta: Weight of the feature maps.
        allocation: The rule for the weights w_l.
        supervise: Which stages of the encoder get a branch, from 1; None for all four.
    """

    learns_from: ClassVar[LearnsFrom] = "shallow stages"

    @checked
    def __init__(
        self,
        pair: Pair,
        *,
        ce: Weight = 1.0,
        kd: Weight = 1.0,
        temperature: Positive = 4.0,
        alpha: Weight = 1.0,
        beta: Weight = 1.0,
        allocation: Allocation = "proportional",
        supervise: list[Count] | None = None,
    ) -> None:
        super().__init__(pair, ce=ce, kd=kd, temperature=temperature)
        own, theirs = check_stages(pair)
        self.alpha, self.beta, self.allocation = alpha, beta, allocation
        self.supervised = shallow_stages(pair.student_spec, supervise)
        paired = at_same_depth(len(own), len(theirs))
        self.targets = [paired[stage] for stage in self.supervised]
        self.needs = TeacherNeeds(logits=True, stages=tuple(sorted({*self.targets})))
        self.branches = nn.ModuleList(
            DenseBranch(own[stage], theirs[target], self.classes)
            for stage, target in zip(self.supervised, self.targets, strict=True)
        )

    def forward(self, batch: Batch, teacher: ModelOutput | None) -> StepOutput:
        """The losses, with the terms of each stage as metrics."""
        theirs = require_outputs(teacher)
        student: ModelOutput = self.student(batch.images)
        branches = self._branch_outputs(student)
        predictions = torch.stack(
            [pixel_kd(branch.logits, theirs.logits, self.temperature) for branch in branches]
        )
        features = torch.stack(
            [
                feature_loss(branch.map, theirs.stages[target])
                for branch, target in zip(branches, self.targets, strict=True)
            ]
        )
        names = [f"stage{stage + 1}" for stage in self.supervised]
        rule = self.alpha, self.beta, self.allocation
        shallow, metrics = weighted_stages(predictions, features, *rule, names)
        output = self.at_output(student.logits, batch, theirs)
        return StepOutput(output.losses | {"shallow": shallow}, output.logits, metrics)

    def _branch_outputs(self, student: ModelOutput) -> list[BranchOutput]:
        size = student.logits.shape[2:]
        return [
            branch(student.stages[stage], size)
            for stage, branch in zip(self.supervised, self.branches, strict=True)
        ]

    def classifier_logits(self, images: Tensor) -> dict[str, Tensor]:
        """The student's logits, and those of the branches as ``stage1``, ``stage2`` and so on."""
        student: ModelOutput = self.student(images)
        names = [f"stage{stage + 1}" for stage in self.supervised]
        shallow = zip(names, self._branch_outputs(student), strict=True)
        return {"student": student.logits} | {name: branch.logits for name, branch in shallow}
