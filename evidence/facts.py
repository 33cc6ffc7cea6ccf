"""The results of a study as plain numbers. Its page is drawn from these alone."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import torch

from dskd.compare.reader import Comparison
from dskd.compare.statistics import holm
from dskd.compare.summary import Summary, VariantResults, summarize
from dskd.engine.method_code import PACKAGE
from dskd.runtime import device
from dskd.storage.json_file import read_json
from dskd.storage.run_files import ENVIRONMENT
from dskd.storage.run_guard import EARLIER
from evidence.design import Study, run_count
from evidence.rows import OURS

MACHINE = ("python", "packages", "processor", "cores", "threads", "device")
PATHS = (
    ("data", "root"),
    ("data", "cache_dir"),
    ("teacher", "checkpoint"),
    ("teacher", "cache_dir"),
)
"""Settings of a recipe that are paths of one machine."""


def facts_of(
    study: Study,
    seeds: Mapping[str, int],
    comparison: Comparison,
    teacher: Mapping[str, Any],
    commit: str,
) -> dict[str, Any]:
    """Collects everything that the page of a study shows.

    Args:
        study: The study.
        seeds: For each label, the number of seeds that the study has computed so far. The folder
            may hold more seeds, if other studies share it.
        comparison: The runs.
        teacher: The content of the teacher's ``result.json``.
        commit: The commit of the code.

    Returns:
        Plain values, ready for JSON.
    """
    entries = [
        _first_seeds(entry, seeds[entry.label])
        for entry in comparison.variants
        if entry.label in seeds
    ]
    summaries = summarize(entries, comparison.test_images, baseline=study.baseline)
    rows = {s.label: _row(s, f"{comparison.path.parent}/") for s in summaries}
    question = first(entries, comparison.test_images) if study.tests_first else None
    adjust(rows, None if study.first_alone else question, study.baseline)
    if question is not None:
        question |= {"required_seeds": study.seeds_of_first, "decides": study.decides_first}
        if study.first_alone:
            adjust_alone(question)
    return {
        "study": study.name,
        "title": study.title,
        "question": study.question,
        "command": command_of(study),
        "commit": commit,
        "date": date.today().isoformat(),
        "environment": machine(device.pick("auto")),
        "split": study.split,
        "protocol": study.protocol,
        "deviation": study.deviation,
        "changes": study.changes,
        "images": comparison.test_images,
        "teacher": {"name": study.teacher_name, "epochs": study.teacher.epochs}
        | ({"starts_from": study.teacher.starts_from} if study.teacher.starts_from else {})
        | {key: teacher[key] for key in ("test_accuracy", "parameters")},
        "baseline": study.baseline,
        "runs": run_count(study, comparison.path.parent),
        "done": sum(
            min(len(entry.results) + len(entry.failed), seeds[entry.label]) for entry in entries
        ),
        "hours": round(sum(map(_seconds, entries)) / 3600, 1),
        "recipe": _without_paths(comparison.facts["recipe"]),
        "groups": study.groups,
        "duplicates": study.duplicates,
        "left_out": study.left_out,
        "rows": rows,
        "first": question,
        "incomplete": incomplete(entries, seeds) if study.tests_first else {},
        "decides": study.decides_first,
        "computed": _environments(entries),
    }


def incomplete(entries: Sequence[VariantResults], seeds: Mapping[str, int]) -> dict[str, int]:
    """The rows that lack a result of the most seeds, since a run failed, with their results.

    Args:
        entries: All rows.
        seeds: How many seeds each label was trained with.
    """
    most = max(seeds.values())
    return {
        entry.label: len(entry.results)
        for entry in entries
        if seeds[entry.label] == most > len(entry.results) and entry.failed
    }


def _environments(entries: Sequence[VariantResults]) -> list[dict[str, Any]]:
    """The machines and versions of the code that computed the runs, with the number of runs.

    A run that was continued elsewhere has several parts.
    """
    found: list[dict[str, Any]] = []
    for run in (run for entry in entries for run in entry.runs.values()):
        path = run / ENVIRONMENT
        facts = read_json(path, dict[str, Any], f"remove {run}") if path.is_file() else {}
        parts = [_place(part) for part in (*facts.get(EARLIER, []), facts)]
        parts = [part for number, part in enumerate(parts) if part not in parts[:number]]
        same = next((known for known in found if known["parts"] == parts), None)
        if same is None:
            found.append(same := {"parts": parts, "runs": 0})
        same["runs"] += 1
    return found


def _place(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What the page says of a machine and of the code there."""
    device = facts.get("device")
    return {
        "machine": facts.get("processor") if device == "cpu" else device,
        "threads": facts.get("threads"),
        "torch": (facts.get("packages") or {}).get("torch"),
        "code": (facts.get(PACKAGE) or "")[:8],
    }


def _first_seeds(entry: VariantResults, seeds: int) -> VariantResults:
    """The entry without the seeds from ``seeds`` on."""
    results = {seed: result for seed, result in entry.results.items() if seed < seeds}
    failed = {seed: why for seed, why in entry.failed.items() if seed < seeds}
    runs = {seed: run for seed, run in entry.runs.items() if seed < seeds}
    return replace(entry, results=results, failed=failed, runs=runs)


