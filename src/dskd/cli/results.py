"""Tables of what a command computed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dskd.deploy.early_exits import ExitEvaluation, ExitResult
from dskd.deploy.measure import EXPORTED, PLAIN, QUANTIZED, STUDENT, TEACHER
from dskd.deploy.prediction_file import Row
from dskd.deploy.ship import Exported
from dskd.engine.evaluate import EvaluationResult
from dskd.engine.result import Result
from dskd.engine.tasks.segmentation.metrics import ClassScores
from dskd.errors import printable
from dskd.runtime.number_text import rounded
from dskd.storage.metric_names import in_text, to_file, words


def prediction_cells(rows: Iterable[Row]) -> list[list[str]]:
    """Predictions as cells of a table, one row per class."""
    return [[image, name, f"{100 * p:.2f}"] for image, classes in rows for name, p in classes]


def predictions_line(count: int, sample: str, path: Path) -> str:
    """Says where predictions were written.

    Example:
        >>> predictions_line(60, "image", Path("classes.csv"))
        'predictions for 60 images written to classes.csv'
    """
    return (
        f"predictions for {count:,} {sample}{'s' * (count != 1)} written to {printable(str(path))}"
    )


def evaluation_rows(evaluation: EvaluationResult) -> list[list[str]]:
    """Accuracy on the test split."""
    rows = [[f"{words(evaluation.metric)}, %", f"{evaluation.accuracy:.2f}"]]
    if evaluation.accuracy_top5 is not None:
        title = in_text("test top-5 accuracy, %", evaluation.metric)
        rows.append([title, f"{evaluation.accuracy_top5:.2f}"])
    return rows


def evaluation_numbers(evaluation: EvaluationResult) -> dict[str, Any]:
    """Accuracy on the test split, by the names that files have."""
    found = {"test_accuracy": evaluation.accuracy, "test_images": len(evaluation.predictions)}
    if evaluation.accuracy_top5 is not None:
        found["test_accuracy_top5"] = evaluation.accuracy_top5
    return to_file(found, evaluation.metric)


def exit_rows(found: ExitEvaluation) -> tuple[list[str], list[list[str]]]:
    """Early exits on the test split: the columns of a table, and its rows."""
    columns = [
        "largest loss, points",
        "test accuracy, %",
        "multiply-adds, M",
        "latency, ms",
        *(f"{name}, %" for name in found.names),
    ]
    own = [f"{found.accuracies[-1]:.2f}", f"{found.multiply_adds / 1e6:.3f}"]
    plain = ["no exits", *own, rounded(found.latency), *["0.0"] * (len(found.names) - 1), "100.0"]
    return columns, [plain, *(_exit_row(row) for row in found.rows)]


def _exit_row(row: ExitResult) -> list[str]:
    return [
        f"{row.max_loss:g}",
        f"{row.accuracy:.2f}",
        f"{row.multiply_adds / 1e6:.3f}",
        rounded(row.latency),
        *(f"{share:.1f}" for share in row.shares),
    ]


def result_rows(result: Result) -> list[list[str]]:
    """The numbers of a finished run, one per row."""
    best = f"best epoch ({result.best_epoch}, chosen on the {result.best_chosen_on} split)"
    rows = [
        ["method", result.method.rpartition("/")[2]],
        ["parameters", f"{result.parameters:,}"],
        ["test accuracy, last epoch, %", f"{result.test_accuracy:.2f}"],
    ]
    if result.test_accuracy_top5 is not None:
        rows.append(["test top-5 accuracy, last epoch, %", f"{result.test_accuracy_top5:.2f}"])
    if result.ema_test_accuracy is not None:
        rows.append(["test accuracy, moving average, %", f"{result.ema_test_accuracy:.2f}"])
    rows.append([f"test accuracy, {best}, %", f"{result.best_test_accuracy:.2f}"])
    if result.teacher_accuracy is not None and result.agreement is not None:
        rows += [
            ["teacher's test accuracy, %", f"{result.teacher_accuracy:.2f}"],
            ["agreement with the teacher, %", f"{result.agreement:.2f}"],
        ]
    rows.append(["time of the student's training, s", f"{result.seconds:.1f}"])
    if result.teacher_accuracy is not None:
        rows.append(["of which for the teacher's outputs, s", f"{result.teacher_seconds:.1f}"])
    return [[in_text(title, result.metric), text] for title, text in rows]


def export_rows(found: Exported) -> tuple[list[str], list[list[str]]]:
    """The measurements of an exported student: the columns of a table, and its rows."""
    measured = found.measured
    titles = {
        TEACHER: "teacher, PyTorch",
        STUDENT: "student, PyTorch",
        EXPORTED: measured.exported_title(found.path.name, found.runtime),
    }
    if any(PLAIN in times for times in measured.latency.values()):
        titles[PLAIN] = f"without exits, {found.runtime}"
    models = [name for name in titles if name in (*measured.parameters, EXPORTED, PLAIN)]
    accuracy = {name: f"{result.top1:.2f}" for name, result in measured.accuracy.items()}
    if found.teacher_accuracy is not None:
        accuracy[TEACHER] = f"{found.teacher_accuracy:.2f}"
    parameters = {name: f"{number:,}" for name, number in measured.parameters.items()}
    metrics = [result.metric for result in measured.accuracy.values()]
    title = f"{words(metrics[0] if metrics else 'accuracy')}, %"
    cells = {title: accuracy, "parameters": parameters}
    if QUANTIZED in accuracy:
        cells["test accuracy before --qat, %"] = {EXPORTED: accuracy[QUANTIZED]}
    cells["size on disk, MB"] = {EXPORTED: rounded(found.size / 1e6)}
    for batch, times in measured.latency.items():
        cells[f"latency, batch {batch}, ms"] = {name: str(time) for name, time in times.items()}
    rows = [[title, *(row.get(name, "-") for name in models)] for title, row in cells.items()]
    return ["", *(titles[name] for name in models)], rows


def class_score_rows(scores: Iterable[ClassScores]) -> list[list[str]]:
    """Dice and HD95 of each class."""
    return [
        [
            one.name,
            f"{one.dice:.2f}",
            "-" if one.hd95 is None else f"{one.hd95:.2f}",
            str(one.hd95_images),
        ]
        for one in scores
    ]
