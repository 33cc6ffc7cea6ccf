"""Tasks as jobs of Slurm, by submitit. That is the extra ``dskd[slurm]``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from dskd.errors import InputError, first_line
from dskd.runtime.extras import import_extra
from dskd.runtime.launchers.task import Launched, Outcome, Task
from dskd.settings import Count, Natural, Positive, Settings

if TYPE_CHECKING:
    from submitit import Job


class SlurmOptions(Settings):
    """Options of the launcher ``slurm``."""

    cluster: Literal["slurm", "local"] = "slurm"
    """``local`` starts the jobs on this machine without Slurm, to try things out."""
    partition: str | None = None
    """Partition of the jobs."""
    account: str | None = None
    """Account of the jobs."""
    qos: str | None = None
    """Quality of service of the jobs."""
    constraint: str | None = None
    """Features that a machine must have."""
    time: Count = 1440
    """Most minutes of a job. A job that takes longer is submitted again and continues."""
    cpus: Annotated[Count, Field(le=1024)] = 1
    """Cores of a job, which are also the threads of torch."""
    gpus: Natural = 0
    """GPUs of a job; a run uses one."""
    memory: Positive | None = None
    """Memory of a job in GB; None for the partition's default."""
    more: dict[str, Any] = Field(default_factory=dict)
    """Further options of sbatch, as in ``more={reservation: night}``."""


class Slurm:
    """Starts tasks as jobs of Slurm.

    Args:
        limit: Most jobs in the queue at a time; None for any number.
        options: What a job needs.
        folder: Shared folder for the scripts, the logs and the results of the jobs.
    """

    elsewhere = True

    def __init__(self, limit: int | None, options: SlurmOptions, folder: Path) -> None:
        self.limit, self.options, self.folder = limit, options, folder
        self._executor: Any = None

    def open(self) -> str:
        """See `Launcher.open`."""
        needed = "the launcher slurm needs submitit, which is not installed;"
        submitit = import_extra("submitit", "slurm", needed)
        options = self.options
        if options.cluster == "slurm" and submitit.SlurmExecutor.affinity() < 0:
            raise InputError(
                "there is no Slurm on this machine: srun is not found; start on a machine that "
                "can submit jobs, or give the launcher option cluster=local to try things out"
            )
        where = "through Slurm" if options.cluster == "slurm" else "of submitit on this machine"
        return (
            f"jobs {where}, {options.cpus} core{'s' * (options.cpus > 1)} and {options.gpus} GPUs "
            f"each; their logs are in {self.folder}"
        )

    def submit(self, task: Task) -> _RunningInSlurm:
        """See `Launcher.submit`.

        Raises:
            InputError: Slurm does not take the job.
        """
        if self._executor is None:  # not earlier: it creates the folder
            import submitit

            self._executor = submitit.AutoExecutor(self.folder, cluster=self.options.cluster)
            self._executor.update_parameters(**parameters(self.options))
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        try:
            job = self._executor.submit(Launched(task, self.options.cpus))
        except (FailedJobError, FailedSubmissionError) as error:
            raise InputError(
                f"Slurm refused the job: {first_line(error)}; check the launcher options"
            ) from error
        return _RunningInSlurm(job)

    def close(self) -> None:
        """See `Launcher.close`."""


def parameters(options: SlurmOptions) -> dict[str, Any]:
    """The options as submitit calls them."""
    named = {key: getattr(options, key) for key in ("partition", "account", "qos", "constraint")}
    slurm: dict[str, Any] = {f"slurm_{key}": value for key, value in named.items() if value}
    if options.more:
        slurm["slurm_additional_parameters"] = options.more
    if options.memory is not None:
        slurm["mem_gb"] = options.memory
    return {
        "name": "dskd",
        "timeout_min": options.time,
        "cpus_per_task": options.cpus,
        "gpus_per_node": options.gpus,
        **slurm,
    }


class _RunningInSlurm:
    """A job in the queue, at work or over."""

    def __init__(self, job: Job[Outcome]) -> None:
        self._job = job

    def done(self) -> bool:
        """See `Running.done`."""
        return bool(self._job.done())

    def outcome(self) -> Outcome:
        """See `Running.outcome`."""
        from submitit.core.utils import UncompletedJobError

        try:
            outcome = self._job.result()
        except UncompletedJobError:
            return Outcome(f"its job {self._job.job_id} is lost (state: {self._job.state})")
        assert isinstance(outcome, Outcome)
        return outcome

    def stop(self) -> None:
        """See `Running.stop`."""
        self._job.cancel(check=False)

    def kill(self) -> None:
        """See `Running.kill`."""
        self._job.cancel(check=False)
