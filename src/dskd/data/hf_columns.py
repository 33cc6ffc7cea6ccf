"""Find the columns with images and labels in data sets of the library ``datasets``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dskd.errors import InputError, brief

if TYPE_CHECKING:
    import datasets

_LABELS = ("label", "labels")
"""Names of a column with labels, if none is of the type ``ClassLabel``."""


def image_column(splits: Mapping[str, datasets.Dataset], where: str, chosen: str | None) -> str:
    """The column with the images: the one that is chosen, or the only one of the type ``Image``.

    Raises:
        InputError: There is none, or there are several.
    """
    from datasets import Image

    features = _features(splits, where)
    found = [name for name, kind in features.items() if isinstance(kind, Image)]
    return _one("image", features, found, where, chosen)


def label_column(splits: Mapping[str, datasets.Dataset], where: str, chosen: str | None) -> str:
    """The column with the labels: the one that is chosen, or the only one of type ``ClassLabel``.

    Raises:
        InputError: There is none, or there are several.
    """
    from datasets import ClassLabel, Value

    features = _features(splits, where)
    found = [name for name, kind in features.items() if isinstance(kind, ClassLabel)]
    column = _one("label", features, found or [n for n in _LABELS if n in features], where, chosen)
    kind = features[column]
    if not isinstance(kind, ClassLabel | Value) or getattr(kind, "dtype", "").startswith("float"):
        raise InputError(
            f"the column {column!r} of {where} has no classes but {brief(kind)}; set "
            "data.label_column"
        )
    return column


def class_names(
    splits: Mapping[str, datasets.Dataset], where: str, column: str
) -> tuple[str, ...] | None:
    """The names of the classes that the type of the labels has; None if it has none.

    Raises:
        InputError: Two splits have different names.
    """
    names = {split: getattr(one.features[column], "names", None) for split, one in splits.items()}
    first, *others = names.values()
    if any(other != first for other in others):
        raise InputError(
            f"the splits of {where} have different classes in {column!r}; labels would mean "
            "different classes; give all the same"
        )
    return tuple(first) if first else None


def _features(splits: Mapping[str, datasets.Dataset], where: str) -> dict[str, Any]:
    """The types of the columns that all splits have."""
    first, *others = (dict(one.features) for one in splits.values())
    return {name: kind for name, kind in first.items() if all(name in other for other in others)}


def _one(
    kind: str, features: Mapping[str, Any], found: Sequence[str], where: str, chosen: str | None
) -> str:
    if chosen is not None:
        if chosen not in features:
            raise InputError(
                f"{where} has no column {chosen!r}, but {brief(list(features))}; check "
                f"data.{kind}_column"
            )
        return chosen
    if len(found) != 1:
        several = f"the {kind} columns {', '.join(found)}" if found else f"no {kind} column"
        raise InputError(
            f"{where} has {several} among {brief(list(features))}; set data.{kind}_column"
        )
    return found[0]
