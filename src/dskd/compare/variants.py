"""The methods of a comparison: each a method with settings, named as in ``dskd:beta=0.1``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from dskd import methods
from dskd.config.schema import MethodSettings
from dskd.config.text_values import listed, method_setting_value
from dskd.errors import InputError, brief, unknown
from dskd.methods import outside
from dskd.settings import Weight, setting_parameters, signature_settings

Weights = Literal["equal", "literature"]
LONGEST_LABEL = 200
"""Characters of a label, which also names a folder."""


@dataclass(frozen=True)
class MethodVariant:
    """A method with its settings.

    Attributes:
        label: The method's name, with the settings that distinguish it: ``dskd:beta=0.1``.
        method: Its name and all its settings.
    """

    label: str
    method: MethodSettings

    @property
    def folder(self) -> str:
        """The name of the folder with its runs."""
        return folder_of(self.label)

    def plain(self) -> dict[str, Any]:
        """Plain values for ``comparison.json``, see `dskd.compare.reader.VariantFacts`."""
        return {
            "label": self.label,
            "folder": self.folder,
            "method": self.method.model_dump(mode="json"),
        }


def folder_of(label: str) -> str:
    """The name of the folder with the runs of a method.

    Example:
        >>> folder_of("dskd:beta=0.1")
        'dskd+beta=0.1'
    """
    return re.sub(r"[^\w.=-]+", "+", label)


def split_label(label: str) -> tuple[str, list[str]]:
    """The name of a method and its changed settings.

    Example:
        >>> split_label("dskd:beta=0.1"), split_label("my.module:MyMethod:beta=0.1")
        (('dskd', ['beta=0.1']), ('my.module:MyMethod', ['beta=0.1']))
    """
    name, *changes = label.split(":")
    if changes and "=" not in changes[0] and name not in methods.names():  # package.module:Class
        name = f"{name}:{changes.pop(0)}"
    return name, changes


def check_label(label: str) -> str:
    """Returns the label if it can name a folder and a row of a table.

    Raises:
        InputError: It is too long, or has characters that cannot be printed.
    """
    if len(label) > LONGEST_LABEL or not label.isprintable():
        raise InputError(
            f"{brief(label)} cannot name a method: use at most {LONGEST_LABEL} printable characters"
        )
    return label


def method_variants(texts: Iterable[str], recipe: Any, weights: Weights) -> list[MethodVariant]:
    """The named methods, with all their settings.

    Settings come from these places, each overriding the ones before it: the defaults of the
    method; the recipe, if it names the method; ``weights``; the settings in the name. A preset in
    the name, as in ``dskd:preset=paper``, takes the place of the recipe's settings and ``weights``.

    Args:
        texts: Names such as ``kd`` or ``all``, or with settings ``dskd:beta=0.1:gamma=1``. A text
            may hold several names, separated by commas.
        recipe: The recipe of the comparison, a `Recipe` or that of another task. Names of methods
            are then those of the task, without its prefix.
        weights: ``equal`` sets ``ce = kd = 1`` for every method that has them; ``literature``
            takes the preset ``literature`` of each method. Methods of other tasks than images keep
            the weights of the recipe.

    Raises:
        InputError: A name or a setting does not exist, or a method is named twice.

    Example:
        >>> from dskd.config.recipe import load
        >>> [one] = method_variants(["dskd:beta=0.1"], load("digits"), "equal")
        >>> one.folder, one.method.options["beta"]
        ('dskd+beta=0.1', 0.1)
    """
    if weights not in get_args(Weights):
        raise unknown("choice of weights", weights, get_args(Weights))
    found: dict[str, MethodVariant] = {}
    task = methods.task_of(recipe.method.name)
    for label in map(check_label, _labels(texts, task)):
        short, changes = split_label(label)
        name = methods.in_task(short, task)
        own = recipe.method.options if name == recipe.method.name else {}
        given = dict(_setting(name, change) for change in changes)
        same = {} if task else _weights(name, weights)
        settings = given if "preset" in given else own | same | given
        found[label] = MethodVariant(
            label, MethodSettings(name=name, **methods.resolve(name, settings))
        )
    folders = [variant.folder.lower() for variant in found.values()]
    for variant in found.values():
        if folders.count(variant.folder.lower()) > 1:
            raise InputError(
                f"two methods would share the folder {variant.folder!r}; drop one of them"
            )
    return list(found.values())


def _labels(texts: Iterable[str], task: str) -> list[str]:
    labels: list[str] = []
    for text in texts:
        if not isinstance(text, str):
            raise InputError(
                f"methods: a name with its settings is needed, as in 'kd:temperature=2', got "
                f"{brief(text)}"
            )
        for label in listed(text):
            if label == "all":
                every = map(methods.short_name, methods.names(task))
                labels += [name for name in every if name not in labels]
            elif label in labels:
                raise InputError(f"the method {label!r} is named twice; name it once")
            elif label:
                labels.append(label)
    if not labels:
        raise InputError("no method is named; name some, as in ce,kd,dskd")
    return labels


def _setting(name: str, change: str) -> tuple[str, Any]:
    key, equals, text = change.partition("=")
    if not equals:
        raise InputError(f"{change!r} is not key=value; write a method as in dskd:beta=0.1")
    return key, method_setting_value(name, key, text)


def _weights(name: str, weights: Weights) -> dict[str, Any]:
    method = methods.find(name)
    if weights == "literature":
        return dict(method.presets.get("literature", {}))
    known = signature_settings(method.__init__).model_fields
    return {key: 1.0 for key in ("ce", "kd") if key in known}


def weights_of(
    name: str, settings: Mapping[str, Any], results: Iterable[Mapping[str, Any]] = ()
) -> dict[str, float]:
    """The settings of a method that are weights of its losses; none if it is not here.

    With a teacher of other classes there is no agreement, and its predictions have the weight 0.

    Args:
        name: The method.
        settings: Its settings, complete.
        results: The content of ``result.json`` of its finished runs.

    Example:
        >>> weights_of("kd", {"temperature": 4.0, "ce": 1.0, "kd": 0.5})
        {'ce': 1.0, 'kd': 0.5}
    """
    if outside.is_missing(name):
        return {}
    kind = methods.find(name)
    known = setting_parameters(kind.__init__)
    weights = {key: settings[key] for key, one in known.items() if one.annotation == Weight}
    if kind.needs_teacher and any(result["agreement"] is None for result in results):
        weights |= {key: 0.0 for key in kind.prediction_weights if key in weights}
    return weights
