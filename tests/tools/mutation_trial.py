"""Tries random changes to the core, and counts how many of them the tests notice.

    python tests/tools/mutation_trial.py record WORK    # which tests execute which lines
    python tests/tools/mutation_trial.py run WORK --count 240 --seed 1
    python tests/tools/mutation_trial.py retry WORK --tests tests/losses/test_logits.py
    python tests/tools/mutation_trial.py report WORK

The folder WORK holds a copy of the committed source and all results. Only this copy is changed,
never the checkout. For each change the tests that execute the changed line are run, the shortest
first, until one fails. Each change runs in a process that is forked from one that has imported
torch. All commands can be stopped and started again: they go on where they were.

``retry`` runs tests of the checkout, such as new ones, on the changes that survived. Survivors
that no test can notice are listed in ``equivalent_changes.json``, with the reason.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from coverage import CoverageData

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.tools.mutations import Change, changes, is_valid

CHECKOUT = Path(__file__).parents[2]
CORE = [
    *(f"src/dskd/{part}/*.py" for part in ("losses", "methods", "engine", "teacher", "models")),
    *(f"src/dskd/{part}/*.py" for part in ("storage", "data", "runtime")),
    "src/dskd/compare/statistics.py",
]
TESTS = ("tests/*/test_*.py", "tests/test_*.py")
SKIPPED = ("tests/benchmarks", "tests/evidence", "tests/tools", "test_browser", "test_site")
"""Tests that look at other things than the package."""
EQUIVALENT = Path(__file__).with_name("equivalent_changes.json")
PRELOADED = (
    *("torch", "torch._dynamo", "torch.utils.flop_counter", "torchvision", "timm", "hypothesis"),
    *("sklearn.datasets", "scipy.stats", "safetensors.torch", "pydantic", "rich.progress"),
    *("tensorboardX", "plotly.graph_objects", "pooch", "jinja2", "psutil", "click", "yaml"),
)
ORIGINAL = ".original"
"""Suffix of the file that is put back. It stays if the trial is killed."""
LEAST_SECONDS = 60
"""Before tests that do not end are killed."""
BYTES = 12 * 2**30
"""Address space of the process that runs tests."""
BATCHES = (4.0, 12.0, 60.0)
BATCHES_HELP = "seconds of tests to run first, then, and last; what takes longer is not run"


def copy_of_commit(work: Path) -> Path:
    """The copy of the source, which is made from the last commit if there is none yet."""
    tree = work / "tree"
    if not tree.exists():
        git = ["git", "-C", str(CHECKOUT)]
        archive = subprocess.run([*git, "archive", "HEAD"], check=True, capture_output=True).stdout
        commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True)
        (work / "cov").mkdir(parents=True, exist_ok=True)
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            files.extractall(work / "part", filter="data")
        (work / "commit").write_bytes(commit.stdout.strip())
        (work / "part").rename(tree)
    return tree


def record(work: Path, deadline: float) -> None:
    """Runs each file of tests once, and records for each test the lines that it executes."""
    tree = copy_of_commit(work)
    files = [path for pattern in TESTS for path in sorted(tree.glob(pattern))]
    names = [str(path.relative_to(tree)) for path in files] + ["src"]
    for name in names:
        base = work / "cov" / name.replace("/", "-").removesuffix(".py")
        done = base.with_suffix(".xml")
        if done.exists() or any(part in name for part in SKIPPED) or time.monotonic() > deadline:
            continue
        coverage = ["--cov=dskd", "--cov-context=test", "--cov-report=", "--cov-fail-under=0"]
        junit = ["-o", "junit_family=xunit1", f"--junitxml={done}"]
        environment = {**_environment(tree), "COVERAGE_FILE": str(base.with_suffix(".cov"))}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        subprocess.run([*command, *coverage, *junit, name], cwd=tree, env=environment, check=False)


def _environment(tree: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"}


class Tests:
    """Which tests executed a line, and how long each of them took.

    Args:
        work: The folder of the trial, with what `record` wrote.
    """

    def __init__(self, work: Path) -> None:
        self.seconds: dict[str, float] = {}
        self._lines: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
        for report in sorted((work / "cov").glob("*.xml")):
            passed = dict(_passed(report))
            self.seconds.update(passed)
            data = CoverageData(str(report.with_suffix(".cov")))
            data.read()
            for measured in data.measured_files():
                lines = self._lines["src/" + measured.rpartition("/src/")[2]]
                for line, contexts in data.contexts_by_lineno(measured).items():
                    for context in contexts:
                        lines[line] |= self._of(context, passed)

    @staticmethod
    def _of(context: str, passed: dict[str, float]) -> set[str]:
        """The tests of a context.

        ``FILE::+`` stands for a fixture that the tests of a file may share, ``FILE::*`` for what
        ran without a test's name: an import, or a process of its own.
        """
        test, _, phase = context.rpartition("|")
        if phase == "run":
            return {test} & passed.keys()
        if phase:
            return {test.partition("::")[0] + "::+"}
        return {name.partition("::")[0] + "::*" for name in passed}

    def covering(self, file: str, change: Change) -> list[str]:
        """The tests that can notice a change, the shortest first."""
        # What runs at import is executed by every test: who uses the function, or the module?
        start, stop = (change.scope or (1, 10**6)) if change.imported else change.lines
        lines = self._lines[file].items()
        found = set[str]().union(*(tests for line, tests in lines if start <= line <= stop))
        direct = found & self.seconds.keys()
        shared = self._of_files(found, "+") - direct
        if not direct and not shared:
            shared = self._of_files(found, "*")
        ranked = (sorted(tests, key=lambda test: self.seconds[test]) for tests in (direct, shared))
        return [test for tests in ranked for test in tests]

    def _of_files(self, found: set[str], mark: str) -> set[str]:
        return {test for test in self.seconds if test.partition("::")[0] + "::" + mark in found}

    def batches(self, tests: Sequence[str], limits: Sequence[float]) -> Iterator[list[str]]:
        """The tests in runs of so many seconds each."""
        left = list(tests)
        for limit in limits:
            batch, seconds = list[str](), 0.0
            while left and seconds + self.seconds[left[0]] <= limit:
                seconds += self.seconds[left[0]]
                batch.append(left.pop(0))
            if batch:
                yield batch


def _passed(report: Path) -> Iterator[tuple[str, float]]:
    for case in ElementTree.parse(report).iter("testcase"):
        if not {part.tag for part in case} & {"failure", "error", "skipped"}:
            yield f"{case.attrib['file']}::{case.attrib['name']}", float(case.attrib["time"])


def draw(tree: Path, count: int, seed: int) -> list[tuple[str, Change]]:
    """Draws statements of the core, and one change in each."""
    places: dict[tuple[str, int], list[Change]] = defaultdict(list)
    for pattern in CORE:
        for path in sorted(tree.glob(pattern)):
            for change in changes(path.read_bytes()):
                places[str(path.relative_to(tree)), change.lines[0]].append(change)
    chance = random.Random(seed)
    drawn = list[tuple[str, Change]]()
    for place in chance.sample(sorted(places), len(places)):
        change = chance.choice(places[place])
        if len(drawn) < count and is_valid(change, (tree / place[0]).read_bytes()):
            drawn.append((place[0], change))
    return drawn


@contextlib.contextmanager
def changed(tree: Path, file: str, change: Change) -> Iterator[None]:
    """Applies a change to the copy, and takes it back."""
    path = tree / file
    original = path.with_suffix(ORIGINAL)
    shutil.copyfile(path, original)
    path.write_bytes(change.applied(path.read_bytes()))
    try:
        yield
    finally:
        original.replace(path)


def attempt(tree: Path, log: Path, tests: Sequence[str], limit: float) -> str | None:
    """Runs tests in a forked process.

    Returns:
        None if they pass, else the first line that says why they do not.
    """
    log.unlink(missing_ok=True)
    process = os.fork()
    if process == 0:
        code = 70
        with contextlib.suppress(BaseException):
            code = _child(tree, log, tests)
        os._exit(code)
    end = time.monotonic() + limit
    while (status := os.waitpid(process, os.WNOHANG))[0] == 0:
        if time.monotonic() > end:
            os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return "timeout"
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):  # what the tests left behind
        os.killpg(process, signal.SIGKILL)
    if status[1] == 0:
        return None
    found = re.search(r"^(FAILED|ERROR) .*", log.read_text(errors="replace"), re.MULTILINE)
    return found[0][:200] if found else f"exit {os.waitstatus_to_exitcode(status[1])}"


def _child(tree: Path, log: Path, tests: Sequence[str]) -> int:
    os.setsid()
    os.chdir(tree)
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    output = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(_environment(tree), PYTHONDONTWRITEBYTECODE="1")
    sys.dont_write_bytecode = True
    sys.path[:] = [str(tree / "src"), *(path for path in sys.path if str(CHECKOUT) not in path)]
    for name in [name for name in sys.modules if name.partition(".")[0] in ("tests", "dskd")]:
        del sys.modules[name]
    temporary = f"--basetemp={log.parent / 'tmp'}"
    options = ["-q", "-x", "-p", "no:cacheprovider", "--tb=line", temporary]
    return int(pytest.main([*options, *tests]))


def run(work: Path, drawn: tuple[int, int], deadline: float, limits: Sequence[float]) -> None:
    """Tries the changes that have no result yet, ``drawn`` by count and seed."""
    tree = copy_of_commit(work)
    for left in (tree / "src").rglob(f"*{ORIGINAL}"):
        left.replace(left.with_suffix(".py"))
    tests, done = Tests(work), results(work)
    for file, change in draw(tree, *drawn):
        entry = _entry(tree, file, change)
        if _key(entry) in done or time.monotonic() > deadline:
            continue
        covering = tests.covering(file, change)
        entry |= {"tests": len(covering), "noticed": None}
        start = time.monotonic()
        with changed(tree, file, change):
            for batch in tests.batches(covering, limits):
                limit = LEAST_SECONDS + 6 * sum(tests.seconds[test] for test in batch)
                entry["noticed"] = attempt(tree, work / "log", batch, limit)
                if entry["noticed"]:
                    break
        _append(work, entry | {"seconds": round(time.monotonic() - start, 1)})


def retry(work: Path, paths: Sequence[str], deadline: float) -> None:
    """Runs tests of the checkout on the survivors."""
    tree = copy_of_commit(work)
    shutil.copytree(CHECKOUT / "tests", tree / "tests", dirs_exist_ok=True)
    if failure := attempt(tree, work / "log", paths, 500):
        raise SystemExit(f"without any change: {failure}")
    for entry in results(work).values():
        if entry["noticed"] is None and time.monotonic() < deadline:
            change = Change(**entry["change"])
            with changed(tree, entry["file"], change):
                entry["noticed"] = attempt(tree, work / "log", paths, 300)
            _append(work, entry)


def _entry(tree: Path, file: str, change: Change) -> dict[str, Any]:
    source = (tree / file).read_bytes()
    first = source.rfind(b"\n", 0, change.start) + 1
    last = source.find(b"\n", change.end)
    shift = len(change.text.encode()) - (change.end - change.start)
    before, after = source[first:last], change.applied(source)[first : last + shift]
    texts = {"before": " ".join(before.decode().split()), "after": " ".join(after.decode().split())}
    line = source.count(b"\n", 0, change.start) + 1
    return {"file": file, "line": line, "kind": change.kind, **texts, "change": vars(change)}


def _key(entry: dict[str, Any]) -> str:
    return f"{entry['file']}: {entry['before']} -> {entry['after']}"


def _append(work: Path, entry: dict[str, Any]) -> None:
    print(entry["noticed"] or f"SURVIVED ({entry['tests']} tests)", _key(entry), flush=True)
    with (work / "results.jsonl").open("a") as file:
        file.write(json.dumps(entry) + "\n")


def results(work: Path) -> dict[str, dict[str, Any]]:
    """The last result of each change."""
    path = work / "results.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return {_key(entry): entry for entry in map(json.loads, lines)}


def report(work: Path) -> None:
    """Prints the numbers, and the survivors that are not known to be equivalent."""
    known = {_key(entry) for entry in json.loads(EQUIVALENT.read_text())}
    outcomes = Counter[str]()
    for key, entry in results(work).items():
        survived = "equivalent" if key in known else "survived"
        outcomes[survived if entry["noticed"] is None else "noticed"] += 1
        if entry["noticed"] is None and key not in known:
            print(f"{entry['tests']} tests, line {entry['line']}, {key}")
    drawn, decided = outcomes.total(), outcomes["noticed"] + outcomes["survived"]
    print("| drawn | noticed | survived | equivalent | noticed, of those not equivalent |")
    print("|---:|---:|---:|---:|---:|")
    numbers = (drawn, outcomes["noticed"], outcomes["survived"], outcomes["equivalent"])
    print(f"| {' | '.join(map(str, numbers))} | {outcomes['noticed'] / decided:.1%} |")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("command", choices=("record", "run", "retry", "report"))
    parser.add_argument("work", type=Path)
    parser.add_argument("--count", type=int, default=240)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tests", nargs="+", default=[])
    parser.add_argument("--seconds", type=float, default=1e9, help="begin nothing after this time")
    parser.add_argument("--batches", type=float, nargs="+", default=BATCHES, help=BATCHES_HELP)
    given = parser.parse_args(arguments)
    work, deadline = given.work.resolve(), time.monotonic() + given.seconds
    if given.command == "report":
        return report(work)
    if given.command == "record":
        return record(work, deadline)
    for name in PRELOADED:
        with contextlib.suppress(ImportError):  # some are optional
            importlib.import_module(name)
    if given.command == "run":
        return run(work, (given.count, given.seed), deadline, given.batches)
    return retry(work, given.tests, deadline)


if __name__ == "__main__":
    main()
