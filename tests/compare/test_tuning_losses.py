"""What becomes of trials that fail, are lost or are removed, and what a study refuses to mix."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from dskd.compare.losses import Losses, run_all
from dskd.compare.tuning.results import TrialResult, settings_text, trial_table
from dskd.compare.tuning.search import Search
from dskd.compare.tuning.space import given_space
from dskd.compare.tuning.start import load_search
from dskd.compare.tuning.study import Study
from dskd.compare.tuning.trial import TrialTask, read_outcome
from dskd.compare.tuning.trials import Trials
from dskd.compare.tuning.tune import _best, tune
from dskd.engine.prepare import prepare
from dskd.engine.teacher_labels import training_data
from dskd.engine.user_objects import UserObjects
from dskd.errors import InputError, NonFiniteError, Stopped
from dskd.runtime.launchers.task import Launcher, Task
from dskd.storage.run_files import LAST, METRICS, RESULT
from tests.compare.small_comparison import SMALL, Here

pytestmark = pytest.mark.skipif(find_spec("optuna") is None, reason="optuna is not installed")

SPACE = ["train.lr=0.01..0.2:log"]
CE = [*SMALL, "train.epochs=1", "data.val_fraction=0.2", "method={name: ce}", "teacher=null"]
KD = [*SMALL, "train.epochs=1", "data.val_fraction=0.2", "method.name=kd"]
Training = Callable[[TrialTask], None]


def search(out: Path, fixed: Sequence[str] = CE, space: Sequence[str] = SPACE) -> Search:
    return load_search("digits", [*fixed, *space], out, 1, UserObjects())


def made(
    out: Path, count: int, launcher: Launcher | None = None, space: Sequence[str] = SPACE
) -> list[TrialResult]:
    """The trials of a study."""
    return Trials(search(out, space=space), count, launcher, {}).make()


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> Callable[[Training], None]:
    """Replaces the training of trials: they have 50 % after an epoch, or what a function raises."""

    def replaced(before: Training) -> None:
        def train(task: TrialTask, progress: Any) -> None:
            before(task)
            progress.scores.append(50.0 + task.number)
            progress.epochs += 1

        monkeypatch.setattr(TrialTask, "_train", train)

    return replaced


def raising(error: BaseException, number: int = 0) -> Training:
    def train(task: TrialTask) -> None:
        if task.number == number:
            raise error

    return train


def states(trials: list[TrialResult]) -> list[str]:
    return [one.state for one in trials]


def epoch(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / METRICS).open("a") as file:
        file.write('{"epoch": 1}\n')


NO_GPU = InputError("train.device=cuda: there is no GPU here; set train.device=cpu")


def test_a_trial_that_cannot_be_made_here_and_now_is_made_by_the_next_command(
    tmp_path: Path, training: Callable[[Training], None]
) -> None:
    training(raising(NO_GPU, 1))
    with pytest.raises(InputError, match="there is no GPU here"):
        made(tmp_path, 3)
    assert read_outcome(search(tmp_path).folder(1)) is None
    training(lambda _: None)
    trials = made(tmp_path, 3)
    assert states(trials) == ["complete"] * 3
    assert [one.val_accuracy for one in trials] == [50.0, 51.0, 52.0]


def test_a_full_disk_fails_no_trial(tmp_path: Path, training: Callable[[Training], None]) -> None:
    training(raising(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        made(tmp_path, 1)
    training(lambda _: None)
    assert states(made(tmp_path, 1)) == ["complete"]


def test_a_job_that_cannot_make_a_trial_is_lost_for_now(
    tmp_path: Path, training: Callable[[Training], None]
) -> None:
    tried: list[int] = []

    def no_gpu(task: TrialTask) -> None:
        tried.append(task.number)
        raise NO_GPU

    training(no_gpu)
    trials = made(tmp_path, 2, Here(1))
    assert tried == [0, 0, 1, 1]
    assert states(trials) == ["lost"] * 2
    assert trials[0].reason == f"{NO_GPU}; the same command tries it again"
    with pytest.raises(InputError, match=r"no trial came to its end: train.*tries it again$"):
        _best(trials)
    training(lambda _: None)
    assert states(made(tmp_path, 2, Here(1))) == ["complete"] * 2


@pytest.mark.parametrize("launcher", [None, Here(1)])
def test_code_that_raises_an_error_twice_fails_its_trial_and_the_study_goes_on(
    tmp_path: Path,
    training: Callable[[Training], None],
    caplog: pytest.LogCaptureFixture,
    launcher: Launcher | None,
) -> None:
    tried: list[int] = []

    def out_of_memory(task: TrialTask) -> None:
        tried.append(task.number)
        if task.number == 0:
            raise RuntimeError("out of memory")

    training(out_of_memory)
    trials = made(tmp_path, 2, launcher)
    assert tried == [0, 0, 1]
    assert states(trials) == ["failed", "complete"]
    folder = tmp_path / "trials" / "0000"
    reason = f"RuntimeError: out of memory; remove {folder} to have it made again"
    assert trials[0].reason == reason
    assert "Traceback" in caplog.text
    assert "Traceback" in json.loads((folder / "trial.json").read_text())["details"]
    with pytest.raises(InputError, match=r"no trial came to its end: RuntimeError.*made again$"):
        _best(trials[:1])
    shutil.rmtree(folder)
    training(lambda _: None)
    assert states(made(tmp_path, 2, launcher)) == ["complete"] * 2


def test_a_stop_ends_the_study(tmp_path: Path, training: Callable[[Training], None]) -> None:
    training(raising(Stopped(15)))
    level = logging.getLogger("dskd").level
    with pytest.raises(Stopped):
        made(tmp_path, 1)
    assert logging.getLogger("dskd").level == level


def test_values_are_blamed_only_if_they_are_the_reason(
    tmp_path: Path, training: Callable[[Training], None]
) -> None:
    training(raising(NonFiniteError("the loss is not finite")))
    with pytest.raises(InputError, match=r"end \(the loss is not finite\); tune other ranges"):
        _best(made(tmp_path, 1))


@pytest.mark.slow
def test_a_trial_fails_by_its_values_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = search(tmp_path)

    def without_gpu(recipe: Any, *rest: Any, **more: Any) -> Any:
        raise NO_GPU

    def refusing(recipe: Any, *rest: Any, **more: Any) -> Any:
        if recipe.train.lr == 0.1:
            raise InputError("lr=0.1 does not fit")
        return prepare(recipe, *rest, **more)

    monkeypatch.setattr("dskd.compare.tuning.trial.prepare", without_gpu)
    with pytest.raises(InputError, match="there is no GPU here"):
        TrialTask(study, 0, {"train.lr": "0.1"})()
    assert read_outcome(study.folder(0)) is None
    monkeypatch.setattr("dskd.compare.tuning.trial.prepare", refusing)
    TrialTask(study, 0, {"train.lr": "0.1"})()
    outcome = read_outcome(study.folder(0))
    assert outcome is not None
    assert (outcome.state, outcome.reason) == ("failed", "lr=0.1 does not fit")


def test_losses_of_a_trial_count_only_without_a_new_epoch(
    tmp_path: Path, training: Callable[[Training], None]
) -> None:
    submitted: list[int] = []

    def loses(task: Task) -> bool:
        assert isinstance(task, TrialTask)
        submitted.append(task.number)
        if len(submitted) <= 3:  # its time limit ends it, after an epoch
            epoch(task.folder / "seed0")
        return len(submitted) <= 3

    training(lambda _: None)
    assert states(made(tmp_path, 1, Here(1, loses))) == ["complete"]
    assert submitted == [0] * 4


class _Run:
    """A run that takes no time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self) -> None:
        epoch(self.folder)


