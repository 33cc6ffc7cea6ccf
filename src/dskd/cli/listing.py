"""Tables of the models, methods, recipes and data sets there are. None of them imports torch."""

from __future__ import annotations

from collections.abc import Callable

from dskd import methods
from dskd.config.recipe import preview, shipped
from dskd.data.catalog import DATASETS
from dskd.methods import outside
from dskd.models.catalog import LIBRARIES, ZOO

Table = tuple[list[str], list[list[str]]]
"""The header and the rows."""


def model_table() -> Table:
    """The zoo, with each model's cost for a 32x32 image and 100 classes."""
    rows = [
        [name, f"{entry.parameters:,}", f"{entry.multiply_adds:,}", " ".join(entry.stages)]
        for name, entry in ZOO.items()
    ]
    for library in LIBRARIES:
        rows.append([f"{library}<name>", "-", "-", "chosen, or student.stages=[...]"])
    return ["model", "parameters", "multiply-adds", "stages"], rows


def method_table() -> Table:
    """The methods, with the first line of each docstring. Those of installed packages are last."""
    own = methods.names()
    rows = [[name, methods.summary(name).replace("``", "")] for name in own]
    rows += [[name, text] for name, text in outside.described(own)]
    return ["method", "description"], rows


def recipe_table() -> Table:
    """The recipes that come with the package."""
    rows = []
    for name in shipped():
        recipe = preview(name)
        teacher = recipe.teacher.name if recipe.teacher else "-"
        epochs = str(recipe.train.epochs)
        rows.append([name, teacher, recipe.student.name, recipe.data.name, epochs])
    return ["recipe", "teacher", "student", "data", "epochs"], rows


def dataset_table() -> Table:
    """The data sets."""
    return ["data set", "description"], [
        [name, entry.description] for name, entry in DATASETS.items()
    ]


LISTS: dict[str, Callable[[], Table]] = {
    "models": model_table,
    "methods": method_table,
    "recipes": recipe_table,
    "datasets": dataset_table,
}
"""The table that each word of ``dskd list`` prints."""
