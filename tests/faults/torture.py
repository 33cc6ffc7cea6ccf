"""Run all fault tests: ``python tests/faults/torture.py``, or ``make torture``.

The result of each case is appended to a file as one line of JSON. A second call continues where the
first stopped, as long as the commit is the same. At the end, the table in docs/reliability.md is
written.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import datetime, timezone
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/reliability.md"
ROWS = ROOT / "torture.jsonl"
BEGIN, END = "<!-- torture -->\n", "<!-- end -->\n"
PATIENCE = 300
"""Maximum duration of a case in seconds."""
CHANGED = "-changed"
"""Suffix of a commit whose code has uncommitted changes."""
SHARED = {"__init__", "disk_operations", "outcomes", "runs", "torture"}
"""The modules in this folder that have no cases."""


def families() -> list[str]:
    """The modules in this folder that have cases."""
    names = (path.stem for path in sorted(Path(__file__).parent.glob("*.py")))
    return [name for name in names if not name.startswith("test_") and name not in SHARED]


def commit() -> str:
    """The current commit, marked if the code has uncommitted changes."""
    head = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True)
    code = ["git", "diff", "--quiet", "HEAD", "--", "src", "tests"]
    return head.strip() + (CHANGED if subprocess.call(code, cwd=ROOT) else "")


def main() -> int:
    """Runs the cases that have no result yet.

    Returns:
        The exit code: 1 if a case failed.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    names = ", ".join(families())
    parser.add_argument("--only", nargs="*", default=families(), help=f"families, out of: {names}")
    parser.add_argument(
        "--quick", action="store_true", help="run the sample of the test suite; write no table"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--rows", type=Path, default=ROWS, help="file for the results")
    parser.add_argument("--limit", type=float, default=7000, help="stop after so many seconds")
    parser.add_argument("--page", action="store_true", help="run nothing; only write the table")
    options = parser.parse_args()
    if not options.page:
        _run(options.only, options.quick, options.jobs, options.rows, options.limit)
    rows = list(_read(options.rows))
    if options.quick:
        print(table(rows))
    else:
        write_page(rows)
    return int(any(row["error"] for row in rows))


def _run(names: list[str], quick: bool, jobs: int, path: Path, limit: float) -> None:
    head, until = commit(), time.monotonic() + limit
    # With uncommitted changes, earlier results of the same commit prove nothing.
    valid = [row for row in _read(path) if row["commit"] == head and CHANGED not in head]
    done = {(row["family"], row["case"]) for row in valid}
    path.write_text("".join(json.dumps(row) + "\n" for row in valid))
    left = [(n, case) for n in names for case in _cases(n, quick) if (n, case) not in done]
    print(f"{len(done)} cases are done, {len(left)} are left", flush=True)
    with (
        tempfile.TemporaryDirectory(prefix="torture") as work,
        path.open("a", 1) as file,
        ProcessPoolExecutor(jobs, get_context("spawn"), _begin, (work,)) as pool,
    ):
        running = [pool.submit(_row, Path(work), until, quick, *one) for one in left]
        reported = time.monotonic()
        for number, ended in enumerate(as_completed(running), len(done) + 1):
            if (row := ended.result()) is None:
                continue
            file.write(json.dumps(row | {"commit": head}) + "\n")
            if row["error"]:
                print(f"{row['family']}, {row['case']}: {row['error']}", flush=True)
            if time.monotonic() > reported + 60:
                reported = time.monotonic()
                print(f"{number:,} of {len(done) + len(left):,}, in {row['family']}", flush=True)


def _read(path: Path) -> Iterator[dict[str, Any]]:
    if path.is_file():
        yield from (json.loads(ln) for ln in path.read_text().splitlines() if ln.endswith("}"))


def _begin(work: str) -> None:
    """Prepares a worker process. The output of the package under test is dropped."""
    _prepare(work)
    sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115


def _prepare(work: str) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["DSKD_CACHE"] = str(Path(work) / "cache")
    sys.path.insert(0, str(ROOT))


@functools.cache
def _cases(name: str, quick: bool) -> dict[str, Any]:
    return dict(importlib.import_module(f"tests.faults.{name}").cases(whole=not quick))


def _row(work: Path, until: float, quick: bool, name: str, case: str) -> dict[str, Any] | None:
    """The result of a case; None if the time is over."""
    if time.monotonic() > until:
        return None
    folder = work / f"{os.getpid()}" / name
    folder.mkdir(parents=True, exist_ok=True)
    start, outcome, error = time.monotonic(), "", ""
    signal.signal(signal.SIGALRM, _late)
    signal.alarm(PATIENCE)
    try:
        family = importlib.import_module(f"tests.faults.{name}")
        with tempfile.TemporaryDirectory(dir=folder) as own:
            outcome = str(family.check(_cases(name, quick)[case], Path(own)))
    except BaseException as failure:  # any failure is the result of the case
        error = f"{type(failure).__name__}: {failure}"[:2000]
    finally:
        signal.alarm(0)
    seconds = round(time.monotonic() - start, 2)
    return {"family": name, "case": case, "outcome": outcome, "error": error, "seconds": seconds}


def _late(*_: Any) -> None:
    raise TimeoutError(f"no end within {PATIENCE} s")


def write_page(rows: list[dict[str, Any]]) -> None:
    """Writes the table of the results into the page."""
    text = PAGE.read_text()
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}{table(rows)}{END}{after}")


def table(rows: list[dict[str, Any]]) -> str:
    """The outcomes of every family, and the machine they were measured on."""
    lines = ["| fault | cases | passed | outcomes | minutes |", "|---|---:|---:|---|---:|"]
    for name in sorted({row["family"] for row in rows}):
        own = [row for row in rows if row["family"] == name]
        outcomes = Counter(row["outcome"] for row in own if not row["error"])
        shown = "; ".join(f"{count:,} {what}" for what, count in outcomes.most_common())
        minutes = sum(row["seconds"] for row in own) / 60
        title = importlib.import_module(f"tests.faults.{name}").FAMILY
        passed = sum(outcomes.values())
        lines.append(f"| {title} | {len(own):,} | {passed:,} | {shown} | {minutes:.1f} |")
    return "\n".join([*lines, "", _measured(rows), ""])


def _measured(rows: list[dict[str, Any]]) -> str:
    import torch

    from dskd.runtime.device import environment

    machine = environment(torch.device("cpu"))
    commits = ", ".join(sorted({row["commit"] for row in rows}))
    today = datetime.now(timezone.utc).date()
    return (
        f"`make torture`, commit {commits}, {today}, {machine['processor']}, {machine['cores']} "
        f"cores, no GPU, Python {machine['python']}, torch {torch.__version__}. Minutes are those "
        "of one core, with all processes of a case."
    )


if __name__ == "__main__":
    _prepare(tempfile.mkdtemp())
    sys.exit(main())
