"""Measures the effect of fast paths on accuracy: ``python benchmarks/fast_paths.py DATA OUT``.

DATA holds tiny-imagenet-200/. A student is trained by each path at each seed. The same command
continues after a stop, because finished runs in OUT are kept. Writes docs/results/fast-paths.json
and its page.
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
from speed_tables import Lines, hardware_line

from dskd.api import images as api
from dskd.compare.statistics import interval, paired
from dskd.errors import InputError
from dskd.runtime import device

RESULTS = Path(__file__).parents[1] / "docs/results"
TEACHER, STUDENT = "resnet20", "resnet8"
DATA = {"name": "tiny_imagenet", "classes": 20, "size": 32, "crop_padding": 4, "flip": True}
FRACTION = 0.25
"""Fraction of the images that students are trained on, so that augmentation has a clear effect."""
EPOCHS = 20
VIEWS = (1, 2, 4, 8, 16)
"""Numbers of cached views."""


@dataclass(frozen=True)
class FastPath:
    """A way to train the same student.

    Attributes:
        method: The method.
        base: The path that it is compared with; None for the plain paths.
        teacher: Settings of the section ``teacher``.
        train: Settings of the section ``train``.
    """

    method: str
    base: str | None
    teacher: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)


HALF = {"precision": "bfloat16"}


def _views(count: int) -> str:
    return f"{count} view{'s' if count > 1 else ''}"


PATHS: Mapping[str, FastPath] = {
    "kd": FastPath("kd", None, {"fuse_batchnorm": False}),
    "kd, bfloat16": FastPath("kd", "kd", train=HALF),
    "kd, bfloat16, cached logits": FastPath("kd", "kd", {"cache": "logits"}, HALF),
    "dskd": FastPath("dskd", None, {"fuse_batchnorm": False}),
    "dskd, fused BatchNorm": FastPath("dskd", "dskd"),
    "dskd, bfloat16": FastPath("dskd", "dskd", train=HALF),
    "dskd, bfloat16, compiled": FastPath("dskd", "dskd", train={**HALF, "compile": True}),
    **{
        f"dskd, bfloat16, cached features, {_views(views)}": FastPath(
            "dskd", "dskd, bfloat16", {"cache": "features", "views": views}, HALF
        )
        for views in VIEWS
    },
}


def teacher_of(root: Path, out: Path) -> Path:
    """The weights of the teacher, which is trained on all images unless it is finished.

    Args:
        root: The folder that holds tiny-imagenet-200/.
        out: The folder of the runs.
    """
    folder = out / "teacher"
    if not (folder / "result.json").is_file():
        api.distill(
            student=TEACHER,
            data={**DATA, "root": str(root)},
            method="ce",
            train={"epochs": EPOCHS, "schedule": "cosine", **HALF},
            out=folder,
            resume=True,
        )
    return folder / "student.safetensors"


def learn(path: FastPath, seed: int, root: Path, checkpoint: Path, folder: Path) -> float:
    """The test accuracy of a path at a seed, after the last epoch, in percent.

    Args:
        path: The path.
        seed: The seed.
        root: The folder that holds tiny-imagenet-200/.
        checkpoint: The weights of the teacher.
        folder: The folder of the run. A finished run is not repeated.
    """
    if not (folder / "result.json").is_file():
        caches = folder.parents[1] / "teacher_outputs"
        cache = {"cache_dir": str(caches)} if "cache" in path.teacher else {}
        api.distill(
            student=STUDENT,
            teacher={"name": TEACHER, "checkpoint": str(checkpoint), **path.teacher, **cache},
            data={**DATA, "root": str(root), "fraction": FRACTION},
            method=path.method,
            train={"epochs": EPOCHS, "schedule": "cosine", **path.train},
            seed=seed,
            out=folder,
            resume=True,
        )
    return float(json.loads((folder / "result.json").read_text())["test_accuracy"])


def folder_of(out: Path, name: str, seed: int) -> Path:
    """The folder of a run.

    Args:
        out: The folder of all runs.
        name: The name of the path.
        seed: The seed.
    """
    return out / name.replace(",", "").replace(" ", "-") / f"seed{seed}"


def compared(accuracies: Mapping[str, Sequence[float]]) -> list[Result]:
    """The accuracies of each path, and its paired differences to the path that it is compared with.

    Args:
        accuracies: The accuracies of each path, by seed.
    """
    rows: list[Result] = []
    for name, own in accuracies.items():
        over = interval(own)
        row: Result = {"path": name, "accuracies": list(own), "mean": over.mean, "half": over.half}
        if (base := PATHS[name].base) is not None:
            gap = paired(own, accuracies[base])
            row |= {"base": base, "gap": gap.interval.mean, "gap_half": gap.interval.half}
        rows.append(row)
    return rows


_DETAILS = """\
## Details

