"""Tasks in other processes: outcomes, losses, stops, and no process that is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from dskd.errors import InputError, Stopped, on_command_line
from dskd.runtime.launchers import schedule
from dskd.runtime.launchers.choose import choose_launcher
from dskd.runtime.launchers.processes import Processes
from dskd.runtime.launchers.ray_cluster import RayCluster, RayOptions
from dskd.runtime.launchers.slurm import Slurm, SlurmOptions, parameters
from dskd.runtime.launchers.task import Launcher, Outcome, Task
from tests.runtime import tasks


@pytest.fixture
def processes() -> Iterator[Processes]:
    launcher = Processes(2, gpus=0)
    yield launcher
    launcher.close()


def outcomes(launcher: Launcher, *given: Task) -> list[Outcome]:
    found: dict[int, Outcome] = {}
    number = {id(task): n for n, task in enumerate(given)}

    def ended(task: Task, outcome: Outcome) -> None:
        found[number[id(task)]] = outcome

    schedule.run_tasks(launcher, tasks.queue(*given), ended)
    return [found[n] for n in range(len(given))]


def test_outcomes_of_processes(processes: Processes, tmp_path: Path) -> None:
    with on_command_line():
        done, refused, failed, killed, again = outcomes(
            processes,
            tasks.Writes(tmp_path / "one"),
            tasks.is_refused,
            tasks.fails,
            tasks.is_killed,
            tasks.Writes(tmp_path / "two"),
        )
    assert done == Outcome(warnings=("half of the images are gray",)) == again
    assert refused == Outcome("the student is not there; give --student MODEL")
    assert failed.error == "KeyError: 'weights'"
    assert "in fails" in failed.details
    assert killed == Outcome("its process was killed by SIGKILL")


def test_a_task_that_cannot_be_sent_takes_no_worker(processes: Processes, tmp_path: Path) -> None:
    lock = threading.Lock()

    def uses_the_lock() -> None:
        lock.acquire()

    for _ in range(3):
        with pytest.raises(InputError, match=r"cannot be sent to another process .*lock.*drop"):
            processes.submit(uses_the_lock)
    assert outcomes(processes, tasks.Writes(tmp_path / "one")) == [
        Outcome(warnings=("half of the images are gray",))
    ]


def test_tasks_run_at_the_same_time_in_processes_that_stay(
    processes: Processes, tmp_path: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    before = {child.pid for child in psutil.Process().children()}
    met = outcomes(processes, tasks.Meets(one, two), tasks.Meets(two, one))
    assert met == [Outcome(), Outcome()]
    pids = {child.pid for child in psutil.Process().children()} - before
    outcomes(processes, tasks.Writes(tmp_path / "pid"))
    assert int((tmp_path / "pid").read_text()) in pids
    processes.close()
    assert not pids & {child.pid for child in psutil.Process().children()}


def test_a_stop_reaches_all_tasks_and_waits_for_them(processes: Processes, tmp_path: Path) -> None:
    given = [tasks.WaitsForStop(tmp_path / str(number)) for number in range(3)]

    def look() -> None:
        if all(tasks.is_at_work(task) for task in given[:2]):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Stopped) as stopped:
        schedule.run_tasks(processes, tasks.queue(*given), lambda *_: None, look)
    assert stopped.value.signal == signal.SIGINT
    assert [task.path.is_file() and task.path.read_text() for task in given] == [
        "saved",
        "saved",
        False,
    ]


def test_an_error_of_the_launching_process_leaves_no_task_behind(
    processes: Processes, tmp_path: Path
) -> None:
    task = tasks.WaitsForStop(tmp_path / "state")
    before = set(psutil.Process().children())  # such as the server that forks for other tests

    def look() -> None:
        if tasks.is_at_work(task):
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        schedule.run_tasks(processes, tasks.queue(task), lambda *_: None, look)
    assert not set(psutil.Process().children()) - before


SCRIPT = """
from pathlib import Path
from dskd.runtime.launchers.processes import Processes
from dskd.runtime.launchers.schedule import run_tasks
from tests.runtime.tasks import WaitsForStop, queue

class OfThisScript(WaitsForStop):
    pass

