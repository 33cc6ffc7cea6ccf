"""The code of the method that trained a run, and where it was trained.

A method is a file, and a run records the digest of that file. A run or a comparison that goes on
after the file was changed then says so: its students would not have learned by one method. A run
that goes on with another torch, device or number of threads says so, too.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import logging
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from dskd import methods
from dskd.engine.task import RunRecipe
from dskd.errors import InputError, brief
from dskd.methods.base import Method
from dskd.runtime import device as devices
from dskd.runtime import distributed
from dskd.storage.json_file import read_json
from dskd.storage.run_files import ENVIRONMENT

log = logging.getLogger("dskd")

CODE, PACKAGE = "method_code", "package_code"
"""The keys of the two digests in ``environment.json``."""


def environment(recipe: RunRecipe, device: torch.device) -> dict[str, Any]:
    """What a result depends on apart from the recipe, with the code of the recipe's method.

    Args:
        recipe: The recipe of the run.
        device: The device of the run.

    Returns:
        What `dskd.runtime.device.environment` returns, the digest of the method, and that of the
        whole package; plain values.
    """
    return {
        **devices.environment(device),
        CODE: digest(recipe.method.name),
        PACKAGE: package_digest(),
    }


@functools.cache
def package_digest() -> str:
    """The SHA-256 digest of all modules of this package.

    Example:
        >>> len(package_digest())
        64
    """
    root, found = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        found.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()


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
    before = _known(folder).get(CODE)
    return before is not None and before != digest(name)


def _known(folder: Path) -> dict[str, Any]:
    """What ``environment.json`` of a run says; empty if it is missing or damaged."""
    with suppress(InputError):
        return read_json(folder / ENVIRONMENT, dict[str, Any], "")
    return {}


def _place(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What the numbers of a run depend on, apart from the code; only what is known."""
    packages = facts.get("packages")
    place = {"torch": packages.get("torch") if isinstance(packages, dict) else None}
    place |= {"device": facts.get("device"), "threads": facts.get("threads")}
    return {key: value for key, value in place.items() if value is not None}


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
def warn_if_changed(folder: Path, name: str, facts: Mapping[str, Any]) -> None:
    """Says that a run goes on with other code, or elsewhere, than it was started.

    Args:
        folder: The folder of the run.
        name: The method of the run.
        facts: Of `environment`, as they are now.
    """
    here, there = _place(facts), _place(_known(folder))
    changed = [
        f"{key} {here[key]}, not {brief(before)}"
        for key, before in there.items()
        if before != here.get(key, before)
    ]
    if changed:
        log.warning(
            "%s goes on with %s: its student can differ from that of a run without a stop; "
            "environment.json keeps both",
            *(folder, "; ".join(changed)),
        )
    if has_changed(folder, name):
        log.warning(
            "the code of %s was changed since %s was started, and the run goes on with the new "
            "code; to train it with one code, remove %s and start again",
            *(methods.short_name(name), folder, folder),
        )
