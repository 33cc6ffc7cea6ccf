"""Writes docs/settings.md from the code: ``python docs/write_settings.py``."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dskd import methods
from dskd.config.schema import DataSettings, ModelSettings, Recipe, TeacherSettings
from dskd.config.train_settings import TrainSettings
from dskd.engine.tasks.graphs.settings import GraphRecipe
from dskd.engine.tasks.segmentation.settings import SegmentationRecipe
from dskd.engine.tasks.settings import TaskRecipe, TaskTrainSettings
from dskd.settings import Settings, settings_source, signature_settings

PAGE = Path(__file__).with_name("settings.md")
TASKS: tuple[type[TaskRecipe], ...] = (GraphRecipe, SegmentationRecipe)
SHARED = (TrainSettings,)
"""Sections whose keys are on the page before those of tasks."""
_INTRO = """# Settings

These are all keys of a recipe, with their defaults and meanings. The command line takes
`key=value`. In Python, a section is a mapping, as in `train={"epochs": 10}`. An unknown key or a
value out of range is refused before any work starts.

On the command line, the setting decides how its value is read:

- **Text and paths** are taken as they stand, with `#`, `: `, quotes and spaces: `out=2024-11-28`,
  or `'out=run #1'` in the quotes of the shell.
- **Numbers** are decimal: `train.lr=1e-2`; `seed=007` is 7.
- **True and false** are also `on`, `off`, `yes`, `no`, `1` and `0`.
- **Lists** stand in brackets: `'student.stages=[layer1, layer2]'`. Their parts are read in the same
  way. Put a part with a comma, ` #` or `: ` in quotes: `"data.classes=[007, 'a, b']"`.
- **Mappings**, and options of any type, are YAML: `'student.options={drop_rate: 0.1}'`.

The shell needs quotes around an argument with spaces, brackets or braces.

`null` is None where a setting may be None; a file of that name is `./null`. An empty value is
refused. `~` at the start of a path is the home folder, on the command line, in files and in Python.
`dskd compare` reads the settings in `dskd:beta=3` in the same way.

In a recipe file, YAML's rules hold: what follows ` #` is a comment. Some text is read differently
by versions of YAML: `on`, `no`, `007`, `1e-3`, `1:30`, `2024-11-28`. Where a setting needs
text, it stays text. In mappings of any type, such as `student.options`, it is refused unless it
is in quotes.
"""
_METHOD = """## method

`method.name` is one of the methods below. The default is `dskd`; for `dskd graphs` it is
`alignahead`, and for `dskd segment` it is `mixed`. The method's own settings stand
next to it. `method.preset` selects a named set of settings: `literature` has published
values (the page of the method says whose), and `dskd` has `paper` and `paper-abstract`. See also
[the methods](methods/).
"""


def page() -> str:
    """Renders the whole page."""
    parts = [_INTRO]
    for section, model in (
        ("data", DataSettings),
        ("student", ModelSettings),
        ("teacher", TeacherSettings),
        ("train", TrainSettings),
    ):
        about = inspect.getdoc(model) or ""
        inherited = ModelSettings.model_fields if model is TeacherSettings else {}
        if inherited:
            about += " It has all keys of `student`, and these:"
        fields = {
            name: f
            for name, f in model.model_fields.items()
            if name not in inherited or f.description != inherited[name].description
        }
        parts.append(f"## {section}\n\n{about}\n\n{table(f'{section}.', fields, {})}")
    own = {name: Recipe.model_fields[name] for name in ("seed", "out")}
    parts.append(f"## The run\n\n{table('', own, {})}")
    parts.append(_METHOD)
    for name in methods.names():
        kind = methods.find(name)
        known: type[BaseModel] = signature_settings(kind.__init__)
        parts.append(f"### {name}\n\n{table('method.', known.model_fields, arguments(kind))}")
    parts += [part for recipe in TASKS for part in _task(recipe)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _task(recipe: type[TaskRecipe]) -> Iterator[str]:
    """Renders the settings of a task and its methods."""
    task = recipe.model_fields["task"].default
    yield f"## dskd {task}\n\nThe keys of `dskd {task}`, where they differ from those above."
    for section in ("data", "student", "teacher", "train"):
        annotation = recipe.model_fields[section].annotation
        kinds = [annotation, *getattr(annotation, "__args__", ())]
        (model,) = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Settings)]
        bases = [base for base in model.__mro__[1:] if base in SHARED or section == "teacher"]
        inherited = {
            name: (field.description, field.default)
            for base in bases
            if issubclass(base, BaseModel)
            for name, field in base.model_fields.items()
        }
        fields = {
            name: field
            for name, field in model.model_fields.items()
            if inherited.get(name) != (field.description, field.default)
        }
        about = "All keys of `student`, and these:\n\n" if section == "teacher" else ""
        if issubclass(model, TaskTrainSettings):
            unused = ", ".join(f"`{key}`" for key in model.UNUSED)
            about = f"All keys of `train` above, but for {unused}. These differ:\n\n"
        yield f"### {task}: {section}\n\n{about}{table(f'{section}.', fields, {})}"
    for name in methods.names(task):
        kind = methods.find(name)
        known: type[BaseModel] = signature_settings(kind.__init__)
        if known.model_fields:
            yield f"### {name}\n\n{table('method.', known.model_fields, arguments(kind))}"


def table(prefix: str, fields: dict[str, FieldInfo], about: dict[str, str]) -> str:
    """Renders settings as a Markdown table.

    Args:
        prefix: Put in front of each key, as in ``"data."``.
        fields: The settings by name.
        about: Meanings that replace the fields' own.
    """
    rows = ["| key | default | meaning |", "|---|---|---|"]
    for name, field in fields.items():
        meaning = _cell(about.get(name) or field.description or "")
        rows.append(f"| `{prefix}{name}` | {_default(field)} | {meaning} |")
    return "\n".join(rows)


def _cell(text: str) -> str:
    """Text in one line, with single backticks and escaped pipes, as a table cell needs it."""
    return " ".join(text.split()).replace("``", "`").replace("|", "\\|")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value: Any = field.get_default(call_default_factory=True)
    return f"`{list(value) if isinstance(value, tuple) else value}`"


def arguments(kind: type) -> dict[str, str]:
    """Reads the description of each argument from a class's docstring.

    Settings that the class takes over (`dskd.settings.takes_settings_of`) are described where they
    are defined.
    """
    source = settings_source(kind)
    doc = inspect.getdoc(kind) or ""
    section = doc.partition("Args:\n")[2].partition("\n\n")[0]
    lines = re.split(r"\n    (?=[*\w]+: )", "\n" + section)
    pairs = (line.partition(": ") for line in lines if ": " in line)
    own = {name.strip(): " ".join(text.split()) for name, _, text in pairs}
    return (arguments(source) if isinstance(source, type) else {}) | own


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
