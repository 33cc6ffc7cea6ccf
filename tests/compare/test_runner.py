"""Comparisons: the same students as single runs, recorded, and continued after a stop."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.live import Live
from torch import Tensor, nn

from dskd.cli.commands import main
from dskd.compare import progress
from dskd.compare.grid import Grid, load_plan
from dskd.compare.lockstep import LockstepRun
from dskd.compare.reader import read_comparison
from dskd.compare.runner import run_grid
from dskd.compare.summary import summarize
from dskd.compare.variants import method_variants, weights_of
from dskd.config import recipe
from dskd.engine import run
from dskd.engine.build import UserObjects
from dskd.errors import InputError, Stopped
from dskd.methods.kd import KD
from dskd.storage.run_files import LAST
from tests.conftest import make_dataset

SMALL = [
    "data.fraction=0.1",
    "teacher.name=resnet8",
    "teacher.epochs=1",
    "train.epochs=2",
    "train.batch_size=32",
]
"""A tenth of the digits: 130 images, 5 steps per epoch."""
NAMES = "ce,kd,dskd"


class Silent:
    def on_step(self, run: LockstepRun) -> None: ...

    def on_end(self, run: LockstepRun, failure: str | None) -> None: ...


class StopsAfter(Silent):
    """Raises a signal after so many steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step(self, run: LockstepRun) -> None:
        self.steps -= 1
        if self.steps == 0:
            signal.raise_signal(signal.SIGTERM)


def small(out: Path, names: str = NAMES, seeds: int = 2, **settings: Any) -> Grid:
    return load_plan("digits", SMALL, [names], out, seeds=seeds, **settings)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compare") / "finished"
    run_grid(small(out), Silent())
    return out


def students(out: Path) -> dict[str, bytes]:
    return {
        path.parent.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob(LAST))
    }


def test_a_student_of_a_comparison_is_that_of_a_run_of_its_own(
    finished: Path, tmp_path: Path
) -> None:
    for method in NAMES.split(","):
        own = recipe.load(
            "digits",
            [
                *SMALL,
                f"method={{name: {method}}}",
                "seed=1",
                f"teacher.checkpoint={finished / 'teacher' / LAST}",
                f"out={tmp_path / method}",
            ],
        )
        run.distill(own)
        assert (tmp_path / method / LAST).read_bytes() == students(finished)[f"{method}/seed1"]


def test_sharing_the_teacher_changes_nothing(finished: Path, tmp_path: Path) -> None:
    run_grid(small(tmp_path / "alone", share_teacher=False), Silent())
    assert students(tmp_path / "alone") == students(finished)


@pytest.mark.parametrize("steps", [1, 7, 20, 31])
def test_a_stopped_comparison_goes_on_to_the_same_bytes(
    finished: Path, tmp_path: Path, steps: int
) -> None:
    out = tmp_path / "stopped"
    with pytest.raises(Stopped):
        run_grid(small(out), StopsAfter(steps))
    run_grid(small(out), Silent())
    assert students(out) == students(finished)


