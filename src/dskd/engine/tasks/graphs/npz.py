"""Graphs in files of NumPy."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from dskd.engine.tasks.graphs.data import (
    Graph,
    GraphData,
    both_directions,
    check_graphs,
    one_graph,
    rows_sum_to_one,
    split_by_seed,
)
from dskd.engine.tasks.graphs.settings import GraphDataSettings
from dskd.errors import InputError, first_line, unknown

_SPARSE = tuple(f"feature_{part}" for part in ("data", "indices", "indptr", "shape"))
_SPLITS = ("train", "val", "test")
_ARRAYS = ("features", *_SPARSE, "edges", "labels", *_SPLITS, "unlabelled", "classes")
_UNREADABLE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    EOFError,
    AttributeError,
    ArithmeticError,
    MemoryError,
    RuntimeError,
    zipfile.BadZipFile,
)
"""What NumPy, SciPy and torch raise for files of any content."""


def read_npz(path: Path, settings: GraphDataSettings) -> GraphData:
    """One graph from a file of NumPy, without pickles.

    It has ``features`` ``[N, F]``, or a matrix in CSR form as ``feature_data``,
    ``feature_indices``, ``feature_indptr`` and ``feature_shape``; ``labels`` ``[N]``, or ``[N, K]``
    of 0 and 1; ``edges`` ``[E, 2]``, undirected; perhaps ``train``, ``val`` and ``test``, nodes of
    a split; and perhaps ``classes``, names. Nodes in ``unlabelled`` belong to no split, nor do
    those with the label -1.

    Args:
        path: The file.
        settings: How nodes are split if the file does not say so.

    Raises:
        InputError: The file is missing, is none of this kind, or a part has another name or does
            not fit.
    """
    arrays = _read_arrays(path, ("labels",))
    for name in arrays:
        if name not in _ARRAYS:
            raise unknown(f"array in {path}:", name, _ARRAYS)
    with _explaining(path):
        labels = _labels(np.asarray(arrays["labels"]), path)
        graph = make_graph(_features(arrays), _edges(arrays, path), labels, settings.normalize)
        count = labels.shape[1] if labels.dim() == 2 else int(labels.max()) + 1
        names = [str(name) for name in arrays["classes"].tolist()] if "classes" in arrays else None
        if names is not None and len(names) != count:
            raise InputError(f"{path} has {len(names)} names for {count} classes")
        if labels.dim() == 1 and count > max(len(graph), 2):
            raise InputError(f"{path}: the label {count - 1} is too large; count classes from 0")
        splits = _splits(arrays, graph, count, path, settings)
    data = one_graph(path.stem, graph, splits, names or [str(k) for k in range(count)])
    return replace(data, own_split="train" in arrays)


def read_unlabelled(path: Path, normalize: bool) -> Graph:
    """A graph from a file of the same form, of which only features and edges count.

    Args:
        path: The file.
        normalize: Whether the features of each node are divided by their sum.

    Raises:
        InputError: As for `read_npz`.
    """
    arrays = _read_arrays(path, ())
    with _explaining(path):
        features = _features(arrays)
        nodes = torch.zeros(len(features), dtype=torch.int64)
        graph = make_graph(features, _edges(arrays, path), nodes, normalize)
    data = one_graph(path.stem, graph, [torch.arange(len(graph))] * 3, ["any"])
    return check_graphs(data, str(path)).test.graphs[0]


@contextmanager
def _explaining(path: Path) -> Iterator[None]:
    """Says in one line that a file cannot be read: it may hold anything."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path} is not there; check the path") from None
    except _UNREADABLE as error:
        raise InputError(
            f"{path} is no graph that can be read ({first_line(error)}); docs/tasks/graphs.md "
            "lists what it needs"
        ) from error


def _read_arrays(path: Path, needed: tuple[str, ...]) -> dict[str, Any]:
    """The arrays of a file, which has edges, features and those that are needed."""
    with _explaining(path):
        content = np.load(path, allow_pickle=False)
        if not isinstance(content, np.lib.npyio.NpzFile):
            raise InputError(f"{path} is a single array; give an .npz file")
        with content:
            arrays = {name: content[name] for name in content.files}
    sparse = [name for name in _SPARSE if name in arrays]
    if "features" in arrays and sparse:
        raise InputError(f"{path} has both 'features' and {sparse[0]!r}; keep one form of them")
    features = "edges" if len(sparse) == len(_SPARSE) else "features"
    for name in ("edges", features, *needed):
        if name not in arrays:
            raise InputError(f"{path} has no {name!r}; docs/tasks/graphs.md lists all parts")
    return arrays