The rows `kd` and `dskd` do not fuse the teacher's BatchNorm, compute the teacher outputs in every
step, and use float32. The settings of the other paths are `teacher.fuse_batchnorm=true` (fused
BatchNorm), `train.precision=bfloat16` (bfloat16), `train.compile=true` (compiled),
`teacher.cache=logits` (cached logits), and `teacher.cache=features` with `teacher.views` (cached
features). Each fast path is compared at the same seeds: with the same initial weights, and the same
images in the same order. `difference` is the mean of the paired differences in test accuracy, with
its 95 % interval. If an interval contains zero, no difference was found with so few seeds; the ends
of the interval say how large a difference may be.

The rows with **cached features** differ by more than rounding. These students see each image in a
few fixed views, while the other students get a random one of the 162 crops and flips in each epoch.
So these rows show how much of the effect of augmentation the fixed views retain.

Two cases need no runs, because tests show that they do not change a single byte of the student: a
teacher that several students share (`tests/compare/test_runner.py`), and a cache that is full in
place of empty (`tests/teacher/test_cache.py`).
"""


def page(result: Result) -> str:
    """Draws the page.

    Args:
        result: The content of fast-paths.json.

    Returns:
        Markdown.
    """
    lines = [
        "# Do the fast paths cost accuracy?",
        "",
        *_opening(result),
        "",
        "| path | accuracy of each seed, % | mean, % | compared with | difference, points |",
        "|---|---|---:|---|---:|",
    ]
    for row in result["rows"]:
        each = ", ".join(f"{value:.1f}" for value in row["accuracies"])
        lines.append(
            f"| {row['path']} | {each} | {row['mean']:.2f} | {row.get('base', '')} | {_gap(row)} |"
        )
    removed = [row["path"] for row in result["rows"] if row["path"] not in PATHS]
    if removed:
        lines += ["", f"Removed from the package since then: {'; '.join(removed)}."]
    lines += [
        "",
        _DETAILS,
        "The images are those of the first 20 classes of Tiny ImageNet at 32x32. The teacher "
        f"({TEACHER}, {result['teacher_accuracy']:.1f} %) was trained on all 10,000, and the "
        f"students ({STUDENT}) on {FRACTION:.0%} of them, {EPOCHS} epochs each, with crops, flips "
        "and a cosine schedule. Accuracy is measured on the 1,000 published validation images, "
        f"after the last epoch, with {result['seeds']} seeds.{_note(result)}",
        "",
        f"[fast-paths.json](fast-paths.json): `{result['command']}` at commit {result['commit']}, "
        f"{result['date']}. {hardware_line(result['environment'])}.",
    ]
    return "\n".join([*lines, ""])


def _note(result: Result) -> str:
    """What has changed in the package since the runs, if the JSON says it."""
    return f" {result['note']}" if "note" in result else ""


def _opening(result: Result) -> Lines:
    """The question, the answer and its certainty, computed from the rows."""
    question = "- **Question:** Does a faster way to train the same student change its accuracy?"
    rows = [row for row in result["rows"] if row.get("gap_half") is not None]
    if not rows:
        return [question, "- **Answer:** None: one seed has no interval."]
    shown = [row["path"] for row in rows if abs(row["gap"]) > row["gap_half"]]
    found = (
        f"These paths are shown to change the accuracy: {'; '.join(shown)}."
        if shown
        else "No path is shown to change the accuracy."
    )
    low, high = min(row["gap"] for row in rows), max(row["gap"] for row in rows)
    widest = max(abs(row["gap"]) + row["gap_half"] for row in rows)
    return [
        question,
        f"- **Answer:** {found} The {len(rows)} mean differences are between {low:+.2f} and "
        f"{high:+.2f} points.",
        f"- **Certainty:** With {result['seeds']} seeds the 95 % intervals are wide: differences "
        f"of up to {widest:.1f} points are not excluded; the intervals are not corrected for "
        "their number.",
    ]


def _gap(row: Result) -> str:
    if "gap" not in row:
        return ""
    if row["gap_half"] is None:
        return f"{row['gap']:+.2f}"
    low, high = row["gap"] - row["gap_half"], row["gap"] + row["gap_half"]
    return f"{row['gap']:+.2f} ({low:+.2f} to {high:+.2f})"


def measured(root: Path, out: Path, seeds: int) -> Result:
    """Trains the missing students, and compares all.

    Args:
        root: The folder that holds tiny-imagenet-200/.
        out: The folder of the runs.
        seeds: Number of seeds.
    """
    checkpoint = teacher_of(root, out)
    accuracies: dict[str, list[float]] = {name: [] for name in PATHS}
    for seed in range(seeds):
        for name, path in PATHS.items():
            folder = folder_of(out, name, seed)
            accuracies[name].append(learn(path, seed, root, checkpoint, folder))
            print(f"seed {seed}: {name}: {accuracies[name][-1]:.2f} %", flush=True)
    teacher = json.loads((checkpoint.parent / "result.json").read_text())
    machine = device.environment(torch.device("cpu"))
    del machine["command"]  # has paths of this machine
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
    """Trains and compares, and writes the JSON and the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="the folder that holds tiny-imagenet-200/")
    parser.add_argument("out", type=Path, help="the folder of the runs")
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
