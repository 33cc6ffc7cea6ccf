"""The run directory: what a run leaves, and whose it is."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import yaml
from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from dskd import methods
from dskd.errors import InputError
from dskd.runtime import distributed
from dskd.storage import checkpoint
from dskd.storage.atomic import (
    is_part,
    make_folder,
    probe,
    refuse_links,
    remove_folder,
    remove_parts,
    replace_file,
    telling,
)
from dskd.storage.json_file import read_json, read_json_lines
from dskd.storage.lock import LOCK, OWNER, take
from dskd.storage.tensorboard import TensorBoardLog
from dskd.storage.weights import write_weights
from dskd.storage.yaml_file import read_yaml_file

LAST, BEST = "student.safetensors", "student_best.safetensors"
NONFINITE = "nonfinite.json"
"""What is known of the step whose numbers ended a run; see `dskd.errors.NonFiniteError`."""
FAILED = "failed.txt"
"""Why a comparison goes on without the run."""
_RESULT = "result.json"
_MARKS = {"environment.json": ("python", "packages"), "recipe.yaml": ("data", "student")}
"""What tells a run's folder from others, and some of the groups that are in it."""
_FILES = (
    LAST,
    BEST,
    "auxiliary.safetensors",
    "metrics.jsonl",
    NONFINITE,
    FAILED,
    "student.onnx",
    "student_best.onnx",
)
_PLACES = ("out", "data.root", "data.cache_dir", "teacher.checkpoint", "teacher.cache_dir")
_FOLDERS = ("checkpoints", "tensorboard", "teacher")
_OWN = (*_MARKS, *_FILES, *_FOLDERS, _RESULT, OWNER)
"""All that a run may leave halfway, as it is killed."""

_Metric = (
    Annotated[int, Field(strict=True, ge=-(2**63), lt=2**63)] | Annotated[float, Field(strict=True)]
)


class Finished(BaseModel):
    """What ``result.json`` tells beside a run's numbers.

    Attributes:
        given: Fingerprints of its images and teacher; none in a file of an older version.
    """

    model_config = ConfigDict(extra="allow")  # the numbers, and what a later version may say

    given: dict[str, str | None] = Field(default_factory=dict)


