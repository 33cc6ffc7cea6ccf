"""The trial with random changes: what it changes, and that it tells noticed from survived."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tools import mutation_trial
from tests.tools.mutations import changes, is_valid

SOURCE = b'''"""One is more than 0."""
import functools
LIMIT: int = 3
@functools.cache
def half(x: float, by: float = 2.0) -> float:
    """Half of 1 > 0."""
    if x < 0 and by:
        raise ValueError("1 + 1 is not %d" % (1 + 1))
    log.info("%d", 1 + 1)
    with torch.no_grad():
        y = x.detach() / max(by, 1)
    check(y)
    return y
'''


def changed(source: bytes) -> list[tuple[str, str]]:
    before = source.decode().splitlines()
    found = []
    for change in changes(source):
        assert is_valid(change, source), change
        after = change.applied(source).decode().splitlines()
        assert len(after) == len(before)
        (pair,) = [(one, two) for one, two in zip(before, after, strict=True) if one != two]
        found.append((pair[0].strip(), pair[1].strip()))
    return found


def test_what_runs_is_changed_and_what_people_read_is_not() -> None:
    condition, division = "if x < 0 and by:", "y = x.detach() / max(by, 1)"
    define = "def half(x: float, by: float = 2.0) -> float:"
    assert sorted(changed(SOURCE)) == sorted(
        [
            ("LIMIT: int = 3", "LIMIT: int = 4"),
            ("LIMIT: int = 3", "LIMIT: int = (-3)"),
            ("@functools.cache", ""),
            (define, define.replace("2.0", "3.0")),
            (define, define.replace("2.0", "(-2.0)")),
            (condition, "if (not (x < 0 and by)):"),
            (condition, "if x <= 0 and by:"),
            (condition, "if x < 0 or by:"),
            (condition, "if x < 1 and by:"),
            ("with torch.no_grad():", 'with __import__("contextlib").nullcontext():'),
            (division, "y = x / max(by, 1)"),
            (division, "y = x.detach() * max(by, 1)"),
            (division, "y = x.detach() / max(by)"),
            (division, "y = x.detach() / max(1, by)"),
            (division, "y = x.detach() / max(by, 2)"),
            (division, "y = x.detach() / max(by, (-1))"),
            ("check(y)", "None"),
            ("return y", "return None"),
        ]
    )


def test_a_change_of_the_spelling_alone_is_not_valid() -> None:
    (plus,) = [c for c in changes(b"x = not y\n") if c.kind == "sign or not removed"]
    assert is_valid(plus, b"x = not y\n")
    assert not is_valid(plus, b"x = (y) \n")


@pytest.mark.slow
def test_the_same_seed_draws_the_same_changes() -> None:
    one, other = (mutation_trial.draw(mutation_trial.CHECKOUT, 30, seed) for seed in (3, 4))
    assert one == mutation_trial.draw(mutation_trial.CHECKOUT, 30, 3)
    assert one != other
    assert len({(file, change.lines[0]) for file, change in one}) == 30


MODULE = """
def double(value):
    return value + value


def less(value):
    return value - 1


def unseen(value):
    return value + 1
"""
TEST = """
from dskd.losses.small import double, less

def test_double():
    assert double(3) == 6

def test_less():
    assert less(3) == 2
"""


@pytest.mark.slow
def test_a_trial_of_a_small_package(tmp_path: Path) -> None:
    files = {"src/dskd/__init__.py": "", "src/dskd/losses/__init__.py": ""}
    files |= {"src/dskd/losses/small.py": MODULE, "tests/losses/test_small.py": TEST}
    for name, text in files.items():
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "cov").mkdir()

    def call(*arguments: str) -> list[str]:
        # Without what the tests of the real package import.
        code = (
            f"import runpy, sys; sys.path.insert(0, {str(mutation_trial.CHECKOUT)!r})\n"
            "from tests.tools import mutation_trial as trial\n"
            "trial.PRELOADED = ()\n"
            "trial.main(sys.argv[1:])"
        )
        command = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return done.stdout.splitlines()

    call("record", str(tmp_path))
    assert len(call("run", str(tmp_path), "--count", "1")) == 1
    assert len(call("run", str(tmp_path), "--count", "9")) == 2  # the others
    assert (tmp_path / "tree/src/dskd/losses/small.py").read_text() == MODULE
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    noticed = {entry["line"]: entry["noticed"] for entry in map(json.loads, lines)}
    file = "FAILED tests/losses/test_small.py"
    assert noticed.pop(11) is None
    assert [noticed[line].partition(" - ")[0] for line in (3, 7)] == [
        f"{file}::test_double",
        f"{file}::test_less",
    ]
    survivor, *_, numbers = call("report", str(tmp_path))
    assert survivor.startswith("0 tests, line 11, src/dskd/losses/small.py: return value + 1")
    assert numbers == "| 3 | 2 | 1 | 0 | 66.7% |"
