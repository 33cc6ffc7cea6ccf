"""The sections about the method that a report shows in detail: its training and its errors."""

from __future__ import annotations

from collections.abc import Mapping

from dskd.report import charts
from dskd.report.analysis import Unavailable, main_method
from dskd.report.charts import Curve
from dskd.report.confusion_chart import class_accuracies, confusion_map
from dskd.report.contents import ReportContents
from dskd.report.mistakes import MATRIX_CLASSES, Mistakes
from dskd.report.sections import Chart, Group, Section, curve_of, lines_text
from dskd.report.styles import Style
from dskd.storage.metric_names import Metric

_ACCURACIES = {
    "test_accuracy": "test split",
    "val_accuracy": "validation split",
    "train_accuracy": "training split",
}
_OTHER_PREDICTIONS = {"micro_f1": "labels", "dice": "pixels"}
"""What the accuracy of training counts where another measure is taken on the splits."""


def training(report: ReportContents, styles: Mapping[str, Style]) -> Section | Unavailable:
    """Losses, accuracies and learning rate of one method over epochs."""
    runs = main_method(report.collected)
    if runs is None:
        return Unavailable("No run is finished yet.")
    keys = {key for columns in runs.metrics.values() for key in columns}
    losses = {"train_loss": "total loss"} | {
        key: f"{key.removeprefix('loss/')} loss" for key in sorted(keys) if key.startswith("loss/")
    }
    wanted = (
        ("loss", "Training losses", "loss", losses),
        *_accuracies(report.metric),
        ("lr", "Learning rate", "learning rate", {"lr": "learning rate"}),
    )
    drawn, constant = [], ""
    for name, caption, unit, names in wanted:
        found: dict[str, Curve] = {names[key]: curve_of(runs, key) for key in names if key in keys}
        rates = {
            rate
            for curve in found.values()
            for values in curve.values()
            for rate in values.values()
        }
        if name == "lr" and len(rates) == 1:
            constant = f" The learning rate is {rates.pop():.3g} in every epoch."
        elif found:
            own = {
                one: styles[runs.label] if number == 0 else charts.stage_style(number - 1)
                for number, one in enumerate(found)
            }
            figure = charts.over_epochs(found, own, unit)
            if len(found) > 1:
                charts.show_legend(figure)
            drawn.append(Chart(f"chart-training-{name}", caption, figure))
    training = ""
    if "train_accuracy" in keys and not report.collected.task.name:
        training = (
            " Accuracy on the training split is measured during training, on augmented images."
        )
    text = (
        f"The training of {runs.label}. Each loss is the mean over an epoch.{training}"
        f"{constant}{lines_text(report)}"
    )
    return Section(text, (Group(tuple(drawn)),))


def _accuracies(metric: Metric) -> list[tuple[str, str, str, dict[str, str]]]:
    """The charts of what was measured in every epoch: id, caption, unit, and names of metrics."""
    if metric == "agreement":
        return [("accuracy", "Agreement with the teacher", "agreement, %", _ACCURACIES)]
    if metric == "accuracy":
        return [("accuracy", "Accuracy", "accuracy, %", _ACCURACIES)]
    splits = {key: name for key, name in _ACCURACIES.items() if key != "train_accuracy"}
    right = f"Share of the {_OTHER_PREDICTIONS[metric]} that are right in training"
    return [
        ("accuracy", "The accuracy of validation and test split", "accuracy, %", splits),
        ("train-accuracy", right, "right, %", {"train_accuracy": "training split"}),
    ]


def classes(report: ReportContents) -> Section | Unavailable | None:
    """The scores of each class, where a sample has no single class; None if it has one."""
    found = report.analysis.class_scores
    if found is None or isinstance(found, Unavailable):
        return found
    own = found.of_one
    if len(own) <= MATRIX_CLASSES:
        return Section(found.text, ())
    figure = class_accuracies(own, "labels, lowest first", found.measures[0])
    chart = Chart("chart-classes", f"{found.measures[0]} of each label, sorted", figure)
    return Section(found.text, (Group((chart,)),))


def drawings(report: ReportContents) -> Section | Unavailable | None:
    """The text above predictions drawn over images; None without images."""
    found = report.analysis.drawings
    if found is None or isinstance(found, Unavailable):
        return found
    return Section(found.text, ())


def errors(report: ReportContents) -> Section | Unavailable | None:
    """The confusion matrix; of many classes the accuracy of each, and a part of the matrix.

    None where a sample has no single class.
    """
    found = report.analysis.mistakes
    if found is None or isinstance(found, Unavailable):
        return found
    samples = report.collected.task.samples
    if not found.count:
        return Section(_errors_text(found, samples), ())
    caption = "Confusion matrix: class (y) and predicted class (x)"
    figure = confusion_map(found.rows, found.columns, found.matrix)
    text = _errors_text(found, samples)
    if found.rows == found.columns:
        return Section(text, (Group((Chart("chart-confusion", caption, figure),)),))
    accuracies = class_accuracies(found.class_accuracy)
    drawn = (
        Chart("chart-classes", "Accuracy of each class, sorted", accuracies),
        Chart("chart-confusion", caption, figure),
    )
    return Section(text, (Group(drawn),))


def _errors_text(found: Mistakes, samples: str) -> str:
    text = f"{found.label}, seed {found.seed}, "
    if not found.count:
        return f"{text}predicts the right class for each of the {found.test_images:,} test images."
    share = 100 * found.count / found.test_images
    text += f"is wrong on {found.count:,} of the {found.test_images:,} test images ({share:.1f} %)."
    if found.rows != found.columns:
        (worst, low), (_, high) = found.class_accuracy[0], found.class_accuracy[-1]
        text += (
            f" The accuracy of a class goes from {low:.1f} % ({worst}) to {high:.1f} %. The matrix "
            f"has the {len(found.rows)} most confused classes."
        )
    return f"{text} Shades are shares of the {samples} of a class."
