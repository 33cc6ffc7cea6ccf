"""Wasserstein distances: of predictions, with a cost for each two classes, and of feature maps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dskd.data.loader import Batch
from dskd.errors import InputError
from dskd.losses.checks import check_labels, check_number
from dskd.losses.logits import ce as cross_entropy
from dskd.losses.logits import check_logits
from dskd.losses.precision import full_precision, in_full_precision
from dskd.losses.vectors import unit
from dskd.losses.wasserstein import class_distances, gaussian_distance, transport
from dskd.methods.base import DECAYED, TARGET_SPLIT, LearnsFrom, Method, decayed
from dskd.methods.checks import check_classes, check_classifier, idle_with_two_classes
from dskd.methods.contracts import (
    Pair,
    StepOutput,
    TeacherEpochs,
    TeacherNeeds,
    require_outputs,
)
from dskd.methods.fitnet import Regressor
from dskd.methods.wkd_images import few_images, images_of_classes
from dskd.models.output import ModelOutput
from dskd.models.spec import StageSpec
from dskd.settings import Count, Epochs, Positive, Weight, checked

Cost = Literal["features", "logits", "classifier"]
"""What the distance of two classes is computed from."""


@in_full_precision
def wkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    cost: Tensor,
    gamma: float = 600.0,
    temperature: float = 8.0,
    regularization: float = 0.05,
    iterations: int = 10,
) -> Tensor:
    """WKD-L: ``mean_b (-p_y log q_y + gamma W(P, Q))``.

    ``p`` and ``q`` are the softmax of the teacher's and the student's logits at temperature 1.
    ``P`` and ``Q`` are their softmax at T over the classes other than the label. W is the cost of
    moving Q to P (`dskd.losses.wasserstein.transport`). There is no factor ``T^2``. For the
    teacher's own logits the loss is not 0.

    Source: Lv, Yang, Li, Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge
    Distillation, NeurIPS 2024, arXiv 2412.08139, its WKD-L, in the form of the authors' code.

    Args:
        student_logits: ``[B, K]``.
        teacher_logits: ``[B, K]``.
        labels: int64, ``[B]``.
        cost: ``[K, K]``, of moving probability from the student's class to the teacher's.
        gamma: Weight of W.
        temperature: T, above 0.
        regularization: Of `transport`, above 0.
        iterations: Of `transport`, 1 or more.

    Raises:
        InputError: A number is out of range, the shapes do not fit, or, on the CPU, a label is not
            one of the classes.

    Example:
        >>> logits, cost = torch.zeros(1, 3), 1 - torch.eye(3)
        >>> round(wkd_loss(logits, logits, torch.tensor([0]), cost, gamma=0.0).item(), 4)
        0.3662
    """
    check_number("gamma", gamma)
    check_logits(student_logits, teacher_logits, classes=2)
    check_labels(labels, student_logits)
    label = labels[:, None]
    confidence = F.softmax(teacher_logits, dim=1).gather(1, label)[:, 0]
    target = -confidence * F.log_softmax(student_logits, dim=1).gather(1, label)[:, 0]
    # A class of probability 0 takes no part: this leaves out the label's row and column.
    student, teacher = (
        logits.scatter(1, label, -math.inf) for logits in (student_logits, teacher_logits)
    )
    moved = transport(student, teacher, cost, temperature, regularization, iterations)
    return target.mean() + gamma * moved


class WKD(Method):
    """Moves probability between classes: ``ce * CE + kd * (L_y + gamma W) + feature * G``.

    - L_y is the cross-entropy of the label, weighted by the teacher's probability of the label.
    - W is the cost of moving the student's predictions for all other classes to the teacher's.
      Probability that moves to a similar class costs less. See `dskd.losses.wkd`.
    - G is the squared Wasserstein distance of two Gaussians. It compares the means and standard
      deviations of the channels of the last map, which a projector brings to the teacher's channels
      (`dskd.losses.wasserstein.gaussian_distance`). It is off by default. The projector is trained
      with the student and never deployed.

    The cost of two classes is ``1 - exp(-kappa d)``. Their distance d is computed once, before
    training: 1 - linear CKA of the teacher's outputs for their training images
    (`dskd.losses.wasserstein.class_distances`), or 1 - cosine of their rows in the teacher's
    classifier.

    Source: Lv, Yang, Li, Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge
    Distillation, NeurIPS 2024, arXiv 2412.08139, in the form of the authors' code. The presets are
    theirs for resnet32x4-resnet8x4: ``literature`` is WKD-L, ``features`` WKD-F, ``both`` the two
    together. In these presets, gamma and the weight of the maps fall to 0 by half a cosine from
    epoch 150 to 240.

    *Our choice*: the CKA is computed from one augmented view of each image, of 500 images of each
    class at most. Maps of other sizes than the authors' are projected as in `FitNet`, and the
    projector has no ReLU if the teacher's map has negative values.

    Args:
        pair: Student and teacher, of the same classes. Three training images of each class are
            needed, better ten or more, except for ``cost=classifier``.
        temperature: T of W; the label's part is at temperature 1.
        ce: Weight of the labels.
        kd: Weight of the teacher's predictions, L_y and W together.
        gamma: Weight of W relative to L_y. It has no effect with two classes, of which one is not
            the label; a line in the log says so.
        feature: Weight of the maps. With 0 there is no projector.
        ratio: Weight of the means in G; the standard deviations have the weight 1.
        grid: Cells on each side of the maps in G.
        hidden: Channels inside a projector of three convolutions, 256 in the authors' code for
            ImageNet; None for a projector of one convolution.
        cost: What the distances of the classes are computed from: the teacher's ``features`` (the
            vectors before its classifier), its ``logits``, or its ``classifier``.
        cost_images: The most training images of each class that the distances are computed from,
            3 or more. The smallest class sets the number for all.
        kappa: How fast the cost rises with the distance.
        regularization: Entropic regularisation of Sinkhorn's algorithm. Smaller values come closer
            to exact optimal transport, and converge more slowly.
        iterations: Iterations of Sinkhorn's algorithm. The published 10 do not converge at a high
            T; 100 come within 1 % of the limit.
        decay_from: Epochs after which gamma and the weight of the maps begin to fall.
        decay_to: Epoch from which on they are 0; 0 for weights that never fall.

    Raises:
        InputError: A setting is out of range, a class has too few images, or one of the two has not
            got what the settings need: a last map, a pooled vector or a linear classifier.
    """

    learns_from: ClassVar[LearnsFrom] = "logits"
    prediction_weights: ClassVar = ("kd",)
    remembers_images = True
    presets: ClassVar = {
        "literature": {
            "ce": 1.0,
            "kd": 1.0,
            "gamma": 600.0,
            "temperature": 8.0,
            "decay_from": 150.0,
            "decay_to": 240.0,
        },
        "features": {
            "ce": 1.0,
            "kd": 0.0,
            "feature": 0.08,
            "ratio": 4.0,
            "decay_from": 150.0,
            "decay_to": 240.0,
        },
        "both": {
            "ce": 1.0,
            "kd": 1.0,
            "gamma": 200.0,
            "temperature": 8.0,
            "feature": 0.08,
            "ratio": 8.0,
            "decay_from": 150.0,
            "decay_to": 240.0,
        },
    }

    @checked
    def __init__(
        self,
        pair: Pair,
        *,
        temperature: Positive = 8.0,
        ce: Weight = 1.0,
        kd: Weight = 1.0,
        gamma: Weight = 600.0,
        feature: Weight = 0.0,
        ratio: Weight = 4.0,
        grid: Count = 1,
        hidden: Count | None = None,
        cost: Cost = "features",
        cost_images: Count = 500,
        kappa: Positive = 1.0,
        regularization: Positive = 0.05,
        iterations: Count = 10,
        decay_from: Epochs = 0.0,
        decay_to: Epochs = 0.0,
    ) -> None:
        super().__init__(pair)
        classes = check_classes(pair).classes
        if decay_from and not decay_to:
            raise InputError("decay_from needs decay_to, the epoch from which the weights are 0")
        if decay_to and decay_to <= decay_from:
            raise InputError(f"decay_to must be after decay_from={decay_from:g}, got {decay_to:g}")
        self.ce, self.kd, self.gamma, self.feature = ce, kd, gamma, feature
        self.transport_settings = temperature, regularization, iterations
        self.ratio, self.grid, self.kappa = ratio, grid, kappa
        self.decay = decay_from, decay_to
        self.uncompiled = DECAYED if decay_to else ""
        self.compares_logits = kd > 0 or not feature
        self.hard_labels = TARGET_SPLIT if self.compares_logits else ""
        self.cost_from = cost
        self.cost: Tensor
        self.register_buffer("cost", torch.zeros(classes, classes))
        self.compared = torch.zeros(classes, 0, dtype=torch.long)
        if self.compares_logits and cost == "classifier":
            rows = unit(check_classifier(pair).weight.detach())
            self.cost.copy_(_sharpened((1 - rows @ rows.T).fill_diagonal_(0), kappa))
        elif self.compares_logits:
            self.compared = images_of_classes(pair.labels, classes, cost_images)
            self.warnings = few_images(self.compared)
        if self.compares_logits and gamma:
            why = "moves probability between the classes other than the label, and there is one"
            self.warnings += idle_with_two_classes(pair, "wkd", "gamma", why)
        vectors = self.compares_logits and cost == "features"
        if vectors and check_classes(pair).pooled is None:
            raise InputError(
                "wkd compares classes by the vectors that the teacher's classifier sees, and the "
                "teacher does not end in a linear layer; set method.cost=logits"
            )
        self.needs = TeacherNeeds(self.compares_logits, pooled=vectors, last=feature > 0)
        if feature:
            self.projector = _projector(pair, hidden)

    @classmethod
    def reads_classes(cls, settings: Mapping[str, Any]) -> bool:
        """Unless only maps are compared."""
        return bool(settings["kd"]) or not settings["feature"]

    @classmethod
    def prepares(cls, settings: Mapping[str, Any]) -> bool:
        """Whether the cost of each two classes comes from the teacher's outputs."""
        return cls.reads_classes(settings) and settings["cost"] != "classifier"

    def prepare(self, teacher_epochs: TeacherEpochs) -> None:
        """Computes the cost of each two classes from the teacher's outputs for their images."""
        if not self.compares_logits or self.cost_from == "classifier":
            return
        device, wanted = self.cost.device, self.compared.flatten()
        place = torch.full((int(wanted.max()) + 1,), -1)
        place[wanted] = torch.arange(len(wanted))
        place = place.to(device)
        outputs: Tensor | None = None
        for batch, teacher in teacher_epochs(1):
            given = require_outputs(teacher)
            output = given.pooled if self.cost_from == "features" else given.logits
            assert output is not None, "the constructor checks this"
            if outputs is None:
                outputs = torch.zeros(len(wanted), output.shape[1], device=device)
            known = batch.indices < len(place)
            to = place[batch.indices.clamp_max(len(place) - 1)]
            chosen = known & (to >= 0)
            outputs[to[chosen]] = full_precision(output[chosen])
        assert outputs is not None, "an epoch has a batch"
        distances = class_distances(outputs.view(*self.compared.shape, -1))
        self.cost.copy_(_sharpened(distances, self.kappa))

    def forward(self, batch: Batch, teacher: ModelOutput | None) -> StepOutput:
        """The losses of labels, predictions and maps, with their weights in this epoch."""
        taught = require_outputs(teacher)
        student: ModelOutput = self.student(batch.images)
        share = decayed(batch.epoch, *self.decay)
        losses = {"ce": self.ce * cross_entropy(student.logits, batch.targets)}
        if self.compares_logits:
            loss = wkd_loss(
                student.logits,
                taught.logits,
                batch.labels,
                self.cost,
                share * self.gamma,
                *self.transport_settings,
            )
            losses["wkd"] = self.kd * loss
        if self.feature:
            assert taught.last is not None, "the constructor checks this"
            own = self.projector(student.last)
            distance = gaussian_distance(own, taught.last, self.ratio, self.grid)
            losses["feature"] = share * self.feature * distance
        return StepOutput(losses, student.logits)


