"""Checks and measures the GPU's paths: ``python benchmarks/on_gpu.py``.

For a GPU that is lent for minutes. Every part runs in a process of its own, within its own time,
and what it found is written at once to docs/results/gpu.json: a part that fails, hangs or breaks
the GPU's context is recorded so, and the next one runs. What the parts say of the aims
(benchmarks/gpu_aims.py) stands there too, and is printed at the end. With ``--continue`` the parts
that are there already are left out, so that a short lease can follow another. ``--small`` rehearses
everything on little data, also on a CPU, where steps are recorded by calling them anew.

The images are noise in CIFAR-100's shape: neither time nor equality depends on what they show.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import gpu_aims as aims
import gpu_checks as checks
import gpu_measures as measures
import torch
from gpu_bench import Bench, Found

from dskd.runtime import device as devices
from dskd.storage.atomic import replace_file

OUT = Path(__file__).parents[1] / "docs/results/gpu.json"


PARTS: dict[str, tuple[int, Callable[[Bench], Found]]] = {
    "check: recorded equals plain": (150, checks.recorded_equals_plain),
    "check: a bad objective": (40, checks.bad_objective),
    "check: no step waits": (90, checks.no_waits),
    "check: runs go on to the byte": (90, checks.resumed),
    "check: every method": (90, checks.every_method),
    "check: answers ahead": (60, checks.ahead),
    "measure: floor": (40, measures.floor),
    aims.BFLOAT16: (120, partial(measures.steps, precision="bfloat16")),
    "measure: steps in float32": (120, partial(measures.steps, precision="float32")),
    aims.KEPT: (90, measures.kept_steps),
    aims.REFERENCE: (150, measures.reference_steps),
    "measure: whole epochs": (150, measures.whole_epochs),
    aims.EIGHT: (90, measures.eight_students),
    aims.ONLINE_RUN: (330, partial(measures.whole_run, how="online")),
    aims.KEPT_RUN: (330, partial(measures.whole_run, how="kept")),
    "check: compiled": (150, checks.compiled),
    "measure: compiled steps": (240, measures.compiled_steps),
}
"""What there is, and how many seconds it may take; what matters most comes first."""


def run_part(name: str, small: bool) -> None:
    """Runs one part and prints what it found as the last line."""
    bench = Bench(small)
    found = PARTS[name][1](bench)
    if bench.on_gpu:
        found["largest memory, bytes"] = torch.cuda.max_memory_allocated()
    print(json.dumps(found))


def start_part(name: str, small: bool, seconds: float) -> Found:
    """Runs one part in a process of its own, and gives what became of it."""
    command = [sys.executable, __file__, "--part", name, *(["--small"] if small else [])]
    start = time.monotonic()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, errors = process.communicate()
        why = f"stopped after {seconds:.0f} seconds; {errors[-1500:]}"
        return {"ok": False, "error": why}
    took = round(time.monotonic() - start, 1)
    if process.returncode:
        return {"ok": False, "error": errors[-3000:], "took": took}
    return {**json.loads(output.splitlines()[-1]), "took": took}


def main() -> None:
    """Runs what was chosen, and writes after every part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--small", action="store_true", help="a rehearsal")
    parser.add_argument("--minutes", type=float, default=9.5, help="for all parts together")
    parser.add_argument(
        "--continue", dest="go_on", action="store_true", help="only the parts that are not there"
    )
    parser.add_argument("--only", default="", help="parts whose name has this in it")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.part:
        run_part(chosen.part, chosen.small)
        return
    if not chosen.small and not torch.cuda.is_available():
        parser.error("torch sees no GPU here; rehearse with --small")
    until = time.monotonic() + 60 * chosen.minutes
    result: Found = {}
    if chosen.go_on and chosen.out.is_file():
        result = json.loads(chosen.out.read_text())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    result |= {"environment": devices.environment(device), "rehearsal": chosen.small}
    parts = result.setdefault("parts", {})
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    for name, (seconds, _) in PARTS.items():
        left = until - time.monotonic()
        if chosen.only not in name or (chosen.go_on and name in parts) or left < 15:
            continue
        seconds *= 4 if chosen.small else 1  # a CPU is slow
        parts[name] = start_part(name, chosen.small, min(seconds, left))
        result["aims"] = aims.reached(parts)
        replace_file(chosen.out, (json.dumps(result, indent=2) + "\n").encode())
        print(f"{name}: {verdict(parts[name])}", flush=True)
    if chosen.small:
        print("a rehearsal: no number of it means anything")
    for row in result.get("aims", []):
        print(aims.line(row))


def verdict(found: Found) -> str:
    """What became of a part, in a line."""
    took = f"{found.get('took', '?')} s"
    if found.get("ok", True):
        return f"done, {took}"
    bad = [name for name, value in found.get("each", {}).items() if not value["ok"]]
    return f"FAILED, {took}: {', '.join(bad) or found.get('error', '').strip()[-200:]}"


if __name__ == "__main__":
    main()
