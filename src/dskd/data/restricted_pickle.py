"""Read the pickles of the CIFAR files without running code.

A pickle is a program for a stack machine. Python's own interpreter calls any function that the file
names, and a few bytes can fill the memory or end the process. The interpreter in this module knows
only the instructions that build numbers, text, lists, dictionaries and arrays of numbers. It allows
five function names, which stand for functions of this module. NumPy's reconstruction code never
sees the file.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dskd.errors import InputError, brief

_NUMBERS = frozenset(
    ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"),
)
_MAX_INSTRUCTIONS = 2**23  # an image needs 8; each takes up to 160 bytes of memory
_MAX_DIMENSIONS = 8
_MAX_LENGTH = 2**62


def read_pickle(data: bytes, where: str) -> dict[str, object]:
    """Read a pickled mapping of byte strings, numbers, lists and arrays of numbers.

    It reads the published files, written by Python 2 with an early NumPy, and files that Python 3
    writes with protocols 0 to 4.

    Args:
        data: The pickle.
        where: Path of the file, for messages.

    Returns:
        The mapping, with text keys, NumPy arrays of numbers, and byte strings as bytes.

    Raises:
        InputError: The pickle contains anything else, is damaged, or is not a mapping.
    """
    try:
        value = _Interpreter(data, where).run()
        if not isinstance(value, dict):
            raise TypeError(f"holds a {type(value).__name__}, not a mapping")
        return {_text(key): _plain(entry) for key, entry in value.items()}
    except InputError:
        raise
    except Exception as error:  # a damaged pickle can raise many types
        raise InputError(
            f"{where} is not a readable pickle ({type(error).__name__}: {brief(str(error))}); "
            "fetch the file again"
        ) from error


class _Interpreter:
    """Executes the instructions of one pickle.

    Args:
        data: The pickle.
        where: Path of the file, for messages.
    """

    def __init__(self, data: bytes, where: str) -> None:
        self._data = data
        self._where = where
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._text_left = len(data)  # characters that `encode` may still convert

    def run(self) -> object:
        """Build the value of the pickle."""
        for count, (code, argument, _) in enumerate(pickletools.genops(self._data)):
            if code.name == "STOP":
                return self._pop()
            if count == _MAX_INSTRUCTIONS:
                break
            self._execute(code.name, argument)
        raise ValueError(f"it has no end within {_MAX_INSTRUCTIONS} instructions")

    def _execute(self, name: str, argument: Any) -> None:
        if name in _VALUES:
            self._stack.append(argument)
        elif name in _BYTES:  # pickletools gives one character for each byte
            self._stack.append(argument.encode("latin1"))
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name]())
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self._memo[argument] = self._stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self._stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            self._stack.append(self._memo[argument])
        elif name == "GLOBAL":
            self._stack.append(self._find(*argument.split(" ", 1)))
        elif name not in ("PROTO", "FRAME"):
            self._build(name)

    def _build(self, name: str) -> None:
        """Execute an instruction that builds a value from the stack."""
        match name:
            case "MARK":
                self._marks.append(len(self._stack))
            case "LIST":
                self._stack.append(self._above_mark())
            case "TUPLE":
                self._stack.append(tuple(self._above_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self._stack.append(tuple(self._pop() for _ in range(int(name[-1])))[::-1])
            case "DICT":
                items = self._above_mark()
                self._stack.append(_set_items({}, items))
            case "APPEND":
                value = self._pop()
                self._top(list).append(value)
            case "APPENDS":
                items = self._above_mark()
                self._top(list).extend(items)
            case "SETITEM":
                value, key = self._pop(), self._pop()
                _set_items(self._top(dict), [key, value])
            case "SETITEMS":
                items = self._above_mark()
                _set_items(self._top(dict), items)
            case "STACK_GLOBAL":
                attribute, module = self._pop(), self._pop()
                self._stack.append(self._find(_text(module), _text(attribute)))
            case "REDUCE":
                arguments, function = self._pop(), self._pop()
                if not isinstance(function, _Function):
                    raise TypeError(f"a {type(function).__name__} cannot be called")
                self._stack.append(function.call(self, *arguments))
            case "BUILD":
                state = self._pop()
                self._top((_DType, _Array)).set_state(state)
            case _:
                raise ValueError(f"the instruction {name} is not allowed")

    def _pop(self) -> Any:
        return self._stack.pop()

    def _above_mark(self) -> list[Any]:
        """Remove and return the values above the last mark."""
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _top(self, kind: type | tuple[type, ...]) -> Any:
        top = self._stack[-1]
        if not isinstance(top, kind):
            raise TypeError(f"a {type(top).__name__} cannot be extended")
        return top

    def _find(self, module: str, name: str) -> object:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise InputError(
                f"{self._where} asks to load {brief(f'{module}.{name}')}, which no CIFAR file "
                "needs; nothing was run; fetch the published file"
            ) from None

    def encode(self, text: object, encoding: object) -> bytes:
        """Stands for ``_codecs.encode``, with which Python 3 writes bytes in protocols 0 to 2."""
        if not isinstance(text, str) or _text(encoding) != "latin1":
            raise ValueError("only latin1 text is allowed")
        self._text_left -= len(text)
        if self._text_left < 0:  # the same text again and again would fill the memory
            raise ValueError("it repeats its text too often")
        return text.encode("latin1")


def _set_items(mapping: dict[Any, Any], items: list[Any]) -> dict[Any, Any]:
    """Store alternating keys and values. Keys must be text: others can be very slow to hash."""
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, bytes | str):
            raise TypeError(f"keys must be text, got {type(key).__name__}")
        mapping[key] = value
    return mapping


class _DType:
    """Stands for ``numpy.dtype``: kind, width and byte order of a number."""

    def __init__(self, code: object) -> None:
        self._code = _text(code)
        if self._code not in _NUMBERS:
            raise ValueError(f"arrays of type {self._code!r} are not allowed, only of numbers")

    def set_state(self, state: tuple[Any, ...]) -> None:
        """Set the byte order."""
        order, *structure = state[1:5]
        if any(part is not None for part in structure):
            raise ValueError("arrays of records are not allowed, only of numbers")
        sign = {"<": "<", ">": ">", "=": "=", "|": "="}[_text(order)]
        self._code = sign + self._code[-2:]

    def numbers(self, raw: object) -> NDArray[Any]:
        """Read the numbers in ``raw``, ``[N]``."""
        if not isinstance(raw, bytes):
            raise TypeError(f"numbers must be bytes, got {type(raw).__name__}")
        return np.frombuffer(raw, np.dtype(self._code))


class _Array:
    """Stands for ``numpy.ndarray``; it gets its numbers when its state is set."""

    numbers: NDArray[Any] | None = None

    def set_state(self, state: tuple[Any, ...]) -> None:
        """Set the numbers and the shape."""
        _, shape, kind, columns_first, raw = state
        if not isinstance(kind, _DType):
            raise TypeError("an array needs a number type")
        numbers = kind.numbers(raw)
        if len(shape) > _MAX_DIMENSIONS or not all(
            isinstance(extent, int) and 0 <= extent < _MAX_LENGTH for extent in shape
        ):
            raise ValueError(f"an array cannot have the shape {brief(shape)}")
        if math.prod(shape) != len(numbers):
            raise ValueError(f"an array holds {len(numbers)} numbers, its shape is {brief(shape)}")
        self.numbers = numbers.reshape(shape, order="F" if columns_first else "C")


class _Function:
    """A function that a pickle may call; it takes the interpreter and the pickle's arguments."""

    def __init__(self, call: Callable[..., object]) -> None:
        self.call = call


def _scalar(_: _Interpreter, kind: object, raw: object) -> object:
    if not isinstance(kind, _DType):
        raise TypeError("a number needs a number type")
    number: object = kind.numbers(raw).item()
    return number


_VALUES = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    )
)
_BYTES = frozenset(("STRING", "BINSTRING", "SHORT_BINSTRING"))
_CONSTANTS: dict[str, Callable[[], object]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
}
_ALLOWED: dict[tuple[str, str], object] = {
    ("numpy", "ndarray"): None,  # an argument of _reconstruct that is not used
    ("numpy", "dtype"): _Function(lambda _, code, *rest: _DType(code)),
    ("_codecs", "encode"): _Function(_Interpreter.encode),
    **{
        (f"numpy.{core}.multiarray", name): _Function(function)
        for core in ("core", "_core")
        for name, function in (("_reconstruct", lambda *_: _Array()), ("scalar", _scalar))
    },
}


def _plain(value: object) -> object:
    """The NumPy array of an `_Array`; any other value as it is."""
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
