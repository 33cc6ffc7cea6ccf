"""The base class of the methods for graphs, and the student that learns alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from dskd.data.loader import Batch
from dskd.engine.tasks.graphs.loader import GraphBatch
from dskd.engine.tasks.graphs.losses import (
    label_loss,
)
from dskd.engine.tasks.graphs.models import GraphNet
from dskd.engine.tasks.graphs.settings import Architecture
from dskd.methods.base import Method
from dskd.methods.contracts import StepOutput
from dskd.models.output import ModelOutput
from dskd.settings import checked


@dataclass(frozen=True)
class GraphPair:
    """The student to train, and all that a method needs to build more.

    Attributes:
        student: The student.
        multilabel: Whether a node has several labels.
        build_peer: Builds another student with the number of the student's hidden layers; None
            stands for an identical copy.
        teacher_widths: Features of each hidden layer of the teacher; None without a teacher.
    """

    student: GraphNet
    multilabel: bool
    build_peer: Callable[[Architecture | None], GraphNet]
    teacher_widths: tuple[int, ...] | None = None


class GraphMethod(Method):
    """A way to train students on graphs.

    Args:
        pair: The student, and what else a method needs.
    """

    needs_teacher: ClassVar[bool] = False
    distributed: ClassVar[bool] = False
    student: Any  # a GraphNet

    def __init__(self, pair: GraphPair) -> None:
        nn.Module.__init__(self)
        self.student = pair.student
        self.classes = pair.student.shape.classes
        self.multilabel = pair.multilabel

    @property
    def students(self) -> list[GraphNet]:
        """All students. In each epoch, each in turn passes over all graphs."""
        return [self.student]

    def deployed(self) -> nn.Module:
        """The first student."""
        student: GraphNet = self.student
        return student

    def classifier_logits(self, images: Any) -> dict[str, Tensor]:
        """The logits of the labelled nodes of a batch, by classifier.

        ``student``, ``student2`` and so on are the students. ``layer1`` and so on are the
        classifiers on the hidden layers of the first student, if the method has some.
        """
        batch: GraphBatch = images
        first, *others = (student(batch.features, batch.edges) for student in self.students)
        found = {"student": first.logits[batch.nodes]}
        found |= {f"student{n}": one.logits[batch.nodes] for n, one in enumerate(others, 2)}
        shallow = self.shallow_logits(first, batch)
        return found | {f"layer{number}": logits for number, logits in enumerate(shallow, 1)}

    def shallow_logits(self, output: ModelOutput, batch: GraphBatch) -> list[Tensor]:
        """The logits of the classifiers on the hidden layers of the first student; none here.

        Args:
            output: Of the first student, for all nodes.
            batch: Says which nodes are labelled.
        """
        return []


def graph_batch(batch: Batch) -> GraphBatch:
    """The batch of a loader of graphs."""
    assert isinstance(batch, GraphBatch), "a loader of graphs gives it"
    return batch


class Alone(GraphMethod):
    """One student learns from the labels alone: ``L = CE``, or BCE with several labels a node."""

    @checked
    def __init__(self, pair: GraphPair) -> None:
        super().__init__(pair)

    def forward(self, batch: Batch, teacher: ModelOutput | None) -> StepOutput:
        """The loss of the labels."""
        own = graph_batch(batch)
        logits = self.student(own.features, own.edges).logits[own.nodes]
        return StepOutput({"labels": label_loss(logits, own.labels)}, logits)
