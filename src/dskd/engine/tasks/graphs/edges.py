"""The edges of a graph, and the sparse matrices that layers and losses make of them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


class Edges:
    """Directed edges between the nodes of a graph.

    The matrices are made when they are first needed, and kept: a graph that is trained on at every
    step makes them once.

    Args:
        pairs: int64 ``[2, E]``, from row 0 to row 1.
        nodes: N, the number of nodes.

    Attributes:
        pairs: As given.
        nodes: As given.

    Example:
        >>> edges = Edges(torch.tensor([[0, 1], [2, 2]]), nodes=3)
        >>> edges.differences.times(torch.tensor([[5.0], [3.0], [1.0]]))
        tensor([[4.],
                [2.]])
    """

    _parts: tuple[Edges, ...] = ()

    def __init__(self, pairs: Tensor, nodes: int) -> None:
        self.pairs, self.nodes = pairs, nodes

    @classmethod
    def of(cls, edges: Tensor | Edges, nodes: int) -> Edges:
        """Edges that may be given as a tensor ``[2, E]``."""
        return edges if isinstance(edges, Edges) else cls(edges, nodes)

    @classmethod
    def joined(cls, parts: Sequence[Edges]) -> Edges:
        """The edges of several graphs, as those of one graph with all their nodes in order."""
        if len(parts) == 1:
            return parts[0]
        pairs, nodes = [], 0
        for part in parts:
            pairs.append(part.pairs + nodes)
            nodes += part.nodes
        edges = cls(torch.cat(pairs, 1), nodes)
        edges._parts = tuple(parts)
        return edges

    @cached_property
    def normalized(self) -> SparseMatrix:
        """``D^-1/2 (A + I) D^-1/2``, ``[N, N]``, where an edge u -> v makes ``A[v, u] = 1``.

        D holds the sums of the rows of A + I. A node that has an edge to itself gets no other one.

        Source: Kipf and Welling, Semi-Supervised Classification with Graph Convolutional Networks,
        ICLR 2017.
        """
        if self._parts:
            return SparseMatrix.diagonal([part.normalized for part in self._parts])
        own = torch.arange(self.nodes, device=self.pairs.device)
        source, target = self.pairs
        alone = own[~torch.isin(own, source[source == target])]
        source, target = torch.cat([source, alone]), torch.cat([target, alone])
        scale = torch.bincount(target, minlength=self.nodes).float().rsqrt()
        values = scale[target] * scale[source]
        return SparseMatrix.of(target, source, values, (self.nodes, self.nodes))

    @cached_property
    def differences(self) -> SparseMatrix:
        """``[E, N]``: times features, it gives ``h_u - h_v`` for each edge u -> v."""
        if self._parts:
            return SparseMatrix.diagonal([part.differences for part in self._parts])
        source, target = self.pairs
        (edge,) = (source != target).nonzero(as_tuple=True)  # elsewhere the difference is 0
        ends = torch.cat([source[edge], target[edge]])
        one = torch.ones(len(edge), device=source.device)
        signs, shape = torch.cat([one, -one]), (len(source), self.nodes)
        return SparseMatrix.of(torch.cat([edge, edge]), ends, signs, shape)


class SparseMatrix:
    """A constant sparse matrix M and its transpose, both by rows.

    torch's own product transposes the matrix in every backward pass, which takes most of its time.

    Args:
        matrix: M, as a sparse CSR tensor.
        transposed: Its transpose, as another one.
    """

    def __init__(self, matrix: Tensor, transposed: Tensor) -> None:
        self._matrix, self._transposed = matrix, transposed

    @classmethod
    def of(
        cls, rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]
    ) -> SparseMatrix:
        """The matrix with these entries; those at the same place are added.

        Args:
            rows: int64 ``[n]``.
            columns: int64 ``[n]``.
            values: float32 ``[n]``.
            shape: Of the matrix.
        """
        transposed = _by_rows(columns, rows, values, (shape[1], shape[0]))
        return cls(_by_rows(rows, columns, values, shape), transposed)

    @classmethod
    def diagonal(cls, blocks: Sequence[SparseMatrix]) -> SparseMatrix:
        """The matrix with these blocks on its diagonal, and zeros elsewhere."""
        return cls(
            _diagonal([block._matrix for block in blocks]),
            _diagonal([block._transposed for block in blocks]),
        )

    def times(self, dense: Tensor) -> Tensor:
        """``M x`` for a dense x; gradients flow to x."""
        product: Tensor = _Product.apply(dense, self._matrix, self._transposed)
        return product


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dense: Tensor, matrix: Tensor, transposed: Tensor) -> Tensor:
        ctx.transposed = transposed
        return matrix @ dense

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return ctx.transposed @ gradients[0].contiguous(), None, None


def _by_rows(rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    order = torch.argsort(rows * shape[1] + columns)
    ends = torch.bincount(rows, minlength=shape[0]).cumsum(0)
    return _csr(torch.cat([ends.new_zeros(1), ends]), columns[order], values[order], shape)


def _diagonal(blocks: Sequence[Tensor]) -> Tensor:
    starts, columns, height, width, entries = [], [], 0, 0, 0
    for block in blocks:
        starts.append(block.crow_indices()[:-1] + entries)
        columns.append(block.col_indices() + width)
        height, width = height + block.shape[0], width + block.shape[1]
        entries += len(columns[-1])
    starts.append(starts[0].new_tensor([entries]))
    values = torch.cat([block.values() for block in blocks])
    return _csr(torch.cat(starts), torch.cat(columns), values, (height, width))


def _csr(starts: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    with warnings.catch_warnings():  # that such tensors are in beta, and not checked by default
        warnings.simplefilter("ignore", UserWarning)
        return torch.sparse_csr_tensor(starts, columns, values, shape)
