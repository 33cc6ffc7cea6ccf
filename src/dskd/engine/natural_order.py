"""Whether a teacher has its classes in the order in which timm sorts class folders."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from dskd.config.schema import TeacherSettings
from dskd.engine.load_checkpoint import weights_file
from dskd.engine.normalization import clearly_better
from dskd.storage.file_facts import read_facts

NATURAL = "as timm sorts folders (without case, and numbers by size)"


def natural_order(names: Sequence[str]) -> list[int]:
    """The number of each class if the names are sorted without case, and numbers by size.

    Args:
        names: Of the classes, by label.

    Example:
        >>> natural_order(["DC-10", "DC-3", "a320"])
        [2, 1, 0]
    """
    by_name = sorted(range(len(names)), key=lambda label: _natural_key(names[label]))
    order = [0] * len(names)
    for number, label in enumerate(by_name):
        order[label] = number
    return order


def _natural_key(name: str) -> list[str | int]:
    parts = re.split(r"(\d+)", name.lower())
    return [int(part) if index % 2 else part for index, part in enumerate(parts)]


def naturally_ordered(
    predictions: Tensor, labels: Tensor, names: Sequence[str]
) -> list[int] | None:
    """The natural order of the classes, if it explains errors of a teacher.

    Many classes have the same number in both orders, so that a teacher may look weak and not
    wrong. With the natural order it must be right on clearly more images, and also on more images
    of most of the classes that move.

    Args:
        predictions: int64 ``[N]``.
        labels: int64 ``[N]``.
        names: Of the classes, by label.

    Returns:
        The teacher's number of each class; None if the order explains nothing.
    """
    order = torch.tensor(natural_order(names))
    is_tested = torch.bincount(labels, minlength=len(names)) > 0
    moved = is_tested & (order != torch.arange(len(names)))
    hits, own = order[labels] == predictions, labels == predictions
    if not clearly_better(hits, own):
        return None
    gains = torch.zeros(len(names), dtype=torch.int64)
    gains.index_add_(0, labels, hits.long() - own.long())
    return order.tolist() if 2 * int((gains > 0).sum()) > int(moved.sum()) else None


def is_order_known(settings: TeacherSettings) -> bool:
    """Whether a teacher's classes are those of the data by name, or by its training here."""
    facts = read_facts(weights_file(settings))
    is_named = facts is not None and facts.classes is not None
    return is_named or not settings.is_given or settings.head == "fit"
