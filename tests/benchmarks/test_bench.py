"""The benchmark: its ratios, its page, and a reference step that computes what ours does."""

from __future__ import annotations

import copy
import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import bench
import pytest
import speed_page
import torch
from cached_steps import CachedSteps
from interleave import StepTime, Times, TrainerSteps, interleave
from machine import multiply_adds
from noise import noise_trainer
from reference import Images, ReferenceStep, ReferenceSteps, transforms
from results import RATIOS, ratios, row_result
from rows import Row, recipe_of
from scaling import LockstepStudents
from subprocess_steps import SubprocessSteps

from dskd.config.recipe import load
from dskd.data.epoch_plan import draw_plan
from dskd.engine.step import train_step
from dskd.engine.trainer import Trainer
from dskd.errors import InputError
from dskd.runtime.device import environment
from tests import processes
from tests.builders import make_dataset

PAIR = "resnet32x4-resnet8x4"


class Counter:
    """Takes steps that take no time."""

    untimed, pause = 0, 0.0

    def __init__(self, names: list[str], name: str) -> None:
        self.names, self.name = names, name

    def step(self) -> float:
        self.names.append(self.name)
        return 0.0

    def work(self) -> int:
        return 0


class Elsewhere:
    """Returns the process of its steps."""

    untimed, pause = 2, 0.25

    def step(self) -> float:
        return float(os.getpid())

    def work(self) -> int:
        return 7


def made_row(name: str, precision: str, seconds: list[float], pair: str = PAIR) -> dict[str, Any]:
    times = Times(9.0, [StepTime(second, second / 4) for second in seconds])
    row = Row(pair, name, precision, Counter([], name), 0.5)  # type: ignore[arg-type]
    return row_result(row, times, 2_000_000, 1_000_000)


def made_rows() -> list[dict[str, Any]]:
    return [
        made_row("reference-ce", "float32", [1.0, 1.0, 1.0]),
        made_row("reference-kd", "float32", [3.0, 2.0, 4.0]),
        made_row("kd", "float32", [2.0, 2.0, 2.0]),
        made_row("ce", "bfloat16", [0.5, 0.5, 0.5]),
        made_row("kd", "bfloat16", [1.0, 1.0, 2.0]),
        made_row("dskd", "bfloat16", [1.25, 1.2, 2.0]),
        made_row("kd-cached", "bfloat16", [0.5, 0.5, 0.5]),
        made_row("reference-kd", "float32", [50.0, 50.0, 50.0], pair="vgg13-vgg8"),
    ]


def test_each_runner_takes_a_step_in_every_round() -> None:
    names: list[str] = []
    runners = {name: Counter(names, name) for name in "abc"}
    times = interleave(runners, 2, warmup=1)
    assert "".join(names) == "abc" * 4
    assert [len(one.steps) for one in times.values()] == [2, 2, 2]


@pytest.mark.slow
def test_subprocess_steps_are_taken_in_another_process_at_their_own_pace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("subprocess_steps.get_context", lambda _: processes.SERVER)
    steps = SubprocessSteps(Elsewhere)
    assert (steps.untimed, steps.pause) == (2, 0.25)
    assert steps.step() not in (0.0, float(os.getpid()))
    assert steps.work() == 7


def test_untimed_steps_are_taken_and_not_timed() -> None:
    names: list[str] = []
    runner = Counter(names, "a")
    runner.untimed = 2
    assert len(interleave({"a": runner}, 2, warmup=0)["a"].steps) == 2
    assert len(names) == 1 + 2 * 3


def test_rounds_stop_when_the_time_is_over_but_a_few_are_taken() -> None:
    times = interleave({"a": Counter([], "a")}, 50, until=0.0)
    assert len(times["a"].steps) == 3


def test_a_row_has_its_median_its_quartiles_and_its_floor() -> None:
    row = made_row("kd", "bfloat16", [4.0, 1.0, 2.0, 3.0, 10.0])
    assert (row["low"], row["seconds"], row["high"]) == (2.0, 3.0, 4.0)
    assert row["teacher_seconds"] == 0.75
    assert row["floor_seconds"] == 2.0


def test_ratios_are_of_medians_and_their_quartiles_are_of_rounds() -> None:
    found = ratios(made_rows())
    assert set(found) == set(RATIOS) - {"dskd_cached_over_reference"}  # its row is not there
    assert found["kd_cached_over_reference"]["value"] == 6.0
    assert found["kd_over_reference"] == {
        "value": 3.0,
        "low": 2.0,
        "high": 2.5,
        "n": 3,
        "wanted": ">= 2.25",
        "holds": True,
    }
    assert found["dskd_over_kd_time"]["value"] == 1.25
    assert not found["dskd_over_kd_time"]["holds"]


def test_a_ratio_holds_at_its_bound() -> None:
    for ratio in RATIOS.values():
        assert ratio.holds(ratio.wanted)
        assert ratio.holds(ratio.wanted + 1) is ratio.least


def test_multiply_adds_of_a_step_are_those_of_its_passes() -> None:
    linear = torch.nn.Linear(4, 8, bias=False)
    images = torch.ones(2, 4, requires_grad=True)
    assert multiply_adds(lambda: linear(images)) == 2 * 4 * 8
    assert multiply_adds(lambda: linear(images).sum().backward()) == 3 * 2 * 4 * 8


