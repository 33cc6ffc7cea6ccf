"""Compare the classes that a published teacher names with those of the data."""

from __future__ import annotations

import logging

import torch

from dskd.data import Dataset
from dskd.errors import brief
from dskd.models.native import published_names
from dskd.models.staged_model import StagedModel

log = logging.getLogger("dskd")

_ASSUMED = "the classes of %s are %s, and those of %s are %s: %s, so the same order is assumed"


def match_names(model: StagedModel, name: str, data: Dataset) -> None:
    """Puts the logits of a published teacher into the order of the data's classes.

    Names are compared without case, ``_`` counts as a space, and of synonyms, as in ``tench, Tinca
    tinca``, the first counts. Whole names are compared if a first synonym occurs twice, as of
    ``maillot`` and ``maillot, tank suit``. If the teacher has all classes of the data and no
    others, its logits are mapped. If it has some of them, it is of other classes, and its logits
    are ignored. If no name is shared, the names are of two kinds: the same order is assumed, and a
    line says so. The same holds if neither comparison tells names apart.

    Args:
        model: The teacher. Its own number of classes is looked at by
            `dskd.engine.other_classes.fit_classes`.
        name: Of the teacher.
        data: The data set of the run.
    """
    named = published_names(name)
    if named is None or len(named) != len(data.classes):
        return
    both = brief(list(named)), data.name, brief(list(data.classes))
    there, here = ([_plain(one.split(",")[0]) for one in part] for part in (named, data.classes))
    if min(len({*there}), len({*here})) < len(named):
        whole = [[_plain(one) for one in part] for part in (named, data.classes)]
        if {*whole[0]} == {*whole[1]} and len({*whole[0]}) == len(named):
            there, here = whole
        elif there != here:
            log.warning(_ASSUMED, name, *both, "names occur twice and are not the same")
            return
    if there == here:
        return
    if not {*there} & {*here}:
        log.warning(_ASSUMED, name, *both, "no name is the same")
    elif {*there} == {*here}:
        log.info("%s has its classes in another order; its logits are mapped by name", name)
        order = [there.index(one) for one in here]
        model.class_order = torch.tensor(order, device=model.mean.device)
    else:
        log.info("%s has the classes %s, and %s has %s", name, *both)
        model.ignore_logits(len(named), len(data.classes))


def _plain(name: str) -> str:
    return name.replace("_", " ").strip().casefold()
