"""Checks that two checkouts of this project train the same students, bit for bit.

Run it after a change that must not change numbers:

    python tests/tools/same_students.py OLD_CHECKOUT NEW_CHECKOUT

Each method distils the recipe ``digits`` in both checkouts, in processes of their own, on the CPU
and with one thread. One method is also killed and resumed, and stopped and resumed. Only tensors
are compared; the metadata of the files may differ. The exit code is 1 if anything differs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

RECIPE = "digits"
STUDENTS = ("student.safetensors", "student_best.safetensors")
TEACHER = "teacher/student.safetensors"
"""In the run that trains the teacher."""
TEACHES = "kd"
"""The method whose run trains the teacher. The other runs load that teacher."""
INTERRUPTED = "dskd"
"""The method that is also interrupted. Its run must have at least two epochs."""
SETTINGS = {"semckd": ("method.weight=20",)}
"""Further settings of a method. With its default weight semckd diverges on this recipe."""
ALONE = ("byot", "ce", "dsn")
"""The methods without a teacher, which refuse one."""
SIGNALS = {"killed": signal.SIGKILL, "stopped": signal.SIGINT}
TRIES = 5
"""A busy machine may send the signal after the run has ended. Then the run starts again."""


class RunFailed(Exception):
    """A run did not end with the exit code that it should have."""


@dataclass(frozen=True)
class Checkout:
    """A checkout, and where its runs are written.

    Attributes:
        root: The checkout. Its package is in ``src``.
        scratch: A folder of its own for runs and for the cache.
        python: The interpreter that runs it.
        epochs: Epochs of the teacher and of each student.
    """

    root: Path
    scratch: Path
    python: str
    epochs: int

    def __post_init__(self) -> None:
        self.scratch.mkdir()

    def run(self, name: str, method: str, *flags: str) -> Path:
        """Distils to the end, and returns the run's folder.

        Args:
            name: The name of the run's folder.
            method: The method.
            flags: Flags of the command ``distill``.

        Raises:
            RunFailed: The command failed. The last lines that it printed are in the message.
        """
        with self._start(name, method, *flags) as process:
            code = process.wait()
        if code != 0:
            raise RunFailed(f"{self.root}: {name} ended with {code}: {self._printed(name)}")
        return self.scratch / name

    def interrupt(self, name: str, method: str, number: signal.Signals) -> Path:
        """Distils, interrupts the run in its second epoch, resumes it, and returns its folder.

        Args:
            name: The name of the run's folder.
            method: The method.
            number: The signal.

        Raises:
            RunFailed: A command failed, or every try ended before the signal arrived.
        """
        for number_of_try in range(TRIES):
            folder = self.scratch / f"{name}-{number_of_try}"
            with self._start(folder.name, method) as process:
                while process.poll() is None and _epochs_done(folder) == 0:
                    time.sleep(0.005)
                process.send_signal(number)
                code = process.wait()
            if code not in (0, -number, 128 + number):
                raise RunFailed(f"{self.root}: {name}: {self._printed(folder.name)}")
            if code != 0 and not (folder / "result.json").exists():
                return self.run(folder.name, method, "--resume")
        raise RunFailed(f"{self.root}: {name} ended {TRIES} times before the signal arrived")

    def methods(self) -> list[str]:
        """The names of the methods.

        Raises:
            RunFailed: The package cannot be imported from this checkout.
        """
        code = "import dskd; from dskd import methods; print(dskd.__file__, *methods.names())"
        command = [self.python, "-c", code]
        ended = subprocess.run(
            command, cwd=self.scratch, env=self._environment(), capture_output=True, text=True
        )
        file, *names = ended.stdout.split() or [""]
        if ended.returncode != 0 or not Path(file).is_relative_to(self.root):
            raise RunFailed(f"{self.root} has no package to import: {ended.stderr[-500:]}{file}")
        return names

    @contextlib.contextmanager
    def _start(self, name: str, method: str, *flags: str) -> Iterator[subprocess.Popen[bytes]]:
        trained = f"teacher.checkpoint={self.scratch / TEACHES / TEACHER}"
        taught = method not in ALONE
        settings = [
            f"method.name={method}",
            f"train.epochs={self.epochs}",
            *([f"teacher.epochs={self.epochs}" if name == TEACHES else trained] * taught),
            "seed=0",
            f"out={self.scratch / name}",
            *SETTINGS.get(method, ()),
        ]
        with (self.scratch / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [self.python, "-m", "dskd", "distill", RECIPE, *settings, *flags],
                cwd=self.scratch,
                env=self._environment(),
                stdout=log,
                stderr=log,
            )
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()

    def _environment(self) -> dict[str, str]:
        own = {
            "PYTHONPATH": str(self.root / "src"),
            "DSKD_CACHE": str(self.scratch / "cache"),
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
        }
        return {**os.environ, **own}

    def _printed(self, name: str) -> str:
        return (self.scratch / f"{name}.log").read_text(errors="replace")[-1000:].strip()


def _epochs_done(folder: Path) -> int:
    """How many epochs a run has recorded."""
    metrics = folder / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def compare_files(old: Path, new: Path) -> str:
    """Compares two safetensors files, as `compare_tensors` does."""
    for path in (old, new):
        if not path.is_file():
            return f"{path} is missing"
    return compare_tensors(load_file(old), load_file(new))


def compare_tensors(old: dict[str, Tensor], new: dict[str, Tensor]) -> str:
    """Compares two sets of tensors bit for bit.

    Args:
        old: Tensors by name.
        new: Other tensors by name.

    Returns:
        What differs; empty if nothing does.

    Example:
        >>> compare_tensors({"w": torch.zeros(2)}, {"w": torch.tensor([0.0, 0.5])})
        '1 of 1 tensors, largest difference 5.0e-01 in w'
    """
    if unmatched := sorted(old.keys() ^ new.keys()):
        return f"{len(unmatched)} tensors are in one file only, such as {unmatched[0]}"
    for name, tensor in old.items():
        if (tensor.shape, tensor.dtype) != (new[name].shape, new[name].dtype):
            return f"the shape or type of {name}"
    different = [name for name in old if not torch.equal(_bytes(old[name]), _bytes(new[name]))]
    if not different:
        return ""
    sizes = {
        name: float((old[name].double() - new[name].double()).abs().max()) for name in different
    }
    worst = max(sizes, key=lambda name: sizes[name])
    return (
        f"{len(different)} of {len(old)} tensors, largest difference {sizes[worst]:.1e} in {worst}"
    )


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def compare_runs(old: Path, new: Path) -> str:
    """Compares the students of two runs' folders, as `compare_tensors` does."""
    found = {name: compare_files(old / name, new / name) for name in STUDENTS}
    return "; ".join(f"{name}: {text}" for name, text in found.items() if text)


