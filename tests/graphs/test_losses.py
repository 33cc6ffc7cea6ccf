"""Facts of Alignahead, computed by hand on graphs of three and four nodes."""

from __future__ import annotations

import math

import pytest
import torch

from dskd.engine.tasks.graphs.losses import (
    alignment,
    as_two_classes,
    feature_error,
    label_loss,
    local_structure,
    paired_layers,
    structure_loss,
)

EDGES = torch.tensor([[0, 1, 3], [2, 2, 0]])
"""0 -> 2, 1 -> 2, 3 -> 0; no edge comes into 1 or 3."""


def test_the_local_structure_is_a_softmax_over_the_edges_into_a_node() -> None:
    features = torch.tensor([[0.0, 0.0], [50.0, -50.0], [100.0, 0.0], [0.0, 10.0]])
    # L1 distances: |h0 - h2| = 100, |h1 - h2| = 100, |h3 - h0| = 10.
    e = [math.exp(-1), math.exp(-1), math.exp(-0.1)]
    first = math.exp(e[0]) / (math.exp(e[0]) + math.exp(e[1]))
    assert local_structure(features, EDGES).exp().tolist() == pytest.approx([first, 1 - first, 1.0])
    features[1] = features[2]  # now e = exp(-1) and exp(0)
    first = math.exp(math.exp(-1)) / (math.exp(math.exp(-1)) + math.e)
    assert local_structure(features, EDGES).exp().tolist() == pytest.approx([first, 1 - first, 1.0])


def test_the_alignment_is_the_mean_over_all_nodes() -> None:
    own = torch.tensor([0.25, 0.75, 1.0]).log()
    peer = torch.tensor([0.5, 0.5, 1.0]).log()
    by_hand = (0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)) / 4
    assert alignment(own, peer, 4).item() == pytest.approx(by_hand)
    assert alignment(peer, peer, 4).item() == 0


def test_layers_are_aligned_with_the_layer_before() -> None:
    assert paired_layers(3, "ahead") == [2, 0, 1]
    torch.manual_seed(0)
    own, peer = ([30 * torch.randn(4, 2) for _ in range(3)] for _ in range(2))
    by_hand = sum(
        alignment(local_structure(own[mine], EDGES), local_structure(peer[its], EDGES), 4)
        for mine, its in ((0, 2), (1, 0), (2, 1))
    )
    found = structure_loss(own, [peer], EDGES, "ahead")
    torch.testing.assert_close(found, torch.as_tensor(by_hand))
    torch.testing.assert_close(
        structure_loss(own, [peer, own[-1:] + own[:-1]], EDGES, "same"),
        structure_loss(own, [peer], EDGES, "same") / 2
        + structure_loss(own, [own[-1:] + own[:-1]], EDGES, "same") / 2,
    )


def test_no_gradient_reaches_a_peer() -> None:
    torch.manual_seed(0)
    own = [(30 * torch.randn(4, 2)).requires_grad_() for _ in range(2)]
    peer = [(30 * torch.randn(4, 2)).requires_grad_() for _ in range(2)]
    loss = structure_loss(own, [peer], EDGES, "ahead") + feature_error(own[0], peer[0])
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(bool(layer.grad.abs().sum() > 0) for layer in own if layer.grad is not None)
    assert [layer.grad for layer in peer] == [None, None]


def test_several_labels_are_choices_between_two_classes() -> None:
    logits, labels = torch.tensor([[1.0, -2.0]]), torch.tensor([[1.0, 0.0]])
    by_two = label_loss(as_two_classes(logits), labels.flatten().long())
    torch.testing.assert_close(label_loss(logits, labels), by_two)
