"""START HERE: from run folders to a page, and its numbers as CSV, JSON and LaTeX."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from dskd.config.schema import DataSettings
from dskd.engine.build import UserObjects, load_data
from dskd.errors import InputError
from dskd.report.collect import collect
from dskd.report.contents import make_content, record, rows
from dskd.report.html_page import GENERATOR, render
from dskd.report.tables import as_csv, as_latex
from dskd.settings import validate
from dskd.storage.atomic import replace_file

log = logging.getLogger("dskd")
_BESIDE = (".csv", ".json", ".tex")


def make_report(
    paths: Sequence[Path],
    output: Path = Path("report.html"),
    *,
    root: Path | None = None,
    given: UserObjects | None = None,
) -> Path:
    """Writes the report of finished runs; the runs are only read.

    Args:
        paths: The folders of runs, or the folder of one comparison.
        output: The page; ``.csv``, ``.json`` and ``.tex`` of the same name are written beside it.
        root: Where the data set lies, if not where the recipe says.
        given: Objects in place of names, for runs that were given some.

    Returns:
        The page.

    Raises:
        InputError: The runs are not there or not of one recipe, their images are not to be had,
            or a file would be replaced that is not a report's.
    """
    given = given or UserObjects()
    gathered = collect(paths)
    _check_output(output)
    settings = gathered.recipe.data
    if root is not None:
        settings = validate(DataSettings, {**settings.model_dump(), "root": root}, "data.")
    log.info("reading the images")
    report = make_content(gathered, load_data(settings, given.data), given)
    files = {
        ".html": render(report, output.stem),
        ".csv": as_csv(rows(report)),
        ".json": json.dumps(record(report), indent=1) + "\n",
        ".tex": as_latex(report.summaries, report.costs, report.images),
    }
    for suffix, text in files.items():
        # Names of folders need be no text.
        replace_file(output.with_suffix(suffix), text.encode("utf-8", "backslashreplace"))
    return output


def _check_output(output: Path) -> None:
    """Refuses to replace what no report wrote, before any work.

    Raises:
        InputError: The folder is missing, or a file is in the way.
    """
    if output.suffix != ".html":
        raise InputError(f"the page {output} is to end in .html; write --output report.html")
    if not output.parent.is_dir():
        raise InputError(f"there is no folder {output.parent}; make it first")
    if output.is_file() and f'content="{GENERATOR}"' in output.read_text("utf-8", "replace"):
        return
    for path in (output, *(output.with_suffix(suffix) for suffix in _BESIDE)):
        if path.exists():
            raise InputError(
                f"{path} is there and no report wrote it; choose another name with --output"
            )
