"""The sections about the method that a report shows in detail: its training and its errors."""

from __future__ import annotations

from collections.abc import Mapping

from dskd.report import charts
from dskd.report.analysis import Unavailable, main_method
from dskd.report.charts import Curve
from dskd.report.confusion_chart import class_accuracies, confusion_map
from dskd.report.contents import ReportContents
from dskd.report.mistakes import Mistakes
from dskd.report.sections import Chart, Group, Section, curve_of
from dskd.report.styles import Style
from dskd.storage.metric_names import Metric

_ACCURACIES = {
    "test_accuracy": "test split",
    "val_accuracy": "validation split",
    "train_accuracy": "training split",
}


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
        ("accuracy", *_titles(report.collected.recipe.data.metric), _ACCURACIES),
        ("lr", "Learning rate", "learning rate", {"lr": "learning rate"}),
    )
    drawn = []
    for name, caption, unit, names in wanted:
        found: dict[str, Curve] = {names[key]: curve_of(runs, key) for key in names if key in keys}
        if found:
            own = {
                one: styles[runs.label] if number == 0 else charts.stage_style(number - 1)
                for number, one in enumerate(found)
            }
            figure = charts.over_epochs(found, own, unit)
            if len(found) > 1:
                charts.show_legend(figure)
            drawn.append(Chart(f"chart-training-{name}", caption, figure))
    training = (
        "Accuracy on the training split is measured during training, on augmented images. "
        if "train_accuracy" in keys
        else ""
    )
    text = (
        f"The training of {runs.label}. Each loss is the mean over an epoch. {training}Lines are "
        "means over seeds; bands span the lowest to the highest seed."
    )
    return Section(text, (Group(tuple(drawn)),))


def _titles(metric: Metric) -> tuple[str, str]:
    """The caption and the unit of what was measured in every epoch."""
    if metric == "agreement":
        return "Agreement with the teacher", "agreement, %"
    return "Accuracy", "accuracy, %"


def errors(report: ReportContents) -> Section | Unavailable:
    """The confusion matrix; of many classes the accuracy of each, and a part of the matrix."""
    found = report.analysis.mistakes
    if isinstance(found, Unavailable):
        return found
    if not found.count:
        return Section(_errors_text(found), ())
    caption = "Confusion matrix: class (y) and predicted class (x)"
    figure = confusion_map(found.rows, found.columns, found.matrix)
    if found.rows == found.columns:
        return Section(_errors_text(found), (Group((Chart("chart-confusion", caption, figure),)),))
    accuracies = class_accuracies(found.class_accuracy)
    drawn = (
        Chart("chart-classes", "Accuracy of each class, sorted", accuracies),
        Chart("chart-confusion", caption, figure),
    )
    return Section(_errors_text(found), (Group(drawn),))


def _errors_text(found: Mistakes) -> str:
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
    return f"{text} Shades are shares of the images of a class."