@pytest.fixture
def trainer() -> Trainer:
    return noise_trainer(load("digits", ["method={name: kd}"]), make_dataset(size=8))


def test_the_reference_step_computes_what_our_step_does(trainer: Trainer) -> None:
    """The same images, not augmented: one loss, one accuracy, one update of the weights."""
    data, teacher = make_dataset(size=8), trainer.teacher_outputs.teacher
    assert teacher is not None
    modules = (trainer.method.student.module, teacher.model.module)
    step = ReferenceStep(
        *(copy.deepcopy(part).to(memory_format=torch.contiguous_format) for part in modules)
    )
    augment = transforms(data.mean, data.std, 8)
    samples = Images(data.train, type(augment)(augment.transforms[2:]))
    for batch in trainer.loader.batches(draw_plan(0, 0, 40), 10):
        ours = train_step(
            trainer.method, trainer.teacher_outputs, batch, trainer.optimizer, trainer.precision
        )
        images = torch.stack([samples[index][0] for index in batch.indices.tolist()])
        loss, accuracy = step(images, batch.labels)
        assert loss == pytest.approx(ours.objective.item(), abs=1e-5)
        hits = (ours.logits.argmax(1) == batch.labels).float().mean()
        assert accuracy == pytest.approx(hits.item())


def test_the_reference_s_images_are_cropped_and_mirrored() -> None:
    data = make_dataset(size=8)
    images = Images(data.train, transforms(data.mean, data.std, 8))
    views = torch.stack([images[0][0] for _ in range(20)])
    assert views.shape == (20, 3, 8, 8)
    assert len({tuple(view.flatten().tolist()) for view in views}) > 10


@pytest.mark.slow
def test_the_reference_is_fed_by_workers() -> None:
    data = make_dataset(size=8)
    samples = Images(data.train, transforms(data.mean, data.std, 8))
    given: list[torch.Size] = []

    class Look(ReferenceStep):
        def __init__(self) -> None:
            pass

        def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
            given.append(images.shape)
            return 0.0, 0.0

    steps = ReferenceSteps(Look(), samples, 16)
    for _ in range(4):  # two epochs
        steps.step()
    assert given == [(16, 3, 8, 8)] * 4


def test_a_trainer_takes_the_same_epoch_again(trainer: Trainer) -> None:
    training = TrainerSteps(trainer)
    for _ in range(3):
        assert training.step() > 0
    assert (trainer.epoch, trainer.step) == (0, 1)


def made_result() -> dict[str, Any]:
    rows, details = made_rows(), ratios(made_rows())
    fill = {
        "pair": PAIR,
        "row": "kd-cached",
        "cache": "logits",
        "images": 1000,
        "views": 162,
        "fill_seconds": 10.0,
        "cold_step_seconds": 1.5,
        "cold_hits": 0.0,
        "warm_hits": 1.0,
        "bytes_a_view": 208,
    }
    rates = {"float32": 1e9, "bfloat16": 4e9}
    return {
        "command": "python benchmarks/bench.py",
        "date": "2026-11-23",
        "commit": "abc1234",
        "environment": environment(torch.device("cpu")),
        "rehearsal": False,
        "images": 50_000,
        "batch_size": 64,
        "machine": {"product": rates, "convolution": rates, "copied_bytes": 2e10, "load": 0.0},
        "rows": rows,
        "cached": [fill],
        "ratios": {name: ratio["value"] for name, ratio in details.items()},
        "ratio_details": details,
    }


def made_scaling() -> dict[str, Any]:
    both = {"seconds": {"kd": 1.0, "dskd": 1.1}, "memory": {"kd": 100e6, "dskd": 150e6}}
    held = {"images": 5000, "predicted_bytes": 15e6, "held_bytes": 18e6}
    return {
        "command": "python benchmarks/scaling.py",
        "date": "2026-11-23",
        "commit": "abc1234",
        "environment": environment(torch.device("cpu")),
        "rehearsal": False,
        "batch_size": 64,
        "images": [held | {"load_seconds": 0.1, "plan_seconds": 0.01, "batches_seconds": 0.09}],
        "cached": [held | {"filled": 1.0}],
        "size": [{"size": 32, "n": 5} | both],
        "stages": [
            {"stages": stages, "seconds": float(stages), "memory": 1e6} for stages in (1, 2)
        ],
        "students": [{"students": 8, "n": 5, "seconds": 0.5, "saving": 0.4, "plain_seconds": 0.25}],
    }


