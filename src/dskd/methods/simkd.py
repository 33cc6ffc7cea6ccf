"""The reused teacher classifier: the student learns the teacher's features and its classifier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from pydantic import model_validator
from torch import Tensor, nn

from dskd.data.loader import Batch
from dskd.errors import InputError
from dskd.losses.feature_maps import comparable, pool_to
from dskd.losses.precision import in_full_precision
from dskd.methods.base import FeatureMethod
from dskd.methods.checks import check_classes, check_classifier, how_to_name
from dskd.methods.contracts import Pair, StepOutput, TeacherNeeds, require_outputs
from dskd.models.output import ModelOutput
from dskd.models.spec import ModelSpec, StageSpec
from dskd.models.staged_model import StagedModel
from dskd.models.staged_net import StagedNet
from dskd.settings import Count, Positive, Settings, Weight, checked, validate

LARGEST = 2**28
"""The largest size of projector and classifier. No file can then fill the memory."""


@in_full_precision
def simkd_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """The features of the reused classifier: ``mean((P(F) - G)^2)``.

    Source: Chen et al., Knowledge Distillation with the Reused Teacher Classifier, CVPR 2022,
    arXiv 2203.14001. The mean over all elements is that of the authors' code.

    If the sizes do not divide, the authors' adaptive pooling counts some positions more often than
    others. Here every position counts the same (see `dskd.losses.feature_maps.pool_to`), so that
    the pooled map has the same average, which is what the classifier sees. If they divide, the two
    are equal.

    Args:
        student_map: P(F), ``[B, D, H, W]``, the student's map projected to the teacher's channels.
        teacher_map: G, ``[B, D, H', W']``; of two sizes, the larger map is average-pooled to the
            smaller.

    Raises:
        InputError: The maps are not of the same images and channels.

    Example:
        >>> simkd_loss(torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 8, 8)).item()
        1.0
    """
    student, teacher = comparable(student_map, teacher_map)
    return (student - teacher).square().mean()


class SimKD(FeatureMethod):
    """Ends in the teacher's classifier: ``ce * CE + kd * KD + weight * mean (P(F_s) - F_t)^2``.

    ``P`` projects the student's last map to the teacher's features. The average of the projected
    map goes through the teacher's own classifier, frozen (`ReusedClassifier`). That gives the
    student's logits, for labels, predictions and accuracy. See `dskd.losses.simkd`.

    **The deployed student includes projector and classifier** (`ReusedStudent`), so it is larger
    than the plain student. The student's own classifier is not used: a network of the zoo loses it
    (the student of ``pair`` too), while any other module still contains it.

    F_t is the map whose average the teacher's classifier sees (`ModelOutput.last`), so a student
    with the teacher's features has the teacher's logits. If the teacher's vector is not the average
    of its last map (a class token, a norm after the pooling, stages that end before the last), F_t
    is the vector itself, as a map of one position: *our choice*. Of two sizes, the larger map is
    average-pooled to the smaller.

    Source: Chen et al., Knowledge Distillation with the Reused Teacher Classifier, CVPR 2022,
    arXiv 2203.14001, published with the loss of the features alone, as in ``literature``. The
    projector is that of the authors' code, without its last ReLU if the teacher's features may be
    negative: *our choice*. So is F_s, the map whose average the student's own classifier sees. The
    authors use the map before the last convolution of MobileNetV2 and ShuffleV2, whose last
    convolution would then be dead weight.

    Args:
        pair: Student and teacher, of the same classes. The student has a map; the teacher ends in
            a linear layer.
        ce: Weight of the labels.
        kd: Weight of the teacher's predictions.
        weight: Weight of the features.
        temperature: T of the predictions.
        factor: Divides the number of the teacher's features to give the channels inside the
            projector.

    Raises:
        InputError: A setting is out of range, the student has no map, or the teacher does not end
            in a linear layer.
    """

    learns_from = "classifier"
    presets: ClassVar = {"literature": {"ce": 0.0, "kd": 0.0, "weight": 1.0}}

    @checked
    def __init__(
        self,
        pair: Pair,
        *,
        ce: Weight = 1.0,
        kd: Weight = 1.0,
        weight: Weight = 1.0,
        temperature: Positive = 4.0,
        factor: Count = 2,
    ) -> None:
        super().__init__(pair, ce, kd, temperature)
        classifier, teacher = check_classifier(pair), check_classes(pair)
        source = _last_map(pair.student_spec)
        target = teacher.last if teacher.average_pooled else None
        self.needs = TeacherNeeds(logits=True, last=target is not None, pooled=target is None)
        goal = target or source
        width = max(1, classifier.in_features // factor)
        _check_size(source.channels, width, classifier.in_features, classifier.out_features)
        self.plan = Plan(
            stages=self.student.stage_names,
            channels=source.channels,
            size=(min(source.height, goal.height), min(source.width, goal.width)),
            width=width,
            features=classifier.in_features,
            nonnegative=teacher.pooled_nonnegative,
            classes=classifier.out_features,
            bias=classifier.bias is not None,
        )
        self.reused = ReusedClassifier(self.plan)
        self.reused.take(classifier)
        give_up_classifier(self.student.module)
        self.weight = weight

    def forward(self, batch: Batch, teacher: ModelOutput | None) -> StepOutput:
        """The losses of the reused classifier's logits and of the features."""
        teacher = require_outputs(teacher)
        projected, logits = self.reused(self.student(batch.images).last)
        losses = self.distillation_losses(batch, logits, teacher.logits)
        losses["simkd"] = self.weight * simkd_loss(projected, self.target(teacher))
        return StepOutput(losses, logits)

    def target(self, teacher: ModelOutput) -> Tensor:
        """F_t, ``[B, D, H, W]``: the map whose average the teacher's classifier sees."""
        if self.needs.last and teacher.last is not None:
            return teacher.last
        assert teacher.pooled is not None, "the constructor checks this"
        return teacher.pooled[:, :, None, None]

    def classifier_logits(self, images: Tensor) -> dict[str, Tensor]:
        """The reused classifier's logits."""
        return {"student": self.reused(self.student(images).last)[1]}

    def deployed(self) -> nn.Module:
        """Student, projector and the teacher's classifier."""
        return ReusedStudent(self.student, self.reused)

    def deploy_config(self) -> dict[str, Any]:
        """How projector and classifier are built, and which of the student's maps they use."""
        return self.plan.model_dump()

    @classmethod
    def assemble(cls, student: nn.Module, deploy_config: Mapping[str, Any]) -> nn.Module:
        """Student, projector and classifier with fresh weights; the student loses its own.

        Raises:
            InputError: ``deploy_config`` does not fit the student, or is empty.
        """
        plan = validate(Plan, deploy_config, "deploy_config.")
        # The images are normalised before; so this mean and std are not used.
        staged = StagedModel(student, plan.stages, mean=(0.0,), std=(1.0,))
        if not staged.returns_stages and not plan.stages:
            raise InputError("deploy_config.stages names no map of the student; it must name one")
        give_up_classifier(student)
        return ReusedStudent(staged, ReusedClassifier(plan))

    def auxiliary_state_dict(self) -> dict[str, Tensor]:
        """Empty: everything that is trained is deployed."""
        return {}


