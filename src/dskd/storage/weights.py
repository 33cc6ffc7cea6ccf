"""Read and write files of weights. Nothing in a file that is read is ever executed."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from dskd.errors import InputError, brief
from dskd.storage.checkpoint_reader import read_content
from dskd.storage.state_dicts import find_state, match_keys

METADATA = "dskd"
"""Key of a file's metadata: what `write_weights` was given, as JSON."""
_COUNTERS = ".num_batches_tracked"


def read_weights(path: Path, key: str | None = None) -> dict[str, Tensor]:
    """Reads the state_dict of a checkpoint.

    The file may be one of safetensors or of ``torch.save``, and the state_dict may lie under a key
    (see `dskd.storage.state_dicts.find_state`). Prefixes are left in the keys; `load_weights`
    removes them.

    Args:
        path: The file.
        key: Where the weights are in the file; None finds them.

    Returns:
        The tensors by the keys of the file.

    Raises:
        InputError: The file is missing, damaged, holds other objects, or holds no state_dict.
    """
    return find_state(read_content(path), key, path)


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], what: str) -> None:
    """Loads weights into a model. Keys and shapes must match.

    Args:
        model: The model. If the weights do not fit, it is unchanged.
        weights: As `read_weights` returns them.
        what: Names the weights in an error, as in ``"teacher checkpoint t.pth"``.

    Raises:
        InputError: A key is missing or left over, or a shape differs.
    """
    own = model.state_dict()
    counters = {k: torch.zeros_like(v) for k, v in own.items() if k.endswith(_COUNTERS)}
    state = OrderedDict({**counters, **fitting(model, weights, what)})
    # Files of weights lack the versions of the layers, and torchvision's MNASNet needs its own.
    state._metadata = getattr(own, "_metadata", {})  # type: ignore[attr-defined]
    model.load_state_dict(state)


def fitting(model: nn.Module, weights: Mapping[str, Tensor], what: str) -> Mapping[str, Tensor]:
    """Matches weights with a model's keys, as `load_weights` does, without loading them.

    Args:
        model: The model; it is not changed.
        weights: As `read_weights` returns them.
        what: Names the weights in an error.

    Returns:
        The weights by the keys of the model.

    Raises:
        InputError: As `load_weights`.
    """
    own = model.state_dict()
    of_file = weights
    weights = match_keys(weights, model, what)
    # Before PyTorch 0.4.1, BatchNorm did not count batches; load_state_dict then starts at 0.
    required = {key for key in own if not key.endswith(_COUNTERS)}
    missing, left = sorted(required - weights.keys()), sorted(weights.keys() - own.keys())
    if missing or left:
        raise InputError(
            f"{what} does not fit {type(model).__name__}: "
            + "; ".join(
                f"{len(keys)} keys {word}, such as {keys[0]!r}"
                for word, keys in (("missing", missing), ("left over", left))
                if keys
            )
            + _other_names(of_file, own)
        )
    for key, tensor in weights.items():
        found, expected = list(tensor.shape), list(own[key].shape)
        if found != expected:
            classes = ""
            if key == _last_matrix(own) and found[1:] == expected[1:]:
                classes = f" ({found[0]} classes there, {expected[0]} here)"
            raise InputError(
                f"{what} does not fit {type(model).__name__}: {key} is {found} "
                f"in the file, {expected} in the model{classes}"
            )
    return weights


def _other_names(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """Names the first parts of the file's keys, if the model has none of them."""
    there = list(dict.fromkeys(key.split(".")[0] for key in weights))
    here = list(dict.fromkeys(key.split(".")[0] for key in own))
    if set(there) & set(here):
        return ""
    return (
        f"; the file's keys begin with {', '.join(there[:4])}, the model's with "
        f"{', '.join(here[:4])}"
    )


def _last_matrix(state: Mapping[str, Tensor]) -> str | None:
    """The key of the last matrix, which is usually the classifier's weight."""
    return next((key for key in reversed(list(state)) if state[key].dim() == 2), None)


def write_weights(
    model: nn.Module, metadata: Mapping[str, Any], more: Mapping[str, str] | None = None
) -> bytes:
    """Builds a safetensors file with a model's weights and metadata.

    Args:
        model: The deployed model.
        metadata: Plain values, stored as JSON under the key ``dskd`` of the file's metadata.
        more: Further entries of the file's metadata.

    Returns:
        The content of the file.
    """
    tensors = {
        key: value.detach().cpu().contiguous().clone() for key, value in model.state_dict().items()
    }
    entries = {METADATA: json.dumps(metadata, sort_keys=True), **(more or {})}
    return safetensors.torch.save(tensors, entries)


def read_metadata(path: Path) -> dict[str, Any]:
    """Reads the metadata that `write_weights` stored in a file.

    Args:
        path: The file.

    Raises:
        InputError: The file is missing, damaged, or not written by this package.
    """
    if not path.is_file():
        raise InputError(f"there is no {path}; check the path")
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata: dict[str, Any] = json.loads((file.metadata() or {})[METADATA])
    except (safetensors.SafetensorError, KeyError, ValueError, OSError, RecursionError) as error:
        raise InputError(f"{path} was not written by dskd or is damaged: {error}") from None
    if not isinstance(metadata, dict):
        raise InputError(f"{path} was not written by dskd or is damaged: {brief(metadata)}")
    return metadata
