"""Weights from files of strangers: read without running anything that is in them."""

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

from dskd.errors import InputError, brief, first_line

_WRAPPERS = ("model", "state_dict", "student")
_PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile
_COUNTERS = ".num_batches_tracked"


def _admitted() -> list[Any]:
    """What training scripts of the field store beside tensors, harmless to rebuild."""
    scalar = np.float64().__reduce__()[0]  # where it lives depends on NumPy's version
    kinds = ["float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool"]
    return [
        argparse.Namespace,
        np.dtype,
        (scalar, "numpy.core.multiarray.scalar"),  # written by NumPy 1
        (scalar, "numpy._core.multiarray.scalar"),  # written by NumPy 2
        *{type(np.dtype(kind)) for kind in kinds},
    ]


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, by the model's own keys.

    A ``.safetensors`` file, or one written by ``torch.save``: a bare state_dict, or one under the
    key ``model``, ``state_dict`` or ``student``, with or without the ``module.`` of DataParallel
    or the ``_orig_mod.`` of torch.compile before all keys.
    Beside tensors and plain containers, only argparse.Namespace and NumPy scalars are admitted.

    Args:
        path: The file.

    Raises:
        InputError: The file is missing, damaged, holds other objects, or no state_dict.
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
        with torch.serialization.safe_globals(_admitted()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        telling = [line.strip() for line in str(error).splitlines() if "GLOBAL" in line]
        raise InputError(
            f"{path} is no file of plain weights and is not opened "
            f"({telling[0] if telling else 'damaged, or unsafe'}); save the state_dict() alone"
        ) from None
    except Exception as error:  # a mangled file makes the reader raise nearly anything
        raise InputError(f"cannot read the checkpoint {path}: {first_line(error)}") from None


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], what: str) -> None:
    """Loads weights strictly.

    Args:
        model: Whose keys and shapes the weights must have.
        weights: As `read_weights` gives them.
        what: Names the weights in an error, as in ``"teacher checkpoint t.pth"``.

    Raises:
        InputError: A key is missing or left over, or a shape differs: both are named.
    """
    model.load_state_dict(dict(fitting(model, weights, what)))


def fitting(model: nn.Module, weights: Mapping[str, Tensor], what: str) -> Mapping[str, Tensor]:
    """The weights by the model's keys, as `load_weights` loads them; the model is only looked at.

    Raises:
        InputError: As `load_weights`.
    """
    own = model.state_dict()
    weights = _without_prefixes(weights, own)
    # Before PyTorch 0.4.1 BatchNorm did not count its batches; load_state_dict then starts at 0.
    needed = {key for key in own if not key.endswith(_COUNTERS)}
    missing, left = sorted(needed - weights.keys()), sorted(weights.keys() - own.keys())
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
        theirs, ours = list(tensor.shape), list(own[key].shape)
        if theirs != ours:
            classes = ""
            if key == _last_matrix(own) and theirs[1:] == ours[1:]:
                classes = f" ({theirs[0]} classes there, {ours[0]} here)"
            raise InputError(
                f"{what} does not fit {type(model).__name__}: {key} is {theirs} "
                f"in the file, {ours} in the model{classes}"
            )
    return weights


def _without_prefixes(
    weights: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    """The weights without what DataParallel and torch.compile put before every key."""
    while not weights.keys() & own.keys():
        prefix = next((p for p in _PREFIXES if all(k.startswith(p) for k in weights)), None)
        if prefix is None:
            break
        weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    return weights


def _last_matrix(state: Mapping[str, Tensor]) -> str | None:
    """The key of the classifier's weight, as far as shapes can tell."""
    return next((key for key in reversed(list(state)) if state[key].dim() == 2), None)


def write_weights(model: nn.Module, metadata: Mapping[str, Any]) -> bytes:
    """A safetensors file of the model's own keys, and what is needed to build and feed it.

    Args:
        model: The deployed model.
        metadata: Plain values, kept as JSON under the file's key ``dskd``.
    """
    tensors = {
        key: value.detach().cpu().contiguous().clone() for key, value in model.state_dict().items()
    }
    return safetensors.torch.save(tensors, {"dskd": json.dumps(metadata, sort_keys=True)})


def read_metadata(path: Path) -> dict[str, Any]:
    """What `write_weights` kept beside the weights.

    Raises:
        InputError: The file is missing, damaged, or not written by this package.
    """
    if not path.is_file():
        raise InputError(f"there is no {path}; has the run finished? continue it with --resume")
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata: dict[str, Any] = json.loads((file.metadata() or {})["dskd"])
    except (safetensors.SafetensorError, KeyError, ValueError, OSError, RecursionError) as error:
        raise InputError(f"{path} was not written by dskd or is damaged: {error}") from None
    if not isinstance(metadata, dict):
        raise InputError(f"{path} was not written by dskd or is damaged: {brief(metadata)}")
    return metadata
