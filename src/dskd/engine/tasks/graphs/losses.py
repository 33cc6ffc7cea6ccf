"""The losses of learning on graphs: pure functions of node features and edges.

Shapes: ``N`` nodes, ``D`` features of a hidden layer, ``E`` directed edges: a tensor ``[2, E]``
from row 0 to row 1, or `Edges`, which keep what is computed from them.

Source: Alignahead: Guo, Chen, Wang, Alignahead: Online Cross-Layer Knowledge Extraction on Graph
Neural Networks, IJCNN 2022, arXiv 2205.02468. The local structure and the alignment are those of
its public code. Each function says what is *our choice*.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dskd.engine.tasks.graphs.edges import Edges
from dskd.losses.precision import in_full_precision

SCALE = 100.0
"""Divides the distance of two nodes, as in the public code."""
Pairing = Literal["same", "ahead"]
"""Which layer of a peer a layer is aligned with."""


@in_full_precision
def local_structure(features: Tensor, edges: Tensor | Edges) -> Tensor:
    r"""How similar each node is to the neighbours whose edges come into it.

    For each edge ``u -> v``::

        e_uv = exp(-|h_u - h_v|_1 / 100)
        p_uv = exp(e_uv) / sum_u' exp(e_u'v),   over the edges u' -> v

    Source: the public code of Alignahead (see the module).

    Args:
        features: h, ``[N, D]``, the output of a hidden layer before its activation.
        edges: int64, ``[2, E]``, or `Edges`.

    Returns:
        log p, ``[E]``.

    Example:
        >>> h = torch.tensor([[0.0], [100.0], [0.0]])
        >>> local_structure(h, torch.tensor([[0, 1], [2, 2]])).exp()  # e = 1 and 1/e
        tensor([0.6530, 0.3470])
    """
    edges = Edges.of(edges, len(features))
    target = edges.pairs[1]
    similarity = (-edges.differences.times(features).abs().sum(1) / SCALE).exp()
    # e is at most 1, so its exponential needs no shift.
    sums = similarity.new_zeros(len(features)).index_add(0, target, similarity.exp())
    return similarity - sums.clamp_min(1e-30).log()[target]


@in_full_precision
def alignment(own: Tensor, peer: Tensor, nodes: int) -> Tensor:
    """The divergence of two local structures: ``mean_v sum_u p_peer (log p_peer - log p_own)``.

    Source: the public code of Alignahead. That a node without incoming edges counts as 0 in the
    mean is *our choice*.

    Args:
        own: log p of the layer that learns, ``[E]``.
        peer: log p of the peer's layer, ``[E]``, without gradient.
        nodes: N.

    Example:
        >>> p = torch.tensor([0.5, 0.5])  # of two edges into one of three nodes
        >>> round(alignment(torch.tensor([0.25, 0.75]).log(), p.log(), 3).item(), 4)
        0.0479
    """
    peer = peer.detach()
    per_edge = peer.exp() * (peer - own)
    return per_edge.sum() / nodes


def paired_layers(layers: int, pairing: Pairing) -> list[int]:
    """For each hidden layer, the peer's layer that it is aligned with.

    ``ahead``: layer l + 1 learns from the peer's layer l, and layer 0 from the peer's last, so that
    in each round a layer is one step ahead of the knowledge that it gets. ``same``: one to one.

    Example:
        >>> paired_layers(4, "ahead"), paired_layers(4, "same")
        ([3, 0, 1, 2], [0, 1, 2, 3])
    """
    return [(layer - 1) % layers if pairing == "ahead" else layer for layer in range(layers)]


def structure_loss(
    own: Sequence[Tensor],
    peers: Sequence[Sequence[Tensor]],
    edges: Tensor | Edges,
    pairing: Pairing,
) -> Tensor:
    """The alignment with all peers: a sum over the layers, averaged over the peers.

    Args:
        own: Hidden layers of the student that learns, each ``[N, D]``.
        peers: Those of each peer. Their widths may differ, their number must not.
        edges: int64, ``[2, E]``, or `Edges`.
        pairing: See `paired_layers`.

    Returns:
        A scalar.
    """
    edges = Edges.of(edges, len(own[0]))
    structures = [local_structure(layer, edges) for layer in own]
    pairs = paired_layers(len(own), pairing)
    nodes = len(own[0])
    total = structures[0].new_zeros(())
    for peer in peers:
        with torch.no_grad():
            theirs = [local_structure(layer, edges) for layer in peer]
        for mine, index in zip(structures, pairs, strict=True):
            total = total + alignment(mine, theirs[index], nodes)
    return total / len(peers)


@in_full_precision
def relative_feature_error(adapted: Tensor, target: Tensor) -> Tensor:
    """The relative squared error of adapted features: ``MSE(A(h), h_t) / mean(h_t^2)``.

    Source: *our choice*, as for the maps of DSKD.

    Args:
        adapted: ``[N, D]``.
        target: ``[N, D]``, of the teacher.

    Example:
        >>> relative_feature_error(torch.zeros(2, 3), torch.full((2, 3), 2.0))
        tensor(1.)
    """
    return feature_error(adapted, target) / target.detach().square().mean().clamp_min(1e-12)


@in_full_precision
def feature_error(adapted: Tensor, target: Tensor) -> Tensor:
    """The squared error of features that a peer transfers: ``MSE(A(h), h_peer)``.

    It is not relative: two students that both learn change the scale of each other's target, and
    hardly learned with the relative error (docs/tasks/graphs.md).

    Source: *our choice*. Of Alignahead++ (arXiv 2210.13743) we know the abstract alone, which says
    that features are transferred between layers.

    Args:
        adapted: ``[N, D]``.
        target: ``[N, D]``, of the peer, without gradient.

    Example:
        >>> feature_error(torch.zeros(2, 3), torch.full((2, 3), 2.0))
        tensor(4.)
    """
    return F.mse_loss(adapted, target.detach())


@in_full_precision
def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The loss of the labels: cross-entropy, or binary cross-entropy with several labels a node.

    Args:
        logits: ``[B, K]``.
        labels: int64 ``[B]``, or float32 ``[B, K]`` of 0 and 1.

    Example:
        >>> label_loss(torch.zeros(2, 2), torch.tensor([0, 1]))
        tensor(0.6931)
    """
    if labels.dim() == 2:
        return F.binary_cross_entropy_with_logits(logits, labels)
    return F.cross_entropy(logits, labels)


def as_two_classes(logits: Tensor) -> Tensor:
    """Logits of independent labels as logits of two classes each: ``[B, K]`` to ``[B K, 2]``.

    The softmax over 0 and z is the sigmoid of z, so that losses between class probabilities apply.

    Example:
        >>> as_two_classes(torch.tensor([[1.0, 2.0]]))
        tensor([[0., 1.],
                [0., 2.]])
    """
    flat = logits.reshape(-1)
    return torch.stack([torch.zeros_like(flat), flat], 1)