launcher = Processes(1, gpus=0)
run_tasks(launcher, queue(OfThisScript(Path("state"))), lambda *_: None)
"""


@pytest.mark.slow
def test_a_script_without_a_main_guard_that_is_killed_stops_its_tasks(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    paths = os.pathsep.join(filter(None, sys.path))
    script = subprocess.Popen(
        [sys.executable, "script.py"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths}
    )
    task = tasks.WaitsForStop(tmp_path / "state")
    tasks.wait_for(lambda: tasks.is_at_work(task))
    [worker] = psutil.Process(script.pid).children()
    script.kill()
    script.wait()
    tasks.wait_for(lambda: not worker.is_running() or worker.status() == "zombie")
    assert task.path.read_text() == "saved"


def test_each_process_gets_its_share_of_threads_and_one_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 8)
    launcher = Processes(3, gpus=2)
    assert launcher.open() == "3 jobs at a time on this machine, on 2 GPUs, 2 threads each"
    launcher.close()


def chosen(name: Any, jobs: Any, threads: int | None = None, **options: Any) -> Launcher | None:
    return choose_launcher(
        name, jobs, options, folder=Path("jobs"), most=3, device="cpu", threads=threads
    )


def test_the_launcher_that_is_asked_for() -> None:
    assert chosen("processes", None) is None
    assert chosen("processes", 1) is None
    eight = chosen("processes", 8)
    assert isinstance(eight, Processes)
    assert eight.limit == 3
    cluster = chosen("slurm", None, partition="gpu", time=60)
    assert isinstance(cluster, Slurm)
    assert cluster.options == SlurmOptions(partition="gpu", time=60)


def test_a_job_has_the_cores_of_its_threads() -> None:
    for options in ({}, {"cpus": 8}):
        cluster = chosen("slurm", None, 8, **options)
        assert isinstance(cluster, Slurm)
        assert cluster.options.cpus == 8
    with pytest.raises(InputError, match=r"train.*threads.*8.* and the launcher option cpus=4"):
        chosen("ray", None, 8, cpus=4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("slrum", None), "unknown launcher 'slrum'; did you mean 'slurm'"),
        (("processes", 0), "jobs: a whole number of 1 or more is needed, got 0"),
        (("ray", True), "jobs: a whole number of 1 or more is needed, got true"),
    ],
)
def test_other_launchers_are_refused(given: tuple[Any, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        chosen(*given)


def test_options_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="unknown launcher option 'partitoin'; did you mean 'part"):
        chosen("slurm", None, partitoin="gpu")
    with pytest.raises(InputError, match="launcher option time: a whole number is needed, got 'a"):
        chosen("slurm", None, time="a day")
    with pytest.raises(InputError, match="time is an option of the launchers ray and slurm"):
        chosen("processes", 2, time=60)


def test_a_machine_without_slurm_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="there is no Slurm on this machine: srun is not found"):
        Slurm(None, SlurmOptions(), tmp_path).open()


def test_a_missing_library_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(InputError, match=r"pip install 'dskd\[ray\]'"):
        RayCluster(None, RayOptions()).open()
    with pytest.raises(InputError, match=r"pip install 'dskd\[slurm\]'"):
        Slurm(None, SlurmOptions(), tmp_path).open()


@pytest.mark.parametrize("kind", ["FailedJobError", "FailedSubmissionError"])
def test_a_job_that_slurm_refuses_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    submitit = pytest.importorskip("submitit")
    error = getattr(submitit.core.utils, kind)

    def refuse(*_: object) -> None:
        raise error("sbatch: error: invalid partition specified: gup\nsbatch: error: failed")

    monkeypatch.setattr(submitit.AutoExecutor, "submit", refuse)
    launcher = Slurm(None, SlurmOptions(cluster="local"), tmp_path)
    with pytest.raises(InputError) as refused:
        launcher.submit(tasks.fails)
    assert str(refused.value) == (
        "Slurm refused the job: sbatch: error: invalid partition specified: gup; check the "
        "launcher options"
    )


def test_slurm_gets_the_options() -> None:
    options = SlurmOptions(partition="gpu", time=90, gpus=1, memory=16, more={"reservation": "a"})
    assert parameters(options) == {
        "name": "dskd",
        "timeout_min": 90,
        "cpus_per_task": 1,
        "gpus_per_node": 1,
        "mem_gb": 16.0,
        "slurm_partition": "gpu",
        "slurm_additional_parameters": {"reservation": "a"},
    }
