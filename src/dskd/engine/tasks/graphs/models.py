"""Graph networks by the layers of PyTorch Geometric: GCN, GAT and GraphSAGE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dskd.engine.tasks.graphs.edges import Edges
from dskd.engine.tasks.graphs.pyg import pyg
from dskd.engine.tasks.graphs.settings import Architecture, GraphModelSettings
from dskd.models.output import ModelOutput

LAYERS = {"gcn": 2, "gat": 4, "sage": 2}
"""Hidden layers by default."""


@dataclass(frozen=True)
class Shape:
    """What a graph network is built for.

    Attributes:
        features: F, the number of features of a node.
        classes: K, the number of classes.
    """

    features: int
    classes: int


class GraphNet(nn.Module):
    """A graph network: hidden layers with an activation between them, and an output layer.

    ``gcn`` and ``sage`` have ReLU. ``gat`` has ELU, attention heads that are concatenated in hidden
    layers and averaged in the output layer, and residual connections in all layers but the first.

    Source: the form of the GAT (4 hidden layers, 3 heads of 64 features, residual, ELU, averaged
    output) is that of Alignahead's public code. Its layers are those of PyTorch Geometric, which
    is *our choice*: they add an edge from each node to itself, and a residual connection is a
    learned linear map. The others are the plain layers of PyTorch Geometric (Kipf and Welling,
    ICLR 2017; Hamilton et al., NeurIPS 2017), which is *our choice*, too.

    Args:
        settings: Of the model.
        shape: What it is built for.
        layers: Hidden layers; None takes the setting.

    Attributes:
        name: The architecture.
        widths: Features of each hidden layer.
        shape: What it was built for.
    """

    def __init__(
        self, settings: GraphModelSettings, shape: Shape, layers: int | None = None
    ) -> None:
        super().__init__()
        self.name, self.shape, self.dropout = settings.name, shape, settings.dropout
        count = layers or hidden_layers(settings)
        heads = settings.heads if settings.name == "gat" else 1
        self.widths = (settings.hidden * heads,) * count
        inputs = (shape.features, *self.widths[:-1])
        convolutions = [
            _layer(settings, width, settings.hidden, hidden=True, residual=bool(index))
            for index, width in enumerate(inputs)
        ]
        last = _layer(settings, self.widths[-1], shape.classes, hidden=False, residual=True)
        convolutions.append(last)
        self.convolutions = nn.ModuleList(convolutions)

    def forward(self, features: Tensor, edges: Tensor | Edges) -> ModelOutput:
        """Logits of all nodes, and the outputs of the hidden layers before their activation.

        Args:
            features: float32 ``[N, F]``.
            edges: int64 ``[2, E]``, or `Edges`, which keep what the layers compute from them.
        """
        stages = []
        edges = Edges.of(edges, len(features))
        *hidden, last = self.convolutions
        for layer in hidden:
            before = self._convolved(layer, features, edges)
            stages.append(before)
            features = self.activation(before)
        return ModelOutput(self._convolved(last, features, edges), tuple(stages), None)

    def _convolved(self, layer: Any, features: Tensor, edges: Edges) -> Tensor:
        """The output of a layer, after dropout of its input."""
        features = F.dropout(features, self.dropout, self.training)
        if self.name != "gcn":
            found: Tensor = layer(features, edges.pairs)
        else:
            # The layer's own forward pass gathers and adds edge by edge, which takes ten times as
            # long as this product on a graph with 490,000 edges (benchmarks/graph_layers.py).
            found = edges.normalized.times(layer.lin(features)) + layer.bias
        return found

    def activation(self, before: Tensor) -> Tensor:
        """The activation of hidden layers."""
        return F.elu(before) if self.name == "gat" else F.relu(before)


def hidden_layers(settings: GraphModelSettings) -> int:
    """How many hidden layers a model has."""
    return settings.layers or LAYERS[settings.name]


def _layer(
    settings: GraphModelSettings, width: int, out: int, *, hidden: bool, residual: bool
) -> nn.Module:
    """A layer; ``hidden`` and ``residual`` change a ``gat`` only."""
    nets = pyg("nn")
    layer: nn.Module
    if settings.name == "gat":
        heads = settings.heads
        layer = nets.GATConv(width, out, heads=heads, concat=hidden, residual=residual)
    elif settings.name == "gcn":
        layer = nets.GCNConv(width, out, normalize=False)  # see GraphNet._convolved
    else:
        layer = nets.SAGEConv(width, out)
    return layer


def build_net(
    settings: GraphModelSettings, shape: Shape, seed: int, layers: int | None = None
) -> GraphNet:
    """A network with weights from the seed.

    Args:
        settings: Of the model.
        shape: What it is built for.
        seed: Of the weights.
        layers: Hidden layers; None takes the setting.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GraphNet(settings, shape, layers)


def other_architecture(settings: GraphModelSettings, name: Architecture) -> GraphModelSettings:
    """The settings of a model with another architecture."""
    return settings.model_copy(update={"name": name})
