"""START HERE: writes the report of finished runs, in three stages: collect, analyze, write."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from dskd.config.schema import DataSettings
from dskd.engine.build_data import load_data
from dskd.engine.user_objects import UserObjects
from dskd.errors import InputError, option
from dskd.report.collect import collect
from dskd.report.contents import make_contents
from dskd.report.html_page import GENERATOR, render
from dskd.report.tables import as_csv, as_json, as_latex, method_rows
from dskd.settings import validate
from dskd.storage.atomic import check_writable, replace_file
from dskd.storage.paths import as_path

log = logging.getLogger("dskd")
_TABLES = (".csv", ".json", ".tex")


def make_report(
    paths: Sequence[str | Path],
    output: str | Path = Path("report.html"),
    *,
    root: str | Path | None = None,
    given: UserObjects | None = None,
) -> Path:
    """Writes the report of finished runs. The runs are only read.

    Args:
        paths: The folders of runs, or the folder of one comparison.
        output: The HTML page. Files of the same name are written next to it: ``.csv``, ``.json``
            and ``.tex``.
        root: The folder of the data set, if it is not where the recipe says.
        given: Objects in place of names, for runs that were given some.

    Returns:
        The path of the page.

    Raises:
        InputError: The runs are missing or do not share one recipe, their images cannot be loaded,
            or a file would be replaced that is not a report.
    """
    given = given or UserObjects()
    output = as_path(output, "output")
    collected = collect([as_path(path, "run") for path in paths])
    _check_output(output)
    settings = collected.recipe.data
    if root is not None:
        settings = validate(DataSettings, {**settings.model_dump(), "root": root}, "data.")
    log.info("loading the images")
    contents = make_contents(collected, load_data(settings, given.data), given)
    files = {
        ".html": render(contents, output.stem),
        ".csv": as_csv(method_rows(contents)),
        ".json": as_json(contents),
        ".tex": as_latex(contents.summaries, contents.costs, contents.test_images),
    }
    for suffix, text in files.items():
        # Names of folders need not be valid text.
        replace_file(output.with_suffix(suffix), text.encode("utf-8", "backslashreplace"))
    return output


def _check_output(output: Path) -> None:
    """Checks, before any work, that only reports are replaced.

    Raises:
        InputError: The folder is missing, or another file has one of the names.
    """
    if output.suffix != ".html":
        raise InputError(
            f"the page {output} must end in .html; write {option('output', 'report.html')}"
        )
    if not output.parent.is_dir():
        raise InputError(f"there is no folder {output.parent}; make it first")
    check_writable(output.parent.absolute(), option("output", "PAGE.html"))
    if output.is_file() and f'content="{GENERATOR}"' in output.read_text("utf-8", "replace"):
        return
    for path in (output, *(output.with_suffix(suffix) for suffix in _TABLES)):
        if path.exists():
            raise InputError(
                f"{path} exists and is not part of a report; choose another name with "
                f"{option('output', 'PAGE.html')}"
            )
