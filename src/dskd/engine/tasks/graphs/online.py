"""The online methods for graphs: several students and no teacher."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from dskd.data.loader import Batch
from dskd.engine.tasks.graphs.base import GraphMethod, GraphPair, graph_batch
from dskd.engine.tasks.graphs.loader import GraphBatch
from dskd.engine.tasks.graphs.losses import (
    Pairing,
    feature_error,
    label_loss,
    paired_layers,
    structure_loss,
)
from dskd.engine.tasks.graphs.models import GraphNet
from dskd.errors import InputError
from dskd.methods.base import LearnsFrom
from dskd.methods.contracts import StepOutput
from dskd.models.eval_mode import eval_mode
from dskd.models.output import ModelOutput
from dskd.settings import Weight, checked

PeerKind = Literal["same", "gcn", "gat", "sage"]


class OnlineMethod(GraphMethod):
    """Several students and no teacher: each learns from the labels and from its peers.

    A step trains one student, whose turn it is. Its peers run in eval mode and without gradients.
    Students of the same kind start as identical copies. All this is as in the public code of
    Alignahead; that peers run without dropout is *our choice*, since that code has none.

    Args:
        pair: The student, and what builds its peers.
        peers: The other students.
        weight: a, the weight of the alignment.
        pairing: Which layer of a peer a layer is aligned with.
    """

    learns_from: ClassVar[LearnsFrom] = "shallow stages"

    def __init__(
        self, pair: GraphPair, peers: tuple[PeerKind, ...], weight: float, pairing: Pairing
    ) -> None:
        super().__init__(pair)
        if len(pair.student.widths) < 2 and pairing == "ahead":
            raise InputError(
                "alignahead pairs a layer with the one before it, and the student has one hidden "
                "layer; set student.layers to 2 or more"
            )
        self.peers = nn.ModuleList(
            pair.build_peer(None if kind == "same" else kind) for kind in peers
        )
        self.weight, self.pairing = weight, pairing

    @property
    def students(self) -> list[GraphNet]:
        """The student and its peers."""
        peers: list[Any] = [*self.peers]
        return [self.student, *peers]

    def forward(self, batch: Batch, teacher: ModelOutput | None) -> StepOutput:
        """The losses of the student whose turn it is."""
        own = graph_batch(batch)
        output: ModelOutput = self.students[own.turn](own.features, own.edges)
        peers = [peer_output(student, own) for student in self._others(own.turn)]
        logits = output.logits[own.nodes]
        aligned = structure_loss(
            output.stages, [peer.stages for peer in peers], own.edges, self.pairing
        )
        losses = {"labels": label_loss(logits, own.labels), "alignment": self.weight * aligned}
        return StepOutput(losses | self.further_losses(own, output, peers), logits)

    def further_losses(
        self, batch: GraphBatch, output: ModelOutput, peers: list[ModelOutput]
    ) -> dict[str, Tensor]:
        """Further losses than those of the labels and of the alignment; none here."""
        return {}

    def _others(self, turn: int) -> Iterator[GraphNet]:
        return (one for number, one in enumerate(self.students) if number != turn)


@torch.no_grad()
def peer_output(student: GraphNet, batch: GraphBatch) -> ModelOutput:
    """What a peer computes: in eval mode and without gradients."""
    with eval_mode(student):
        output: ModelOutput = student(batch.features, batch.edges)
    return output


class Alignment(OnlineMethod):
    """Students align each layer with the same layer of their peers: ``L = CE + a sum_l KL``.

    Source: the one-to-one alignment that the public code of Alignahead logs for comparison.

    Args:
        pair: The student, and what builds its peers.
        peers: The other students: ``same`` for an identical copy, or the architecture of another.
        weight: a, the weight of the alignment.
    """

    @checked
    def __init__(
        self, pair: GraphPair, *, peers: tuple[PeerKind, ...] = ("same",), weight: Weight = 1.0
    ) -> None:
        super().__init__(pair, _some(peers), weight, "same")


class Alignahead(OnlineMethod):
    """Students align layer l + 1 with layer l of their peers: ``L = CE + a sum_l KL``.

    See `dskd.engine.tasks.graphs.losses` for the equations.

    Source: Guo, Chen, Wang, Alignahead: Online Cross-Layer Knowledge Extraction on Graph Neural
    Networks, IJCNN 2022, arXiv 2205.02468, by its public code.

    Args:
        pair: The student, and what builds its peers.
        peers: The other students: ``same`` for an identical copy, or the architecture of another.
        weight: a, the weight of the alignment.
    """

    @checked
    def __init__(
        self, pair: GraphPair, *, peers: tuple[PeerKind, ...] = ("same",), weight: Weight = 1.0
    ) -> None:
        super().__init__(pair, _some(peers), weight, "ahead")


class AlignaheadPlus(OnlineMethod):
    """Alignahead with features and classifiers: ``L = CE + a sum_l KL + b mean M_l + c mean CE_l``.

    M_l is the squared error of the adapted features of layer l, against the peer's layer that the
    alignment takes. CE_l is the loss of the labels of an auxiliary classifier on layer l. Both are
    means over the layers, and M_l also over the peers. Adapters and classifiers are linear, and
    each student has its own.

    Source: the abstract of Alignahead++ (arXiv 2210.13743) says that features are transferred
    between layers and that each hidden layer has an auxiliary classifier. It was all that we could
    read. The forms and the weights are *our choice*.

    Args:
        pair: The student, and what builds its peers.
        peers: The other students: ``same`` for an identical copy, or the architecture of another.
        weight: a, the weight of the alignment.
        features: b, the weight of the features; 0 for none.
        auxiliary: c, the weight of the auxiliary classifiers; 0 for none.
    """

    @checked
    def __init__(
        self,
        pair: GraphPair,
        *,
        peers: tuple[PeerKind, ...] = ("same",),
        weight: Weight = 1.0,
        features: Weight = 0.1,
        auxiliary: Weight = 0.1,
    ) -> None:
        super().__init__(pair, _some(peers), weight, "ahead")
        self.features, self.auxiliary = features, auxiliary
        pairs = paired_layers(len(pair.student.widths), "ahead")
        self.adapters, self.classifiers = nn.ModuleList(), nn.ModuleList()
        for turn, student in enumerate(self.students):
            if features:
                for other in self._others(turn):
                    self.adapters.extend(
                        nn.Linear(width, other.widths[layer])
                        for width, layer in zip(student.widths, pairs, strict=True)
                    )
            if auxiliary:
                self.classifiers.extend(nn.Linear(w, self.classes) for w in student.widths)

    def further_losses(
        self, batch: GraphBatch, output: ModelOutput, peers: list[ModelOutput]
    ) -> dict[str, Tensor]:
        """The losses of the features and of the auxiliary classifiers."""
        losses, layers = {}, len(output.stages)
        if self.features:
            start = batch.turn * len(peers) * layers
            pairs, total = paired_layers(layers, "ahead"), output.logits.new_zeros(())
            for number, peer in enumerate(peers):
                for layer, own in enumerate(output.stages):
                    adapter = self.adapters[start + number * layers + layer]
                    total = total + feature_error(adapter(own), peer.stages[pairs[layer]])
            losses["features"] = self.features * total / (len(peers) * layers)
        if self.auxiliary:
            found = self._shallow(batch.turn, output, batch)
            by_labels = torch.stack([label_loss(z, batch.labels) for z in found]).mean()
            losses["auxiliary"] = self.auxiliary * by_labels
        return losses

    def _shallow(self, turn: int, output: ModelOutput, batch: GraphBatch) -> list[Tensor]:
        """The logits of a student's auxiliary classifiers for the labelled nodes."""
        layers, student = len(output.stages), self.students[turn]
        own = list(self.classifiers)[turn * layers : (turn + 1) * layers]
        return [
            classifier(student.activation(stage[batch.nodes]))
            for classifier, stage in zip(own, output.stages, strict=True)
        ]

    def shallow_logits(self, output: ModelOutput, batch: GraphBatch) -> list[Tensor]:
        """The logits of the first student's auxiliary classifiers."""
        return self._shallow(0, output, batch) if self.auxiliary else []


def _some(peers: tuple[PeerKind, ...]) -> tuple[PeerKind, ...]:
    if not peers:
        raise InputError("method.peers: a student needs at least one peer; give one, as in [same]")
    return peers
