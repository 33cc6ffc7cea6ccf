"""What is tuned: the settings of a recipe, each with a range or with choices."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dskd.config.overrides import overridden
from dskd.config.recipe import resolve
from dskd.config.schema import AUGMENTATIONS, Recipe
from dskd.config.text_values import is_whole_number, listed
from dskd.errors import InputError, brief, call

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER})\.\.({_NUMBER})(?::(\w*))?")
_FIXED = ("train.epochs", "train.device", "train.threads", "method.name")

_WITHOUT_EFFECT = ("train.ema", "train.exits", "train.evaluate_every")


@dataclass(frozen=True)
class Tuned:
    """A setting that is tuned.

    Attributes:
        key: The setting, as in ``train.lr``.
        low: Lower end of its range; None for choices.
        high: Upper end of its range.
        log: Whether the range is searched on a logarithmic scale.
        whole: Whether values are whole numbers.
        choices: The values as text; empty for a range.
    """

    key: str
    low: float | None = None
    high: float | None = None
    log: bool = False
    whole: bool = False
    choices: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """What the user wrote, as in ``0.01..0.2:log``.

        Example:
            >>> Tuned("train.lr", 0.01, 0.2, log=True).text
            '0.01..0.2:log'
        """
        if self.choices:
            return ",".join(self.choices)
        return f"{self.low:g}..{self.high:g}{':log' if self.log else ''}"

    def examples(self) -> list[str]:
        """Values as text: both ends, or all choices."""
        return list(self.choices) or [self.value_text(self.low), self.value_text(self.high)]

    def value_text(self, value: Any) -> str:
        """A value as text for ``key=value``."""
        if isinstance(value, str):
            return value
        return str(int(value)) if self.whole else repr(float(value))

    def shown(self, text: str) -> str:
        """A value as text for a reader: one that was drawn from a range has four digits.

        Example:
            >>> Tuned("train.lr", 0.01, 0.2).shown("0.0345678912")
            '0.03457'
            >>> Tuned("train.batch_size", 16, 32768, whole=True).shown("16384")
            '16384'
            >>> Tuned("train.lr", choices=("0.12345", "0.12346")).shown("0.12345")
            '0.12345'
        """
        return text if self.choices or self.whole else f"{float(text):.4g}"


def split_space(texts: Iterable[str], method: str) -> tuple[list[str], list[Tuned]]:
    """Splits ``key=value`` arguments into overrides and settings that are tuned.

    Args:
        texts: As in ``["train.epochs=10", "train.lr=0.01..0.2:log", "data.flip=true,false"]``.
        method: Name of the recipe's method, which types its settings.

    Raises:
        InputError: A range is not well-formed, or a setting cannot be tuned.

    Example:
        >>> fixed, tuned = split_space(["train.epochs=2", "train.lr=0.01..0.2:log"], "kd")
        >>> fixed, [(one.key, one.text) for one in tuned]
        (['train.epochs=2'], [('train.lr', '0.01..0.2:log')])
    """
    fixed: list[str] = []
    tuned: dict[str, Tuned] = {}
    for text in texts:
        key, _, value = text.partition("=")
        one = _tuned(key, value, method)
        if one is None:
            fixed.append(text)
        elif key in tuned:
            raise InputError(f"{key} is tuned twice; give it once")
        else:
            tuned[key] = one
    return fixed, list(tuned.values())


def given_space(space: Mapping[str, Any], method: str) -> list[Tuned]:
    """The settings that a Python caller tunes.

    Args:
        space: By setting, a text as on the command line, or a list of choices.
        method: Name of the recipe's method.

    Raises:
        InputError: A value is no range and no list of choices.

    Example:
        >>> space = {"train.lr": "0.1..1", "data.flip": [True, False]}
        >>> [one.text for one in given_space(space, "kd")]
        ['0.1..1', 'true,false']
    """
    if not isinstance(space, Mapping) or not all(isinstance(key, str) for key in space):
        raise InputError(
            f"space: settings with their ranges or choices are needed, as in "
            f"{{'train.lr': '0.01..0.2:log'}}, got {brief(space)}"
        )
    found = []
    for key, value in space.items():
        is_list = isinstance(value, list | tuple) and len(value) > 1
        text = ",".join(map(_choice_text, value)) if is_list else value
        one = _tuned(key, text, method) if isinstance(text, str) else None
        if one is None:
            raise InputError(
                f"space: {key} needs a range such as '0.01..0.2:log' or a list of choices, got "
                f"{brief(value)}"
            )
        found.append(one)
    return found


def _choice_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if callable(plain := getattr(value, "item", None)):  # a number of NumPy or torch
        value = plain()
    try:
        text: str = yaml.safe_dump(value, default_flow_style=True)
    except yaml.YAMLError:
        raise InputError(f"space: a choice is a plain value, got {brief(value)}") from None
    return text.removesuffix("\n").removesuffix("\n...")


def _tuned(key: str, text: str, method: str) -> Tuned | None:
    """The setting with its range or choices; None if it has one value."""
    found, choices = _RANGE.fullmatch(text), tuple(listed(text))
    if found is None and len(choices) == 1:
        return None
    _check_tunable(key)
    if found is None:
        if "" in choices or len(set(choices)) < len(choices):
            raise InputError(f"{key}={text}: a choice is empty or given twice; drop it")
        return Tuned(key, choices=choices)
    low, high, scale = float(found[1]), float(found[2]), found[3]
    if scale not in (None, "log"):
        raise InputError(f"{key}={text}: write a range as in 0.01..0.2 or 0.01..0.2:log")
    if not low < high:
        raise InputError(f"{key}={text}: the lower end of a range comes first; swap the ends")
    if scale == "log" and low <= 0:
        raise InputError(f"{key}={text}: a range on a logarithmic scale starts above 0; change it")
    whole = is_whole_number(key, method)
    if whole and not (low.is_integer() and high.is_integer()):
        raise InputError(f"{key}={text}: {key} is a whole number; give whole numbers as ends")
    return Tuned(key, low, high, scale == "log", whole)


def _check_tunable(key: str) -> None:
    """Refuses settings that would make another comparison of each trial.

    Raises:
        InputError: It is one.
    """
    section, _, name = key.partition(".")
    if key == "method.name":
        raise InputError(f"method.name cannot be tuned; compare methods with {call('compare')}")
    if key == "method.preset":
        raise InputError(
            "method.preset cannot be tuned, since it sets many settings at once; tune one of them, "
            f"or compare presets with {call('compare')}"
        )
    if key == "train.sync_batchnorm":
        raise InputError(f"{key} cannot be tuned: each trial runs in one process; drop it")
    if key in _WITHOUT_EFFECT:
        raise InputError(
            f"{key} cannot be tuned: it does not change the accuracy by which trials are compared, "
            "that of the student after its last epoch; give it one value"
        )
    tunable = section in ("method", "train") or (section == "data" and name in AUGMENTATIONS)
    if key in _FIXED or not tunable:
        raise InputError(
            f"{key} cannot be tuned: all trials have the same epochs, images, models and seeds; "
            "tune settings of method, of train, or of the augmentation of data"
        )


def configured(recipe: Recipe, values: Mapping[str, str]) -> Recipe:
    """The recipe with values of settings that are tuned.

    Args:
        recipe: With all of its defaults.
        values: As text, by setting.

    Raises:
        InputError: A setting does not exist, or the values do not fit together.
    """
    plain = overridden(recipe.plain(), [f"{key}={text}" for key, text in values.items()])
    return resolve(plain, Path("runs"))


def check_space(recipe: Recipe, space: Iterable[Tuned]) -> None:
    """Refuses settings that do not exist, and values that do not fit.

    Raises:
        InputError: There is one, or nothing is tuned.
    """
    space = list(space)
    if not space:
        raise InputError(
            "nothing is tuned; give a setting a range, as in train.lr=0.01..0.2:log, or choices, "
            "as in method.adapter=pool,linear"
        )
    for one in space:
        for text in one.examples():
            configured(recipe, {one.key: text})
