"""Tasks on a Ray cluster. Ray is the extra ``dskd[ray]``."""

from __future__ import annotations

import os
from typing import Annotated, Any

from pydantic import Field

from dskd.errors import InputError, first_line
from dskd.runtime.extras import import_extra
from dskd.runtime.launchers.task import Launched, Outcome, Task
from dskd.settings import Count, Positive, Settings, Weight


def _ray() -> Any:
    """The library.

    Raises:
        InputError: It is not installed.
    """
    return import_extra("ray", "ray", "the launcher ray needs Ray, which is not installed;")


class RayOptions(Settings):
    """Options of the launcher ``ray``."""

    address: str = "auto"
    """Address of the cluster. ``auto`` is the cluster that this machine belongs to, or that of
    RAY_ADDRESS. ``local`` starts one on this machine alone."""
    cpus: Annotated[Count, Field(le=1024)] = 1
    """Cores of a job, which are also the threads of torch."""
    gpus: Weight | None = None
    """GPUs of a job; 0.5 has two jobs share one. None for one if the cluster has any."""
    memory: Positive | None = None
    """Memory of a job in GB, by which Ray places it; None for any."""


class RayCluster:
    """Starts tasks on a Ray cluster.

    Args:
        limit: Most tasks at a time; None for as many as the cluster has room for.
        options: The cluster, and what a task needs.
    """

    elsewhere = True

    def __init__(self, limit: int | None, options: RayOptions) -> None:
        self.limit, self.options = limit, options
        self._run: Any = None
        self._connected = False

    def open(self) -> str:
        """See `Launcher.open`."""
        ray = _ray()
        if not ray.is_initialized():
            self._connect()
        resources = ray.cluster_resources()
        options, available = self.options, resources.get("GPU", 0)
        gpus = options.gpus if options.gpus is not None else min(1, available)
        for what, wanted in (("CPU", options.cpus), ("GPU", gpus)):
            if wanted > resources.get(what, 0):
                self.close()
                raise InputError(
                    f"a job needs {wanted:g} {what}s, and the Ray cluster has "
                    f"{resources.get(what, 0):g}; lower the launcher option {what.lower()}s"
                )
        memory = {} if options.memory is None else {"memory": int(options.memory * 1e9)}
        remote = ray.remote(num_cpus=options.cpus, num_gpus=gpus, max_retries=0, **memory)
        self._run = remote(_run)
        cores, nodes = resources.get("CPU", 0), len([n for n in ray.nodes() if n["Alive"]])
        return (
            f"jobs on a Ray cluster of {nodes} machine{'s' * (nodes != 1)} with {cores:g} cores "
            f"and {available:g} GPUs, {options.cpus} core{'s' * (options.cpus > 1)} and {gpus:g} "
            "GPUs each"
        )

    def _connect(self) -> None:
        address = self.options.address
        own: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            _ray().init(address=address, log_to_driver=False, logging_level="ERROR", **own)
        except Exception as error:  # Ray raises many types
            raise InputError(
                f"there is no Ray cluster at {address!r} ({first_line(error)}); start one with "
                "`ray start --head`, give the launcher option address, or address=local for a "
                "cluster on this machine alone"
            ) from None
        self._connected = True

    def submit(self, task: Task) -> _RunningOnRay:
        """See `Launcher.submit`."""
        return _RunningOnRay(self._run.remote(Launched(task, self.options.cpus)))

    def close(self) -> None:
        """See `Launcher.close`."""
        if self._connected:
            _ray().shutdown()
            self._connected = False


def _run(task: Launched) -> Outcome:
    return task()


class _RunningOnRay:
    """A task on a cluster."""

    def __init__(self, reference: Any) -> None:
        self._reference = reference

    def done(self) -> bool:
        """See `Running.done`."""
        return bool(_ray().wait([self._reference], timeout=0)[0])

    def outcome(self) -> Outcome:
        """See `Running.outcome`."""
        ray = _ray()
        try:
            outcome = ray.get(self._reference)
        except ray.exceptions.RayError as error:
            return Outcome(f"its Ray task is lost: {first_line(error)}")
        assert isinstance(outcome, Outcome)
        return outcome

    def stop(self) -> None:
        """See `Running.stop`. The task gets Python's SIGINT."""
        _ray().cancel(self._reference, force=False)

    def kill(self) -> None:
        """See `Running.kill`."""
        _ray().cancel(self._reference, force=True)
