"""Read and write the folder of a run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock
from torch import nn

from dskd.errors import InputError, option
from dskd.runtime import distributed
from dskd.storage import checkpoint, run_guard
from dskd.storage.atomic import make_folder, remove_parts, replace_file
from dskd.storage.diff import StorableRecipe
from dskd.storage.lock import lock_folder
from dskd.storage.metric_names import Metric, to_file
from dskd.storage.metrics_file import append_row, read_rows, write_rows
from dskd.storage.run_files import (
    CHECKPOINTS,
    ENVIRONMENT,
    METRICS,
    NONFINITE,
    RECIPE,
    RESULT,
    TENSORBOARD,
    WRITTEN,
)
from dskd.storage.tensorboard import TensorBoardLog
from dskd.storage.weights import write_weights


class RunDirectory:
    """The folder of one run.

    If several processes train together, only rank 0 accesses the folder. All processes get what it
    reads, and the errors that it raises.

    Args:
        path: The folder; it need not exist.
        trains_teacher: Whether the run trains a teacher of its own in the subfolder ``teacher``.

    Attributes:
        metric: What the run measures; files name it so.
    """

    def __init__(self, path: Path, *, trains_teacher: bool = False) -> None:
        self.path = path
        self.trains_teacher = trains_teacher
        self.metric: Metric = "accuracy"
        self.checkpoints = path / CHECKPOINTS
        self._newest: Path | None = None
        self._tensorboard: TensorBoardLog | None = None

    @property
    @distributed.on_rank_zero
    def finished(self) -> bool:
        """Whether the run is finished."""
        return (self.path / RESULT).is_file()

    @property
    @distributed.on_rank_zero
    def begun(self) -> bool:
        """Whether a run was started in the folder."""
        return (self.path / RECIPE).is_file()

    @distributed.on_rank_zero
    def check(self, recipe: StorableRecipe, *, resume: bool, overwrite: bool) -> None:
        """Refuses a folder that a run would damage or cannot write to. Changes nothing.

        Args:
            recipe: The recipe of the run that is about to start or resume.
            resume: Whether the run continues the one in the folder.
            overwrite: Whether the run replaces the one in the folder.

        Raises:
            InputError: As for `dskd.storage.run_guard.check_folder`.
        """
        run_guard.check_folder(
            self.path, recipe, self.trains_teacher, resume=resume, overwrite=overwrite
        )

    @distributed.on_rank_zero
    def check_same(self, recipe: StorableRecipe) -> None:
        """Refuses to continue the run with another recipe, or through links.

        Raises:
            InputError: A setting differs, or a subfolder of the run is a link.
        """
        run_guard.check_same_recipe(self.path, recipe)

    @distributed.on_rank_zero
    def check_data(self, fingerprint: str) -> None:
        """Refuses a finished run that was trained on other images.

        Args:
            fingerprint: The fingerprint of the images that are in use now.

        Raises:
            InputError: The fingerprints differ.
        """
        run_guard.check_same_data(self.path, fingerprint)

    @contextmanager
    def locked(self, wait: float = 0.0) -> Iterator[None]:
        """Creates the folder and keeps other processes out of it while the block runs.

        Raises:
            InputError: Another process holds the lock, and does so for ``wait`` seconds.
        """
        locks: list[FileLock] = []  # stays empty on all ranks but 0
        out = option("out", "FOLDER")
        distributed.on_rank_zero(lambda: locks.append(lock_folder(self.path, out, wait)))()
        try:
            yield
        finally:
            for lock in locks:
                lock.release()
            self.close()

    @distributed.on_rank_zero
    def clear(self) -> None:
        """Removes the run in the folder and nothing else."""
        run_guard.remove_run(self.path)

    @distributed.on_rank_zero
    def start(self, recipe: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
        """Writes the recipe and the environment; removes temporary files of kills, and the result.

        Args:
            recipe: The run's recipe. It is stored without its folder (``out``), so that the file
                can be used for other runs.
            environment: What `dskd.runtime.device.environment` returns. Those of the run's earlier
                parts are kept as ``earlier``.
        """
        make_folder(self.path)
        remove_parts(self.path, WRITTEN)
        remove_parts(self.checkpoints, [checkpoint.FILE_PATTERN])
        stored = {key: value for key, value in recipe.items() if key != "out"}
        (self.path / RESULT).unlink(missing_ok=True)  # of a run that takes more epochs
        text = yaml.safe_dump(stored, sort_keys=False, allow_unicode=True)
        facts = {**environment, run_guard.TRAINS_TEACHER: self.trains_teacher}
        self.write_json(ENVIRONMENT, run_guard.with_earlier(self.path, facts))
        replace_file(self.path / RECIPE, text.encode())

    @distributed.on_rank_zero
    def rewind(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Resets the metrics to those of the epochs that are done.

        Args:
            rows: The metrics, one row per epoch.
        """
        write_rows(self.path / METRICS, [to_file(row, self.metric) for row in rows])
        (self.path / NONFINITE).unlink(missing_ok=True)
        self._tensorboard = TensorBoardLog(self.path / TENSORBOARD, len(rows))

    @distributed.on_rank_zero
    def rows(self) -> list[dict[str, Any]]:
        """Reads the metrics of all epochs so far, one row per epoch.

        Raises:
            InputError: The file is damaged.
        """
        return read_rows(self.path / METRICS)

    @distributed.on_rank_zero
    def append(self, row: dict[str, Any]) -> dict[str, Any]:
        """Appends the metrics of an epoch to the file and to TensorBoard.

        Args:
            row: The metrics, with the number of the epoch.

        Returns:
            The row; on all ranks that of rank 0.
        """
        assert self._tensorboard is not None, "rewind comes before append"
        named = to_file(row, self.metric)
        append_row(self.path / METRICS, named)
        self._tensorboard.add(named.pop("epoch"), named)
        return row

    @distributed.on_rank_zero
    def write_student(self, name: str, student: nn.Module, metadata: Mapping[str, Any]) -> None:
        """Writes the weights of the deployed student, with metadata about how to use them."""
        replace_file(self.path / name, write_weights(student, metadata))

    @distributed.on_rank_zero
    def write_bytes(self, name: str, data: bytes) -> None:
        """Writes a file of the run."""
        replace_file(self.path / name, data)

    @distributed.on_rank_zero
    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        """Writes plain values as JSON."""
        replace_file(self.path / name, (json.dumps(values, indent=2) + "\n").encode())

    @distributed.on_rank_zero
    def write_checkpoint(self, state: dict[str, Any]) -> None:
        """Writes a checkpoint and keeps the previous one; see `dskd.storage.checkpoint.write`."""
        self._newest = checkpoint.write(self.checkpoints, state, self._newest)

    @distributed.on_rank_zero
    def newest_checkpoint(self) -> tuple[dict[str, Any] | None, list[str]]:
        """Reads the newest checkpoint that is not damaged.

        Returns:
            The state, or None if there is no checkpoint; and one line for each damaged checkpoint.

        Raises:
            InputError: All checkpoints are damaged, or they were removed.
        """
        state, self._newest, damaged = checkpoint.read_newest(self.checkpoints)
        if state is not None:
            return state, damaged
        if damaged:
            raise InputError(
                f"every checkpoint in {self.checkpoints} is damaged ({'; '.join(damaged)}); remove "
                f"{self.path} to start again"
            )
        metrics = self.path / METRICS
        if metrics.is_file() and metrics.stat().st_size:  # written after the first checkpoint
            raise InputError(
                f"the checkpoints in {self.checkpoints} are gone; remove {self.path} to start again"
            )
        return None, damaged

    def close(self) -> None:
        """Closes the TensorBoard log."""
        if self._tensorboard is not None:
            self._tensorboard.close()
