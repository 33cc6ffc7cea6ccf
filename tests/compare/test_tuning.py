"""Tuning: trials by validation images alone, pruned, continued, and the best of them tested."""

from __future__ import annotations

import csv
import json
import signal
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dskd
from dskd.compare.tuning.results import TuningResult
from dskd.compare.tuning.search import Search
from dskd.compare.tuning.space import given_space, split_space
from dskd.compare.tuning.start import load_search
from dskd.compare.tuning.study import JOURNAL, STARTUP_TRIALS, Study, repair_journal
from dskd.compare.tuning.trial import TrialTask, read_outcome
from dskd.compare.tuning.tune import tune
from dskd.config.recipe import load
from dskd.data.loader import DataLoaders
from dskd.engine.build_data import load_training_data
from dskd.engine.user_objects import UserObjects
from dskd.errors import InputError, Stopped
from dskd.report.collect import collect
from dskd.runtime.launchers.task import Task
from dskd.storage.run_files import LAST
from tests.compare.small_comparison import SMALL, Here
from tests.data.file_writers import write_folder

pytestmark = pytest.mark.skipif(find_spec("optuna") is None, reason="optuna is not installed")

KD = [*SMALL, "data.val_fraction=0.2", "method.name=kd"]
SPACE = ["train.lr=0.01..0.2:log", "method.temperature=1..8", "train.nesterov=true,false"]


def search(out: Path, *more: str, seeds: int = 1) -> Search:
    return load_search("digits", [*KD, *(more or SPACE)], out, seeds, UserObjects())


