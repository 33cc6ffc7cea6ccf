"""The launcher that a user asks for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from dskd.errors import InputError, brief, option, unknown
from dskd.runtime.launchers.processes import Processes
from dskd.runtime.launchers.ray_cluster import RayCluster, RayOptions
from dskd.runtime.launchers.slurm import Slurm, SlurmOptions
from dskd.runtime.launchers.task import Launcher
from dskd.settings import DeviceName, Settings, validate

LAUNCHERS = ("processes", "ray", "slurm")
S = TypeVar("S", bound=Settings)
OPTIONS: dict[str, type[Settings]] = {"ray": RayOptions, "slurm": SlurmOptions}
"""The options of each launcher that has some."""


def named_launcher(launcher: object) -> tuple[str, dict[str, Any]]:
    """A launcher as a Python caller gives it: its name and its options.

    Args:
        launcher: The name, or the options and under ``name`` the name.

    Raises:
        InputError: It is something else.

    Example:
        >>> named_launcher({"name": "slurm", "partition": "gpu"})
        ('slurm', {'partition': 'gpu'})
    """
    options = dict(launcher) if isinstance(launcher, Mapping) else {"name": launcher}
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise InputError(
            f"launcher: a name or settings with a name are needed, got {brief(launcher)}"
        )
    return name, options


def choose_launcher(
    name: str,
    jobs: int | None,
    options: Mapping[str, Any],
    *,
    folder: Path,
    most: int,
    device: DeviceName,
    threads: int | None,
) -> Launcher | None:
    """The launcher of that name.

    Args:
        name: ``processes``, ``ray`` or ``slurm``.
        jobs: Most tasks at a time; None for one with ``processes``, else for any number.
        options: Of the launcher.
        folder: For the files of the launcher.
        most: Number of tasks that there can be.
        device: The device of the tasks.
        threads: Threads of each process; None for an equal share of the cores, or for the option
            ``cpus`` of a cluster.

    Returns:
        None if one task at a time runs, in this process.

    Raises:
        InputError: There is no such launcher or option, or a value does not fit.
    """
    if name not in LAUNCHERS:
        raise unknown("launcher", name, LAUNCHERS)
    if jobs is not None and (type(jobs) is not int or jobs < 1):
        raise InputError(f"jobs: a whole number of 1 or more is needed, got {brief(jobs)}")
    if name == "processes":
        if options:
            raise InputError(
                f"{next(iter(options))} is an option of the launchers ray and slurm; add "
                f"{option('launcher', 'slurm')}, or drop it"
            )
        jobs = min(jobs or 1, most)
        return Processes(jobs, threads, 0 if device == "cpu" else None) if jobs > 1 else None
    if threads is not None:
        cpus = options.get("cpus", threads)
        if cpus != threads:
            raise InputError(
                f"train.threads={threads} and the launcher option cpus={brief(cpus)} contradict "
                "each other: torch has as many threads as a job has cores; drop one of them"
            )
        options = {**options, "cpus": threads}
    if name == "ray":
        if device == "cpu":
            options = {"gpus": 0, **options}
        return RayCluster(jobs, _checked(RayOptions, options))
    return Slurm(jobs, _checked(SlurmOptions, options), folder)


def _checked(kind: type[S], options: Mapping[str, Any]) -> S:
    """The options of a launcher.

    Raises:
        InputError: There is no such option, or a value does not fit.
    """
    for key in options:
        if key not in kind.model_fields:
            raise unknown("launcher option", key, kind.model_fields)
    try:
        return validate(kind, options)
    except InputError as error:
        raise InputError(f"launcher option {error}") from None
