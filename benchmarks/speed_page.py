"""Writes docs/results/speed.md: ``python benchmarks/speed_page.py docs/results/speed-DATE.json``.

Each JSON file is a copy of the benchmarks/latest.json that a run on a quiet machine left; with
several (another batch size, say), the ratios are the first one's.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from results import Result
from speed_tables import (
    Lines,
    compiled_table,
    hardware_line,
    kept_table,
    machine_table,
    ratio_meanings,
    ratio_table,
    scaling_tables,
    step_table,
)

from dskd.errors import InputError

PAGE = Path(__file__).parents[1] / "docs/results/speed.md"

_INTRODUCTION = """\
# Speed

How long a training step takes, ours and the field's, and how far it is from what the machine can
do. This page is written by `python benchmarks/speed_page.py` from the JSON files of one or more
runs, named below; no number is written by hand. Only the CPU was measured.
"""

_METHOD = """\
## What is compared

Within a pair of models everything takes turns, a step each, over and over: what slows the machine
for a while slows all alike. A number is the median over the rounds, `quarters`
are the values between which the middle half of the rounds lies, `n` the rounds. The very first step
of each, with its warm-up and, where a path compiles, its compilation, stands apart and does not
count; nor does the round after it. The images are noise in CIFAR-100's size and number, the
weights fresh: time does not depend on either.

**The reference step** (`reference-kd`, and `reference-ce` for the student alone) is what the
field's toolkits do, written from this description in `benchmarks/reference.py`: float32, channels
first in memory, eager; every image becomes a PIL image and is cropped, mirrored, turned into a
tensor and normalised by itself, in a DataLoader of 2 workers; the teacher runs in every step, its
BatchNorm unfolded, under `no_grad`; loss and accuracy are read by `.item()` each step. A test holds
its loss to ours on the same images: it is the same computation. It has a process of its own, so
that nothing which our runs set for theirs (how memory is kept, say) helps or hinders it. It takes
two steps in its turn and the second counts, because what its workers prepare in the others' turns
would be free.

**Our steps** are whole steps of shipped recipes: crops and flips of the batch, the teacher's
answer, losses, gradients, update, the running means of the log. `bfloat16` is
`train.precision=bfloat16`; weights lie with their channels last and the teacher is folded in either
precision, as by default. `ce` is the student alone, `at`, `crd` and `reviewkd` read features: by
maps, by contrast against remembered images, by a fusion of stages. `kd-compiled` and
`dskd-compiled` are the same steps under `train.compile=true`.

**Floor**: the multiply-adds of a step's convolutions and matrix products, forward and backward,
counted by `torch.utils.flop_counter`, over the machine's best rate in that precision, which is
measured in the same run on a large matrix product and on a 3x3 convolution. It is what the step
would take if it did nothing else, and all of it at that rate; what is above it goes to
normalisation, activations and additions, which move memory and multiply little, and to layers too
small for that rate. `speed-up` is against the reference step: for `ce` the student's alone, for all
others KD's.
"""

_KEPT = """\
## From kept teacher answers

`kd-kept` is KD with `teacher.cache=logits`, `dskd-kept` DSKD with `teacher.cache=features`: runs of
shipped recipes. First an epoch of one run fills an empty store: `cold step` is its step, `to fill`
the teacher's part of it, writing included. Then the same epoch of a second run, which finds all of
it (`found, warm`), takes its turns with everything else: `warm step`. A store of all of CIFAR-100's
training images would have the size and take the hours in the last two columns, computed from the
bytes of a record and the time to fill. The warm records were in memory, as the file cache keeps
what was just written; of a store larger than memory, a step reads its records from the disk.

Logits are kept of whatever view the epoch plan draws, so a store fills as runs go on. A run alone
finds `1 - (161/162)^e` of the answers in epoch `e`, counted from 0: 48 % over 240 epochs. After it
a run at the same seed finds them all, and one at another seed begins with 77 %. Of a bank of 16
views, 98 % are there after 60 epochs.
"""

_COMPILED = """\
## Compiled steps

`train.compile=true` has torch make code of the forward passes and their gradients. `to compile` is
what the first step took longer than that of the steps as they are, from an empty cache of torch's;
`paid after` says after how many steps, and epochs of CIFAR-100, that time was won back.
"""

_SCALING = """\
## As work grows

The epoch plan is drawn and the batches are cropped and flipped without any step, to see what both
cost by themselves. `predicted` is what the package says before it reads the images (their
decoded file), `held` what a fresh process grew by when it had read them. `holds` is what a training
step keeps: weights, gradients, the optimizer's state and activations, without the teacher.
Students that share a teacher stand at the same step and take one answer; one student asks for
itself.
"""

_REPRODUCE = """\
## Run it again

`make bench` and then `make scaling`, on a machine that does nothing else; `make bench
ARGS='--batch-size 256'` for larger batches. `ARGS=--quick` is a rehearsal, whose numbers mean
nothing. Tables come on the screen, all numbers in `benchmarks/latest.json` (`latest-256.json`).
"""


def page(results: dict[str, Result]) -> str:
    """The page of some runs, by their files' names."""
    first = next(iter(results.values()))
    parts = [_INTRODUCTION, "## The ratios\n", *_ratios(first), _METHOD]
    for name, result in results.items():
        parts += _run(name, result)
    parts += [_KEPT]
    for result in results.values():
        parts += [f"Batch {result['batch_size']}:", "", *kept_table(result), ""]
    for result in results.values():
        if compiled := compiled_table(result):
            parts += [_COMPILED, f"Batch {result['batch_size']}:", "", *compiled, ""]
    if "scaling" in first:
        parts += [_SCALING, *_scaling(first["scaling"])]
    return "\n".join([*parts, _REPRODUCE])


def _ratios(result: Result) -> Lines:
    text = (
        f"Of `resnet32x4` and `resnet8x4`, batch {result['batch_size']}, on the CPU; medians over "
        "the rounds of one run."
    )
    return [text, "", *ratio_table(result), "", *ratio_meanings(), ""]


def _run(name: str, result: Result) -> Lines:
    lines = [
        f"## Batch {result['batch_size']}, {result['date']}",
        "",
        f"[{name}]({name}): `{result['command']}` at commit {result['commit']}, "
        f"{result['images']:,} images.",
        f"{hardware_line(result['environment'])}. Load of the minute before: "
        f"{result['machine']['load']:.1f}.",
        "",
        *machine_table(result),
        "",
    ]
    for pair in dict.fromkeys(row["pair"] for row in result["rows"]):
        lines += [f"### {pair}, batch {result['batch_size']}", "", *step_table(result, pair), ""]
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
    """A run's numbers.

    Raises:
        InputError: The file is not one of these, or its run was a rehearsal.
    """
    try:
        result: Result = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}; give a copy of latest.json") from error
    if "rows" not in result:
        raise InputError(f"{path} has no steps; run make bench before make scaling, and copy then")
    parts = [result, *([result["scaling"]] if "scaling" in result else [])]
    if any(part.get("rehearsal", True) for part in parts):
        raise InputError(f"{path} is of a rehearsal (--quick), not of a benchmark; run make bench")
    return result


def main(names: list[str]) -> None:
    """Writes the page."""
    if not names:
        raise InputError("give the JSON file of a run: docs/results/speed-DATE.json")
    PAGE.write_text(page({Path(name).name: read(Path(name)) for name in names}))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
