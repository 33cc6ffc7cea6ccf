"""Whether a fast path costs accuracy: each against the plain one at the same seeds.

``python benchmarks/fast_paths.py DATA OUT``, where DATA holds tiny-imagenet-200/. A student learns
by each path at each seed; what is finished in OUT stays, so that the script can be stopped and
started again. Writes docs/results/fast-paths.json, and the page of what is in it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import torch
from bench import commit
from results import Result
from speed_tables import hardware_line

from dskd import api
from dskd.compare.statistics import interval, paired
from dskd.errors import InputError
from dskd.runtime import device

RESULTS = Path(__file__).parents[1] / "docs/results"
TEACHER, STUDENT = "resnet20", "resnet8"
DATA = {"name": "tiny_imagenet", "classes": 20, "size": 32, "crop_padding": 4, "flip": True}
SHARE = 0.25
"""Of the images, for the student: so few that what augmentation does for it shows."""
EPOCHS = 20
BANKS = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class FastPath:
    """A way to the same student.

    Attributes:
        method: The method.
        base: What it is compared with; None for the plain ones.
        teacher: Settings of the teacher.
        train: Settings of the training.
    """

    method: str
    base: str | None
    teacher: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)


HALF = {"precision": "bfloat16"}
PATHS: Mapping[str, FastPath] = {
    "kd": FastPath("kd", None, {"fold": False}),
    "kd, bfloat16": FastPath("kd", "kd", train=HALF),
    "kd, bfloat16, kept logits": FastPath("kd", "kd", {"cache": "logits"}, HALF),
    "dskd": FastPath("dskd", None, {"fold": False}),
    "dskd, folded": FastPath("dskd", "dskd"),
    "dskd, bfloat16": FastPath("dskd", "dskd", train=HALF),
    "dskd, bfloat16, ahead": FastPath("dskd", "dskd", {"ahead": 4}, HALF),
    "dskd, bfloat16, compiled": FastPath("dskd", "dskd", train={**HALF, "compile": True}),
    **{
        f"dskd, bfloat16, bank of {views}": FastPath(
            "dskd", "dskd, bfloat16", {"cache": "bank", "views": views}, HALF
        )
        for views in BANKS
    },
}


def teacher_of(root: Path, out: Path) -> Path:
    """The weights of the one teacher, which learned from all images; trained if not there."""
    place = out / "teacher"
    if not (place / "result.json").is_file():
        api.distill(
            student=TEACHER,
            data={**DATA, "root": str(root)},
            method="ce",
            train={"epochs": EPOCHS, "schedule": "cosine", **HALF},
            out=place,
            resume=True,
        )
    return place / "student.safetensors"


def learn(path: FastPath, seed: int, root: Path, checkpoint: Path, place: Path) -> float:
    """The test accuracy after the last epoch, of one path at one seed, in percent."""
    if not (place / "result.json").is_file():
        store = {"cache_dir": str(place.parents[1] / "answers")} if "cache" in path.teacher else {}
        api.distill(
            student=STUDENT,
            teacher={"name": TEACHER, "checkpoint": str(checkpoint), **path.teacher, **store},
            data={**DATA, "root": str(root), "fraction": SHARE},
            method=path.method,
            train={"epochs": EPOCHS, "schedule": "cosine", **path.train},
            seed=seed,
            out=place,
            resume=True,
        )
    return float(json.loads((place / "result.json").read_text())["test_accuracy"])


def folder_of(out: Path, name: str, seed: int) -> Path:
    """Where a path's run at a seed lies."""
    return out / name.replace(",", "").replace(" ", "-") / f"seed{seed}"


def compared(accuracies: Mapping[str, Sequence[float]]) -> list[Result]:
    """Each path's accuracies, and its difference, seed by seed, to what it is compared with."""
    rows: list[Result] = []
    for name, own in accuracies.items():
        over = interval(own)
        row: Result = {"path": name, "accuracies": list(own), "mean": over.mean, "half": over.half}
        if (base := PATHS[name].base) is not None:
            gap = paired(own, accuracies[base])
            row |= {"base": base, "gap": gap.interval.mean, "gap_half": gap.interval.half}
        rows.append(row)
    return rows


