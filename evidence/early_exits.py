"""Computes the study of early exits: ``python -m evidence.early_exits DATA OUT``.

DATA holds ``tiny-imagenet-200/``. OUT takes the split, the teacher and the students. The rules are
in docs/results/protocol-early-exits.md. The same command continues a study that was stopped. After
the last run the results are written to ``docs/results/early-exits.json``, drawn as
``early-exits.svg``, and described in ``early-exits.md``.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from dskd.compare.statistics import interval, paired
from dskd.config.recipe import load, load_by_labels
from dskd.deploy.early_exits import evaluate_exits, load_early
from dskd.models.cost import model_cost
from evidence.command import origin, rules, study_arguments, write_results
from evidence.exits import exit_codes
from evidence.numbers import gap_sentence, number
from evidence.opening import bullets
from evidence.page import machine_line
from evidence.prepare import prepare
from evidence.trained import result_of

RECIPE = str(Path(__file__).parent / "early-exits.yaml")
SEEDS = 3
SPLIT = "search"
STUDENT = "resnet20"
SMALLER = ("resnet14", "resnet8")
"""Plain students that cost less than `STUDENT`."""
TEACHER = "resnet32"


def compute(
    data: Path, out: Path, changes: Sequence[str] = (), seeds: int = SEEDS
) -> dict[str, Any]:
    """Computes the missing runs.

    Args:
        data: The image folder of the split.
        out: The folder of the study.
        changes: Settings that depart from the protocol.
        seeds: Number of seeds.

    Returns:
        Everything that the page shows.
    """
    source = origin("early-exits", changes)
    data, out = data.resolve(), out.resolve()
    teacher = out / "teacher"
    own = [f"student.name={TEACHER}", f"data.root={data}", f"out={teacher}"]
    own += [one for one in changes if not one.startswith(("teacher.", "method."))]
    teacher_result = result_of(load_by_labels(RECIPE, own))
    exits: list[dict[str, Any]] = []
    smaller: dict[str, dict[str, Any]] = {
        name: {"accuracies": [], "multiply_adds": 0} for name in SMALLER
    }
    for seed in range(seeds):
        folder = out / f"{STUDENT}-seed{seed}"
        _student(STUDENT, seed, data, folder, [*changes, "train.exits=true"])
        exits.append(asdict(evaluate_exits(folder)))
        for name, found in smaller.items():
            folder = out / f"{name}-seed{seed}"
            result = _student(name, seed, data, folder, changes)
            found["accuracies"].append(result["test_accuracy"])
            found["multiply_adds"] = _cost(folder)
    facts = load_early(out / f"{STUDENT}-seed0").facts
    return {
        **source,
        "teacher": teacher_result["test_accuracy"],
        "val_images": facts.val_images,
        "exits": exits,
        "smaller": smaller,
    }


def _student(
    name: str, seed: int, data: Path, folder: Path, changes: Sequence[str]
) -> dict[str, Any]:
    """The result of a student, which is trained if it is not finished."""
    own = [
        f"student.name={name}",
        f"teacher.name={TEACHER}",
        f"teacher.checkpoint={folder.parent / 'teacher' / 'student.safetensors'}",
        f"teacher.cache_dir={folder.parent / 'teacher-outputs'}",
        f"data.root={data}",
        f"seed={seed}",
        f"out={folder}",
    ]
    return result_of(load(RECIPE, [*changes, *own]))


def _cost(folder: Path) -> int:
    """The multiply-adds of the student of a run."""
    import dskd

    student = dskd.load_deployed(folder)
    return model_cost(student.model.module, student.shape).multiply_adds


def page(facts: Mapping[str, Any]) -> str:
    """The page of the study.

    Args:
        facts: What `compute` returned.
    """
    lines = [
        "# Early exits",
        "",
        *bullets(
            "Is one student with early exits better than a smaller student of the same cost?",
            " ".join(_findings(facts)),
            f"{len(facts['exits'])} seeds of one teacher on 20 classes. ± covers the noise of "
            "training. The p-values are not corrected.",
        ),
        "",
        "![Accuracy against multiply-adds](early-exits.svg)",
        "",
        f"{rules(facts)} Accuracies are top-1 "
        f"on {facts['exits'][0]['images']:,} test images in percent, after the last epoch, with "
        f"95 % intervals over {len(facts['exits'])} seeds. The teacher, {TEACHER}, has "
        f"{facts['teacher']:.1f} %. The thresholds were chosen on "
        f"{facts['val_images']:,} validation images. The latency of one image is that of PyTorch "
        "on one thread, relative to the plain student of the same seed. p-values are those of "
        "paired t-tests.",
        "",
        "| student | largest loss, points | accuracy | loss | multiply-adds, M | latency | "
        "predicted early, % |",
        "|---|---:|---:|---:|---:|---:|---:|",
        *_rows(facts),
        "",
        machine_line(facts),
        "",
    ]
    return "\n".join(lines)


def _over_seeds(values: Sequence[float], form: str) -> str:
    found = interval(list(values))
    return number(found.mean, found.half, form)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _rows(facts: Mapping[str, Any]) -> Iterator[str]:
    exits = facts["exits"]
    plain = [one["accuracies"][-1] for one in exits]
    cost = exits[0]["multiply_adds"] / 1e6
    yield f"| {STUDENT} | no exits | {_over_seeds(plain, '.1f')} | | {cost:.1f} | 1.00 | 0.0 |"
    for place, row in enumerate(exits[0]["rows"]):
        rows = [one["rows"][place] for one in exits]
        accuracies = [one["accuracy"] for one in rows]
        lost = [before - after for before, after in zip(plain, accuracies, strict=True)]
        costs = _mean([one["multiply_adds"] for one in rows]) / 1e6
        times = _mean(
            [one["latency"] / whole["latency"] for one, whole in zip(rows, exits, strict=True)]
        )
        early = _mean([100 - one["shares"][-1] for one in rows])
        yield (
            f"| {STUDENT} with exits | {row['max_loss']:g} | {_over_seeds(accuracies, '.1f')} | "
            f"{_over_seeds(lost, '+.1f')} | {costs:.1f} | {times:.2f} | {early:.1f} |"
        )
    for name, found in facts["smaller"].items():
        lost = [before - after for before, after in zip(plain, found["accuracies"], strict=True)]
        yield (
            f"| {name} | no exits | {_over_seeds(found['accuracies'], '.1f')} | "
            f"{_over_seeds(lost, '+.1f')} | {found['multiply_adds'] / 1e6:.1f} | | |"
        )


def at_cost(curve: Sequence[Mapping[str, Any]], multiply_adds: float) -> float | None:
    """The accuracy of a student with exits at a cost, between the two nearest policies.

    Args:
        curve: The policies, from the dearest to the cheapest.
        multiply_adds: The cost.

    Returns:
        None if no policy is as cheap.
    """
    for dear, cheap in itertools.pairwise(curve):
        if cheap["multiply_adds"] <= multiply_adds <= dear["multiply_adds"]:
            span = dear["multiply_adds"] - cheap["multiply_adds"]
            share = (multiply_adds - cheap["multiply_adds"]) / span if span else 0.0
            gained: float = share * (dear["accuracy"] - cheap["accuracy"])
            return gained + float(cheap["accuracy"])
    return None


def _findings(facts: Mapping[str, Any]) -> Iterator[str]:
    for name, found in facts["smaller"].items():
        cost = found["multiply_adds"]
        ours = [at_cost(one["curve"], cost) for one in facts["exits"]]
        known = [value for value in ours if value is not None]
        if len(known) < len(ours):
            yield _too_dear(facts["exits"], name, cost, len(known))
            continue
        gap = paired(known, found["accuracies"])
        yield (
            f"At the multiply-adds of {name} ({cost / 1e6:.1f} M), {STUDENT} with exits has "
            f"{_over_seeds(known, '.1f')} %, and {name} {_over_seeds(found['accuracies'], '.1f')} "
            f"%: a difference of {gap_sentence(gap, gap.p)}."
        )


def _too_dear(exits: Sequence[Mapping[str, Any]], name: str, cost: int, reached: int) -> str:
    """Says that the exits reach the cost of a smaller student at ``reached`` seeds, not at all."""
    as_cheap = f"as cheap as {name} ({cost / 1e6:.1f} M multiply-adds)"
    if reached:
        return f"The exits make {STUDENT} {as_cheap} at only {reached} of {len(exits)} seeds."
    lowest = min(policy["multiply_adds"] for one in exits for policy in one["curve"])
    return (
        f"At no seed do the exits make {STUDENT} {as_cheap}: the lowest cost is "
        f"{lowest / 1e6:.1f} M."
    )


def figure(facts: Mapping[str, Any]) -> bytes:
    """Draws accuracy against multiply-adds: a curve for each seed, and the plain students.

    Args:
        facts: What `compute` returned.

    Returns:
        An SVG file.
    """
    drawn = Figure(figsize=(7, 4), layout="constrained")
    axes = drawn.subplots()
    for seed, one in enumerate(facts["exits"]):
        points = [(row["multiply_adds"] / 1e6, row["accuracy"]) for row in one["curve"]]
        label = f"{STUDENT} with exits" if seed == 0 else None
        axes.plot(*zip(*points, strict=True), color="#c0392b", alpha=0.6, label=label)
    plain = {STUDENT: [one["accuracies"][-1] for one in facts["exits"]]}
    costs = {STUDENT: facts["exits"][0]["multiply_adds"]}
    for name, found in facts["smaller"].items():
        plain[name], costs[name] = found["accuracies"], found["multiply_adds"]
    for name, accuracies in plain.items():
        places = [costs[name] / 1e6] * len(accuracies)
        axes.plot(places, accuracies, "o", color="#1f5fa8", markersize=4)
        top = (places[0], max(accuracies))
        axes.annotate(name, top, (0, 6), textcoords="offset points", ha="center")
    axes.margins(x=0.1, y=0.12)
    axes.set_xlabel("mean multiply-adds of an image, millions")
    axes.set_ylabel("test accuracy, %")
    axes.legend(loc="lower right")
    file = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "dskd"}):
        drawn.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def main(arguments: Sequence[str] | None = None) -> None:
    """Computes the missing runs and writes the page.

    Args:
        arguments: The command line; None for that of the process.
    """
    chosen = study_arguments(__doc__, arguments, SEEDS)
    with exit_codes():
        images = prepare(chosen.data, SPLIT, chosen.out / "splits")
        facts = compute(images, chosen.out / "early-exits", chosen.changes, chosen.seeds)
    write_results(chosen.results, "early-exits", facts, page(facts))
    (chosen.results / "early-exits.svg").write_bytes(figure(facts))


if __name__ == "__main__":
    main()