def compare_checkouts(
    old: Checkout, new: Checkout, methods: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """Trains the students of both checkouts and compares them.

    Args:
        old: A checkout.
        new: Another checkout.
        methods: The methods to compare.

    Yields:
        The name of a comparison, and what differs: empty if nothing does.
    """
    runs = [checkout.run(TEACHES, TEACHES) for checkout in (old, new)]
    yield "the teacher", compare_files(*(run / TEACHER for run in runs))
    for method in methods:
        yield method, _outcome(partial(_compare_undisturbed, old, new, method))
    if INTERRUPTED in methods:
        for word, number in SIGNALS.items():
            compare = partial(_compare_interrupted, old, new, word, number)
            yield f"{INTERRUPTED}, {word} and resumed", _outcome(compare)


def _compare_undisturbed(old: Checkout, new: Checkout, method: str) -> str:
    if method == TEACHES:
        return compare_runs(old.scratch / TEACHES, new.scratch / TEACHES)
    return compare_runs(old.run(method, method), new.run(method, method))


def _compare_interrupted(old: Checkout, new: Checkout, word: str, number: signal.Signals) -> str:
    """Compares the interrupted runs of both checkouts with the undisturbed run of the old one."""
    name = f"{INTERRUPTED}-{word}"
    runs = [checkout.interrupt(name, INTERRUPTED, number) for checkout in (old, new)]
    found = [compare_runs(old.scratch / INTERRUPTED, run) for run in runs]
    return "; ".join(text for text in found if text)


def _outcome(compare: Callable[[], str]) -> str:
    """What differs; a run that failed differs too, and the other methods are still compared."""
    try:
        return compare()
    except RunFailed as error:
        return str(error)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compares two checkouts and prints a table.

    Args:
        arguments: Of the command line; `sys.argv` by default.

    Returns:
        The exit code: 1 if anything differs.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("old", type=Path, metavar="OLD_CHECKOUT")
    parser.add_argument("new", type=Path, metavar="NEW_CHECKOUT")
    parser.add_argument("--methods", default="all", help="names with commas between, or all")
    parser.add_argument("--epochs", type=int, default=2, help="of the teacher and each student")
    parser.add_argument("--python", default=sys.executable, help="the interpreter that trains")
    options = parser.parse_args(arguments)
    same = True
    with tempfile.TemporaryDirectory(prefix="same_students-") as scratch:
        old, new = (
            Checkout(root.resolve(), Path(scratch) / name, options.python, options.epochs)
            for name, root in (("old", options.old), ("new", options.new))
        )
        known, also = old.methods(), new.methods()
        methods = known if options.methods == "all" else options.methods.split(",")
        if added := sorted(set(also) - set(known)):
            print(f"only in {new.root}, not compared: {', '.join(added)}")
        for name, differs in compare_checkouts(old, new, methods):
            print(f"{name:30} {f'differs: {differs}' if differs else 'same'}", flush=True)
            same = same and not differs
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
