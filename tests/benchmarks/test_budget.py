"""A budget of time: every entry is recorded, whatever becomes of it."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import budget
import pytest
from budget import read, supervise

WORKER = """
import os, sys, time
sys.path[:0] = {path}
import budget
from budget import Entry, run_entries
from pathlib import Path

budget.MIN_SECONDS = {minimum}

def measured(until):
    return {{"status": "measured", "pid": os.getpid()}}

def raises(until):
    raise ValueError("this one raises")

def dies(until):
    os._exit(7)

def hangs(until):
    print("this one hangs", file=sys.stderr, flush=True)
    time.sleep(100)

def clean_up():
    if "broken" in budget.read(Path({out!r}))["entries"]:
        if "after" not in budget.read(Path({out!r}))["entries"]:
            sys.exit("the context is broken")

works = {{
    "first": measured, "raises": raises, "second": measured, "dies": dies, "hangs": hangs,
    "broken": measured, "after": measured,
}}
entries = {{name: Entry(0.5 if name == "hangs" else 60, work) for name, work in works.items()}}
run_entries(entries, Path({out!r}), {deadline}, clean_up)
"""
NAMES = ("first", "raises", "second", "dies", "hangs", "broken", "after")


def start(tmp_path: Path, seconds: float, minimum: float = 0.0) -> dict[str, Any]:
    """Supervises workers for so many seconds."""
    out, deadline = tmp_path / "out.json", time.time() + seconds
    script = tmp_path / "worker.py"
    facts = {"path": sys.path, "out": str(out), "deadline": deadline, "minimum": minimum}
    script.write_text(WORKER.format(**facts))
    result = supervise([sys.executable, str(script)], NAMES, out, deadline, {"date": "today"})
    assert read(out) == result
    return result


@pytest.mark.slow
def test_an_entry_that_raises_dies_or_hangs_is_recorded_and_the_next_goes_on(
    tmp_path: Path,
) -> None:
    result = start(tmp_path, 100)
    entries = result["entries"]
    assert result["date"] == "today"
    assert {name: entry["status"] for name, entry in entries.items()} == {
        **dict.fromkeys(NAMES, "measured"),
        **dict.fromkeys(("raises", "dies", "hangs"), "error"),
    }
    assert "ValueError: this one raises" in entries["raises"]["error"]
    assert entries["first"]["pid"] == entries["second"]["pid"], "one worker, as long as it lives"
    assert "the worker ended with 7" in entries["dies"]["error"]
    assert "this one hangs" in entries["hangs"]["error"]
    assert "in hangs" in entries["hangs"]["error"], "where it hung"
    assert entries["broken"]["pid"] != entries["after"]["pid"], "a new worker"


def test_what_does_not_fit_into_the_time_is_recorded_as_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "MIN_SECONDS", 0.0)
    short = start(tmp_path, 100, minimum=1000)
    monkeypatch.setattr(budget, "MIN_SECONDS", 10.0)
    for result in (short, start(tmp_path, 5)):
        assert "error" not in result
        statuses = [entry["status"] for entry in result["entries"].values()]
        assert statuses == ["not measured"] * len(NAMES)


def test_a_worker_that_cannot_start_is_said(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    command = [sys.executable, "-c", "import no_such_module"]
    result = supervise(command, ["one"], out, time.time() + 100, {})
    assert "No module named 'no_such_module'" in result["error"]
    assert json.loads(out.read_text())["entries"] == {"one": {"status": "not measured"}}
