"""Start small runs in new processes, and compare what they leave."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from functools import cache
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dskd import methods
from tests.processes import SERVER, redirect, wait

SMALL = (
    "data.name=folder",
    "teacher.name=resnet8",
    "teacher.epochs=1",
    "student.name=resnet8",
    "train.epochs=3",
    "train.batch_size=8",
    "train.device=cpu",
)
"""With the 24 training images of `images`: 3 steps per epoch."""
TEXT, WEIGHTS = (".json", ".jsonl"), ".safetensors"
SETTINGS = {"sskd": ", head_epochs: 1", "crd": ", negatives: 16"}
"""Settings that let a method train on a few images."""


def images(root: Path) -> Path:
    """Creates a folder of images: 4 classes, each with 6 training and 2 test images."""
    draw = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2)):
        for label in range(4):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                path = folder / f"{number}.png"
                shades = draw.integers(0, 60, (8, 8, 3)) + 60 * label
                if not path.exists():
                    Image.fromarray(shades.astype(np.uint8)).save(path)
    return root


def command(out: Path, root: Path, method: str, *flags: str) -> list[str]:
    """The command line of a run."""
    own = f"method={{name: {method}{SETTINGS.get(method, '')}}}"
    taught = methods.find(method).needs_teacher
    small = [one for one in SMALL if taught or not one.startswith("teacher.")]
    return ["distill", "digits", *small, f"data.root={root}", own, f"out={out}", *flags]


def comparison(out: Path, root: Path, methods: str) -> list[str]:
    """The command line of a comparison, which also resumes it."""
    small = [*SMALL, f"data.root={root}"]
    return ["compare", "digits", *small, "--methods", methods, "--seeds", "1", "--out", str(out)]


def start(
    arguments: Sequence[str], stderr: Path, prepare: Callable[[], None] | None
) -> BaseProcess:
    """Starts a command.

    Args:
        arguments: The arguments of ``dskd``.
        stderr: A file to which the output on stderr is appended.
        prepare: Called in the process before the command.
    """
    stderr.touch()
    process = SERVER.Process(target=_main, args=(list(arguments), stderr, prepare))
    process.start()
    return process


def _main(arguments: list[str], stderr: Path, prepare: Callable[[], None] | None) -> None:
    from dskd.cli.commands import main
    from dskd.engine import training_run

    torch.set_num_threads(1)
    training_run.CHECKPOINT_SHARE = float("inf")  # one checkpoint per epoch
    redirect(Path(os.devnull), stderr)  # to the end of the process, when coverage may print too
    if prepare is not None:
        prepare()
    main(arguments)


def call(
    arguments: Sequence[str], folder: Path, prepare: Callable[[], None] | None = None
) -> tuple[int, str]:
    """Runs a command to its end.

    Returns:
        The exit code, and the output on stderr.
    """
    stderr = folder / "stderr.txt"
    stderr.unlink(missing_ok=True)
    code = wait(start(arguments, stderr, prepare))
    return code, stderr.read_text()


def signalled(arguments: Sequence[str], folder: Path, number: signal.Signals, after: float) -> int:
    """Starts a command, sends it a signal after some seconds, and returns its exit code."""
    process = start(arguments, folder / "stderr.txt", None)
    process.join(after)
    if process.exitcode is None and process.pid is not None:
        with contextlib.suppress(ProcessLookupError):
            process._popen._send_signal(number)  # type: ignore[attr-defined]
    return wait(process)


def whole(arguments: Sequence[str], folder: Path) -> float:
    """Runs a command that must succeed.

    Returns:
        Its duration in seconds.
    """
    _open_server()
    begin = time.monotonic()
    code, errors = call(arguments, folder)
    assert code == 0, errors
    return time.monotonic() - begin


@cache
def _open_server() -> None:
    """Has the server import all it imports: a run takes a tenth of that time."""
    process = SERVER.Process(target=os.getpid)
    process.start()
    wait(process)


def left(out: Path) -> dict[str, Any]:
    """What a run or a comparison leaves, without times: files by path, checkpoints by content."""
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if path.suffix == WEIGHTS:
            found[name] = path.read_bytes()
        elif path.suffix in TEXT and path.name != "environment.json":
            found[name] = _timeless(path)
    for folder in sorted(out.rglob("checkpoints")):
        found[folder.relative_to(out).as_posix()] = _last_state(folder)
    return found


def _timeless(path: Path) -> Any:
    """The values in a file without times; lines are sorted."""
    text = path.read_text()
    lines = [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else []
    values = lines or json.loads(text)
    if isinstance(values, dict):
        return _without_times(values)
    return sorted((_without_times(row) for row in values), key=json.dumps)


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_times(one) for k, one in value.items() if not _is_time_or_place(k)}
    if isinstance(value, (list, tuple)):
        return [_without_times(one) for one in value]
    return value


def _is_time_or_place(key: Any) -> bool:
    # Outputs that were cached before a kill are found again, so the hit rate differs.
    return key in (
        "out",
        "checkpoint",
        "root",
        "cache_dir",
        "teacher_cache_hit_rate",
    ) or "seconds" in str(key)


def _last_state(folder: Path) -> Any:
    """The state in the newest checkpoint, without times."""
    from dskd.storage import checkpoint

    return _plain(_without_times(checkpoint.read(checkpoint.in_order(folder)[-1])))


def _plain(value: Any) -> Any:
    """A value with tensors as bytes."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape, value.reshape(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The names of files and checkpoints that differ between two runs."""
    return sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