def test_ranges_and_choices() -> None:
    texts = [
        *SPACE,
        "train.batch_size=16..64",
        "train.milestones=[0.5,0.7],[0.8]",
        "data.root=../a",
    ]
    fixed, tuned = split_space(texts, "kd")
    assert fixed == ["data.root=../a"]
    assert [(one.key, one.text, one.log, one.whole) for one in tuned] == [
        ("train.lr", "0.01..0.2:log", True, False),
        ("method.temperature", "1..8", False, False),
        ("train.nesterov", "true,false", False, False),
        ("train.batch_size", "16..64", False, True),
        ("train.milestones", "[0.5,0.7],[0.8]", False, False),
    ]
    given = {"train.milestones": [[0.5, 0.7], [0.8]], "train.momentum": [0.9, 0]}
    assert [one.text for one in given_space(given, "kd")] == ["[0.5, 0.7],[0.8]", "0.9,0"]
    numbers = {"train.lr": [*np.array([0.25, 0.5])]}
    assert [one.text for one in given_space(numbers, "kd")] == ["0.25,0.5"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train.lr=0.2..0.1", "the lower end of a range comes first; swap the ends"),
        ("train.lr=0..0.1:log", "a range on a logarithmic scale starts above 0"),
        ("train.lr=0.1..0.2:lin", "write a range as in 0.01..0.2 or 0.01..0.2:log"),
        ("train.lr=0.1..3e7", "train.lr: input should be less than or equal to 1000000"),
        ("train.lr=0.1,a", "train.lr: a number is needed, got 'a'"),
        ("train.lr=0.1,0.1", "a choice is empty or given twice"),
        ("train.batch_size=16.5..32", "train.batch_size is a whole number"),
        ("method.bta=1..3", "unknown setting 'method.bta'"),
        ("train.epochs=2..5", "train.epochs cannot be tuned"),
        ("student.name=resnet8,resnet14", "student.name cannot be tuned"),
        ("method.name=kd,dskd", "method.name cannot be tuned; compare methods with"),
        ("method.preset=literature,none", "method.preset cannot be tuned, since it sets many"),
        ("train.ema=0.5,0.9", "train.ema cannot be tuned: it does not change the accuracy by"),
        ("train.evaluate_every=1,2", "train.evaluate_every cannot be tuned: it does not"),
        ("train.sync_batchnorm=true,false", "train.sync_batchnorm cannot be tuned"),
        ("train.lr=0.1", "nothing is tuned; give a setting a range"),
        ("data.val_fraction=0", r"digits has no validation split.* with data=.*val_fraction.*0.1"),
    ],
)
def test_what_cannot_be_tuned_is_refused_and_nothing_is_written(
    tmp_path: Path, text: str, message: str
) -> None:
    texts = [text] if not text.startswith("data") else [*SPACE, text]
    with pytest.raises(InputError, match=message):
        tune(search(tmp_path / "out", *texts), 1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.exits=true", "the method kd has no branches"),
        ("train.sync_batchnorm=true", "train.sync_batchnorm works between several processes"),
    ],
)
def test_what_only_the_last_run_would_refuse_is_refused_at_once(
    tmp_path: Path, setting: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        tune(search(tmp_path / "out", *SPACE, setting), 1)
    assert not (tmp_path / "out").exists()


def test_a_given_teacher_is_asked_for_its_split_before_the_first_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The validation images have the place of test images that were held out."""

    def seen(_prepared: Any, data: DataLoaders, _learning: Any) -> None:
        raise InputError(f"held out: {data.data.test_is_held_out}")

    monkeypatch.setattr("dskd.compare.tuning.tune.given_teacher", seen)
    with pytest.raises(InputError, match="held out: True"):
        tune(search(tmp_path / "out"), 1)


def test_a_kill_or_a_full_disk_in_optuna_s_journal_costs_one_trial(tmp_path: Path) -> None:
    space = search(tmp_path, *SPACE).space
    study = Study(tmp_path, space)
    study._study.ask()  # killed before the values were drawn
    assert study.trials() == []
    with (tmp_path / JOURNAL).open("ab") as file:
        file.write(b'{"op_code":4,"worker')  # half of a line
    repair_journal(tmp_path)
    assert Study(tmp_path, space).ask().number == 1
    again = Study(tmp_path, space).trials()
    assert [(one.number, len(one.values), one.state) for one in again] == [(1, 3, "running")]
    content = (tmp_path / JOURNAL).read_bytes()
    repair_journal(tmp_path)
    assert (tmp_path / JOURNAL).read_bytes() == content


def test_optuna_is_named_if_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match=r"pip install 'dskd\[tune\]'"):
        tune(search(tmp_path / "out"), 1)


def test_a_folder_without_a_test_split_holds_out_validation_images_too(tmp_path: Path) -> None:
    (write_folder(tmp_path / "split", per_class=20) / "train").rename(tmp_path / "photos")
    fixed = ["data.name=folder", f"data.root={tmp_path / 'photos'}", "data.val_fraction=0.2"]
    given = ["student.name=resnet8", "method.name=ce", *fixed, *SPACE[:1]]
    found = load_search(None, given, tmp_path / "out", 1, UserObjects())
    data = found.data()
    assert data.validation is None
    assert not data.test_is_held_out  # the test split of the recipe is absent
    real = load_training_data(found.recipe.data)
    assert real.validation is not None
    assert data.test.names == real.validation.names
    assert data.train.names == real.train.names
    assert not {*data.test.names, *data.train.names} & {*real.test.names}


def scores(folder: Path) -> list[tuple[str, str]]:
    with (folder / "trials.csv").open() as file:
        return [(row["state"], row["val_accuracy"]) for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def tested() -> list[int]:
    """Sizes of the test splits of which loaders were made."""
    return []


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, tested: list[int]) -> TuningResult:
    with pytest.MonkeyPatch.context() as patch:
        make = DataLoaders.__init__

        def recorded(self: DataLoaders, data: Any, device: Any) -> None:
            tested.append(len(data.test))
            make(self, data, device)

        patch.setattr(DataLoaders, "__init__", recorded)
        return tune(search(tmp_path_factory.mktemp("tune") / "study"), 3)


@pytest.mark.slow
def test_the_best_by_validation_images_is_the_only_one_that_is_tested(
    study: TuningResult, tested: list[int]
) -> None:
    assert [one.state for one in study.trials] == ["complete"] * 3
    accuracies = [one.val_accuracy or 0.0 for one in study.trials]
    assert study.best.number == accuracies.index(max(accuracies))
    assert tested[0] < tested[-1] == 500
    assert tested == sorted(tested)  # the test split comes last
    assert tested.count(tested[0]) > 4
    best = study.path / "best" / f"trial{study.best.number:04}" / "seed0"
    result = json.loads((best / "result.json").read_text())
    assert study.test_accuracy.values == (result["test_accuracy"],)
    assert study.tested == (study.best.number,)


@pytest.mark.slow
def test_the_files_of_a_study(study: TuningResult) -> None:
    assert scores(study.path) == [("complete", str(one.val_accuracy)) for one in study.trials]
    rows = json.loads((study.path / "trials.json").read_text())
    assert [row["values"] for row in rows] == [one.values for one in study.trials]
    best = load(str(study.recipe))
    assert best.teacher is not None
    assert best.teacher.checkpoint == study.path / "teacher" / LAST
    assert best.train.lr == float(study.best.values["train.lr"])
    assert best.method.options["temperature"] == float(study.best.values["method.temperature"])
    assert best.train.nesterov is (study.best.values["train.nesterov"] == "true")


@pytest.mark.slow
def test_a_study_is_extended_and_no_other_one_takes_its_folder(study: TuningResult) -> None:
    with pytest.raises(InputError, match=r"holds another study: space\.train\.lr is 0\.01"):
        tune(search(study.path, "train.lr=0.1..0.2", *SPACE[1:]), 4)
    more = tune(search(study.path), 4)
    assert more.trials[:3] == study.trials
    assert len(more.trials) == 4


@pytest.mark.slow
def test_a_study_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report, calls = Study.report, []

    def stopping(self: Study, number: int, step: int, score: float) -> bool:
        calls.append((number, step))
        if len(calls) == 3:
            signal.raise_signal(signal.SIGTERM)
        return report(self, number, step, score)

    monkeypatch.setattr(Study, "report", stopping)
    with pytest.raises(Stopped) as stopped:
        tune(search(tmp_path / "out"), 3)
    assert stopped.value.message == "stopped; start tuning again in the same way, and it goes on"
    assert not (tmp_path / "out" / "best").exists()
    result = tune(search(tmp_path / "out"), 3)
    assert calls == [(0, 1), (0, 2), (1, 1), (1, 2), (2, 1), (2, 2)]
    assert [one.state for one in result.trials] == ["complete"] * 3
    assert len({one.values["train.lr"] for one in result.trials}) == 3


@pytest.mark.slow
def test_trials_in_jobs_and_what_a_lost_one_costs(tmp_path: Path) -> None:
    submitted: list[int] = []

    def loses(task: Task) -> bool:
        if not isinstance(task, TrialTask):
            return False
        submitted.append(task.number)
        return task.number == 1 or submitted.count(0) == 1

    once = search(tmp_path / "out", "train.epochs=1", *SPACE, seeds=2)
    result = tune(once, 3, Here(2, loses))
    assert sorted(submitted) == [0, 0, 1, 1, 2]
    assert [one.state for one in result.trials] == ["complete", "lost", "complete"]
    assert result.trials[1].reason == "its node is gone; the same command tries it again"
    assert [len(one.val_accuracies) for one in result.trials] == [2, 0, 2]
    assert len(result.test_accuracy.values) == 2


@pytest.mark.slow
def test_values_that_do_not_fit_together_cost_their_trial_only(tmp_path: Path) -> None:
    space = ["train.momentum=0,0.9", "train.nesterov=true,false"]
    result = tune(search(tmp_path / "out", "train.epochs=1", *space), 6)
    for one in result.trials:
        misfit = one.values == {"train.momentum": "0", "train.nesterov": "true"}
        assert one.state == ("failed" if misfit else "complete")
        assert ("train.nesterov needs train.momentum above 0" in one.reason) == misfit


def test_a_trial_below_the_median_is_pruned(tmp_path: Path) -> None:
    study = Study(tmp_path, given_space({"train.lr": "0.1..1"}, "kd"))
    for score in range(STARTUP_TRIALS):
        number = study.ask().number
        assert not study.report(number, 1, 50.0 + score)
        study.tell(number, "complete", 60.0)
    assert not study.report(study.ask().number, 1, 53.0)
    early = Study(tmp_path, given_space({"train.lr": "0.1..1"}, "kd"), warmup=2)
    assert not early.report(early.ask().number, 1, 51.0)
    again = Study(tmp_path, given_space({"train.lr": "0.1..1"}, "kd"))  # in another process
    assert again.report(again.ask().number, 1, 51.0)


@pytest.mark.slow
def test_a_pruned_trial_ends_after_its_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Study, "report", lambda *_: True)
    ce = load_search(
        "digits",
        [*SMALL, "data.val_fraction=0.2", "method={name: ce}", "teacher=null", *SPACE[:1]],
        tmp_path,
        1,
        UserObjects(),
    )
    TrialTask(ce, 0, {"train.lr": "0.1"})()
    outcome = read_outcome(ce.folder(0))
    assert outcome is not None
    assert (outcome.state, outcome.scores, outcome.epochs) == ("pruned", [], 1)


@pytest.mark.slow
def test_a_trial_whose_last_epoch_is_trained_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Study, "report", lambda *_: True)
    settings = ["data.val_fraction=0.2", "method={name: ce}", "teacher=null", *SPACE[:1]]
    once = [*SMALL, "train.evaluate_every=2", *settings]
    ce = load_search("digits", once, tmp_path, 1, UserObjects())
    TrialTask(ce, 0, {"train.lr": "0.1"})()
    outcome = read_outcome(ce.folder(0))
    assert outcome is not None
    assert (outcome.state, len(outcome.scores), outcome.epochs) == ("complete", 1, 2)


@pytest.mark.slow
def test_a_trial_calibrates_no_exits(tmp_path: Path) -> None:
    exits = [*SMALL, "data.val_fraction=0.2", "method.name=dskd", "train.exits=true"]
    study = load_search("digits", [*exits, "method.beta=1,10"], tmp_path / "out", 1, UserObjects())
    result = tune(study, 1)
    assert not (study.folder(0) / "seed0/exits.json").exists()
    assert load(str(tmp_path / "out/best.yaml")).train.exits
    assert result.best.number == 0
    with pytest.raises(InputError, match=r"is a trial of the study .*, which was measured on"):
        collect([study.folder(0) / "seed0"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"trials": "2"}, "trials: a number of at least 1 is needed, got '2'"),
        ({"trials": 1.5}, r"trials: a number of at least 1 is needed, got 1\.5"),
        ({"seeds": "2"}, "seeds: a number of at least 1 is needed, got '2'"),
        ({"space": ["train.lr"]}, "space: settings with their ranges or choices are needed"),
        ({"space": {1: "0..1"}}, "space: settings with their ranges or choices are needed"),
        ({"space": {"train.lr": [object(), 1]}}, "space: a choice is a plain value, got <object"),
    ],
)
def test_arguments_of_python_are_checked(
    tmp_path: Path, arguments: dict[str, Any], said: str
) -> None:
    given: dict[str, Any] = {"space": {"train.lr": "0.01..0.2"}, "out": tmp_path / "out"}
    with pytest.raises(InputError, match=said):
        dskd.tune("resnet8", data="digits", method="ce", **given | arguments)


@pytest.mark.slow
def test_tuning_from_python(tmp_path: Path) -> None:
    result = dskd.tune(
        "resnet8",
        data={"name": "digits", "fraction": 0.1, "val_fraction": 0.2},
        method="ce",
        space={"train.lr": "0.01..0.2:log", "data.flip": [True, False]},
        trials=1,
        epochs=1,
        out=tmp_path / "out",
        verbose=0,
    )
    assert result.best.number == 0
    assert result.path == tmp_path / "out"


def test_a_teacher_that_the_method_does_not_use_is_refused(tmp_path: Path) -> None:
    alone = ["method.name=ce", *SPACE[:1]]
    assert load_search("digits", alone, tmp_path, 1, UserObjects()).recipe.teacher is None
    said = r"^teacher.* has no effect: the method 'ce' learns from no teacher"
    with pytest.raises(InputError, match=said):
        load_search("digits", [*alone, "teacher.name=resnet14"], tmp_path, 1, UserObjects())
    given: dict[str, Any] = {"space": {"train.lr": "0.01..0.2"}, "out": tmp_path}
    with pytest.raises(InputError, match=said):
        dskd.tune("resnet8", teacher="resnet14", data="digits", method="ce", **given)