class RunDirectory:
    """A folder that holds one run.

    Of several processes rank 0 alone touches it: what it reads, or refuses, all get.

    Args:
        path: The folder; it need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self._newest: Path | None = None
        self._tensorboard: TensorBoardLog | None = None

    @property
    @distributed.on_rank_zero
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return (self.path / _RESULT).is_file()

    @property
    @distributed.on_rank_zero
    def begun(self) -> bool:
        """Whether a run was started here."""
        return (self.path / "recipe.yaml").is_file()

    @distributed.on_rank_zero
    def check(self, recipe: Mapping[str, Any], *, resume: bool, overwrite: bool) -> None:
        """Refuses a folder that a run would harm or cannot write to; leaves everything as it is.

        Args:
            recipe: Of the run that is to begin or go on.
            resume: Whether it goes on.
            overwrite: Whether it takes the place of the one that is there.

        Raises:
            InputError: The folder holds a run and neither flag is set, a run by another recipe,
                a finished run, links, or something else; or a write to it fails.
        """
        if resume and overwrite:
            raise InputError("--resume and --overwrite exclude each other; give one")
        probe(self.path, "out=")
        if not self.path.is_dir() or not any(map(_counts, self.path.iterdir())):
            return
        if not self._is_run():
            raise InputError(f"{self.path} holds other files; choose another folder with out=")
        if not resume and not overwrite:
            raise InputError(
                f"{self.path} already holds a run; continue it (--resume), replace it "
                "(--overwrite) or choose another folder (out=)"
            )
        if overwrite:
            self._check_needed(recipe)
        if resume:
            self.check_same(recipe)
            if self.finished:
                raise InputError(
                    f"{self.path} holds a finished run; look at it with "
                    f"`dskd evaluate {self.path}` or replace it with --overwrite"
                )

    def _is_run(self) -> bool:
        left = {path.name for path in self.path.iterdir() if _counts(path)}
        marks = left & _MARKS.keys()
        if not all(map(self._is_mark, marks)):
            return False
        # Both: anybody may keep a recipe of their own in a folder of their own. A run that was
        # killed as it began, or was removed, may have left one of them alone.
        return marks == _MARKS.keys() or (left == marks and (self.path / LOCK).is_file())

    def _is_mark(self, name: str) -> bool:
        """Whether a file of that name is what a run writes there."""
        path = self.path / name
        fix = "remove it where it is a run's, or choose another folder with out="
        is_json = path.suffix == ".json"
        found = read_json(path, dict[str, Any], fix) if is_json else read_yaml_file(path, name)
        return all(isinstance(found.get(key), (dict, str)) for key in _MARKS[name])

    def _check_needed(self, recipe: Mapping[str, Any]) -> None:
        """What the new run reads must not go with the old one."""
        if _trains_teacher(recipe) and not self._trained_its_teacher():
            teacher = self.path / "teacher"
            if teacher.exists() or teacher.is_symlink():
                raise InputError(
                    f"{teacher} is no part of the run in {self.path}, and the new one's teacher "
                    "would be trained there; move it out first, or choose another folder with out="
                )
        files = ((recipe["teacher"] or {}).get("checkpoint"), recipe["data"]["root"])
        for needed in filter(None, files):
            if Path(needed).resolve().is_relative_to(self.path.resolve()):
                raise InputError(
                    f"{needed} lies in {self.path}, which --overwrite would empty; move it out "
                    "first, or choose another folder with out="
                )

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Makes the folder, and keeps other processes from it while the block runs.

        The lock is the operating system's: it dies with its process.

        Raises:
            InputError: Another run owns the folder.
        """
        lock = self._take()
        try:
            yield
        finally:
            if lock is not None:
                lock.release()
            self.close()

    def _take(self) -> FileLock | None:
        """The lock, on rank 0."""
        taken: list[FileLock] = []
        distributed.on_rank_zero(lambda: taken.append(take(self.path, "out=")))()
        return taken[0] if taken else None

    @distributed.on_rank_zero
    def check_same(self, recipe: Mapping[str, Any]) -> None:
        """Refuses to go on under another recipe than the one that is there, or through links.

        Raises:
            InputError: They differ, and what differs is listed; or a folder of the run is a link.
        """
        refuse_links(*(self.path / name for name in _FOLDERS))
        path = self.path / "recipe.yaml"
        if not path.is_file():
            return
        if listed := differences(read_yaml_file(path, "recipe"), recipe):
            raise InputError(
                f"{self.path} was started with another recipe: {listed}; go on with that one or "
                "choose another folder"
            )

    @distributed.on_rank_zero
    def check_data(self, fingerprint: str) -> None:
        """Refuses a finished run of other images.

        Args:
            fingerprint: Of the images as they are.

        Raises:
            InputError: It was trained on others.
        """
        fix = f"remove {self.path} to have it trained again"
        given = read_json(self.path / "result.json", Finished, fix).given
        if given.get("data", fingerprint) != fingerprint:
            raise InputError(
                f"{self.path} was trained on other images than these; give the same, or {fix}"
            )

    @distributed.on_rank_zero
    def clear(self) -> None:
        """Removes the run that is there, and nothing else.

        In an order in which a removal that is killed leaves no run that could go on.
        """
        (self.path / _RESULT).unlink(missing_ok=True)
        for name in _FOLDERS:
            if name != "teacher" or self._trained_its_teacher():
                remove_folder(self.path / name)
        for name in (*_FILES, *_MARKS):
            (self.path / name).unlink(missing_ok=True)

    def _trained_its_teacher(self) -> bool:
        """Whether the folder ``teacher`` is of the run that is there, not a run of its own."""
        return self.begun and _trains_teacher(read_yaml_file(self.path / "recipe.yaml", "recipe"))

    @distributed.on_rank_zero
    def start(self, recipe: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
        """Makes the folder, says in it what the run is, and removes what killed writes left."""
        make_folder(self.path)
        remove_parts(self.path, _OWN)
        remove_parts(self.checkpoints, [checkpoint.NAMES])
        # Without the folder, so that the file can be given to another run.
        kept = {key: value for key, value in recipe.items() if key != "out"}
        text = yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)
        self.write_json("environment.json", environment)
        replace_file(self.path / "recipe.yaml", text.encode())

    @distributed.on_rank_zero
    def rewind(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Goes back to the metrics of the epochs so far; the coming ones are written again."""
        replace_file(self.path / "metrics.jsonl", "".join(map(_line, rows)).encode())
        (self.path / NONFINITE).unlink(missing_ok=True)
        self._tensorboard = TensorBoardLog(self.path / "tensorboard", len(rows))

    @distributed.on_rank_zero
    def rows(self) -> list[dict[str, Any]]:
        """The metrics so far, a row an epoch.

        Raises:
            InputError: They are damaged.
        """
        path = self.path / "metrics.jsonl"
        if not path.is_file():
            return []
        return read_json_lines(path, dict[str, _Metric], f"remove {self.path} to start again")

    @distributed.on_rank_zero
    def append(self, row: dict[str, Any]) -> dict[str, Any]:
        """Adds an epoch's metrics, to the file and to TensorBoard; returns them."""
        assert self._tensorboard is not None, "rewind comes before append"
        path, line = self.path / "metrics.jsonl", _line(row).encode()
        with telling(path, lambda: len(line)), path.open("ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._tensorboard.add(row["epoch"], {k: value for k, value in row.items() if k != "epoch"})
        return row

    @distributed.on_rank_zero
    def write_student(self, name: str, student: nn.Module, metadata: Mapping[str, Any]) -> None:
        """Writes the deployed student, with its own keys and nothing of the run's time or place."""
        replace_file(self.path / name, write_weights(student, metadata))

    @distributed.on_rank_zero
    def write_bytes(self, name: str, data: bytes) -> None:
        """Writes a file of the run, whole."""
        replace_file(self.path / name, data)

    @distributed.on_rank_zero
    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        """Writes plain values as JSON."""
        replace_file(self.path / name, (json.dumps(values, indent=2) + "\n").encode())

    @distributed.on_rank_zero
    def write_checkpoint(self, state: dict[str, Any]) -> None:
        """Writes a checkpoint and keeps the one before it (see `dskd.storage.checkpoint.write`)."""
        self._newest = checkpoint.write(self.checkpoints, state, self._newest)

    @distributed.on_rank_zero
    def newest_checkpoint(self) -> tuple[dict[str, Any] | None, list[str]]:
        """The state of the newest checkpoint that verifies, and a line for each that does not.

        Raises:
            InputError: There are checkpoints and every one is damaged, or there were some and they
                are gone.
        """
        paths = checkpoint.in_order(self.checkpoints)
        damaged: list[str] = []
        for path in reversed(paths):
            try:
                state, self._newest = checkpoint.read(path), path
                return state, damaged
            except checkpoint.DamagedCheckpoint as error:
                damaged.append(str(error))
        if paths:
            raise InputError(
                f"every checkpoint in {self.checkpoints} is damaged ({'; '.join(damaged)}); remove "
                f"{self.path} to start again"
            )
        metrics = self.path / "metrics.jsonl"
        if metrics.is_file() and metrics.stat().st_size:  # the first checkpoint comes before them
            raise InputError(
                f"the checkpoints in {self.checkpoints} are gone; remove {self.path} to start again"
            )
        return None, damaged

    def close(self) -> None:
        """Closes the log."""
        if self._tensorboard is not None:
            self._tensorboard.close()


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """What two recipes, or parts of them, differ in, for a person; empty where in nothing.

    A folder may have been moved, and where images and teacher lie changes nothing of them: they
    are told by their fingerprints.
    """
    old, new = _flat(there), _flat(here)
    return "; ".join(
        f"{key} is {old.get(key)} there, {new.get(key)} here"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and key.removeprefix("recipe.") not in _PLACES
    )


def _trains_teacher(recipe: Mapping[str, Any]) -> bool:
    """Whether a recipe, which may be a file's and hold anything, has a teacher to be trained."""
    teacher, method = recipe.get("teacher"), recipe.get("method")
    if not isinstance(teacher, Mapping) or not isinstance(method, Mapping):
        return False
    name, given = method.get("name"), str(teacher.get("name")).startswith("<")
    needed = name in methods.names() and methods.find(name).needs_teacher
    return needed and not given and teacher.get("checkpoint") is None


def _counts(path: Path) -> bool:
    """Whether a file says that the folder is in use: not a lock, not what a killed write left."""
    return path.name not in (LOCK, OWNER) and not is_part(path.name, _OWN)


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row) + "\n"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