def _edges(arrays: Mapping[str, Any], path: Path) -> Tensor:
    edges = np.asarray(arrays["edges"])
    if edges.ndim != 2 or edges.shape[1] != 2 or edges.dtype.kind not in "iu":
        raise InputError(f"{path}: the edges must be whole numbers [E, 2]")
    if edges.size and int(edges.min()) < 0:
        raise InputError(f"{path}: an edge has a negative node")
    return both_directions(torch.from_numpy(edges.astype(np.int64)).t())


def _features(arrays: Mapping[str, Any]) -> Any:
    if "features" in arrays:
        dense = np.asarray(arrays["features"], np.float32)
    else:
        data, indices, indptr, shape = (arrays[name] for name in _SPARSE)
        sparse = scipy.sparse.csr_matrix((data, indices, indptr), tuple(shape.tolist()))
        dense = sparse.toarray().astype(np.float32)
    if dense.ndim != 2:
        raise InputError("the features of a graph must be numbers [N, F]")
    return dense


def _labels(labels: Any, path: Path) -> Tensor:
    if labels.ndim == 2 and np.isin(labels, (0, 1)).all():
        return torch.from_numpy(labels.astype(np.float32))
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not len(labels):
        raise InputError(f"{path}: the labels must be whole numbers [N], or 0 and 1 [N, K]")
    return torch.from_numpy(labels.astype(np.int64))


def _splits(
    arrays: Mapping[str, Any],
    graph: Graph,
    classes: int,
    path: Path,
    settings: GraphDataSettings,
) -> list[Tensor]:
    """The nodes of each split: those of the file, or drawn."""
    given = [name for name in _SPLITS if name in arrays]
    if given:
        if "train" not in given or "test" not in given:
            raise InputError(
                f"{path} has {given[0]!r} and needs both 'train' and 'test', or no split"
            )
        refuse(settings, ("split_seed", "train_per_class", "val_per_class"), "the file has a split")
        found = [_nodes(arrays.get(name, np.zeros(0, np.int64)), path) for name in _SPLITS]
        if len(set(torch.cat(found).tolist())) < sum(map(len, found)):
            raise InputError(f"{path}: a node is in two splits, or twice in one")
        if "unlabelled" in arrays:
            without = _nodes(arrays["unlabelled"], path)
            if bool(torch.isin(torch.cat(found), without).any()):
                raise InputError(
                    f"{path}: a node of 'unlabelled' is in a split; remove one of them"
                )
        return found
    if graph.labels.dim() == 2:
        raise InputError(
            f"{path} has several labels for each node and no split; add 'train' and 'test'"
        )
    known = graph.labels >= 0
    if "unlabelled" in arrays:
        known[_nodes(arrays["unlabelled"], path)] = False
    drawn = split_by_seed(
        graph.labels,
        classes,
        settings.seed_of_split,
        settings.train_per_class,
        settings.val_per_class,
        known.nonzero().flatten(),
    )
    return list(drawn)


def _nodes(values: Any, path: Path) -> Tensor:
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InputError(
            f"{path}: a split lists the numbers of its nodes, from 0; write a mask as "
            "mask.nonzero()[0]"
        )
    return torch.from_numpy(array.astype(np.int64))


def make_graph(features: Any, edges: Tensor, labels: Tensor, normalize: bool) -> Graph:
    """A graph with float32 features, which are divided by their sum at each node if asked for."""
    values = torch.from_numpy(np.asarray(features, np.float32))
    return Graph(rows_sum_to_one(values) if normalize else values, edges, labels)


def refuse(settings: GraphDataSettings, keys: tuple[str, ...], why: str) -> None:
    """Refuses settings of the data that do not apply.

    Args:
        settings: Of the data.
        keys: The settings.
        why: Says why, in the message.

    Raises:
        InputError: One is not the default.
    """
    for key in keys:
        if not settings.is_default(key):
            raise InputError(f"data.{key} does not apply to {settings.name}: {why}; drop it")