_PAGE = """\
# Do the fast paths cost accuracy?

Each fast path against the plain one (teacher unfolded, asked at every step, all in float32), at
the same seeds: the same first weights, the same images in the same order. `difference` is the
mean over the seeds of the paired differences of the test accuracy, with its 95 % interval. An
interval that holds zero says that no difference was found with so few seeds, and how large one
may be at most. Written by `python benchmarks/fast_paths.py`; no number is written by hand.

Paths that are equal to the byte need no runs, their tests say so: a teacher that several students
share (`tests/compare`), a recorded step (`tests/test_graph.py`, by its twins on the CPU), an answer
that is kept against the same answer found again (`tests/test_kept.py`).

A **bank of V views** changes more than rounding: an image is seen in V views instead of all 162,
so what its row says is how much of the augmentation V views keep.
"""


def page(result: Result) -> str:
    """The page of a result."""
    lines = [
        _PAGE,
        f"[fast-paths.json](fast-paths.json): `{result['command']}` at commit {result['commit']}, "
        f"{result['date']}. {hardware_line(result['environment'])}.",
        "",
        f"Images of TinyImageNet's first 20 classes at 32x32: the teacher ({TEACHER}, "
        f"{result['teacher_accuracy']:.1f} %) learned from all 10,000, the students ({STUDENT}) "
        f"from {SHARE:.0%} of them, {EPOCHS} epochs each, with crops and flips, cosine schedule; "
        "evaluated on the published 1,000 validation images after the last epoch. "
        f"n = {result['seeds']} seeds.",
        "",
        "| path | accuracy, % (each seed) | mean | against | difference, points |",
        "|---|---|---:|---|---:|",
    ]
    for row in result["rows"]:
        each = ", ".join(f"{value:.1f}" for value in row["accuracies"])
        lines.append(
            f"| {row['path']} | {each} | {row['mean']:.2f} | {row.get('base', '')} | {_gap(row)} |"
        )
    return "\n".join([*lines, ""])


def _gap(row: Result) -> str:
    if "gap" not in row:
        return ""
    if row["gap_half"] is None:
        return f"{row['gap']:+.2f}"
    low, high = row["gap"] - row["gap_half"], row["gap"] + row["gap_half"]
    return f"{row['gap']:+.2f} ({low:+.2f} to {high:+.2f})"


def measured(root: Path, out: Path, seeds: int) -> Result:
    """Trains what is not there yet, seed by seed, and compares."""
    checkpoint = teacher_of(root, out)
    accuracies: dict[str, list[float]] = {name: [] for name in PATHS}
    for seed in range(seeds):
        for name, path in PATHS.items():
            place = folder_of(out, name, seed)
            accuracies[name].append(learn(path, seed, root, checkpoint, place))
            print(f"seed {seed}: {name}: {accuracies[name][-1]:.2f} %", flush=True)
    teacher = json.loads((checkpoint.parent / "result.json").read_text())
    machine = device.environment(torch.device("cpu"))
    del machine["command"]  # names places of this machine
    return {
        "command": f"python benchmarks/fast_paths.py DATA OUT --seeds {seeds}",
        "date": date.today().isoformat(),
        "commit": commit(),
        "environment": machine,
        "seeds": seeds,
        "teacher_accuracy": teacher["test_accuracy"],
        "rows": compared(accuracies),
    }


def main() -> None:
    """Trains, compares and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="holds tiny-imagenet-200/")
    parser.add_argument("out", type=Path, help="for the runs")
    parser.add_argument("--seeds", type=int, default=5)
    chosen = parser.parse_args()
    try:
        result = measured(chosen.data, chosen.out, chosen.seeds)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    (RESULTS / "fast-paths.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "fast-paths.md").write_text(page(result))


if __name__ == "__main__":
    main()