class Plan(Settings):
    """How a `ReusedClassifier` is built, and which map it uses: plain values, for a file."""

    stages: tuple[str, ...] | None
    """The student's stages, of which it uses the last; None for a network with its own stages."""
    channels: Count
    """Channels of the student's map."""
    size: tuple[Count, Count]
    """Height and width that a larger map is pooled to."""
    width: Count
    """Channels inside the projector."""
    features: Count
    """Length of the vector that the classifier sees."""
    nonnegative: bool
    """Whether no feature is below zero."""
    classes: Count
    """Length of the logits."""
    bias: bool
    """Whether the classifier has a bias."""

    @model_validator(mode="after")
    def _fits_in_memory(self) -> Plan:
        if _numbers(self.channels, self.width, self.features, self.classes) > LARGEST:
            raise ValueError(f"at most {LARGEST} numbers are needed in projector and classifier")
        return self


def _numbers(channels: int, width: int, features: int, classes: int) -> int:
    """The numbers in a projector and a classifier."""
    return width * (channels + 9 * width + features) + features * classes


def _check_size(channels: int, width: int, features: int, classes: int) -> None:
    """Refuses a projector that would not fit into memory."""
    if (numbers := _numbers(channels, width, features, classes)) > LARGEST:
        raise InputError(
            f"method.factor: the projector to the {features:,} features of the teacher's "
            f"classifier would have {numbers:,} numbers with the classifier, more than "
            f"{LARGEST:,}; raise method.factor, or take a method other than simkd"
        )


