"""Checks on a checkpoint before a run goes on from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dskd.config.base_recipe import stored_epochs
from dskd.engine.more_epochs import check_rates
from dskd.engine.task import RunRecipe
from dskd.errors import InputError, brief, option
from dskd.runtime import distributed


def check_same_run(
    state: Mapping[str, Any],
    recipe: RunRecipe,
    fingerprints: Mapping[str, str | None],
    path: Path,
    samples: str,
) -> None:
    """Refuses a checkpoint of another recipe, other data, another teacher or other processes.

    The recipe may have more epochs, if the epochs done keep their learning rates.

    Args:
        state: Of the checkpoint.
        recipe: Of the run that is to go on.
        fingerprints: Of its data and its teacher.
        path: The run directory.
        samples: The word for samples in messages.

    Raises:
        InputError: Something differs.
    """
    there, epochs = state["recipe"], recipe.train.epochs
    before = stored_epochs(there)
    if before is not None and before < epochs:
        check_rates(recipe.train, before, int(state["epoch"]) + bool(state["step"]), path)
    if listed := recipe.differences(there, more_epochs=True):
        raise InputError(
            f"the checkpoint in {path} is of another recipe: {listed}; start again with "
            f"{option('overwrite')}"
        )
    # With data.loading=auto, a machine with other memory can decide otherwise.
    streamable = " or another data.loading (memory or stream)" * ("loading" in there["data"])
    for what, words in (("data", f"other {samples}{streamable}"), ("teacher", "another teacher")):
        if state["fingerprints"][what] != fingerprints[what]:
            raise InputError(
                f"{path} was started with {words}; give the same, or start again with "
                f"{option('overwrite')}"
            )
    before = len(state["trainer"]["processes"])
    if before != distributed.world_size():
        raise InputError(
            f"{path} was started with {before} processes, and there are "
            f"{distributed.world_size()}; start as many, or start again with "
            f"{option('overwrite')}"
        )


def check_same_everywhere(fingerprints: Mapping[str, str | None], samples: str) -> None:
    """Refuses processes that do not have the same data and teacher.

    Args:
        fingerprints: Of this process.
        samples: The word for samples in messages.

    Raises:
        InputError: They differ.
    """
    if any(other != fingerprints for other in distributed.all_gather(fingerprints)):
        raise InputError(
            f"the processes of this run have different {samples} or teachers; give the same files "
            "to every machine, and set data.loading if their memory differs"
        )


def named_numbers(values: Any, *needed: str) -> dict[str, Any]:
    """Named numbers, as a checkpoint holds them.

    Args:
        values: From a file, so of any kind.
        needed: Names that must be there.

    Raises:
        TypeError: A name is missing, or a value is no number.
    """
    if missing := set(needed) - values.keys():
        raise TypeError(f"{min(missing)} is missing")
    for key, value in values.items():
        if type(key) is not str or type(value) not in (int, float):
            raise TypeError(f"{brief(key)} is no number")
    return dict(values)
