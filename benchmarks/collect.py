"""Collects finished runs into docs/results: ``python benchmarks/collect.py NAME FOLDER``.

FOLDER holds ``teacher`` and ``<method>-seed<seed>``, as ``real_images.sh`` writes them. Writes
``docs/results/NAME.json`` and prints its table for a page.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

import yaml

RESULTS = Path(__file__).parents[1] / "docs/results"
_FACTS = ("python", "packages", "processor", "cores", "threads", "device")


def read_run(path: Path) -> dict[str, Any]:
    """The result, recipe and machine of a finished run, without times and folders."""
    numbers = json.loads((path / "result.json").read_text())
    result = {key: value for key, value in numbers.items() if "seconds" not in key}
    environment = json.loads((path / "environment.json").read_text())
    settings = yaml.safe_load((path / "recipe.yaml").read_text())
    del settings["data"]["root"], settings["data"]["cache_dir"]
    if settings["teacher"]:
        del settings["teacher"]["checkpoint"]
    machine = {key: environment[key] for key in _FACTS}
    return {"run": path.name, **result, "recipe": settings, "environment": machine}


def table(teacher: dict[str, Any], runs: list[dict[str, Any]]) -> list[str]:
    """A table with a row for the teacher and for each method, with the accuracy of every seed."""
    lines = [
        "| | model | parameters | accuracy, last epoch, % (seeds) | mean | top-5 | agreement, % |",
        "|---|---|---:|---|---:|---:|---:|",
        f"| teacher | {teacher['recipe']['student']['name']} | {teacher['parameters']:,} "
        f"| {teacher['test_accuracy']:.2f} | | {teacher['test_accuracy_top5']:.2f} | |",
    ]
    for method in dict.fromkeys(run["method"] for run in runs):
        own = [run for run in runs if run["method"] == method]
        seeds = ", ".join(f"{run['test_accuracy']:.2f}" for run in own)
        mean, top5 = (
            statistics.mean(run[key] for run in own)
            for key in ("test_accuracy", "test_accuracy_top5")
        )
        agreement = statistics.mean(run["agreement"] or 0 for run in own)
        agreed = f"{agreement:.2f}" if own[0]["agreement"] is not None else ""
        name = own[0]["recipe"]["student"]["name"]
        parameters = own[0]["parameters"]
        lines.append(
            f"| {method} | {name} | {parameters:,} | {seeds} | {mean:.2f} | {top5:.2f} | {agreed} |"
        )
    return lines


def main(name: str, folder: Path) -> None:
    """Writes the JSON file and prints the table."""
    finished = sorted(folder.glob("*-seed*/result.json"), key=_order)
    runs = [read_run(path.parent) for path in finished]
    teacher = read_run(folder / "teacher")
    RESULTS.mkdir(parents=True, exist_ok=True)
    content = json.dumps({"teacher": teacher, "runs": runs}, indent=1)
    (RESULTS / f"{name}.json").write_text(content + "\n")
    print("\n".join(table(teacher, runs)))


def _order(path: Path) -> tuple[int, int]:
    method, seed = re.fullmatch(r"(\w+)-seed(\d+)", path.parent.name).groups()  # type: ignore[union-attr]
    return ("ce", "kd", "dskd").index(method), int(seed)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
