"""What is kept of a study: the numbers that its page is drawn from."""

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
from dskd.compare.summary import Entry, Summary, summarize
from dskd.runtime import device
from evidence.design import Study, wanted
from evidence.page import OURS

MACHINE = ("python", "packages", "processor", "cores", "threads", "device")


def facts_of(
    study: Study,
    seeds: Mapping[str, int],
    comparison: Comparison,
    teacher: Mapping[str, Any],
    commit: str,
) -> dict[str, Any]:
    """Everything that the page of a study is drawn from.

    Args:
        study: What is compared.
        seeds: Of each label, how many it has had to have so far; where other studies share the
            folder of its runs, there may be more.
        comparison: The runs.
        teacher: What it came to.
        commit: Of the code.
    """
    entries = [_of(entry, study.most) for entry in comparison.entries if entry.label in seeds]
    summaries = summarize(entries, comparison.test_images, baseline=study.baseline)
    rows = {s.label: _row(s, f"{comparison.path.parent}/") for s in summaries}
    question = first(entries, comparison.test_images) if study.asks_first else None
    adjust(rows, question, study.baseline)
    return {
        "study": study.name,
        "title": study.title,
        "command": command_of(study),
        "commit": commit,
        "date": date.today().isoformat(),
        "environment": machine(device.pick("auto")),
        "set": study.set,
        "beside": study.beside,
        "changes": study.changes,
        "images": comparison.test_images,
        "teacher": {"name": study.teacher_name, "epochs": study.teacher.epochs}
        | {key: teacher[key] for key in ("accuracy", "parameters")},
        "baseline": study.baseline,
        "runs": wanted(study),
        "done": sum(
            min(len(entry.results) + len(entry.failed), seeds[entry.label]) for entry in entries
        ),
        "hours": round(sum(map(_seconds, entries)) / 3600, 1),
        "recipe": _without_places(comparison.facts["recipe"]),
        "groups": study.groups,
        "same": study.same,
        "rows": rows,
        "first": question,
    }


def _of(entry: Entry, seeds: int) -> Entry:
    """An entry with its first seeds alone."""
    results = {seed: result for seed, result in entry.results.items() if seed < seeds}
    failed = {seed: why for seed, why in entry.failed.items() if seed < seeds}
    return replace(entry, results=results, failed=failed)


def _seconds(entry: Entry) -> float:
    """Of training, all seeds."""
    return sum(float(result["seconds"]) for result in entry.results.values())


def adjust(
    rows: Mapping[str, dict[str, Any]], question: dict[str, Any] | None, baseline: str
) -> None:
    """Adds ``p_holm`` to all comparisons of a page: their p-values, adjusted for their number."""
    asked = [] if question is None or question["second"] == baseline else [question]
    compared = [*rows.values(), *asked]
    for facts, p_holm in zip(compared, holm([facts["p"] for facts in compared]), strict=True):
        facts["p_holm"] = p_holm
    if question is not None and not asked:  # a row has this comparison
        question["p_holm"] = rows[question["label"]]["p_holm"]


def machine(where: torch.device) -> dict[str, Any]:
    """What numbers depend on beside the recipe; no place of the machine."""
    told = device.environment(where)
    return {key: told[key] for key in MACHINE}


def command_of(study: Study) -> str:
    """What computes it.

    Example:
        >>> from evidence.design import find
        >>> command_of(find("table", Path()))
        'python -m evidence.study table DATA OUT'
    """
    recipe = ["--recipe", study.recipe] if study.called else []
    words = ["python -m evidence.study", study.called or study.name, "DATA OUT"]
    return " ".join([*words, *recipe, *study.changes])


def first(entries: Sequence[Entry], images: int) -> dict[str, Any] | None:
    """DSKD's best row against the best of the others, among those with the most seeds.

    Returns:
        Also its difference to every one of the others; None where one of the two is not there.
    """
    most = max(len(entry.results) for entry in entries)
    entries = [entry for entry in entries if len(entry.results) == most]
    means = {s.label: s.last.mean for s in summarize(entries, images) if s.last}
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
            label: {"gap": -gap.interval.mean, "gap_half": gap.interval.half}
            for label, gap in gaps.items()
        },
    }


def _row(summary: Summary, out: str) -> dict[str, Any]:
    """A label's numbers, plain; where a failed run lies is told from OUT."""
    gap = summary.difference
    return {
        "weights": dict(summary.weights),
        "seeds": list(summary.seeds),
        "failed": {seed: why.replace(out, "OUT/") for seed, why in summary.failed.items()},
        "accuracies": list(summary.last.values) if summary.last else [],
        "mean": summary.last.mean if summary.last else None,
        "half": summary.last.half if summary.last else None,
        "best": summary.best.mean if summary.best else None,
        "agreement": summary.agreement.mean if summary.agreement else None,
        "sampling_error": summary.sampling_error,
        "gap": gap.interval.mean if gap else None,
        "gap_half": gap.interval.half if gap else None,
        "p": gap.p if gap else None,
        "parameters": summary.parameters,
        "extra_parameters": summary.extra_parameters,
    }


def _without_places(recipe: Mapping[str, Any]) -> dict[str, Any]:
    kept = json.loads(json.dumps(recipe))
    for part, key in (("data", "root"), ("data", "cache"), ("teacher", "checkpoint")):
        kept[part].pop(key, None)
    return dict(kept)


def commit_of_code() -> str:
    """Marked where files differ from it."""
    here = str(Path(__file__).parent)
    command = ["git", "-C", here, "describe", "--always", "--dirty", "--abbrev=7"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