class ReusedClassifier(nn.Module):
    """A projector and the teacher's classifier, instead of the student's own classifier.

    The projector is a bottleneck of convolutions, 1x1 -> 3x3 -> 1x1, each with BatchNorm and ReLU.

    Source: Chen et al., CVPR 2022 (see `SimKD`), in the form of the authors' code.

    Args:
        plan: How it is built.

    Example:
        >>> plan = Plan(
        ...     stages=None, channels=16, size=(4, 4), width=32, features=64, nonnegative=True,
        ...     classes=10, bias=True,
        ... )
        >>> projected, logits = ReusedClassifier(plan)(torch.zeros(2, 16, 8, 8))
        >>> projected.shape, logits.shape
        (torch.Size([2, 64, 4, 4]), torch.Size([2, 10]))
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.channels, self.size = plan.channels, plan.size
        self.projector = nn.Sequential(
            nn.Conv2d(plan.channels, plan.width, 1, bias=False),
            nn.BatchNorm2d(plan.width),
            nn.ReLU(),
            nn.Conv2d(plan.width, plan.width, 3, padding=1, bias=False),
            nn.BatchNorm2d(plan.width),
            nn.ReLU(),
            nn.Conv2d(plan.width, plan.features, 1, bias=False),
            nn.BatchNorm2d(plan.features),
        )
        if plan.nonnegative:
            self.projector.append(nn.ReLU())
        self.projector.to(memory_format=torch.channels_last)
        self.classifier = nn.Linear(plan.features, plan.classes, plan.bias)

    @torch.no_grad()
    def take(self, classifier: nn.Linear) -> None:
        """Copies the weights of the teacher's classifier and freezes them."""
        self.classifier.weight.copy_(classifier.weight)
        if classifier.bias is not None:
            self.classifier.bias.copy_(classifier.bias)
        self.classifier.requires_grad_(False)

    def forward(self, last: Tensor | None) -> tuple[Tensor, Tensor]:
        """The projected map ``[B, D, H, W]`` and the logits ``[B, K]``, from the student's map.

        Raises:
            InputError: The student gives no map, or one with other channels.
        """
        if last is None or last.shape[1] != self.channels:
            raise InputError(
                f"the student must give a last map of {self.channels} channels, got "
                f"{'none' if last is None else last.shape[1]}; give the student of the run"
            )
        projected = self.projector(pool_to(last, *self.size))
        return projected, self.classifier(projected.mean((2, 3)))


class ReusedStudent(nn.Module):
    """A student with its teacher's classifier, in the form that is deployed.

    Args:
        student: The student with its stages; its mean and std are not used.
        reused: Projector and classifier.

    Shapes: normalised images ``[B, C, H, W]`` to logits ``[B, K]``.
    """

    def __init__(self, student: StagedModel, reused: ReusedClassifier) -> None:
        super().__init__()
        self.student = student
        self.reused = reused  # after the student, so that its linear layer is the last one

    @property
    def stage_names(self) -> tuple[str, ...]:
        """The names of the student's stages."""
        own: tuple[str, ...] = getattr(cast(object, self.student.module), "stage_names", ())
        return self.student.stage_names or tuple(own)

    def forward(self, images: Tensor) -> Tensor:
        """The logits of images that are already normalised."""
        return self.forward_stages(images).logits

    def forward_stages(self, images: Tensor) -> ModelOutput:
        """The logits, the student's stages, and the projected map that the classifier sees."""
        output = self.student.forward_normalized(images)
        projected, logits = self.reused(output.last)
        return ModelOutput(logits, output.stages, projected.mean((2, 3)), projected)


def give_up_classifier(module: nn.Module) -> None:
    """Removes the classifier of a network of the zoo; others may not run without theirs."""
    if isinstance(module, StagedNet):
        module.set_submodule(module.classifier_name, nn.Identity())


def _last_map(student: ModelSpec) -> StageSpec:
    if student.last is None:
        raise InputError(
            f"simkd projects the student's last map; name it with {how_to_name('student', student)}"
        )
    return student.last
