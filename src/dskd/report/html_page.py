"""Stage 3 of a report: the page, one HTML file with texts, tables and charts."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from datetime import date
from functools import cache
from importlib import resources
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined, Template
from markupsafe import escape
from plotly.offline import get_plotlyjs

from dskd.compare.notes import span
from dskd.errors import printable
from dskd.report import exit_section, method_table, one_run, sections
from dskd.report.analysis import Unavailable
from dskd.report.conclusions import details, headline
from dskd.report.contents import SHARED, ReportContents
from dskd.report.disagreements import Disagreements, from_class_folder
from dskd.report.environments import shown_facts
from dskd.report.sections import Section
from dskd.report.styles import DASHES, TEACHER, Style, styles_of
from dskd.storage.metric_names import in_text
from dskd.version import __version__

GENERATOR = "dskd report"
_PLOTLY = "<plotly>"  # no name of anybody has it, since all names are escaped
_MINUS = re.compile(r"(?<![\w.)=])-(?=\d)")


def render(report: ReportContents, name: str, runs: str) -> str:
    """Renders the page. It is self-contained: it loads no other files.

    Args:
        report: The contents.
        name: The name of the file without its ending, which those of the tables share.
        runs: Identifies the runs; it is kept in the page.
    """
    page = _template().render(_context(report, name), runs=runs)
    kept = [text for name in report.collected.names for text in (str(escape(name)), name)]
    page = in_text(page, report.metric, report.collected.task.samples, kept)
    return page.replace(_PLOTLY, get_plotlyjs())  # whose code is no text


@cache
def _template() -> Template:
    # Everything is escaped, since names of classes, methods and folders may be anybody's.
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["typographic"] = typographic
    environment.filters["from_class_folder"] = from_class_folder
    environment.tests["unavailable"] = lambda part: isinstance(part, Unavailable)
    return environment.from_string(_text("page.html"))


def typographic(text: str) -> str:
    r"""Sets minus signs, and keeps means and intervals on one line.

    Example:
        >>> typographic("-1.2 ± 0.4, dskd:tau=-1, 3-4")
        '−1.2\xa0±\xa00.4, dskd:tau=-1, 3-4'
    """
    return _MINUS.sub("−", text).replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")


def _text(name: str) -> str:
    return (resources.files("dskd.report") / name).read_text("utf-8")


def _context(report: ReportContents, name: str) -> dict[str, Any]:
    """The variables of the template."""
    shown = sections.shown_first(report)
    # The methods that are shown at first come first, so that few of them share a colour.
    styles = styles_of(dict.fromkeys([*shown, *(s.label for s in report.summaries)]))
    parts = _parts(report, styles)
    baseline, analysis = report.collected.task.baseline, report.analysis
    exits = analysis.exits
    finished = [summary.label for summary in report.summaries if summary.test_accuracy]
    return {
        **parts,
        "exit_tables": exit_section.tables(exits),
        "generator": GENERATOR,
        "title": _title(report),
        "headline": headline(report.summaries, baseline),
        "details": details(report.summaries, baseline),
        "facts": _facts(report),
        "columns": method_table.columns_shown(report),
        "key": method_table.key(report),
        "has_band": any(one.sampling_error for one in report.summaries),
        "several_seeds": any(len(one.seeds) > 1 for one in report.summaries),
        "name": name,
        "sorted_by": method_table.SORTED_BY,
        "rows": method_table.table_rows(report),
        "teacher": method_table.teacher_cells(report),
        "notes": method_table.notes(report),
        "failures": [(s.label, *item) for s in report.summaries for item in s.failed.items()],
        "styles": styles,
        "finished": {label: styles[label] for label in finished},
        "shown": shown,
        "dashes": DASHES,
        "teacher_style": TEACHER,
        "has_teacher": report.collected.recipe.teacher is not None,
        "samples": report.collected.task.samples,
        "disagreements": analysis.disagreements,
        "disagreements_text": _disagreements_text(analysis.disagreements),
        "mistakes": analysis.mistakes,
        "class_scores": analysis.class_scores,
        "drawn": analysis.drawings,
        "commands": [shlex.join(command) for command in report.collected.commands],
        "environment": shown_facts(report.collected.environments),
        "recipe": _recipe(report),
        "method_settings": [(m.label, _yaml(m.settings)) for m in report.collected.methods],
        "footer": f"Made by dskd {__version__} on {date.today().isoformat()}. The same numbers are "
        f"in {name}.csv, {name}.json and {name}.tex.",
        "css": _text("page.css"),
        "js": _text("page.js"),
        "plotly": _PLOTLY,
        "figures": _figures(parts.values()),
    }


def _parts(
    report: ReportContents, styles: Mapping[str, Style]
) -> dict[str, Section | Unavailable | None]:
    """The sections with texts and charts; None for those that the task does not have."""
    exits = report.analysis.exits
    stages: Section | Unavailable | None = sections.stages(report, styles)
    if report.collected.task.name and isinstance(stages, Unavailable):
        stages = None  # most methods of other tasks have none
    return {
        "epochs": sections.epochs(report, styles),
        "cost": sections.cost(report, styles),
        "stages": stages,
        "layers": sections.layers(report),
        "training": one_run.training(report, styles),
        "errors": one_run.errors(report),
        "classes": one_run.classes(report),
        "drawings": one_run.drawings(report),
        "exits": None if exits is None else exit_section.section(exits, styles),
    }


def _figures(parts: Any) -> dict[str, Any]:
    """Every chart as plain values by the id of its HTML element."""
    return {
        chart.id: json.loads(chart.figure.to_json())
        for part in parts
        if isinstance(part, Section)
        for group in part.groups
        for chart in group.charts
    }


def _title(report: ReportContents) -> str:
    recipe = report.collected.recipe
    teacher = f" distilled from {recipe.teacher.name}" if recipe.teacher else ""
    return printable(f"{recipe.student.name}{teacher}, on {recipe.data.title}")


def _facts(report: ReportContents) -> list[tuple[str, str]]:
    recipe = report.collected.recipe
    seeds = sorted({seed for summary in report.summaries for seed in summary.seeds})
    facts = [
        ("methods", str(len(report.summaries)))
        if len(report.summaries) != 1
        else ("method", report.summaries[0].label),
        ("seeds" if len(seeds) != 1 else "seed", ", ".join(map(str, seeds)) or "none yet"),
        ("epochs", str(recipe.train.epochs)),
        (f"test {report.collected.task.samples}", f"{report.test_images:,}"),
    ]
    accuracies = report.teacher_accuracies()
    if accuracies:
        facts.append(("teacher accuracy", f"{span(accuracies, '.2f')} %"))
    return facts


def _disagreements_text(found: Disagreements | Unavailable | None) -> str:
    if found is None or isinstance(found, Unavailable):
        return ""
    models = f"{found.label}, seed {found.seed}, and its teacher"
    if not found.count:
        return f"{models} predict the same class for each of the {found.test_images:,} test images."
    share = 100 * found.count / found.test_images
    shown = f" The {len(found.pairs)} most frequent of {found.num_pairs} pairs of classes:"
    text = (
        f"{models} predict different classes for {found.count:,} of the {found.test_images:,} test "
        f"images ({share:.1f} %)."
    )
    if found.teacher_right is not None and found.student_right is not None:
        neither = found.count - found.teacher_right - found.student_right
        text += (
            f" The teacher is right on {found.teacher_right:,} of them, the student on "
            f"{found.student_right:,}, neither on {neither:,}."
        )
    return text + (shown if found.num_pairs > len(found.pairs) else "")


def _recipe(report: ReportContents) -> str:
    plain = report.collected.recipe.plain()
    return _yaml({key: plain[key] for key in SHARED})


def _yaml(values: Mapping[str, Any]) -> str:
    return str(yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)).rstrip()