def _seconds(entry: VariantResults) -> float:
    """Seconds of training, over all seeds."""
    return sum(float(result["seconds"]) for result in entry.results.values())


def adjust(
    rows: Mapping[str, dict[str, Any]], question: dict[str, Any] | None, baseline: str
) -> None:
    """Adds ``p_holm``, the p-value after Holm's correction, to every comparison of a page.

    Args:
        rows: The rows of the page. Each is compared with the baseline.
        question: The comparison of DSKD with the best other method, if the page has one.
        baseline: The label that the rows are compared with.
    """
    separate = [] if question is None or question["second"] == baseline else [question]
    compared = [*rows.values(), *separate]
    for facts, p_holm in zip(compared, holm([facts["p"] for facts in compared]), strict=True):
        facts["p_holm"] = p_holm
    if question is not None and not separate:  # a row holds the same comparison
        question["p_holm"] = rows[question["label"]]["p_holm"]


def adjust_alone(question: dict[str, Any]) -> None:
    """Adds ``p_holm`` to the test of DSKD and to its differences from all rows with as many seeds.

    Holm's correction is for these differences alone.

    Args:
        question: The comparison of DSKD with the best other method.
    """
    gaps = question["over"].values()
    for gap, p_holm in zip(gaps, holm([gap["p"] for gap in gaps]), strict=True):
        gap["p_holm"] = p_holm
    question["p_holm"] = question["over"][question["second"]]["p_holm"]


def machine(where: torch.device) -> dict[str, Any]:
    """The parts of the environment that results depend on, without any path.

    Args:
        where: The device of the computation.
    """
    environment = device.environment(where)
    return {key: environment[key] for key in MACHINE}


def command_of(study: Study) -> str:
    """The command that computes a study.

    Example:
        >>> from evidence.design import find
        >>> command_of(find("table", Path()))
        'python -m evidence.study table DATA OUT'
    """
    recipe = ["--recipe", study.recipe] if study.command else []
    words = ["python -m evidence.study", study.command or study.name, "DATA OUT"]
    return " ".join([*words, *recipe, *study.changes])


def first(entries: Sequence[VariantResults], images: int) -> dict[str, Any] | None:
    """Compares the best row of DSKD with the best row of the other methods.

    Only the rows with the most seeds take part.

    Args:
        entries: All rows.
        images: Number of test images.

    Returns:
        The two rows and their difference, and the differences to all other rows. None if DSKD or
        the others have no finished run.
    """
    most = max(len(entry.results) for entry in entries)
    entries = [entry for entry in entries if len(entry.results) == most]
    means = {s.label: s.test_accuracy.mean for s in summarize(entries, images) if s.test_accuracy}
    own = [label for label in means if label.partition(":")[0] == OURS]
    others = [label for label in means if label not in own]
    if not own or not others:
        return None
    ours, second = max(own, key=means.__getitem__), max(others, key=means.__getitem__)
    rows = summarize(entries, images, baseline=ours)
    gaps = {s.label: s.difference for s in rows if s.difference}
    gap = gaps.get(second)
    if gap is None:
        return None
    return {
        "label": ours,
        "mean": means[ours],
        "second": second,
        "second_mean": means[second],
        "gap": -gap.interval.mean,
        "gap_half": gap.interval.half,
        "p": gap.p,
        "seeds": len(gap.interval.values),
        "over": {
            label: {"gap": -gap.interval.mean, "gap_half": gap.interval.half, "p": gap.p}
            for label, gap in gaps.items()
        },
    }


def _row(summary: Summary, out: str) -> dict[str, Any]:
    """The numbers of a label. Paths in messages of failed runs start with OUT."""
    gap = summary.difference
    return {
        "weights": dict(summary.weights),
        "seeds": list(summary.seeds),
        "failed": {seed: why.replace(out, "OUT/") for seed, why in summary.failed.items()},
        "accuracies": list(summary.test_accuracy.values) if summary.test_accuracy else [],
        "mean": summary.test_accuracy.mean if summary.test_accuracy else None,
        "half": summary.test_accuracy.half if summary.test_accuracy else None,
        "best": summary.best_test_accuracy.mean if summary.best_test_accuracy else None,
        "agreement": summary.agreement.mean if summary.agreement else None,
        "sampling_error": summary.sampling_error,
        "gap": gap.interval.mean if gap else None,
        "gap_half": gap.interval.half if gap else None,
        "p": gap.p if gap else None,
        "parameters": summary.parameters,
        "extra_parameters": summary.extra_parameters,
        "seconds": summary.seconds,
        "memory": summary.memory,
    }


def _without_paths(recipe: Mapping[str, Any]) -> dict[str, Any]:
    copied: dict[str, Any] = json.loads(json.dumps(recipe))
    for section, key in PATHS:
        copied[section].pop(key, None)
    return copied


def commit_of_code() -> str:
    """The commit of the code, marked ``-dirty`` if files differ from it."""
    here = str(Path(__file__).parent)
    command = ["git", "-C", here, "describe", "--always", "--dirty", "--abbrev=7"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