class Dropping(nn.Module):
    """A student that draws from torch's own generator."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 6, 3, stride=2)
        self.second = nn.Sequential(nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.second(self.first(x)).mean((2, 3)))
        return logits


def test_students_that_drop_features_go_on_with_random_numbers_of_their_own(tmp_path: Path) -> None:
    given = UserObjects(student=Dropping())

    def small(out: Path) -> Grid:
        changes = [*SMALL, "student.stages=[first, second]"]
        return load_plan("digits", changes, ["ce,kd"], out, seeds=1)

    run_grid(small(tmp_path / "whole"), Silent(), given)
    with pytest.raises(Stopped):
        run_grid(small(tmp_path / "parts"), StopsAfter(5), given)
    run_grid(small(tmp_path / "parts"), Silent(), given)
    found = students(tmp_path / "parts")
    assert found == students(tmp_path / "whole")
    assert len(found) == 3


def test_what_is_finished_stays_and_more_can_be_added(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "grows"
    run_grid(small(out, "kd", seeds=1), Silent())
    written = (out / "kd/seed0/result.json").stat().st_mtime_ns
    comparison = run_grid(small(out), Silent())
    assert (out / "kd/seed0/result.json").stat().st_mtime_ns == written
    assert [(v.label, sorted(v.results)) for v in comparison.variants] == [
        ("kd", [0, 1]),
        ("ce", [0, 1]),
        ("dskd", [0, 1]),
    ]
    assert students(out) == students(finished)


def test_each_row_is_written_as_its_run_ends(finished: Path) -> None:
    rows = [json.loads(line) for line in (finished / "results.jsonl").read_text().splitlines()]
    assert [(row["label"], row["seed"]) for row in rows] == [
        (name, seed) for seed in (0, 1) for name in NAMES.split(",")
    ]
    variants = {one.label: one for one in read_comparison(finished).variants}
    for row in rows:
        result = dict(variants[row["label"]].results[row["seed"]])
        assert {"label": row["label"], "seed": row["seed"]} | result == row


def test_torn_rows_are_made_anew_from_their_runs(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "torn"
    shutil.copytree(finished, out)
    rows = (out / "results.jsonl").read_text().splitlines(keepends=True)
    torn = [rows[0], rows[1][:100] + rows[1], "5\n", "null\n", rows[2], rows[2], rows[3][:50]]
    (out / "results.jsonl").write_text("".join(torn))
    run_grid(small(out), Silent())
    assert sorted((out / "results.jsonl").read_text().splitlines(True)) == sorted(rows)


def test_a_method_that_diverges_is_told_of_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    forward = KD.forward

    def diverging(self: KD, *inputs: Any) -> Any:
        calls.append(1)
        output = forward(self, *inputs)
        factor = float("nan") if len(calls) > 4 else 1.0
        return replace(output, losses={k: factor * v for k, v in output.losses.items()})

    monkeypatch.setattr(KD, "forward", diverging)
    out = tmp_path / "diverges"
    comparison = run_grid(small(out, "kd,dskd", seeds=1), Silent())
    kd, dskd = comparison.variants
    assert "the loss is not finite" in kd.failed[0]
    assert sorted(dskd.results) == [0]
    calls.clear()
    again = run_grid(small(out, "kd,dskd", seeds=1), Silent())  # it would fail again
    assert again.variants[0].failed == kd.failed
    assert summarize(again.variants, again.test_images)[0].test_accuracy is None


def test_a_method_whose_student_is_useless_at_its_end_is_told_of_too(tmp_path: Path) -> None:
    changes = ["train.epochs=1", "train.batch_size=130"]  # it ends before another step
    names = ["kd:ce=0:kd=1.0e+25", "ce"]
    plan = load_plan("digits", [*SMALL, *changes], names, tmp_path / "out", seeds=1)
    kd, ce = run_grid(plan, Silent()).variants
    assert "the logits are not finite after step 1 of epoch 1" in kd.failed[0]
    assert sorted(ce.results) == [0]


def test_a_method_that_does_not_fit_is_named_before_any_work(tmp_path: Path) -> None:
    out = tmp_path / "misfit"
    grid = load_plan("digits", [*SMALL, "student.stages=[layer3]"], ["ce,kd,dskd"], out, seeds=1)
    with pytest.raises(InputError, match=r"^dskd: branches hang on the stages before the last"):
        run_grid(grid, Silent())
    assert not out.exists()


def test_another_recipe_is_refused_and_told(finished: Path) -> None:
    other = load_plan("digits", [*SMALL, "train.lr=0.1"], [NAMES], finished, seeds=2)
    with pytest.raises(InputError, match=r"recipe\.train\.lr is 0\.05 there, 0\.1 here"):
        run_grid(other, Silent())
    other = load_plan("digits", [*SMALL, "data.val_fraction=0.1"], [NAMES], finished, seeds=2)
    with pytest.raises(InputError, match=r"recipe\.data\.val_fraction is 0\.0 there, 0\.1 here"):
        run_grid(other, Silent())


def test_a_method_with_other_settings_under_the_same_name_is_refused(
    finished: Path,
) -> None:
    other = load_plan("digits", [*SMALL, "method.beta=3"], ["dskd"], finished, seeds=2)
    with pytest.raises(InputError, match=r"dskd has other settings .*: beta is 10\.0 there, 3\.0"):
        run_grid(other, Silent())


@pytest.mark.parametrize("name", ["notes.txt", ".film.part", "film.part"])
def test_a_folder_of_other_files_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match="holds other files"):
        run_grid(small(tmp_path), Silent())
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_other_images_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "images"
    first, other = (make_dataset(classes=10, channels=1, size=8, seed=seed) for seed in (0, 1))
    run_grid(small(out, "ce", seeds=1), Silent(), UserObjects(data=first))
    before = (out / "comparison.json").read_bytes()
    for names in ("ce,kd", "ce"):
        with pytest.raises(InputError, match="holds a comparison on other images; give the same"):
            run_grid(small(out, names), Silent(), UserObjects(data=other))
    assert (out / "comparison.json").read_bytes() == before
    run_grid(small(out, "ce,kd", seeds=1), Silent(), UserObjects(data=first))


@pytest.mark.parametrize("given", [True, False], ids=["of a checkpoint", "of its own"])
def test_another_teacher_is_refused(finished: Path, tmp_path: Path, given: bool) -> None:
    out, weights = tmp_path / "taught", tmp_path / "teacher.safetensors"
    shutil.copy(finished / "teacher" / LAST, weights)
    changes = [*SMALL, *([f"teacher.checkpoint={weights}"] if given else [])]

    def grid(names: str) -> Grid:
        return load_plan("digits", changes, [names], out, seeds=1)

    run_grid(grid("ce"), Silent())  # no method has needed the teacher yet
    run_grid(grid("kd"), Silent())
    before = (out / "comparison.json").read_bytes()
    shutil.copy(finished / "ce/seed0" / LAST, weights if given else out / "teacher" / LAST)
    with pytest.raises(InputError, match="holds a comparison with another teacher; give the same"):
        run_grid(grid("kd,dskd"), Silent())
    assert (out / "comparison.json").read_bytes() == before
    run_grid(grid("ce"), Silent())


def test_a_comparison_that_was_moved_goes_on(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        run_grid(small(tmp_path / "here"), StopsAfter(20))
    (tmp_path / "here").rename(tmp_path / "there")
    run_grid(small(tmp_path / "there"), Silent())
    assert students(tmp_path / "there") == students(finished)


def test_a_run_that_cannot_go_on_is_named_to_be_removed(tmp_path: Path) -> None:
    out = tmp_path / "damaged"
    with pytest.raises(Stopped):
        run_grid(small(out, "ce", seeds=1), StopsAfter(6))
    for path in (out / "ce/seed0/checkpoints").iterdir():
        path.write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"remove .*damaged/ce/seed0 to start again"):
        run_grid(small(out, "ce", seeds=1), Silent())
    shutil.rmtree(out / "ce/seed0")
    run_grid(small(out, "ce", seeds=1), Silent())


def test_a_damaged_result_is_named_and_not_the_comparison(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "damaged"
    shutil.copytree(finished, out)
    (out / "kd/seed0/result.json").write_text("{")
    with pytest.raises(InputError, match=r"kd/seed0/result\.json is damaged.*remove .*kd/seed0"):
        read_comparison(out)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("kdd", "unknown method 'kdd'; did you mean"),
        ("kd,kd", "the method 'kd' is named twice"),
        ("dskd:betta=1", "unknown setting 'method.betta'; did you mean 'method.beta'"),
        ("dskd:beta", "'beta' is not key=value"),
        ("dskd:beta=-1", "method.beta: input should be greater than or equal to 0"),
        ("dskd:preset=paper", "presets are not allowed in a comparison"),
        (" , ", "no method is named"),
        ("kd:temperature=\t4", "cannot name a method: use at most 100 printable characters"),
    ],
)
def test_names_that_cannot_be_compared(names: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        method_variants([names], recipe.load("digits"), "equal")


def test_equal_weights_are_one_and_literature_has_each_method_s_own() -> None:
    plain = recipe.load("digits", ["method={name: kd, ce: 0.5, temperature: 2}"])
    (equal,) = method_variants(["kd"], plain, "equal")
    (published,) = method_variants(["kd"], plain, "literature")
    (varied,) = method_variants(["kd:kd=3"], plain, "literature")
    assert weights_of("kd", equal.method.options) == {"ce": 1.0, "kd": 1.0}
    assert weights_of("kd", published.method.options) == {"ce": 0.1, "kd": 0.9}
    assert weights_of("kd", varied.method.options) == {"ce": 0.1, "kd": 3.0}
    assert equal.method.options["temperature"] == 2.0


def test_all_means_every_method() -> None:
    names = [c.label for c in method_variants(["all"], recipe.load("digits"), "equal")]
    assert {"ce", "kd", "dskd"} <= set(names)
    assert len(names) == len(set(names))


def test_the_command_prints_the_table_and_its_notes(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["compare", "digits", *SMALL, "--methods", NAMES, "--seeds", "2"]
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--out", str(finished)])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()[:4]] == ["method", "ce", "kd", "dskd"]
    assert "ce=1 kd=1 alpha=1 beta=10 gamma=0" in printed
    assert "the noise of training" in printed
    assert "The sampling error of the 500 test images is" in printed


def test_the_live_table_shows_every_method(finished: Path) -> None:
    console = Console(width=160, record=True)
    with Live(console=console, auto_refresh=False) as shown:
        table = progress.LiveTable(small(finished), shown)
        table.draw()
    text = console.export_text()
    assert all(name in text for name in NAMES.split(","))
    assert "2/2" in text


def test_out_belongs_to_the_comparison(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give its folder with --out"):
        load_plan("digits", [f"out={tmp_path}"], ["kd"], None, seeds=1)
