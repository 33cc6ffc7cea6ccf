"""Writes docs/settings.md from the code: ``python docs/write_settings.py``."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dskd import methods
from dskd.config.recipe import DataSettings, ModelSettings, Recipe, TeacherSettings, TrainSettings
from dskd.settings import signature_settings

PAGE = Path(__file__).with_name("settings.md")
_INTRO = """# Settings

Every key of a recipe, its default and its meaning. On the command line a key is set by `key=value`;
in Python the keys of a section are a mapping, as in `train={"epochs": 10}`. An unknown key or a
value out of range is refused before any work.

This page is written by `python docs/write_settings.py` from the code, and a test holds them
together.
"""


def page() -> str:
    """The whole page."""
    parts = [_INTRO]
    for prefix, model, about in (
        ("data.", DataSettings, "Which images, and how they are varied."),
        ("student.", ModelSettings, "The model to train."),
        ("teacher.", TeacherSettings, "The model to learn from. The keys of `student`, and:"),
        ("train.", TrainSettings, "The schedule."),
    ):
        known = ModelSettings.model_fields if model is TeacherSettings else {}
        fields = {name: f for name, f in model.model_fields.items() if name not in known}
        parts.append(f"## {prefix[:-1]}\n\n{about}\n\n{table(prefix, fields, {})}")
    own = {name: Recipe.model_fields[name] for name in ("seed", "out")}
    parts.append(f"## The run\n\n{table('', own, _RUN)}")
    parts.append(
        "## method\n\n`method.name` is one of the methods below (default `dskd`); its settings "
        "stand beside it. `method.preset` names a set of settings: `literature`, what a "
        "method was published with; `paper` for `dskd`. More of each: [the methods](methods/)."
    )
    for name in methods.names():
        kind = methods.find(name)
        known_settings: type[BaseModel] = signature_settings(kind.__init__)
        listed = table("method.", known_settings.model_fields, arguments(kind))
        parts.append(f"### {name}\n\n{listed}")
    return "\n\n".join(part.strip() for part in parts) + "\n"


_RUN = {"seed": "Of the student's weights, the order of the images, crops, flips, and all else."}


def table(prefix: str, fields: dict[str, FieldInfo], about: dict[str, str]) -> str:
    """Keys, defaults and meanings as Markdown."""
    rows = ["| key | default | meaning |", "|---|---|---|"]
    for name, field in fields.items():
        meaning = about.get(name) or field.description or ""
        meaning = meaning.replace("``", "`").replace("|", "\\|")
        rows.append(f"| `{prefix}{name}` | {_default(field)} | {meaning} |")
    return "\n".join(rows)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "needed"
    value: Any = field.get_default(call_default_factory=True)
    return f"`{list(value) if isinstance(value, tuple) else value}`"


def arguments(kind: type) -> dict[str, str]:
    """What a class's docstring says of each argument."""
    doc = inspect.getdoc(kind) or ""
    section = doc.partition("Args:\n")[2].partition("\n\n")[0]
    lines = re.split(r"\n    (?=\w+: )", "\n" + section)
    pairs = (line.partition(": ") for line in lines if ": " in line)
    return {name.strip(): " ".join(text.split()) for name, _, text in pairs}


if __name__ == "__main__":
    PAGE.write_text(page())
