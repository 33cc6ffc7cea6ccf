"""Writes docs/results/speed.md: ``python benchmarks/speed_page.py docs/results/speed-DATE.json``.

Each JSON file is a copy of the benchmarks/latest.json of a run on a quiet machine. With several
files (of several days or batch sizes), the newest comes first, and the ratios are those of it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from results import PAIR, Result
from speed_tables import (
    Lines,
    cache_table,
    compiled_table,
    hardware_line,
    machine_table,
    ratio_meanings,
    ratio_table,
    scaling_tables,
    step_table,
)

from dskd.errors import InputError

PAGE = Path(__file__).parents[1] / "docs/results/speed.md"

_SPEEDS = {
    "kd_over_reference": "KD",
    "kd_cached_over_reference": "KD with cached logits",
    "dskd_cached_over_reference": "DSKD with cached features",
}
"""The ratios that are a speed relative to the reference step."""

_METHOD = """\
## What is compared

For each pair of models, all rows take turns: each takes one step in every round, so that other work
on the machine slows all of them equally. A time is the median over the rounds. `quartiles` are the
first and the third quartile, and `n` is the number of rounds. The first step of each row includes
warm-up and compilation. It has a column of its own and is not counted, and neither is the round
after it. The images are noise in the number and size of CIFAR-100, and the weights are untrained,
because time does not depend on either.

**The reference step** (`reference-kd`, and `reference-ce` for the student alone) follows the style
of published toolkits (`benchmarks/reference.py`). It uses float32, channels-first memory and eager
mode. Each image becomes a PIL image, and is cropped, mirrored, turned into a tensor and normalised
separately, in a DataLoader with 2 workers. The teacher runs in every step under `no_grad`, with its
BatchNorm layers. Loss and accuracy are read by `.item()` in each step. A test shows that its loss
equals ours on the same images. It runs in a separate process, so that settings of our process (such
as the allocator) do not affect it. In each turn it takes two steps, and only the second one counts:
its workers prepare a batch while other rows take their turns, and this time would not be measured.

**Our steps** are whole steps of shipped recipes: crops and flips of the batch, teacher outputs,
losses, gradients, update, and metrics. `bfloat16` is `train.precision=bfloat16`. In both precisions
the memory format is channels-last and the teacher's BatchNorm is fused, as by default. `ce` is the
student alone. `at`, `crd` and `reviewkd` read feature maps of both models: `at` compares attention
maps, `crd` contrasts each image with a memory of other images, and `reviewkd` fuses stages.
`kd-compiled` and `dskd-compiled` are the same steps with `train.compile=true`.

**Floor** is the shortest time that the arithmetic of a step can take on this machine. It is the
number of multiply-adds of the step's convolutions and matrix products, forward and backward
(counted by `torch.utils.flop_counter`), divided by the best rate of the machine in that precision.
This rate is measured in the same run, on a large matrix product and on a 3x3 convolution. Time
above the floor goes to normalisation, activations and additions, which move memory and multiply
little, and to layers that are too small for that rate. `speed-up` is relative to the reference
step: for `ce` to that of the student alone, for all others to that of KD.
"""

_CACHE = """\
## Steps with cached teacher outputs

`kd-cached` is KD with `teacher.cache=logits`, and `dskd-cached` is DSKD with
`teacher.cache=features`. Both are runs of shipped recipes. First, an epoch of one run fills an
empty cache. `cold step` is the time of a step in this epoch, and `time to fill` is the teacher's
part of the epoch, including the writing. Then a second run repeats the same epoch with the full
cache, in turns with all other rows: this is the `warm step`. `hits` is the share of the teacher
outputs that were read from the cache. The last two columns are the size and the time for all
training images of CIFAR-100, computed from the bytes of a record and the time to fill. During the
warm steps, the operating system held the files of the cache in memory. If a cache is larger than
memory, a step reads from the disk.

A cache of logits holds the views that the epoch plan draws, so it fills up while runs continue. A
single run finds `1 - (161/162)^e` of the outputs in epoch `e`, counted from 0: 48 % over 240
epochs. After that, a run with the same seed finds all of them, and a run with another seed starts
with 77 %. A cache of features with 16 views is 98 % full after 60 epochs.
"""

_COMPILED = """\
## Compiled steps

`train.compile=true` compiles the forward passes and their gradients. `time to compile` is the
additional time of the first step, with an empty cache of the compiler. `break-even` is the number
of steps, and of epochs of CIFAR-100, after which this time is saved.
"""

_SCALING = """\
## As work grows

The first table shows how the cost of an epoch without its training steps grows with the number of
images: the epoch plan is drawn, and the batches are cropped and flipped. `predicted` is the memory
that the package predicts before it reads the images, which is the size of their decoded file.
`used` is the growth of a new process when it reads the images. In the tables of training steps,
`memory` contains weights, gradients, optimizer state and activations, without those of the teacher.
Students that share a teacher take the same step at the same time and use the same teacher outputs;
a single student has its own. The table of supervised stages is of vgg13 to vgg8, the other tables
of steps are of resnet32x4 to resnet8x4.
"""

_REPRODUCE = """\
## Run it again

