"""Invalid recipes: every key misspelt, with a wrong value or left out; and random recipes."""

from __future__ import annotations

import contextlib
import copy
import io
import random
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import yaml

from dskd.cli import commands as cli
from dskd.config.recipe import load
from dskd.config.schema import Recipe
from dskd.engine import run
from dskd.errors import InputError
from dskd.settings import known_keys
from tests.config.test_recipe import SMALLEST, WRONG

FAMILY = "invalid recipes"
_REQUIRED = {"data.name", "student.name", "teacher.name"}
_RESOLVED = "dskd: it resolves\n"
_RANDOM, _SAMPLE = 10_000, 200


class Case(NamedTuple):
    """A recipe.

    Attributes:
        text: Writes the YAML.
        overrides: Settings on the command line.
        may_resolve: Whether the recipe may be valid.
    """

    text: Callable[[], str]
    overrides: tuple[str, ...] = ()
    may_resolve: bool = False


def _typos(key: str) -> Iterator[str]:
    """The key with one letter doubled, one left out, and two exchanged."""
    *path, last = key.split(".")
    for wrong in (last[0] + last, last[:-1] + "_", last[1] + last[0] + last[2:]):
        if wrong != last:
            yield ".".join([*path, wrong])


def _without(key: str) -> str:
    """The recipe of the digits with all defaults, but without a key, if it has that."""
    values, section, last = _section(key)
    section.pop(last, None)
    return yaml.safe_dump(values)


def _with(key: str, text: str) -> str:
    """The recipe of the digits with all defaults, but with another value of a key."""
    values, section, last = _section(key)
    section[last] = yaml.safe_load(text)
    return yaml.safe_dump(values)


def _section(key: str) -> tuple[dict[str, Any], dict[str, Any], str]:
    """The recipe of the digits with all defaults, the section of a key, and the key in it."""
    values = section = copy.deepcopy(_digits())
    *path, last = key.split(".")
    for part in path:
        section = section[part]
    return values, section, last


@cache
def _digits() -> dict[str, Any]:
    return load("digits").plain()


def _random(seed: int) -> str:
    """A recipe with a few random values, keys or letters."""
    draw = random.Random(seed)
    values: dict[str, Any] = copy.deepcopy(SMALLEST)
    keys = known_keys(Recipe)
    for _ in range(draw.randint(1, 4)):
        *path, last = draw.choice(keys).split(".")
        section: Any = values
        for part in path:
            section = section.setdefault(part, {})
            if not isinstance(section, dict):
                break
        else:
            key = draw.choice([last, last, last, last.upper(), f"{last}s", draw.randint(0, 9)])
            section[key] = _random_value(draw, 3)
    text = yaml.safe_dump(values)
    if draw.random() < 0.3:
        place = draw.randrange(len(text))
        text = text[:place] + chr(draw.randrange(0x3000)) + text[place + draw.randint(0, 3) :]
    return text


def _random_value(draw: random.Random, depth: int) -> Any:
    words = ("", "digits", "resnet8", "kd", "sgd", "~", "~nobody/x", "a\0b", "\x1b[2J", "os:system")
    numbers = (0, -1, 1, 2, 2**63, 10**30, 0.5, 1.5, -0.1, float("nan"), float("inf"))
    if depth and draw.random() < 0.3:
        inner = [_random_value(draw, depth - 1) for _ in range(draw.randint(0, 3))]
        return inner if draw.random() < 0.5 else {draw.choice(words): value for value in inner}
    return draw.choice([None, True, False, draw.choice(words), draw.choice(numbers)])


def cases(whole: bool = True) -> Iterator[tuple[str, Case]]:
    """All recipes. Without ``whole``, fewer of each kind."""
    for key in known_keys(Recipe):
        for typo in list(_typos(key))[: None if whole else 1]:
            yield f"{typo} for {key}", Case(_smallest, (f"{typo}=1",))
        wrong = WRONG[key]
        for text in wrong if whole else dict.fromkeys((wrong[0], wrong[-1])):
            yield f"{key}={text}", Case(partial(_with, key, text))
        yield f"no {key}", Case(partial(_without, key), may_resolve=key not in _REQUIRED)
    yield from random_cases(_RANDOM if whole else _SAMPLE)


def _smallest() -> str:
    return yaml.safe_dump(SMALLEST)


def random_cases(count: int = _RANDOM) -> Iterator[tuple[str, Case]]:
    """Random recipes."""
    for seed in range(count):
        yield f"random {seed}", Case(partial(_random, seed), may_resolve=True)


def check(case: Case, folder: Path) -> str:
    """Gives a recipe to the command line. No run starts."""
    path = folder / "mine.yaml"
    path.write_text(case.text(), "utf-8")
    errors = io.StringIO()
    resolved = InputError("it resolves")
    with (
        mock.patch.object(run, "distill", side_effect=resolved),
        contextlib.redirect_stderr(errors),
    ):
        code = cli.run_command(["distill", str(path), *case.overrides])
    line = errors.getvalue()
    assert code == 2
    assert line.endswith("\n")
    assert line[:-1].isprintable(), "the message must be one line"
    assert len(line) < 1000, "the message must be short"
    assert list(folder.iterdir()) == [path], "something was written"
    assert case.may_resolve or line != _RESOLVED, "the recipe was accepted"
    return "resolved" if line == _RESOLVED else "refused"