def test_losses_of_teacher_and_best_count_only_without_a_new_epoch(tmp_path: Path) -> None:
    submitted: list[Task] = []

    def loses(task: Task) -> bool:
        submitted.append(task)
        task()
        return len(submitted) <= 3

    run_all([_Run(tmp_path / "a")], Here(1, loses), "it cannot be trained")
    assert Losses(tmp_path / "a").epochs == 5
    with pytest.raises(InputError, match="it cannot be trained: its node is gone; the same com"):
        run_all([_Run(tmp_path / "b")], Here(1, lambda _: True), "it cannot be trained")


def test_a_trial_whose_file_was_removed_is_made_again(
    tmp_path: Path, training: Callable[[Training], None]
) -> None:
    training(lambda _: None)
    trials = made(tmp_path, 2)
    path = tmp_path / "trials" / "0000" / "trial.json"
    path.write_text("{")
    with pytest.raises(InputError, match=r"remove .*0000 to have the trial made again"):
        made(tmp_path, 2)
    shutil.rmtree(path.parent)
    assert made(tmp_path, 2) == trials


def test_a_trial_that_is_made_again_ends_where_it_ended(tmp_path: Path) -> None:
    study = Study(tmp_path, given_space({"train.lr": "0.1..1"}, "kd"))
    for state in ("failed", "pruned"):
        number = study.ask().number
        for step in (1, 2):
            study.report(number, step, 50.0)
        study.tell(number, state)
    assert not study.report(0, 3, 60.0)
    assert [study.report(1, step, 50.0) for step in (1, 2)] == [False, True]


