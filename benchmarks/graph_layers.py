"""Times products over the edges of a graph: ``python benchmarks/graph_layers.py GRAPH.npz``.

A GCN layer and the local structure of Alignahead take a forward and a backward pass, edge by edge
and as the sparse products of this package, in turns, on one thread. Prints the least CPU time of
each as a Markdown table.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import torch
from torch import Tensor
from torch_geometric.nn import GCNConv
from torch_geometric.utils import softmax

from dskd.engine.tasks.graphs.edges import Edges
from dskd.engine.tasks.graphs.losses import SCALE, local_structure
from dskd.engine.tasks.graphs.settings import GraphDataSettings
from dskd.engine.tasks.graphs.sources import load_graphs

FEATURES = 16
ROUNDS = 7


def cases(edges: Edges) -> dict[str, dict[str, Callable[[Tensor], Tensor]]]:
    """What is timed, by edge and as a product. Each takes the features of all nodes."""
    pairs, nodes = edges.pairs, edges.nodes
    layer = GCNConv(FEATURES, FEATURES, cached=True)

    def by_edges(features: Tensor) -> Tensor:
        distance = (features[pairs[0]] - features[pairs[1]]).abs().sum(1)
        structure: Tensor = softmax((-distance / SCALE).exp(), pairs[1], num_nodes=nodes)
        return structure.log()

    return {
        "a layer of gcn": {
            "by edges": lambda features: layer(features, pairs),
            "product": lambda features: edges.normalized.times(layer.lin(features)) + layer.bias,
        },
        "local structure": {
            "by edges": by_edges,
            "product": lambda features: local_structure(features, edges),
        },
    }


def seconds(work: Callable[[Tensor], Tensor], features: Tensor) -> float:
    """CPU time of a forward and a backward pass."""
    start = time.process_time()
    torch.autograd.backward(work(features).sum())
    return time.process_time() - start


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("graph", type=Path)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    settings = GraphDataSettings(name="npz", root=str(parser.parse_args().graph))
    graph = load_graphs(settings).train.graphs[0]
    edges = Edges.of(graph.edges, len(graph.features))
    features = torch.randn(edges.nodes, FEATURES, requires_grad=True)
    print(f"{edges.nodes:,} nodes, {edges.pairs.shape[1]:,} edges, {FEATURES} features\n")
    print("| | by edges, ms | product, ms |\n|---|---:|---:|")
    for name, works in cases(edges).items():
        times: dict[str, list[float]] = {kind: [] for kind in works}
        for number, kind in product(range(1 + ROUNDS), works):
            taken = seconds(works[kind], features)
            if number:  # the first pass makes the matrices
                times[kind].append(taken)
        print(f"| {name} |", " | ".join(f"{1000 * min(times[kind]):.0f}" for kind in works), "|")


if __name__ == "__main__":
    main()
