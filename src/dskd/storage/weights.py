"""Read and write files of weights. Nothing in a file that is read is ever executed."""

from __future__ import annotations

import argparse
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from dskd.errors import InputError, brief, first_line, option

_WRAPPERS = ("model", "state_dict", "student")
_PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile
_COUNTERS = ".num_batches_tracked"


def _safe_types() -> list[Any]:
    """Types that training scripts store along with tensors and that are harmless to rebuild."""
    scalar = np.float64().__reduce__()[0]  # where it lives depends on NumPy's version
    types = ["float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool"]
    return [
        argparse.Namespace,
        np.dtype,
        (scalar, "numpy.core.multiarray.scalar"),  # written by NumPy 1
        (scalar, "numpy._core.multiarray.scalar"),  # written by NumPy 2
        *{type(np.dtype(name)) for name in types},
    ]


def read_weights(path: Path) -> dict[str, Tensor]:
    """Reads the state_dict of a checkpoint.

    The file is a ``.safetensors`` file or was written by ``torch.save``. The state_dict may lie
    under the key ``model``, ``state_dict`` or ``student``. Apart from tensors and plain
    containers, only argparse.Namespace and NumPy scalars are allowed. Prefixes of DataParallel
    and torch.compile are left in the keys; `load_weights` removes them.

    Args:
        path: The file.

    Returns:
        The tensors by the keys of the file.

    Raises:
        InputError: The file is missing, damaged, holds other objects, or holds no state_dict.
    """
    if not path.is_file():
        raise InputError(f"there is no checkpoint file {path}; check the path")
    content = _safetensors(path) if path.suffix == ".safetensors" else _torch(path)
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not content:
        raise InputError(
            f"{path} holds no state_dict, but {type(content).__name__} {brief(content)}"
        )
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise InputError(
                f"{path} holds no state_dict: {brief(key)} is {type(value).__name__}, "
                f"not a tensor; known forms: bare, or under {', '.join(_WRAPPERS)}"
            )
    return dict(content)


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"cannot read the checkpoint {path}: {error}") from None


def _torch(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_safe_types()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = [line.strip() for line in str(error).splitlines() if "GLOBAL" in line]
        raise InputError(
            f"{path} is not a file of plain weights and is not opened "
            f"({named[0] if named else 'damaged, or unsafe'}); save the state_dict() alone"
        ) from None
    except Exception as error:  # a damaged file can make the reader raise almost anything
        raise InputError(f"cannot read the checkpoint {path}: {first_line(error)}") from None


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], what: str) -> None:
    """Loads weights into a model. Keys and shapes must match.

    Args:
        model: The model. If the weights do not fit, it is unchanged.
        weights: As `read_weights` returns them.
        what: Names the weights in an error, as in ``"teacher checkpoint t.pth"``.

    Raises:
        InputError: A key is missing or left over, or a shape differs.
    """
    model.load_state_dict(dict(fitting(model, weights, what)))


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
    weights = _without_prefixes(weights, own)
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


def _without_prefixes(
    weights: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    """Removes the prefixes that DataParallel and torch.compile add to every key."""
    while not weights.keys() & own.keys():
        prefix = next((p for p in _PREFIXES if all(k.startswith(p) for k in weights)), None)
        if prefix is None:
            break
        weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    return weights


def _last_matrix(state: Mapping[str, Tensor]) -> str | None:
    """The key of the last matrix, which is usually the classifier's weight."""
    return next((key for key in reversed(list(state)) if state[key].dim() == 2), None)


def write_weights(model: nn.Module, metadata: Mapping[str, Any]) -> bytes:
    """Builds a safetensors file with a model's weights and metadata.

    Args:
        model: The deployed model.
        metadata: Plain values, stored as JSON under the key ``dskd`` of the file's metadata.

    Returns:
        The content of the file.
    """
    tensors = {
        key: value.detach().cpu().contiguous().clone() for key, value in model.state_dict().items()
    }
    return safetensors.torch.save(tensors, {"dskd": json.dumps(metadata, sort_keys=True)})


def read_metadata(path: Path) -> dict[str, Any]:
    """Reads the metadata that `write_weights` stored in a file.

    Args:
        path: The file.

    Raises:
        InputError: The file is missing, damaged, or not written by this package.
    """
    if not path.is_file():
        raise InputError(
            f"there is no {path}; has the run finished? continue it with {option('resume')}"
        )
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata: dict[str, Any] = json.loads((file.metadata() or {})["dskd"])
    except (safetensors.SafetensorError, KeyError, ValueError, OSError, RecursionError) as error:
        raise InputError(f"{path} was not written by dskd or is damaged: {error}") from None
    if not isinstance(metadata, dict):
        raise InputError(f"{path} was not written by dskd or is damaged: {brief(metadata)}")
    return metadata