def test_other_files_among_the_tested_runs_are_no_trials(tmp_path: Path) -> None:
    for name in ("trial0003", "trial0012", "trial0003 copy", "copy"):
        (tmp_path / "best" / name / "seed0").mkdir(parents=True)
        (tmp_path / "best" / name / "seed0" / RESULT).touch()
    (tmp_path / "best" / "trial0004" / "seed0").mkdir(parents=True)
    (tmp_path / "best" / ".DS_Store").touch()
    assert search(tmp_path).tested() == (3, 12)


def test_only_numbers_drawn_from_a_range_are_shortened(
    tmp_path: Path, training: Callable[[Training], None]
) -> None:
    space = [
        "train.batch_size=16384..16385",
        "train.lr=0.1234567,0.1234568",
        "train.momentum=0..0.9",
    ]
    training(lambda _: None)
    (trial,) = made(tmp_path, 1, space=space)
    shown = settings_text(trial)
    assert f"train.batch_size={trial.values['train.batch_size']} " in shown
    assert f"train.lr={trial.values['train.lr']} " in shown
    assert f"train.momentum={float(trial.values['train.momentum']):.4g}" in shown
    rows = trial_table([trial])[1]
    assert rows[0][1:4] == [part.partition("=")[2] for part in shown.split()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of one trial."""
    return tune(search(tmp_path_factory.mktemp("tune") / "study", KD), 1).path


@pytest.fixture
def study(finished: Path, tmp_path: Path) -> Search:
    """A copy of it."""
    return search(shutil.copytree(finished, tmp_path / "study"), KD)


def facts(study: Search) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((study.path / "study.json").read_text())
    return found


@pytest.mark.slow
def test_other_test_images_are_refused(study: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = "dskd.compare.tuning.search.training_data"

    def changed(*given: Any) -> Any:
        data = training_data(*given)
        return replace(data, test=data.test.relabelled(data.test.labels.flip(0)))

    monkeypatch.setattr(loader, changed)
    with pytest.raises(InputError, match="holds a study with other test images or"):
        tune(study, 1)
    before = facts(study)
    del before["tested_data"]  # as an earlier version wrote it
    (study.path / "study.json").write_text(json.dumps(before))
    with pytest.raises(InputError, match=r"best.trial0000.seed0 was trained on other images than"):
        tune(study, 1)
    assert facts(study) == before
    monkeypatch.setattr(loader, training_data)
    tune(study, 1)
    assert facts(study).keys() == {*before, "tested_data"}


@pytest.mark.slow
def test_another_teacher_is_refused(study: Search) -> None:
    path = study.path / "teacher" / LAST
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    first = next(key for key, value in tensors.items() if value.is_floating_point())
    save_file(tensors | {first: tensors[first] + 1}, path, metadata)
    with pytest.raises(InputError, match="holds a study with another teacher; give the same, or"):
        tune(study, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["data", "teacher"])
def test_a_machine_with_other_images_or_another_teacher_makes_no_trial(
    study: Search, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Study, "report", lambda *_: False)  # it knows no such trial
    known = {key: facts(study)[key] for key in ("data", "teacher")}
    task = TrialTask(study, 1, {"train.lr": "0.1"}, known | {name: "other"})
    with pytest.raises(InputError, match=f"the {name} that this run reads is not that of the stu"):
        task()
    assert read_outcome(task.folder) is None
    replace(task, inputs=known)()
    outcome = read_outcome(task.folder)
    assert outcome is not None
    assert outcome.state == "complete"
