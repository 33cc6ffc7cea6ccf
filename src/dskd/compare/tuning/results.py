"""What came out of a study: the trials, and the best configuration with its test accuracy."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dskd.compare.columns import interval_text
from dskd.compare.statistics import Interval
from dskd.storage.atomic import replace_file
from dskd.storage.metric_names import Metric, in_text, words

CSV, JSON = "trials.csv", "trials.json"


@dataclass(frozen=True)
class TrialResult:
    """A trial that has ended.

    Attributes:
        number: Its number, from 0.
        values: The values of the tuned settings as text, by setting.
        shown: The same for a reader, with fewer digits.
        state: ``complete``, ``pruned``, ``failed``, or ``lost`` if it is tried again.
        val_accuracy: Mean over the seeds of the accuracy on the validation images after the last
            epoch, in percent; None unless it is complete.
        val_accuracies: That of each finished seed.
        epochs: Epochs trained, over all seeds.
        reason: Why it failed or was lost; empty otherwise.
        misfit: Whether it failed because its values do not fit, or let numbers become NaN.
    """

    number: int
    values: dict[str, str]
    shown: dict[str, str]
    state: str
    val_accuracy: float | None
    val_accuracies: tuple[float, ...]
    epochs: int
    reason: str = ""
    misfit: bool = False


@dataclass(frozen=True)
class TuningResult:
    """The result of a study.

    Attributes:
        path: The folder of the study.
        trials: All trials, by their numbers.
        best: The complete trial with the highest validation accuracy.
        recipe: The file of the best configuration.
        test_accuracy: Of the best configuration, in percent, over the seeds.
        tested: The trials whose configuration was tested: the best, and one that was the best
            before there were more trials.
        metric: ``agreement`` with the teacher, for images without labels.
    """

    path: Path
    trials: tuple[TrialResult, ...]
    best: TrialResult
    recipe: Path
    test_accuracy: Interval
    tested: tuple[int, ...]
    metric: Metric = "accuracy"


def write_trials(folder: Path, trials: Sequence[TrialResult], metric: Metric = "accuracy") -> None:
    """Writes the trials as CSV and as JSON."""
    keys = list(dict.fromkeys(key for trial in trials for key in trial.values))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", "val_accuracy", "epochs", *keys, "reason"])
    for one in trials:
        score = "" if one.val_accuracy is None else one.val_accuracy
        values = [one.values.get(key, "") for key in keys]
        writer.writerow([one.number, one.state, score, one.epochs, *values, one.reason])
    replace_file(folder / CSV, in_text(text.getvalue(), metric).encode())
    rows = [{k: v for k, v in asdict(trial).items() if k != "shown"} for trial in trials]
    lines = in_text(json.dumps(rows, indent=2) + "\n", metric)
    replace_file(folder / JSON, lines.encode())


def settings_text(trial: TrialResult) -> str:
    """The settings of a trial in one line."""
    return " ".join(f"{key}={value}" for key, value in trial.shown.items())


def outcome_text(trial: TrialResult) -> str:
    """What became of a trial, in a few words."""
    if trial.val_accuracy is not None:
        return f"{trial.val_accuracy:.2f} %"
    epochs = f"{trial.epochs} epoch{'s' * (trial.epochs != 1)}"
    return f"{trial.state}: {trial.reason}" if trial.reason else f"{trial.state} after {epochs}"


def trial_table(
    trials: Sequence[TrialResult], metric: Metric = "accuracy"
) -> tuple[list[str], list[list[str]]]:
    """The headings and the rows: complete trials first, the best of them on top."""
    keys = list(dict.fromkeys(key for trial in trials for key in trial.values))
    order = sorted(trials, key=lambda one: (-(one.val_accuracy or -1), one.state != "pruned"))
    rows = [
        [
            str(one.number),
            *(one.shown.get(key, "") for key in keys),
            "" if one.val_accuracy is None else f"{one.val_accuracy:.2f}",
            "complete" if one.state == "complete" else outcome_text(one),
        ]
        for one in order
    ]
    title = in_text("validation accuracy, %", metric)
    return ["trial", *keys, title, "state"], rows


def notes(result: TuningResult) -> list[str]:
    """What a reader of the table must know, one line per note."""
    best, seeds = result.best, len(result.test_accuracy.values)
    before = [str(number) for number in result.tested if number != best.number]
    tested = f"tested before: trial {', '.join(before)}" if before else "no other trial was tested"
    return [
        f"The best is trial {best.number}: {settings_text(best)}. Its {words(result.metric)} is "
        f"{interval_text(result.test_accuracy)} % ({seeds} seed{'s' * (seeds > 1)}); {tested}.",
        f"Train it with `dskd distill {result.recipe}`. The trials are in {result.path / CSV}.",
    ]
