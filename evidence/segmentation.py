"""Computes the studies on segmentation: ``python -m evidence.segmentation DATA OUT``.

DATA holds ``train`` and ``val``, each with images and masks. OUT takes the runs. The rules are in
docs/results/protocol-segmentation.md. The same command continues a study that was stopped. After
the last run the results are written to ``docs/results/segmentation.json`` and drawn as
``docs/results/segmentation.md``. An image of predictions stays in OUT.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from dskd.compare.statistics import Difference, holm, interval, paired
from dskd.config.overrides import overridden
from dskd.engine.run import run_job
from dskd.engine.tasks.segmentation.job import SegmentationJob
from dskd.engine.tasks.segmentation.overlay import draw_rows
from dskd.engine.tasks.segmentation.recipe import RECIPES
from dskd.engine.tasks.segmentation.sources import load_images
from dskd.engine.tasks.segmentation.student import evaluate, load_student
from dskd.storage.run_directory import RunDirectory
from dskd.storage.run_files import BEST
from evidence.command import origin, rules, study_arguments, write_results
from evidence.exits import exit_codes
from evidence.numbers import (
    as_sentence,
    gap_text,
    gap_verdict,
    number,
    p_text,
)
from evidence.opening import bullets
from evidence.page import machine_line

RECIPE = str(Path(__file__).parent / "segmentation.yaml")
SEEDS = {"mixed": 5, "dense": 3}
DENSE = ("data.classes=null", "data.patients=6", "student.width=4", "teacher.width=32")
"""The second study: all classes, masks for all patients, a small student and a large teacher."""
TEACHER = "teacher"
SHOWN = 4
"""Test images that are drawn."""
DRAWN = "predictions.png"
"""The image of predictions, in the folder of the runs."""


class Row(NamedTuple):
    """A row of a table.

    Attributes:
        name: Of its runs.
        text: What it says in the table.
        changes: The settings that it changes.
    """

    name: str
    text: str
    changes: tuple[str, ...]


ROWS = {
    "mixed": (
        Row("masks", "masks only", ("method.name=masks",)),
        Row("seeds", "seeds only", ("method.name=seeds",)),
        Row("both", "masks and seeds", ("method.kl=0", "method.entropy=0")),
        Row("kl", "masks and seeds, with KL", ("method.entropy=0",)),
        Row("entropy", "masks and seeds, with entropy", ("method.kl=0",)),
        Row("all", "masks and seeds, with KL and entropy", ()),
        Row(
            "upper",
            "upper bound: masks of all training images",
            ("method={name: masks, all_images: true}",),
        ),
    ),
    "dense": (
        Row("alone", "student alone", ("method.name=masks",)),
        Row("kd", "KD at every pixel", ("method.name=kd",)),
        Row("dskd", "DSKD at every pixel", ("method.name=dskd",)),
    ),
}
BASELINES = {"mixed": "masks", "dense": "kd"}
"""The row that each other row of a table is compared with."""


def trained(folder: Path, data: Path, changes: Sequence[str]) -> dict[str, Any]:
    """The scores of a run, which is trained if it is not finished.

    Args:
        folder: The folder of the run.
        data: The folder of the images.
        changes: Settings that differ from the recipe.

    Returns:
        Of the student of the best epoch: the mean Dice in percent, the mean HD95 in pixels, and the
        number of images and classes where HD95 is defined. Of decoder A, if there is one: the mean
        Dice after the last epoch.
    """
    # The rows of a study share its teacher, which a row that learns from none leaves aside.
    teacher = [change for change in changes if change.startswith("teacher.")]
    shared = overridden(RECIPES.read(RECIPE)[0], teacher, RECIPES.model)
    own = [change for change in changes if change not in teacher]
    recipe = RECIPES.load(shared, [f"data.root={data}", *own, f"out={folder}"])
    directory = RunDirectory(folder)
    directory.check_same(recipe)
    if not directory.finished:
        run_job(SegmentationJob(recipe), resume=True)
    scores = evaluate(folder)
    distances = [score.hd95 for score in scores if score.hd95 is not None]
    return {
        "dice": float(np.mean([score.dice for score in scores])),
        "hd95": float(np.mean(distances)) if distances else None,
        "hd95_images": sum(score.hd95_images for score in scores),
        "decoder_a": directory.rows()[-1].get("masks/test_accuracy"),
    }


def compute(
    data: Path, out: Path, changes: Sequence[str] = (), seeds: Mapping[str, int] = SEEDS
) -> dict[str, Any]:
    """Computes the missing runs.

    Args:
        data: The folder of the images.
        out: The folder of the studies.
        changes: Settings that depart from the protocol.
        seeds: Number of seeds of each study.

    Returns:
        Everything that the page shows.
    """
    source = origin("segmentation", changes)
    data, out = data.resolve(), out.resolve()
    results: dict[str, dict[str, list[dict[str, Any]]]] = {}
    shared = {"mixed": [*changes], "dense": [*DENSE, *changes]}
    teacher = out / "dense" / TEACHER
    width = next(c for c in reversed(shared["dense"]) if c.startswith("teacher.width="))
    own = [*shared["dense"], "method.name=masks", f"student.{width.partition('.')[2]}"]
    teacher_scores = trained(teacher, data, own)
    shared["dense"].append(f"teacher.checkpoint={teacher / BEST}")
    for study, rows in ROWS.items():
        results[study] = {row.name: [] for row in rows}
        for seed in range(seeds[study]):
            for row in rows:
                folder = out / study / f"{row.name}-seed{seed}"
                own = [*shared[study], *row.changes, f"seed={seed}"]
                results[study][row.name].append(trained(folder, data, own))
    return {
        **source,
        "teacher": teacher_scores,
        "results": results,
    }


def draw(out: Path, names: Sequence[str]) -> Image.Image:
    """Predictions of the first seed over test images: a row for each image.

    The columns are the mask and then the predictions of some rows of the first study. The images
    are evenly spaced among those whose mask is not empty.

    Args:
        out: The folder of the studies.
        names: Rows of the first study.
    """
    students = [load_student(out / "mixed" / f"{name}-seed0") for name in names]
    test = load_images(students[0].recipe.split_data).test
    full = [index for index, mask in enumerate(test.masks) if mask.any()]
    chosen = [full[len(full) * number // SHOWN] for number in range(min(SHOWN, len(full)))]
    images = [test.images[index].numpy() for index in chosen]
    predicted = [[student.predict(image) for image in images] for student in students]
    return draw_rows(images, [[test.masks[index].numpy() for index in chosen], *predicted])


def page(facts: Mapping[str, Any]) -> str:
    """The page of the studies.

    Args:
        facts: What `compute` returned.
    """
    lines = [
        "# Segmentation",
        "",
        *bullets(
            "What do seeds add to a few masks, and what does a large teacher add to a small "
            "segmentation network?",
            " ".join(_findings(facts)),
            "One split of the patients: the seeds cover the noise of training, not the choice of "
            "patients. The p-values are corrected for the comparisons of a table (Holm). This is "
            "the second attempt: the intervals of [the first]"
            "(protocol-segmentation.md#the-first-attempt) were too wide to rank anything.",
        ),
        "",
        f"{rules(facts)} Dice is a mean over "
        "the test images in percent, HD95 in pixels over the images where it is defined, whose "
        "number is in parentheses (of all classes, mean over seeds). Both are of the student of "
        "the epoch with the best validation Dice, with 95 % intervals over seeds.",
        "",
        "## Mixed supervision",
        "",
        *_table(facts, "mixed"),
        "",
        *_empty(facts, "mixed"),
        _decoder_a(facts),
        "",
        f"The command also draws predictions over test images, as `OUT/segmentation/{DRAWN}`. They "
        "are not shown here, because the slices are not ours to publish. From left to right: the "
        "mask; predictions by masks only, by masks and seeds, and with KL and entropy.",
        "",
        "## DSKD at every pixel",
        "",
        f"The teacher has a Dice of {facts['teacher']['dice']:.1f}.",
        "",
        *_table(facts, "dense"),
        "",
        *_empty(facts, "dense"),
        machine_line(facts),
        "",
    ]
    return "\n".join(lines)


def _compared(
    facts: Mapping[str, Any], study: str
) -> Iterator[tuple[Row, Difference, float | None]]:
    """The rows against the baseline of their table, with corrected p-values."""
    results = facts["results"][study]
    base = [one["dice"] for one in results[BASELINES[study]]]
    rows = [row for row in ROWS[study] if row.name != BASELINES[study]]
    found = [paired([one["dice"] for one in results[row.name]], base) for row in rows]
    yield from zip(rows, found, holm([one.p for one in found]), strict=True)


def _table(facts: Mapping[str, Any], study: str) -> Iterator[str]:
    results = facts["results"][study]
    compared = {row.name: (gap, p) for row, gap, p in _compared(facts, study)}
    base = next(row for row in ROWS[study] if row.name == BASELINES[study])
    yield f"| | Dice, % | HD95, pixels (images) | difference from {base.text} | p (Holm) | |"
    yield "|---|---:|---:|---:|---:|---|"
    for row in ROWS[study]:
        dice = interval([one["dice"] for one in results[row.name]])
        shown = f"| {row.text} | {number(dice.mean, dice.half, '.1f')} | {_hd95(results[row.name])}"
        if row.name not in compared:
            yield f"{shown} | | | |"
            continue
        gap, p = compared[row.name]
        yield f"{shown} | {gap_text(gap)} | {p_text(p)} | {gap_verdict(gap, p)} |"


def _hd95(runs: Sequence[Mapping[str, Any]]) -> str:
    found = [one["hd95"] for one in runs if one["hd95"] is not None]
    if not found:
        return "-"
    distance, images = interval(found), np.mean([one["hd95_images"] for one in runs])
    return f"{number(distance.mean, distance.half, '.1f')} ({images:.0f})"


def _empty(facts: Mapping[str, Any], study: str) -> Iterator[str]:
    """How many students of each row predict none of the structures, if any do."""
    results = facts["results"][study]
    counts = {row.text: sum(not r["hd95_images"] for r in results[row.name]) for row in ROWS[study]}
    found = [f"{count} ({text})" for text, count in counts.items() if count]
    if found:
        yield (
            "Some students predict nothing but background in all images where there is something "
            f"to find: {', '.join(found)}. They make the intervals as wide as they are."
        )
        yield ""


def _decoder_a(facts: Mapping[str, Any]) -> str:
    """What decoder A of the rows that have one has learned."""
    results = facts["results"]["mixed"]
    found = [
        f"{interval([one['decoder_a'] for one in results[row.name]]).mean:.1f} % ({row.text})"
        for row in ROWS["mixed"]
        if all(one["decoder_a"] is not None for one in results[row.name])
    ]
    return (
        "Rows with masks and seeds show decoder B, which is the one that ships. Without KL, "
        "nothing tells B what the background is. Decoder A, which learns from the masks, has a "
        f"mean Dice after the last epoch of {', '.join(found)}."
    )


def _findings(facts: Mapping[str, Any]) -> Iterator[str]:
    """Which rows of each table differ from its baseline, in points of Dice."""
    for study in ROWS:
        base = next(row for row in ROWS[study] if row.name == BASELINES[study])
        said: dict[str, list[str]] = {"better": [], "worse": [], "": []}
        for row, gap, p in _compared(facts, study):
            said[gap_verdict(gap, p)].append(f"{row.text} ({gap_text(gap)})")
        parts = [
            f"{verdict or 'not shown to differ'}: {'; '.join(rows)}"
            for verdict, rows in said.items()
            if rows
        ]
        yield f"Against {base.text}, in points of Dice. {' '.join(map(as_sentence, parts))}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Computes the missing runs and writes the page.

    Args:
        arguments: The command line; None for that of the process.
    """
    chosen = study_arguments(__doc__, arguments, None)
    seeds = SEEDS if chosen.seeds is None else dict.fromkeys(SEEDS, chosen.seeds)
    out = chosen.out / "segmentation"
    with exit_codes():
        facts = compute(chosen.data, out, chosen.changes, seeds)
        shown = draw(out.resolve(), ("masks", "both", "all"))
    write_results(chosen.results, "segmentation", facts, page(facts))
    shown.save(out / DRAWN)


if __name__ == "__main__":
    main()
