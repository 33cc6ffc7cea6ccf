"""Reading the pickles of the CIFAR files without letting them run anything.

A pickle names functions for the reader to call. Here it gets none: every name it may use stands
for one of the small classes below, which hold numbers, and every other name is refused. NumPy's
own reconstruction code never sees the file.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from dskd.errors import InputError

_NUMBERS = frozenset(
    ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"),
)
_MEMO_LIMIT = 2**24


def read_pickle(data: bytes, where: str) -> dict[str, object]:
    """Read a pickled mapping of byte strings, numbers, lists and number arrays.

    Reads the files that Python 2 wrote with an early NumPy, as published, and those that Python 3
    writes with protocols 0 to 4.

    Args:
        data: The pickle.
        where: The file it comes from, for the error.

    Returns:
        The mapping; keys as text, arrays as NumPy arrays of numbers, byte strings as bytes.

    Raises:
        InputError: The pickle asks for anything else, is damaged, or holds no mapping.
    """
    try:
        _check_memo(data)
        value = _Reader(io.BytesIO(data), where).load()
        if not isinstance(value, dict):
            raise TypeError(f"holds a {type(value).__name__}, not a mapping")
        return {_text(key): _plain(entry) for key, entry in value.items()}
    except InputError:
        raise
    except Exception as error:  # a mangled pickle can raise nearly anything
        raise InputError(
            f"{where} is not a readable pickle ({type(error).__name__}: {str(error)!a}); "
            "fetch the file again"
        ) from error


class _Reader(pickle.Unpickler):
    """An unpickler that knows only the names in ``_ADMITTED``."""

    def __init__(self, file: io.BytesIO, where: str) -> None:
        super().__init__(file, encoding="bytes")
        self._where = where

    def find_class(self, module: str, name: str) -> object:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise InputError(
                f"{self._where} asks to load {f'{module}.{name}'!a}, which no CIFAR file "
                "needs; nothing was run; fetch the published file"
            ) from None


class _Type:
    """Stands for ``numpy.dtype``: a number's kind, width and byte order, nothing else."""

    def __init__(self, code: object, *_: object) -> None:
        self._code = _text(code)
        if self._code not in _NUMBERS:
            raise ValueError(f"arrays of type {self._code!r} are not admitted, only of numbers")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order, *structure = state[1:5]
        if any(part is not None for part in structure):
            raise ValueError("arrays of records are not admitted, only of numbers")
        sign = {"<": "<", ">": ">", "=": "=", "|": "="}[_text(order)]
        self._code = sign + self._code[-2:]

    def numbers(self, raw: object) -> NDArray[Any]:
        """The numbers in ``raw``, ``[N]``."""
        if not isinstance(raw, bytes):
            raise TypeError(f"numbers must be bytes, got {type(raw).__name__}")
        return np.frombuffer(raw, np.dtype(self._code))


class _Array:
    """Stands for ``numpy.ndarray``: its numbers are there once its state was read."""

    numbers: NDArray[Any] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, columns_first, raw = state
        if not isinstance(kind, _Type):
            raise TypeError("an array needs a number type")
        numbers = kind.numbers(raw)
        if any(not isinstance(extent, int) or extent < 0 for extent in shape):
            raise ValueError(f"an array cannot have the shape {shape!r:.50}")
        if math.prod(shape) != len(numbers):
            raise ValueError(f"an array holds {len(numbers)} numbers, its shape is {shape!r:.50}")
        self.numbers = numbers.reshape(shape, order="F" if columns_first else "C")


class _Function:
    """A function a pickle may call, and may not alter."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., object]) -> None:
        self._call = call

    def __call__(self, *arguments: object) -> object:
        return self._call(*arguments)

    def __setstate__(self, state: object) -> NoReturn:
        raise TypeError("a function has no state")


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _scalar(kind: object, raw: object) -> object:
    if not isinstance(kind, _Type):
        raise TypeError("a number needs a number type")
    (number,) = kind.numbers(raw).tolist()
    return number


def _latin1(text: object, encoding: object) -> bytes:
    if not isinstance(text, str) or _text(encoding) != "latin1":
        raise ValueError("only latin1 text is admitted")
    return text.encode("latin1")


_ADMITTED: dict[tuple[str, str], object] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _Function(_latin1),
    **{
        (f"numpy.{core}.multiarray", name): _Function(function)
        for core in ("core", "_core")
        for name, function in (("_reconstruct", _reconstruct), ("scalar", _scalar))
    },
}


def _check_memo(data: bytes) -> None:
    """Refuse a memo number that makes CPython's unpickler claim all the memory there is.

    See https://github.com/python/cpython/issues/115952, present up to Python 3.14.
    """
    for code, argument, _ in pickletools.genops(data):
        if code.name in ("PUT", "LONG_BINPUT") and not 0 <= int(argument or 0) < _MEMO_LIMIT:
            raise ValueError(f"memo number {argument} is out of range")


def _plain(value: object) -> object:
    if not isinstance(value, _Array):
        return value
    if value.numbers is None:
        raise ValueError("an array without numbers")
    return value.numbers


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("latin1")
    if isinstance(value, str):
        return value
    raise TypeError(f"expected text, got {type(value).__name__}")
