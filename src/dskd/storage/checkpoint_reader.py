"""Read what a checkpoint file holds. Nothing in the file is ever executed."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch

from dskd.errors import InputError, first_line


class Ignored:
    """Stands for an object that lies next to the weights and is not needed.

    The file's own class is never looked up, so neither its code nor its memory is ever used.
    """

    def __init__(self, *_: Any) -> None:
        pass

    def __new__(cls, *_: Any) -> Ignored:
        """Takes any arguments and keeps none."""
        return super().__new__(cls)

    def __setstate__(self, _: Any) -> None:
        pass


def _empty_dict(*_: Any) -> dict[Any, Any]:
    return {}


def _empty_list(*_: Any) -> list[Any]:
    return []


_IGNORED = (
    *("numpy.ndarray", "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"),
    *(f"{m}.{k}Path" for m in ("pathlib", "pathlib._local") for k in ("Posix", "Windows", "Pure")),
    *(f"{m}.Pure{k}Path" for m in ("pathlib", "pathlib._local") for k in ("Posix", "Windows")),
    *("pathlib.Path", "pathlib._local.Path", "types.SimpleNamespace", "builtins.slice"),
    *(f"builtins.{name}" for name in ("list", "dict", "set", "tuple", "int", "float", "str")),
    *(f"datetime.{name}" for name in ("datetime", "date", "time", "timedelta", "timezone")),
)
"""Names that training scripts store next to weights: random states, paths, times, defaults."""
_CONTAINERS = {"collections.defaultdict": _empty_dict, "collections.deque": _empty_list}


def _safe_types() -> list[Any]:
    """Types that training scripts store along with tensors and that are harmless to rebuild."""
    scalar = np.float64().__reduce__()[0]  # where it lives depends on NumPy's version
    types = ["float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool"]
    return [
        argparse.Namespace,
        np.dtype,
        (scalar, "numpy.core.multiarray.scalar"),  # written by NumPy 1
        (scalar, "numpy._core.multiarray.scalar"),  # written by NumPy 2
        *{type(np.dtype(name)) for name in [*types, "uint16", "uint32", "uint64"]},
        *((Ignored, name) for name in _IGNORED),
        *((make, name) for name, make in _CONTAINERS.items()),
    ]


@contextmanager
def _only_safe_types() -> Iterator[None]:
    """Within the block, torch rebuilds our safe types and no others.

    Libraries such as PyTorch Geometric add types of their own for the whole process, some under the
    names of ours.
    """
    admitted = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(_safe_types())
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(admitted)


def read_content(path: Path) -> Any:
    """Reads a file of ``safetensors`` or of ``torch.save``, which its first bytes tell apart.

    Apart from tensors and plain containers, only harmless objects are allowed: NumPy scalars and
    argparse.Namespace are rebuilt; arrays, paths and times are left out.

    Args:
        path: The file; its name does not matter.

    Returns:
        The tensors of a safetensors file by key, or whatever ``torch.save`` was given.

    Raises:
        InputError: The file is missing or damaged, or holds other objects.
    """
    if path.is_dir():
        raise InputError(
            f"{path} is a folder; give the file of weights, as in {path / 'student.safetensors'}"
        )
    if not path.is_file():
        raise InputError(f"there is no checkpoint file {path}; check the path")
    if is_safetensors(path) or path.suffix == ".safetensors":
        return _safetensors(path)
    return _torch(path)


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors does: the length of a header, then its JSON."""
    try:
        with path.open("rb") as file:
            start, size = file.read(9), path.stat().st_size
    except OSError as error:
        raise InputError(f"cannot read the checkpoint {path}: {first_line(error)}") from None
    length = int.from_bytes(start[:8], "little")
    return start[8:] == b"{" and length <= size - 8


def _safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"cannot read the checkpoint {path}: {error}") from None


def _torch(path: Path) -> Any:
    try:
        with _only_safe_types():
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = [line.strip() for line in str(error).splitlines() if "GLOBAL" in line]
        raise InputError(
            f"{path} is not a file of plain weights and is not opened "
            f"({named[0] if named else 'damaged, or unsafe'}); save the state_dict() alone"
        ) from None
    except Exception as error:  # a damaged file can make the reader raise almost anything
        reason = first_line(error)
        raise InputError(
            f"cannot read the checkpoint {path}: it is damaged, or no file of weights ({reason})"
        ) from None
