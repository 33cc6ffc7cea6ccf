"""Splits by patient: images of one patient are all in one split."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from dskd.errors import InputError, brief

STREAM = 0x5EED
"""Tells the random numbers of splits from those of seeds."""


def patients_of(names: Sequence[str], pattern: str) -> tuple[str, ...]:
    r"""The patient of each image, from its file name.

    Args:
        names: File names without folder and suffix.
        pattern: A regular expression that is matched at the start of the name. Its first group is
            the patient, or the whole match if it has none. An image whose name does not match is a
            patient of its own.

    Raises:
        InputError: The pattern is no regular expression, or matches an empty text.

    Example:
        >>> patients_of(["patient006_01_1", "patient006_16_2", "leaf"], r"patient\d+")
        ('patient006', 'patient006', 'leaf')
    """
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise InputError(f"data.patient={pattern}: no regular expression: {error}") from None
    patients = []
    for name in names:
        match = regex.match(name)
        patient = name if match is None else match[1 if regex.groups else 0]
        if not patient:
            raise InputError(
                f"data.patient={pattern}: it finds no patient in {brief(name)}; the first group "
                "must not be empty"
            )
        patients.append(patient)
    return tuple(patients)


def note_on_patients(names: Sequence[str], pattern: str) -> list[str]:
    """A note on names without a patient, whose images are split as if they were independent.

    Args:
        names: As for `patients_of`.
        pattern: As for `patients_of`.

    Example:
        >>> note_on_patients(["patient006_01_1", "leaf"], r"patient")
        ['1 of 2 names do not match data.patient; each counts as a patient of its own']
    """
    own = sum(re.match(pattern, name) is None for name in names)
    if not own:
        return []
    return [
        f"{own} of {len(names)} names do not match data.patient; each counts as a patient of its "
        "own"
    ]


def draw_patients(patients: Sequence[str], parts: Mapping[str, int], seed: int) -> dict[str, str]:
    """Gives patients to the parts of a split at random.

    Args:
        patients: Of each image; the order and the number of images do not matter.
        parts: How many patients each part gets, by name. The rest belongs to no part.
        seed: 0 or more.

    Returns:
        The part of each patient that has one.

    Example:
        >>> sorted(draw_patients(["a", "b", "b", "c"], {"test": 1, "val": 2}, 0).values())
        ['test', 'val', 'val']
    """
    distinct = sorted({*patients})
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, STREAM])))
    order = [distinct[index] for index in random.permutation(len(distinct))]
    where = [name for name, count in parts.items() for _ in range(count)]
    return dict(zip(order, where, strict=False))


def check_disjoint(splits: Mapping[str, Sequence[str]]) -> None:
    """Refuses a patient with images in two splits.

    Args:
        splits: The patients of each split, by name.

    Raises:
        InputError: There is one.
    """
    home: dict[str, str] = {}
    for split, patients in splits.items():
        for patient in sorted({*patients}):
            other = home.setdefault(patient, split)
            if other != split:
                raise InputError(
                    f"patient {brief(patient)} has images in {other} and in {split}; move them "
                    "into one of them, or say with data.patient what a patient is, or rename the "
                    "files if two patients share the name"
                )
