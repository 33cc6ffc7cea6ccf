"""The page: the content of a report in words, tables and charts, as one HTML file."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from datetime import date
from importlib import resources
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined
from plotly.offline import get_plotlyjs

from dskd.errors import printable
from dskd.report import method_table, sections
from dskd.report.analysis import Missing
from dskd.report.conclusions import details, headline
from dskd.report.contents import SHARED, Report
from dskd.report.disagreements import Differences
from dskd.report.sections import Section
from dskd.report.styles import DASHES, TEACHER, looks
from dskd.version import __version__

GENERATOR = "dskd report"
_MINUS = re.compile(r"(?<![\w.)=])-(?=\d)")


def render(report: Report, name: str) -> str:
    """The page, with everything it needs within itself.

    Args:
        report: What it says.
        name: Of the file, without its ending: the numbers are beside it under the same name.
    """
    return _environment().from_string(_text("page.html")).render(_context(report, name))


def _environment() -> Environment:
    # Names of classes, methods and folders come from anywhere: everything is escaped.
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["typographic"] = typographic
    environment.tests["missing"] = lambda part: isinstance(part, Missing)
    return environment


def typographic(text: str) -> str:
    r"""Numbers with a minus in place of a hyphen, and kept on one line with their intervals.

    Example:
        >>> typographic("-1.2 ± 0.4, dskd:tau=-1, 3-4")
        '−1.2\xa0±\xa00.4, dskd:tau=-1, 3-4'
    """
    return _MINUS.sub("−", text).replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")


def _text(name: str) -> str:
    return (resources.files("dskd.report") / name).read_text("utf-8")


def _context(report: Report, name: str) -> dict[str, Any]:
    """All that the template reads."""
    shown = sections.shown_first(report)
    # Those that are drawn at first choose their colours first: few of them share one.
    known = looks(dict.fromkeys([*shown, *(s.label for s in report.summaries)]))
    parts: dict[str, Section | Missing] = {
        "epochs": sections.epochs(report, known),
        "cost": sections.cost(report, known),
        "stages": sections.stages(report, known),
        "layers": sections.layers(report),
    }
    finished = [summary.label for summary in report.summaries if summary.last]
    return {
        **parts,
        "generator": GENERATOR,
        "title": _title(report),
        "headline": headline(report.summaries),
        "details": details(report.summaries),
        "facts": _facts(report),
        "columns": method_table.COLUMNS,
        "sorted": method_table.SORTED,
        "rows": method_table.table_rows(report),
        "teacher": method_table.teacher_cells(report),
        "notes": method_table.notes(report),
        "failures": [(s.label, *item) for s in report.summaries for item in s.failed.items()],
        "looks": known,
        "finished": {label: known[label] for label in finished},
        "shown": shown,
        "dashes": DASHES,
        "teacher_look": TEACHER,
        "taught": report.gathered.recipe.teacher is not None,
        "differences": report.examined.differences,
        "differences_text": _of_differences(report.examined.differences),
        "commands": [shlex.join(command) for command in report.gathered.commands],
        "environment": _machine(report),
        "recipe": _recipe(report),
        "method_settings": [(m.label, _yaml(m.settings)) for m in report.gathered.methods],
        "footer": f"Made by dskd {__version__} on {date.today().isoformat()}. The same numbers: "
        f"{name}.csv, {name}.json and {name}.tex.",
        "css": _text("page.css"),
        "js": _text("page.js"),
        "plotly": get_plotlyjs(),
        "figures": _figures(parts.values()),
    }


def _figures(parts: Any) -> dict[str, Any]:
    """Every chart as plain values, by the id of its element."""
    return {
        chart.id: json.loads(chart.figure.to_json())
        for part in parts
        if isinstance(part, Section)
        for group in part.groups
        for chart in group.charts
    }


def _title(report: Report) -> str:
    recipe = report.gathered.recipe
    taught = f" taught by {recipe.teacher.name}" if recipe.teacher else ""
    return printable(f"{recipe.student.name}{taught}, on {recipe.data.name}")


def _facts(report: Report) -> list[tuple[str, str]]:
    recipe = report.gathered.recipe
    seeds = sorted({seed for summary in report.summaries for seed in summary.seeds})
    facts = [
        ("methods", str(len(report.summaries))),
        ("seeds", ", ".join(map(str, seeds)) or "none yet"),
        ("epochs", str(recipe.train.epochs)),
        ("test images", f"{report.images:,}"),
    ]
    accuracies = report.teacher_accuracies()
    if accuracies:
        facts.append(("teacher's accuracy", f"{method_table.span(accuracies, '.2f')} %"))
    return facts


def _of_differences(found: Differences | Missing) -> str:
    if isinstance(found, Missing):
        return ""
    who = f"{found.label}, seed {found.seed}, and its teacher"
    if not found.count:
        return f"{who} give each of the {found.images:,} test images the same class."
    neither = found.count - found.teacher_right - found.student_right
    share = 100 * found.count / found.images
    more = f" The {len(found.pairs)} most frequent of {found.kinds} pairs of classes:"
    return (
        f"{who} give {found.count:,} of the {found.images:,} test images ({share:.1f} %) "
        f"different classes. The teacher is right in {found.teacher_right:,} of them, the student "
        f"in {found.student_right:,}, neither in {neither:,}."
        + (more if found.kinds > len(found.pairs) else "")
    )


def _machine(report: Report) -> list[tuple[str, str]]:
    environment = report.gathered.environment
    plain = ("device", "processor", "cores", "threads", "python", "platform")
    found = [(key, str(environment[key])) for key in plain if environment[key]]
    return [*found, *((name, version) for name, version in environment["packages"].items())]


def _recipe(report: Report) -> str:
    plain = report.gathered.recipe.plain()
    return _yaml({key: plain[key] for key in SHARED})


def _yaml(values: Mapping[str, Any]) -> str:
    return str(yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)).rstrip()
