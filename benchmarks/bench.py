"""Measures the time of training steps: ``make bench``, or ``python benchmarks/bench.py``.

Steps of this package and of a reference implementation take turns, so that other work on the
machine slows all equally. Each is compared with the best rate of the machine. The images are noise
in the size and number of CIFAR-100, because time does not depend on their content. Prints tables
and writes benchmarks/latest.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

import machine
import reference
import torch
from cached_steps import CachedSteps
from interleave import interleave
from noise import noise_data
from results import PAIR, Result, ratios, row_result
from rows import rows_of
from speed_tables import (
    cache_table,
    compiled_table,
    hardware_line,
    machine_table,
    ratio_table,
    step_table,
)

from dskd.data import Dataset
from dskd.errors import InputError
from dskd.runtime import device

ROOT = Path(__file__).parents[1]
LATEST = ROOT / "benchmarks/latest.json"
BATCH = 64
"""Images in a step, for the ratios."""
PAIRS: Mapping[str, float] = {PAIR: 0.5, "wrn_40_2-wrn_16_2": 0.25, "vgg13-vgg8": 0.25}
"""The pairs, and the share of the time that each gets."""


def bench(chosen: argparse.Namespace) -> Result:
    """Runs the benchmark.

    Args:
        chosen: The options of the command line.
    """
    reference.transforms((0.5,), (0.5,), 32)  # reports a missing package before any work
    data = noise_data(chosen.images)
    before = machine.rates(chosen.machine_seconds)
    rows: list[Result] = []
    cached: list[Result] = []
    for pair, share in PAIRS.items():
        with TemporaryDirectory(prefix="dskd-bench-") as folder:
            steps = CachedSteps(pair, chosen.batch_size, chosen.cached_steps, Path(folder))
            rows += _pair(pair, data, steps, before, chosen, share * 60 * chosen.minutes)
            cached += steps.results()
    details = ratios(rows)
    return {
        "command": f"python benchmarks/bench.py {' '.join(sys.argv[1:])}".strip(),
        "date": date.today().isoformat(),
        "commit": commit(),
        "environment": device.environment(torch.device("cpu")),
        "rehearsal": chosen.quick,
        "images": chosen.images,
        "batch_size": chosen.batch_size,
        "machine": before,
        "rows": rows,
        "cached": cached,
        "ratios": {name: ratio["value"] for name, ratio in details.items()},
        "ratio_details": details,
    }


def _pair(
    pair: str,
    data: Dataset,
    cached: CachedSteps,
    machine_rates: Result,
    chosen: argparse.Namespace,
    seconds: float,
) -> list[Result]:
    until = time.monotonic() + seconds
    rows = [*rows_of(pair, data, chosen.batch_size), *cached.rows()]
    times = interleave(
        {row.key: row.runner for row in rows},
        chosen.rounds,
        warmup=chosen.warmup,
        until=until,
        on_round=lambda done: print(f"\r{pair}: round {done}", end="", file=sys.stderr, flush=True),
    )
    print(file=sys.stderr)
    rates = machine_rates["multiply_adds"]
    return [
        row_result(row, times[row.key], row.runner.work(), rates[row.precision]) for row in rows
    ]


def commit() -> str:
    """The commit of the code, marked ``-dirty`` if files differ from it."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=7"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options of the command line.

    Args:
        arguments: The command line; None for that of the process.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=BATCH, help="images in a step")
    parser.add_argument("--rounds", type=int, default=15, help="most steps of each row that count")
    parser.add_argument("--minutes", type=float, default=15, help="time for all rounds")
    parser.add_argument(
        "--quick", action="store_true", help="a rehearsal, whose numbers mean nothing"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="the JSON file; by default latest.json, or latest-256.json for batches of 256",
    )
    chosen = parser.parse_args(arguments)
    if chosen.out is None:
        usual = chosen.batch_size == BATCH
        chosen.out = LATEST if usual else LATEST.with_stem(f"latest-{chosen.batch_size}")
    chosen.images, chosen.warmup, chosen.machine_seconds = 50_000, 1, 3.0
    chosen.cached_steps = 16
    if chosen.quick:
        chosen.images, chosen.warmup, chosen.machine_seconds = 2_000, 0, 0.5
        chosen.rounds, chosen.cached_steps = 1, 3
    return chosen


def show(result: Result) -> None:
    """Prints the tables.

    Args:
        result: The results of the benchmark.
    """
    print(hardware_line(result["environment"]))
    print(f"batch size {result['batch_size']}, on the CPU")
    tables = [machine_table(result)]
    for pair in PAIRS:
        tables.append([pair, "", *step_table(result, pair)])
    tables += [cache_table(result), compiled_table(result), ratio_table(result)]
    for lines in filter(None, tables):
        print("", *lines, sep="\n")


def main() -> None:
    """Runs the benchmark, writes the JSON and prints the tables."""
    chosen = options()
    with TemporaryDirectory(prefix="dskd-bench-") as code:
        # So that every run compiles anew.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = code
        try:
            result = bench(chosen)
        except InputError as error:
            sys.exit(_print_error(error))
    chosen.out.write_text(json.dumps(result, indent=1) + "\n")
    show(result)


def _print_error(error: InputError) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
