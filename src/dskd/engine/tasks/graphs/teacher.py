"""The frozen teacher of a run on graphs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dskd.data.loader import Batch
from dskd.engine.tasks.graphs.loader import GraphBatch
from dskd.engine.tasks.graphs.models import GraphNet
from dskd.methods.contracts import TeacherNeeds
from dskd.models.output import ModelOutput
from dskd.teacher.frozen import FrozenTeacher, weights_fingerprint
from dskd.teacher.outputs import TeacherForward, TeacherOutputs


class GraphTeacher(FrozenTeacher):
    """A trained graph network in eval mode whose weights never change.

    Args:
        model: The trained network, on its device. Its parameters stop requiring gradients.
    """

    model: Any  # a GraphNet

    def __init__(self, model: GraphNet) -> None:
        nn.Module.__init__(self)
        self.model = model.requires_grad_(False)
        self.test_predictions = None
        self.eval()

    def fingerprint(self) -> str:
        """A hash of every weight, equal for equal teachers."""
        return weights_fingerprint(self.model)

    @torch.no_grad()
    def forward(self, batch: Any) -> ModelOutput:
        """The outputs for all nodes of a batch."""
        own: GraphBatch = batch
        output: ModelOutput = self.model(own.features, own.edges)
        return output


class GraphTeacherOutputs(TeacherOutputs):
    """The teacher's outputs for all nodes of a batch, by a forward pass at every step."""

    def compute(
        self, forward: TeacherForward, batch: Batch, needs: TeacherNeeds
    ) -> tuple[ModelOutput, int]:
        """See `TeacherOutputs.compute`."""
        whole: Any = batch
        return forward(whole), 0
