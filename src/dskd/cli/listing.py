"""Rows for the tables that the command line prints."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path

from dskd import methods
from dskd.config.recipe import load, shipped
from dskd.data.catalog import DATASETS
from dskd.deploy.student import DeployedStudent, predict
from dskd.engine.training_run import Result
from dskd.models.zoo import ZOO, facts_of

Table = tuple[list[str], list[list[str]]]


def models() -> Table:
    """The zoo, with its cost on a 32x32 image of 100 classes."""
    rows = []
    for name in ZOO:
        facts = facts_of(name)
        cost = facts.cost
        rows.append(
            [name, f"{cost.parameters:,}", f"{cost.multiply_adds:,}", " ".join(facts.stage_names)]
        )
    rows.append(["timm/<name>", "-", "-", "name them with student.stages=[...]"])
    return ["model", "parameters", "multiply-adds", "stages"], rows


def method_rows() -> Table:
    """The methods and what each does."""
    rows = [
        [name, (inspect.getdoc(methods.find(name)) or "").splitlines()[0].replace("``", "")]
        for name in methods.names()
    ]
    return ["method", "what it does"], rows


def recipes() -> Table:
    """The recipes that come with the package."""
    rows = []
    for name in shipped():
        plan = load(name)
        teacher = plan.teacher.name if plan.teacher else "-"
        rows.append([name, teacher, plan.student.name, plan.data.name, str(plan.train.epochs)])
    return ["recipe", "teacher", "student", "data", "epochs"], rows


def datasets() -> Table:
    """The data sets."""
    return ["data set", "what it is"], [
        [name, entry.description] for name, entry in DATASETS.items()
    ]


LISTS: dict[str, Callable[[], Table]] = {
    "models": models,
    "methods": method_rows,
    "recipes": recipes,
    "datasets": datasets,
}


def predictions(student: DeployedStudent, images: Sequence[Path], top: int) -> list[list[str]]:
    """A row for each of an image's ``top`` likeliest classes."""
    rows = []
    shown = min(top, len(student.classes))
    best = predict(student, images).topk(shown, dim=1)
    for path, values, labels in zip(
        images, best.values.tolist(), best.indices.tolist(), strict=True
    ):
        for value, label in zip(values, labels, strict=True):
            rows.append([str(path), student.classes[label], f"{100 * value:.2f}"])
    return rows


def result_rows(result: Result) -> list[list[str]]:
    """What a run came to, a row a number."""
    chosen = f"{result.best_epoch}, chosen on the {result.best_chosen_on} split"
    rows = [
        ["method", result.method],
        ["parameters", f"{result.parameters:,}"],
        ["accuracy, last epoch, %", f"{result.test_accuracy:.2f}"],
        ["accuracy top-5, last epoch, %", f"{result.test_accuracy_top5:.2f}"],
        [f"accuracy, best epoch, {chosen}, %", f"{result.best_test_accuracy:.2f}"],
    ]
    if result.teacher_accuracy is not None and result.agreement is not None:
        rows += [
            ["teacher's accuracy, %", f"{result.teacher_accuracy:.2f}"],
            ["agreement with the teacher, %", f"{result.agreement:.2f}"],
        ]
    return [*rows, ["seconds of training", f"{result.seconds:.1f}"]]