class Bottleneck(nn.Module):
    """A projector of three convolutions, 1x1, 3x3 and 1x1, then BatchNorm and ReLU.

    Nothing stands between the convolutions. Biases that BatchNorm takes away again are left out.

    Source: Lv et al., NeurIPS 2024 (see `WKD`), the authors' code for ImageNet.

    Args:
        source: The student's map.
        target: The teacher's map; without the ReLU if it has negative values.
        hidden: Channels inside.

    Example:
        >>> bottleneck = Bottleneck(StageSpec(16, 4, 4, True), StageSpec(64, 4, 4, True), 8)
        >>> bottleneck(torch.zeros(2, 16, 4, 4)).shape
        torch.Size([2, 64, 4, 4])
    """

    def __init__(self, source: StageSpec, target: StageSpec, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(source.channels, hidden, 1),
            nn.Conv2d(hidden, hidden, 3, padding=1, bias=False),
            nn.Conv2d(hidden, target.channels, 1, bias=False),
            nn.BatchNorm2d(target.channels),
        )
        if target.nonnegative:
            self.layers.append(nn.ReLU())
        self.layers.to(memory_format=torch.channels_last)

    def forward(self, feature_map: Tensor) -> Tensor:
        """The student's map ``[B, C_s, H, W]`` as ``[B, C_t, H, W]``."""
        projected: Tensor = self.layers(feature_map)
        return projected


def _projector(pair: Pair, hidden: int | None) -> nn.Module:
    """From the student's last map to the teacher's channels."""
    source, target = pair.student_spec.last, check_classes(pair).last
    for what, one in (("student", source), ("teacher", target)):
        if one is None:
            raise InputError(
                f"wkd compares the last maps, and the {what} has none; name one with "
                f"{what}.stages=[a], or set method.feature=0"
            )
    assert source is not None
    assert target is not None
    return Bottleneck(source, target, hidden) if hidden else Regressor(source, target)


def _sharpened(distances: Tensor, kappa: float) -> Tensor:
    """The cost of each two classes: ``1 - exp(-kappa d)``."""
    return 1 - (-kappa * distances).exp()
