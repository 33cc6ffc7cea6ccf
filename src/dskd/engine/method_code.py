"""The code of the method that trained a run.

A method is a file, and a run records the digest of that file. A run or a comparison that goes on
after the file was changed then says so: its students would not have learned by one method.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from dskd import methods
from dskd.engine.task import RunRecipe
from dskd.errors import InputError
from dskd.methods.base import Method
from dskd.runtime import device as devices
from dskd.runtime import distributed
from dskd.storage.json_file import read_json
from dskd.storage.run_files import ENVIRONMENT

log = logging.getLogger("dskd")

CODE = "method_code"
"""The key of the digest in ``environment.json``."""


def environment(recipe: RunRecipe, device: torch.device) -> dict[str, Any]:
    """What a result depends on apart from the recipe, with the code of the recipe's method.

    Args:
        recipe: The recipe of the run.
        device: The device of the run.

    Returns:
        What `dskd.runtime.device.environment` returns, and the digest; plain values.
    """
    return {**devices.environment(device), CODE: digest(recipe.method.name)}


def digest(name: str) -> str | None:
    """The SHA-256 digest of the file of a method, and of those of the methods it derives from.

    Args:
        name: The method.

    Returns:
        The digest; None for code without a file, as in an interactive session.

    Example:
        >>> len(digest("kd")), digest("kd") == digest("dskd")
        (64, False)
    """
    found = hashlib.sha256()
    for kind in methods.find(name).__mro__:
        if issubclass(kind, Method) and kind is not Method:
            try:
                found.update(inspect.getsource(sys.modules[kind.__module__]).encode())
            except (KeyError, OSError, TypeError):
                return None
    return found.hexdigest()


def has_changed(folder: Path, name: str) -> bool:
    """Whether a run was trained by other code than the one that is here.

    Args:
        folder: The folder of the run.
        name: The method of the run.

    Returns:
        False also if it is not known: the file is missing or damaged, or an earlier version of this
        package trained the run.
    """
    before = None
    with suppress(InputError):
        before = read_json(folder / ENVIRONMENT, dict[str, Any], "").get(CODE)
    return before is not None and before != digest(name)


def warn_of_ended(name: str, runs: Iterable[Path], folder: Path) -> None:
    """Says how many runs that have ended were trained by other code.

    Args:
        name: The method of the runs.
        runs: The folders of runs that have ended.
        folder: What to remove to have them trained again.
    """
    if count := sum(has_changed(run, name) for run in runs):
        log.warning(
            "the code of %s was changed since %s; what has ended stays as it is; to train it "
            "again, remove %s",
            methods.short_name(name),
            "a run of it ended" if count == 1 else f"{count} runs of it ended",
            folder,
        )


@distributed.on_rank_zero
def warn_if_changed(folder: Path, name: str) -> None:
    """Says that a run goes on with other code than the one it was started with.

    Args:
        folder: The folder of the run.
        name: The method of the run.
    """
    if has_changed(folder, name):
        log.warning(
            "the code of %s was changed since %s was started, and the run goes on with the new "
            "code; to train it with one code, remove %s and start again",
            *(methods.short_name(name), folder, folder),
        )
