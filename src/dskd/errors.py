"""Errors of the package, and the words that error messages are made of.

No module here imports torch, so the command line can catch every error without it.
"""

from __future__ import annotations

import difflib
import json
import re
import reprlib
import shlex
import signal
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import date
from pathlib import Path
from typing import Any

_SHORT_LIST = 12
_LONG_LIST = 24
_LONG_VALUE = 80


class InputError(ValueError):
    """The user gave something that cannot be used.

    ``str(error)`` is one line: what is wrong, where, and how to fix it. The command line prints
    it on stderr and exits with code 2. Settings in the message are written as the user gives them
    (see `as_given`).

    Attributes:
        of_one_process: Whether this process alone met it. All others know nothing of it.
    """

    of_one_process = False

    def __init__(self, message: str) -> None:
        super().__init__(printable(as_given(" ".join(message.split()))))


class NonFiniteError(ArithmeticError):
    """A number became NaN or infinite, and the run ended without saving it.

    If the number belongs to a training step, that step changed no weight. If it is a weight, it
    was found before the weights were written. The command line exits with code 3.

    Attributes:
        facts: What is known about the step, as plain values: ``epoch`` and ``step``, counted
            from 1; ``what``, which lists ``teacher``, ``loss`` or ``gradient``, or is ``state`` or
            ``logits`` for numbers found after the step; ``losses``, as text, by name;
            ``gradients`` and ``state``, names of tensors; ``indices``, the step's images on all
            processes. Empty if nothing is known.
        of_one_process: As for `InputError`.
    """

    of_one_process = False

    def __init__(self, message: str, facts: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.facts = dict(facts or {})


class ProcessLost(RuntimeError):
    """Another process of the run died or does not respond. The command line exits with code 4."""


class Stopped(BaseException):
    """A signal stopped the run, and its state is saved.

    It is no `Exception`, so a loop over seeds that continues after errors stops at Ctrl-C.

    Attributes:
        signal: Number of the signal. The command line exits with 128 plus this number.
        message: What the command line prints: what is saved, and how to go on.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.signal = number
        self.message = self._message()

    def _message(self) -> str:
        return f"stopped; the state is saved, go on with {option('resume')}"


class Quit(Stopped):
    """A second signal stopped the run at once. Only the checkpoints written before are saved."""

    def _message(self) -> str:
        return "stopped at once; what was saved before is intact"


class Unsaved(Stopped):
    """A signal stopped the run before its first step, when there was no state to save."""

    def _message(self) -> str:
        return f"stopped before the first step; with {option('resume')} the run starts anew"


_commands: ContextVar[bool] = ContextVar("commands", default=False)


@contextmanager
def on_command_line() -> Iterator[None]:
    """Has messages speak of commands and their options within the block, not of Python calls."""
    token = _commands.set(True)
    try:
        yield
    finally:
        _commands.reset(token)


def speaks_of_commands() -> bool:
    """Whether messages speak of commands and their options, as within `on_command_line`."""
    return _commands.get()


def option(name: str, value: str = "True") -> str:
    """An option as the user gives it. Every message that names one takes it from here.

    Args:
        name: The keyword argument of the Python function.
        value: An example of its value.

    Example:
        >>> option("resume"), option("root", "FOLDER")
        ('resume=True', 'root="FOLDER"')
        >>> with on_command_line():
        ...     print(option("resume"), option("root", "FOLDER"))
        --resume --root FOLDER
    """
    if not _commands.get():
        return f"{name}={_python_value(value)}"
    flag = f"--{name.replace('_', '-')}"
    return flag if value == "True" else f"{flag} {value}"


_KEY_VALUE = r"\.(\w+)=(\[[^\]]*\]|\.\.\.|[^\s,;:()'\"`]*[^\s,;:()'\"`.])"
_SETTINGS = re.compile(
    rf"\b(?P<section>data|student|teacher|method|train){_KEY_VALUE}(?: (?P=section){_KEY_VALUE})*"
)
_OF_MODULES = {"stages", "mean", "std"}


def as_given(text: str) -> str:
    """Writes the settings in a message as the user gives them. Messages say ``section.key=value``.

    On the command line this is the form of a setting. In Python it becomes a mapping. Dots stand
    for what a part is given as besides.

    Example:
        >>> as_given("set train.ema=0.99 or teacher.cache=none")
        'set train={"ema": 0.99} or teacher={..., "cache": "none"}'
        >>> as_given("give student.stages=[a,b] student.mean=0")
        'give student={"module": net, "stages": ["a", "b"], "mean": 0}'
        >>> with on_command_line():
        ...     print(as_given("set train.ema=0.99"))
        set train.ema=0.99
    """
    return text if _commands.get() else _SETTINGS.sub(_as_mapping, text)


def _as_mapping(found: re.Match[str]) -> str:
    section = found["section"]
    pairs = dict(re.findall(section + _KEY_VALUE, found[0]))
    if _OF_MODULES & pairs.keys():
        first = ['"module": net']
    else:
        first = [] if section == "train" or "name" in pairs else ["..."]
    items = (f'"{key}": {_python_value(value)}' for key, value in pairs.items())
    return f"{section}={{{', '.join([*first, *items])}}}"


def _python_value(text: str) -> str:
    """A value of YAML, as Python writes it."""
    if text.startswith("["):
        return f"[{', '.join(_python_value(part.strip()) for part in text[1:-1].split(','))}]"
    constants = {"true": "True", "false": "False", "null": "None", "True": "True", "...": "..."}
    is_number = re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", text)
    return constants.get(text) or (text if is_number else json.dumps(text, ensure_ascii=False))


def call(name: str, *arguments: object) -> str:
    """A command, or the Python function of the same name.

    Example:
        >>> call("evaluate", "runs/a")
        "dskd.evaluate('runs/a')"
        >>> with on_command_line():
        ...     print(call("evaluate", "runs/a"))
        `dskd evaluate runs/a`
    """
    texts = [str(argument) for argument in arguments]
    if _commands.get():
        return f"`{shlex.join(['dskd', name, *texts])}`"
    return f"dskd.{name}({', '.join(map(repr, texts))})"


def continuing(folder: Path, allow_code: bool = False) -> str:
    """How the user continues the unfinished run in a folder.

    Args:
        folder: Of the run.
        allow_code: Whether the run needs the user's own code.

    Example:
        >>> continuing(Path("runs/a"))
        'make the same call again with resume=True'
        >>> with on_command_line():
        ...     print(continuing(Path("runs/a")))
        `dskd distill runs/a/recipe.yaml out=runs/a --resume`
    """
    if not _commands.get():
        return f"make the same call again with {option('resume')}"
    command = ["dskd", "distill", f"{folder}/recipe.yaml", f"out={folder}", option("resume")]
    command += [option("allow_code")] if allow_code else []
    return f"`{shlex.join(command)}`"


def weights_option(which: str) -> str:
    """The option that takes the weights of the ``best`` or of the ``last`` epoch.

    Example:
        >>> weights_option("best")
        'which="best"'
        >>> with on_command_line():
        ...     print(weights_option("best"))
        --best
    """
    return f"--{which}" if _commands.get() else f'which="{which}"'


def printable(text: str) -> str:
    r"""Escapes every character that a terminal does not print, such as control codes.

    File and class names come from other people, and may hold any character.

    Example:
        >>> printable("caf\u00e9 \x1b[2J")
        'café \\x1b[2J'
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def brief(value: object) -> str:
    """Shortens a user's value to fit into a line, and writes constants as YAML does.

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
        # Python refuses to convert an integer of thousands of digits to text.
        return "a very long number" if value.bit_length() > 1000 else super().repr_int(value, level)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the error's type if the message is empty.

    Example:
        >>> first_line(RuntimeError("shapes differ")), first_line(KeyError())
        ('shapes differ', 'KeyError')
    """
    return str(error).strip().split("\n")[0] or type(error).__name__


def unknown(kind: str, name: object, known: Iterable[str]) -> InputError:
    """The error for a name that does not exist. It suggests the most similar known name.

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
    # A long list would hide the suggestion in front of it.
    if not close or len(names) <= _SHORT_LIST:
        more = len(names) - _LONG_LIST
        shown = ", ".join(names[:_LONG_LIST]) + (f" and {more} more" if more > 0 else "")
        hint = f"{hint} known: {shown}"
    return InputError(f"unknown {kind} {brief(str(name))}; {hint}")


def _nearest(name: str, names: list[str]) -> list[str]:
    """The most similar name, and the second if it is almost as similar."""

    def similarity(other: str) -> float:
        return difflib.SequenceMatcher(None, other, name).ratio()

    if len(name) > 3 * max(map(len, names), default=0):
        return []  # no ratio reaches 0.5 then, and it takes seconds to compare a very long name
    close = difflib.get_close_matches(name, names, n=2, cutoff=0.5)
    return [other for other in close if similarity(close[0]) - similarity(other) < 0.12]
