"""Errors that are meant for people: one line that says what is wrong, where, and the fix."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable
from datetime import date

_SHORT_LIST = 12
_LONG_LIST = 24
_LONG_VALUE = 80


class InputError(ValueError):
    """Something the user gave cannot be used.

    ``str(error)`` is one line: what is wrong, where, and how to fix it. The command line prints
    it on stderr and exits with code 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(" ".join(message.split())))


def printable(text: str) -> str:
    r"""Text that does nothing to a terminal: what is no letter, sign or space is escaped.

    Names of files and classes may be anybody's.

    Example:
        >>> printable("caf\u00e9 \x1b[2J")
        'café \\x1b[2J'
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def brief(value: object) -> str:
    """A value that a user gave, short enough for a line; the words of YAML as YAML has them.

    Example:
        >>> brief("resnet8"), brief([None, True]), brief(list(range(100)))
        ("'resnet8'", '[null, true]', '[0, 1, 2, 3, 4, 5, ...]')
    """
    return _Brief().repr(value)


class _Brief(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = _LONG_VALUE

    def repr_NoneType(self, _value: None, _level: int) -> str:
        return "null"

    def repr_bool(self, value: bool, _level: int) -> str:
        return str(value).lower()

    def repr_date(self, value: date, _level: int) -> str:
        return value.isoformat()

    def repr_int(self, value: int, level: int) -> str:
        # Python refuses to write a number of thousands of digits.
        return "a very long number" if value.bit_length() > 1000 else super().repr_int(value, level)


def first_line(error: BaseException) -> str:
    """What somebody else's error says, in one line; its type where it says nothing.

    Example:
        >>> first_line(RuntimeError("shapes differ")), first_line(KeyError())
        ('shapes differ', 'KeyError')
    """
    return str(error).strip().split("\n")[0] or type(error).__name__


def unknown(kind: str, name: object, known: Iterable[str]) -> InputError:
    """The error for a name that does not exist, with the nearest one that does.

    Args:
        kind: What the name stands for, as in ``"method"`` or ``"recipe key"``.
        name: The name as the user wrote it.
        known: The names that exist.

    Example:
        >>> str(unknown("method", "dksd", ["ce", "dkd", "dskd"]))
        "unknown method 'dksd'; did you mean 'dkd' or 'dskd'? known: ce, dkd, dskd"
    """
    names = sorted(known)
    close = _nearest(str(name), names)
    hint = f"did you mean {' or '.join(map(repr, close))}?" if close else ""
    # A long list hides the hint that is in front of it.
    if not close or len(names) <= _SHORT_LIST:
        more = len(names) - _LONG_LIST
        shown = ", ".join(names[:_LONG_LIST]) + (f" and {more} more" if more > 0 else "")
        hint = f"{hint} known: {shown}"
    return InputError(f"unknown {kind} {brief(str(name))}; {hint}")


def _nearest(name: str, names: list[str]) -> list[str]:
    """The name that was probably meant; two where the second is about as near."""

    def likeness(other: str) -> float:
        return difflib.SequenceMatcher(None, other, name).ratio()

    close = difflib.get_close_matches(name, names, n=2, cutoff=0.5)
    return [other for other in close if likeness(close[0]) - likeness(other) < 0.12]
