"""Every fault test, whole: ``python tests/faults/torture.py``, or ``make torture``.

A row is a line of JSON, appended as its case ends; called again it goes on where it stopped, as
long as the commit is the same. Then the table of docs/reliability.md is written.
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
"""Seconds that a case may take."""
CHANGED = "-changed"
"""Marks a commit whose code was changed since."""
HERE = {"runs", "operations", "outcomes", "torture", "conftest"}


def families() -> list[str]:
    """The modules beside this one that give cases."""
    names = (path.stem for path in sorted(Path(__file__).parent.glob("*.py")))
    return [name for name in names if not name.startswith("test_") and name not in HERE]


def commit() -> str:
    """What is tested, and whether the code differs from it."""
    head = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True)
    code = ["git", "diff", "--quiet", "HEAD", "--", "src", "tests"]
    return head.strip() + (CHANGED if subprocess.call(code, cwd=ROOT) else "")


def main() -> int:
    """Runs what is not done yet; 1 where a case failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=families(), help="families, by their files")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--limit", type=float, default=7000, help="seconds; then it stops")
    parser.add_argument("--page", action="store_true", help="only write the page")
    chosen = parser.parse_args()
    if not chosen.page:
        _run(chosen.only, chosen.jobs, chosen.rows, chosen.limit)
    rows = list(_read(chosen.rows))
    write_page(rows)
    return int(any(row["error"] for row in rows))


def _run(names: list[str], jobs: int, path: Path, limit: float) -> None:
    head, until = commit(), time.monotonic() + limit
    # Of changed code nothing is known, also where it was run before.
    keep = [row for row in _read(path) if row["commit"] == head and CHANGED not in head]
    done = {(row["family"], row["case"]) for row in keep}
    path.write_text("".join(json.dumps(row) + "\n" for row in keep))
    left = [(name, case) for name in names for case in _cases(name) if (name, case) not in done]
    print(f"{len(done)} cases are done, {len(left)} are left", flush=True)
    with (
        tempfile.TemporaryDirectory(prefix="torture") as work,
        path.open("a", 1) as file,
        ProcessPoolExecutor(jobs, get_context("spawn"), _begin, (work,)) as pool,
    ):
        running = [pool.submit(_row, Path(work), until, one) for one in left]
        told = time.monotonic()
        for number, ended in enumerate(as_completed(running), len(done) + 1):
            if (row := ended.result()) is None:
                continue
            file.write(json.dumps(row | {"commit": head}) + "\n")
            if row["error"]:
                print(f"{row['family']}, {row['case']}: {row['error']}", flush=True)
            if time.monotonic() > told + 60:
                told = time.monotonic()
                print(f"{number:,} of {len(done) + len(left):,}, in {row['family']}", flush=True)


def _read(path: Path) -> Iterator[dict[str, Any]]:
    if path.is_file():
        yield from (json.loads(ln) for ln in path.read_text().splitlines() if ln.endswith("}"))


def _begin(work: str) -> None:
    """In a process of its own; what the cases have the package say is of no interest."""
    _prepare(work)
    sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115


def _prepare(work: str) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["DSKD_CACHE"] = str(Path(work) / "cache")
    sys.path.insert(0, str(ROOT))


@functools.cache
def _cases(name: str) -> dict[str, Any]:
    return dict(importlib.import_module(f"tests.faults.{name}").cases(whole=True))


def _row(work: Path, until: float, one: tuple[str, str]) -> dict[str, Any] | None:
    """A case's outcome; None where the time is over."""
    name, case = one
    if time.monotonic() > until:
        return None
    folder = work / f"{os.getpid()}" / name
    folder.mkdir(parents=True, exist_ok=True)
    start, outcome, error = time.monotonic(), "", ""
    signal.signal(signal.SIGALRM, _late)
    signal.alarm(PATIENCE)
    try:
        with tempfile.TemporaryDirectory(dir=folder) as own:
            outcome = str(
                importlib.import_module(f"tests.faults.{name}").check(_cases(name)[case], Path(own))
            )
    except BaseException as failure:  # whatever it is, it is the case's
        error = f"{type(failure).__name__}: {failure}"[:2000]
    finally:
        signal.alarm(0)
    seconds = round(time.monotonic() - start, 2)
    return {"family": name, "case": case, "outcome": outcome, "error": error, "seconds": seconds}


def _late(*_: Any) -> None:
    raise TimeoutError(f"no end within {PATIENCE} s")


def write_page(rows: list[dict[str, Any]]) -> None:
    """Writes the table of the rows into the page."""
    text = PAGE.read_text()
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}{table(rows)}{END}{after}")


def table(rows: list[dict[str, Any]]) -> str:
    """The outcomes of every family, and what they were measured on."""
    lines = ["| fault | cases | hold | outcomes | minutes |", "|---|---:|---:|---|---:|"]
    for name in sorted({row["family"] for row in rows}):
        own = [row for row in rows if row["family"] == name]
        outcomes = Counter(row["outcome"] for row in own if not row["error"])
        shown = ", ".join(f"{count:,} {what}" for what, count in outcomes.most_common())
        minutes = sum(row["seconds"] for row in own) / 60
        title = getattr(importlib.import_module(f"tests.faults.{name}"), "FAMILY", name)
        held = sum(outcomes.values())
        lines.append(f"| {title} | {len(own):,} | {held:,} | {shown} | {minutes:.1f} |")
    return "\n".join([*lines, "", _measured(rows), ""])


def _measured(rows: list[dict[str, Any]]) -> str:
    import torch

    from dskd.runtime.device import environment

    machine = environment(torch.device("cpu"))
    commits = ", ".join(sorted({row["commit"] for row in rows}))
    today = datetime.now(timezone.utc).date()
    return (
        f"`make torture`, commit {commits}, {today}, {machine['processor']}, {machine['cores']} "
        f"cores, no GPU, Python {machine['python']}, torch {torch.__version__}. Minutes are of one "
        "core, all processes of a case together."
    )


if __name__ == "__main__":
    _prepare(tempfile.mkdtemp())
    sys.exit(main())
