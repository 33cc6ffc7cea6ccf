"""DSKD on graphs: a teacher supervises the output and the hidden layers of one student."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from dskd.data.loader import Batch
from dskd.engine.tasks.graphs.base import GraphMethod, GraphPair, graph_batch
from dskd.engine.tasks.graphs.loader import GraphBatch
from dskd.engine.tasks.graphs.losses import (
    as_two_classes,
    label_loss,
    relative_feature_error,
)
from dskd.losses.allocation import Allocation, weighted_stages
from dskd.losses.logits import kd as kd_loss
from dskd.methods.base import LearnsFrom
from dskd.methods.checks import at_same_depth
from dskd.methods.contracts import StepOutput, TeacherNeeds, require_outputs
from dskd.models.output import ModelOutput
from dskd.settings import Positive, Weight, checked


class GraphDSKD(GraphMethod):
    """DSKD on graphs: a teacher supervises the output and all hidden layers.

    ``L = ce CE + kd KD + sum_l w_l (alpha P_l + beta M_l)``. On hidden layer l, a linear adapter
    makes features of the width of the teacher's layer ``ceil(l L_t / L)``, and a linear classifier
    on them makes logits. P_l compares these with the teacher's logits, and M_l compares the
    features. The weights w_l depend on the losses. The terms are those of DSKD for images
    (`dskd.losses.dskd`), with a node in place of an image and features in place of a map. With
    several labels a node, each label counts as a choice between two classes. The teacher teaches
    all nodes of the training graphs; CE takes the labelled ones.

    Source: Luo, Chen, Wang, Knowledge Distillation with Deep Supervision, IJCNN 2023,
    arXiv 2202.07846, reconstructed from its abstract. It is about images: its form on graphs is
    *our choice*.

    Args:
        pair: The student and the shape of the teacher.
        ce: Weight of the labels.
        kd: Weight of the teacher's predictions at the output.
        temperature: T of all predictions.
        alpha: Weight of the predictions on hidden layers.
        beta: Weight of the features of hidden layers.
        allocation: The rule for the weights w_l, see `dskd.losses.allocation.allocate`.
    """

    needs_teacher: ClassVar[bool] = True
    learns_from: ClassVar[LearnsFrom] = "shallow stages"

    @checked
    def __init__(
        self,
        pair: GraphPair,
        *,
        ce: Weight = 1.0,
        kd: Weight = 1.0,
        temperature: Positive = 4.0,
        alpha: Weight = 1.0,
        beta: Weight = 1.0,
        allocation: Allocation = "proportional",
    ) -> None:
        super().__init__(pair)
        assert pair.teacher_widths is not None, "this method needs a teacher"
        theirs = pair.teacher_widths
        self.ce = ce
        self.targets = at_same_depth(len(pair.student.widths), len(theirs))
        self.needs = TeacherNeeds(logits=True, stages=tuple(sorted(set(self.targets))))
        widths = zip(pair.student.widths, self.targets, strict=True)
        self.adapters = nn.ModuleList(nn.Linear(width, theirs[layer]) for width, layer in widths)
        self.classifiers = nn.ModuleList(
            nn.Linear(theirs[layer], self.classes) for layer in self.targets
        )
        self.kd, self.temperature = kd, temperature
        self.alpha, self.beta, self.allocation = alpha, beta, allocation

    def forward(self, batch: Batch, teacher: ModelOutput | None) -> StepOutput:
        """The losses, with the terms of each hidden layer as metrics."""
        own, theirs = graph_batch(batch), require_outputs(teacher)
        output: ModelOutput = self.student(own.features, own.edges)
        adapted = self._adapted(output)
        predictions = torch.stack(
            [
                self._divergence(classifier(features), theirs.logits)
                for classifier, features in zip(self.classifiers, adapted, strict=True)
            ]
        )
        features = torch.stack(
            [
                relative_feature_error(own_features, theirs.stages[target])
                for own_features, target in zip(adapted, self.targets, strict=True)
            ]
        )
        names = [f"layer{layer + 1}" for layer in range(len(predictions))]
        rule = self.alpha, self.beta, self.allocation
        shallow, metrics = weighted_stages(predictions, features, *rule, names)
        logits = output.logits[own.nodes]
        losses = {
            "labels": self.ce * label_loss(logits, own.labels),
            "kd": self.kd * self._divergence(output.logits, theirs.logits),
            "shallow": shallow,
        }
        return StepOutput(losses, logits, metrics)

    def _adapted(self, output: ModelOutput) -> list[Tensor]:
        """The features of each hidden layer with the width of the teacher's."""
        layers = zip(self.adapters, output.stages, strict=True)
        return [adapter(features) for adapter, features in layers]

    def _divergence(self, own: Tensor, teacher: Tensor) -> Tensor:
        """``T^2 KL`` of the predictions for all nodes."""
        if self.multilabel:
            own, teacher = as_two_classes(own), as_two_classes(teacher)
        return kd_loss(own, teacher, self.temperature)

    def shallow_logits(self, output: ModelOutput, batch: GraphBatch) -> list[Tensor]:
        """The logits of the classifiers on the student's hidden layers."""
        pairs = zip(self.classifiers, self._adapted(output), strict=True)
        return [classifier(features[batch.nodes]) for classifier, features in pairs]