def cells_of(text: str) -> list[list[str]]:
    """Of every line of every table."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]


def test_the_page_shows_how_costs_grow_if_that_was_measured() -> None:
    text = speed_page.page({"speed.json": made_result() | {"scaling": made_scaling()}})
    cells = cells_of(text)
    assert ["5,000", "0.010", "0.09", "0.10", "20.0", "0.10", "15.0", "18.0", "1.20"] in cells
    assert ["32x32", "1,000", "1,100", "1.10", "100", "150", "5"] in cells
    assert ["1 and the last", "2,000", "2.00", "1", "1.00"] in cells
    assert ["8", "500", "40 %", "2.00", "5"] in cells
    assert "## As work grows" not in speed_page.page({"speed.json": made_result()})


def test_the_page_shows_the_cost_of_caches() -> None:
    text = speed_page.page({"speed.json": made_result()})
    (row,) = [cells for cells in cells_of(text) if cells[:1] == [f"{PAIR} kd-cached"]]
    expected = ["logits", "162", "1,000", "10.0", "10.00", "1,500", "0 %", "500", "100 %", "208"]
    assert row[1:] == [*expected, "1.7", "22.5"]


def test_the_page_shows_when_compilation_breaks_even() -> None:
    result = made_result()
    assert "## Compiled steps" not in speed_page.page({"speed.json": result})
    quick, slow = (
        made_row("kd-compiled", "bfloat16", [0.8]),
        made_row("dskd-compiled", "bfloat16", [2]),
    )
    result["rows"] += [row | {"first_seconds": 109.0} for row in (quick, slow)]
    cells = cells_of(speed_page.page({"speed.json": result}))
    assert [f"{PAIR} kd", "800", "1,000", "1.25", "100.0", "500", "0.6"] in cells
    assert [f"{PAIR} dskd", "2,000", "1,250", "0.62", "100.0", "never", ""] in cells


def test_of_several_runs_the_newest_comes_first_and_gives_the_ratios() -> None:
    old = made_result() | {"date": "2026-01-01", "scaling": made_scaling()}
    new = made_result() | {"date": "2026-02-01", "ratios": {"kd_over_reference": 4.0}}
    text = speed_page.page({"old.json": old, "new.json": new})
    assert "relative to the reference step is 4.00 for KD" in text
    assert text.index("[new.json]") < text.index("[old.json]")
    assert text.count("## As work grows") == 1
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert len(headings) == len(set(headings))


def test_the_page_shows_the_numbers_and_their_meaning() -> None:
    text = speed_page.page({"speed-2026-11-23.json": made_result()})
    ratio = ["`kd_over_reference`", "3.00", "2.00 to 2.50", "3", ">= 2.25", "yes"]
    assert ratio in cells_of(text)
    assert "In bfloat16, the speed relative to the reference step is 3.00 for KD" in text
    assert "[speed-2026-11-23.json](speed-2026-11-23.json)" in text
    step = ["reference-kd", "float32", "3,000", "2,500 to 3,500", "750"]
    assert step in [cells[:5] for cells in cells_of(text)]
    assert "### vgg13-vgg8, batch 64" in text
    assert all(f"`{name}`" in text for name in RATIOS)
    lines = text.splitlines()
    assert all(
        line.startswith("|") == before.startswith("|") or not (line and before)
        for before, line in pairwise(lines)
    ), "a table stands between empty lines"


def test_no_page_is_made_of_a_rehearsal(tmp_path: Path) -> None:
    path = tmp_path / "speed.json"
    path.write_text(json.dumps(made_result() | {"rehearsal": True}))
    with pytest.raises(InputError, match="is of a rehearsal"):
        speed_page.read(path)
    path.write_text(json.dumps({"scaling": made_scaling()}))
    with pytest.raises(InputError, match="has no steps"):
        speed_page.read(path)
    path.write_text(json.dumps(made_result()))
    assert speed_page.read(path)["batch_size"] == 64


def test_the_tables_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    bench.show(made_result())
    assert "`dskd_over_kd_time`" in [row[0] for row in cells_of(capsys.readouterr().out) if row]


@pytest.mark.slow
def test_caches_are_filled_first_and_then_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smaller = ("teacher.name=resnet8", "student.name=resnet8", "train.precision=float32")
    monkeypatch.setattr("cached_steps.recipe_of", lambda *given: recipe_of(*given, *smaller))
    cached = CachedSteps("resnet56-resnet20", 8, 2, tmp_path)
    rows = list(cached.rows())
    for row in rows:
        for _ in range(3):  # more than the epoch has
            row.runner.step()
    assert [row.name for row in rows] == ["kd-cached", "dskd-cached"]
    for fill in cached.results():
        assert (fill["cold_hits"], fill["warm_hits"]) == (0.0, 1.0)
        assert fill["fill_seconds"] > 0


def test_students_in_lockstep_share_teacher_outputs(tmp_path: Path) -> None:
    recipe = recipe_of("resnet56-resnet20", "kd", "bfloat16", 8)
    lockstep = LockstepStudents(recipe, make_dataset(size=8), 3, tmp_path)
    lockstep.step()
    lockstep.step()
    trainers = [student.training_run.trainer for student in lockstep.students]
    assert [trainer.step for trainer in trainers] == [2, 2, 2]
    assert (lockstep.shared.requests, lockstep.shared.computed) == (6, 2)


def test_each_batch_size_has_a_file_of_its_own() -> None:
    assert bench.options([]).out.name == "latest.json"
    assert bench.options(["--batch-size", "256"]).out.name == "latest-256.json"
    assert bench.options(["--out", "x.json"]).out == Path("x.json")
