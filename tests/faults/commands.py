"""Invalid recipes on the command line, each in a new process."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from dskd.config.recipe import load
from tests import processes
from tests.faults import recipes
from tests.faults.outcomes import refusal, tree

FAMILY = "invalid recipes on the command line"
SAMPLE, WHOLE = 1, 50


def cases(whole: bool = True) -> Iterator[tuple[str, str]]:
    """Random recipes that are refused."""
    yield from islice(_refused(), WHOLE if whole else SAMPLE)


def _refused() -> Iterator[tuple[str, str]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mine.yaml"
        for name, case in recipes.random_cases():
            path.write_text(text := case.text(), "utf-8")
            if refusal(lambda: load(str(path))):
                yield name, text


def check(case: str, folder: Path) -> str:
    """Checks for exit code 2, one line on stderr, and no file left behind."""
    (folder / "mine.yaml").write_text(case, "utf-8")
    before = tree(folder)
    done = processes.run(["-m", "dskd", "distill", "mine.yaml"], folder=folder)
    errors = done.stderr
    assert done.returncode == 2, f"exit code {done.returncode}: {errors}"
    assert errors.startswith("dskd: "), errors
    assert errors.count("\n") == 1, errors
    assert not done.stdout, "there is output on stdout"
    assert tree(folder) == before, "something was written"
    return "refused"
