"""A comparison on a local Ray cluster: the same rows, a lost worker, and a clean stop."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from dskd.compare.runner import run_grid
from dskd.errors import InputError, Stopped
from dskd.runtime.launchers.ray_cluster import RayCluster, RayOptions
from dskd.runtime.launchers.schedule import run_tasks
from tests.compare.small_comparison import Silent, small, students
from tests.runtime import tasks
from tests.runtime.test_launchers import outcomes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    pytest.importorskip("ray")
    launcher = RayCluster(None, RayOptions(address="local"))
    assert launcher.open().startswith("jobs on a Ray cluster of 1 machine with ")
    yield launcher
    launcher.close()


def test_a_comparison_on_a_cluster_has_the_same_students(
    tmp_path: Path, cluster: RayCluster
) -> None:
    on_same_cluster = RayCluster(None, RayOptions())
    grid = small(tmp_path / "ray", "kd", seeds=1)
    (variant,) = run_grid(grid, Silent(), launcher=on_same_cluster).variants
    assert sorted(variant.results) == [0]
    run_grid(small(tmp_path / "here", "kd", seeds=1), Silent())
    found = students(tmp_path / "ray")
    assert found == students(tmp_path / "here")
    assert found.keys() == {"kd/seed0", "teacher"}


def test_a_lost_worker_is_told(cluster: RayCluster, tmp_path: Path) -> None:
    lost, done = outcomes(cluster, tasks.is_killed, tasks.Writes(tmp_path / "one"))
    assert (lost.error or "").startswith("its Ray task is lost: ")
    assert done.error is None


def test_a_stop_reaches_the_cluster(cluster: RayCluster, tmp_path: Path) -> None:
    task = tasks.WaitsForStop(tmp_path / "state")

    def look() -> None:
        if tasks.is_at_work(task):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Stopped):
        run_tasks(cluster, tasks.queue(task), lambda *_: None, look)
    assert task.path.read_text() == "saved"


def test_more_than_the_cluster_has_is_refused(cluster: RayCluster) -> None:
    with pytest.raises(InputError, match="a job needs 1000 CPUs, and the Ray cluster has "):
        RayCluster(None, RayOptions(cpus=1000)).open()