Run `make bench` and then `make scaling`, on a machine without other work, or `make bench
ARGS='--batch-size 256'` for larger batches. `ARGS=--quick` is a rehearsal, whose numbers mean
nothing. The tables are printed, and all numbers are in `benchmarks/latest.json`
(`latest-256.json`).
"""


def page(results: dict[str, Result]) -> str:
    """Draws the page.

    Args:
        results: The results of runs, by the names of their files.

    Returns:
        Markdown.
    """
    results = dict(sorted(results.items(), key=lambda item: item[1]["date"], reverse=True))
    first = next(iter(results.values()))
    parts = ["# Speed\n", *_opening(first), "## The ratios\n", *_ratios(first), _METHOD]
    for name, result in results.items():
        parts += _run(name, result)
    parts += [_CACHE]
    for result in results.values():
        parts += [f"{_title(result)}:", "", *cache_table(result), ""]
    compiled = {_title(result): compiled_table(result) for result in results.values()}
    if any(compiled.values()):
        parts += [_COMPILED]
    for title, table in compiled.items():
        parts += [f"{title}:", "", *table, ""] if table else []
    for scaling in [result["scaling"] for result in results.values() if "scaling" in result][:1]:
        parts += [_SCALING, *_scaling(scaling)]
    return "\n".join([*parts, _REPRODUCE])


def _title(result: Result) -> str:
    return f"Batch {result['batch_size']}, {result['date']}"


def _opening(result: Result) -> Lines:
    found = result["ratios"]
    speeds = [f"{found[name]:.2f} for {words}" for name, words in _SPEEDS.items() if name in found]
    answer = (
        f"In bfloat16, the speed relative to the reference step is {'; '.join(speeds)}, all for "
        f"{PAIR}."
        f"{_like_for_like(result)}{_goals(result)}{_dskd_over_kd(result)}"
    )
    return [
        "- **Question:** How fast is a training step, compared with a reference step in the style "
        "of published toolkits?",
        f"- **Answer:** {answer}",
        "- **Certainty:** These values come from one run on the CPU of one machine, "
        f"{result['date']}. Where no precision is named, our steps in bfloat16 are compared with a "
        "reference step in float32; the tables below show both. Values with a cache hold if the "
        "operating system has the files of the cache in memory. Runs of other days are shown for "
        "comparison.",
        "",
    ]


def _over_kd(result: Result, row: str) -> list[tuple[str, float]]:
    """Each pair of models, and the time of a row relative to KD in the same precision."""
    times = {(r["pair"], r["row"], r["precision"]): r["seconds"] for r in result["rows"]}
    return [
        (pair, seconds / times[pair, "kd", precision])
        for (pair, name, precision), seconds in times.items()
        if name == row and (pair, "kd", precision) in times
    ]


def _like_for_like(result: Result) -> str:
    """The speed of KD in the precision of the reference, for each pair of models below."""
    speeds = [f"{ratio:.2f} ({pair})" for pair, ratio in _over_kd(result, "reference-kd")]
    return f" KD in float32, like the reference: {', '.join(speeds)}." if speeds else ""


def _dskd_over_kd(result: Result) -> str:
    """The time of a DSKD step relative to a KD step, over all pairs and precisions."""
    ratios = [ratio for _, ratio in _over_kd(result, "dskd")]
    if not ratios:
        return ""
    return (
        f" A DSKD step takes {min(ratios):.2f} to {max(ratios):.2f} times as long as a KD step, "
        "depending on the models and the precision."
    )


def _goals(result: Result) -> str:
    """How many goals this run reaches."""
    rows = result["ratio_details"].values()
    reached = sum(row["holds"] for row in rows)
    return f" {reached} of our {len(rows)} goals are reached." if rows else ""


def _ratios(result: Result) -> Lines:
    text = (
        "The teacher is `resnet32x4` and the student `resnet8x4`, with batches of "
        f"{result['batch_size']}, on the CPU. Each ratio is that of two medians over the rounds of "
        "one run. `bound` is the goal that we set for the ratio, and `holds` says whether this run "
        "reaches it."
    )
    return [text, "", *ratio_table(result), "", *ratio_meanings(), ""]


def _run(name: str, result: Result) -> Lines:
    lines = [
        f"## {_title(result)}",
        "",
        f"[{name}]({name}): `{result['command']}` at commit "
        f"{result['commit'].replace('-dirty', ' with uncommitted changes')}, "
        f"with {result['images']:,} images.",
        f"{hardware_line(result['environment'])}. The load of the machine in the minute before was "
        f"{result['machine']['load']:.1f}.",
        *([result["note"]] if "note" in result else []),
        "",
        *machine_table(result),
        "",
    ]
    for pair in dict.fromkeys(row["pair"] for row in result["rows"]):
        lines += [f"### {pair}, {_title(result).lower()}", "", *step_table(result, pair), ""]
    return lines


def _scaling(scaling: Result) -> Lines:
    lines = [
        f"`{scaling['command']}` at commit {scaling['commit']}, {scaling['date']}; batch "
        f"{scaling['batch_size']}, bfloat16. {hardware_line(scaling['environment'])}.",
        "",
    ]
    for title, drawn in scaling_tables(scaling):
        lines += [f"### {title}", "", *drawn, ""]
    return lines


def read(path: Path) -> Result:
    """Reads the results of a run.

    Args:
        path: The JSON file.

    Raises:
        InputError: The file holds no results, or its run was a rehearsal.
    """
    try:
        result: Result = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}; give a copy of latest.json") from error
    if "rows" not in result:
        raise InputError(f"{path} has no steps; run make bench, then make scaling, then copy it")
    parts = [result, *([result["scaling"]] if "scaling" in result else [])]
    if any(part.get("rehearsal", True) for part in parts):
        raise InputError(f"{path} is of a rehearsal (--quick), not of a benchmark; run make bench")
    return result


def main(names: list[str]) -> None:
    """Writes the page.

    Args:
        names: The JSON files.
    """
    if not names:
        raise InputError("give the JSON file of a run: docs/results/speed-DATE.json")
    PAGE.write_text(page({Path(name).name: read(Path(name)) for name in names}))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
