"""START HERE: writes the report of finished runs, in three stages: collect, analyze, write."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dskd.engine.user_objects import UserObjects
from dskd.errors import InputError, option
from dskd.report.analysis import main_method
from dskd.report.beside import read_beside
from dskd.report.collect import CollectedRuns, collect
from dskd.report.contents import ReportContents, make_contents
from dskd.report.html_page import GENERATOR, render
from dskd.report.tables import as_csv, as_json, as_latex, method_rows
from dskd.report.task import ReportedData
from dskd.settings import validate
from dskd.storage.atomic import check_writable, replace_file
from dskd.storage.metric_names import in_text
from dskd.storage.paths import as_path, one_or_more
from dskd.storage.run_files import REPORT

log = logging.getLogger("dskd")
_TABLES = (".csv", ".json", ".tex")


def make_report(
    paths: str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    *,
    root: str | Path | None = None,
    given: UserObjects | None = None,
    task: str | None = None,
    beside: str | Path | Sequence[str | Path] = (),
) -> tuple[Path, ...]:
    """Writes the report of finished runs. The runs are only read.

    Args:
        paths: The folders of runs, or the folder of one comparison or run.
        out: The HTML page. Tables of the same name are written next to it: ``.csv``, ``.json`` and
            ``.tex``. None takes ``report.html`` in the folder of the run or of the comparison, or
            in the folder that holds all of the runs.
        root: The folder of the data set, if it is not where the recipe says.
        given: Objects in place of names, for runs that were given some.
        task: The task that the runs must have, as in ``graphs``; None for any.
        beside: The folders of finished runs of other students on the same images. They are shown
            beside the early exits of the reported runs.

    Returns:
        The files: the page, then the tables.

    Raises:
        InputError: The runs are missing or do not share one recipe, no exits are there to show a
            run beside, data cannot be loaded, or a file would be replaced that is no report of
            these runs.
    """
    given = given or UserObjects()
    folders = [as_path(path, "run") for path in one_or_more(paths)]
    collected = collect(folders, task)
    others = read_beside(
        [as_path(path, "beside") for path in one_or_more(beside)], collected, given
    )
    collected = replace(collected, beside=others)
    page = as_path(out, "out") if out is not None else _shared_folder(folders) / REPORT[0]
    runs = _identity(folders, page)
    _check_files(page, runs)
    samples = collected.task.samples
    log.info("loading the %s", "images" if samples == "images" else "graphs")
    first = next(iter(collected.finished), folders[0])
    data = collected.task.load(_data_recipe(collected, root), first, given)
    _warn_of_other_data(collected, data)
    contents = make_contents(collected, data, given)
    files = {page: render(contents, page.stem, runs), **_tables(contents, page)}
    if page.exists():
        log.info("replacing the report that these runs have in %s", page)
    for path, text in files.items():
        # Names of folders need not be valid text.
        replace_file(path, text.encode("utf-8", "backslashreplace"))
    return tuple(files)


def _tables(contents: ReportContents, page: Path) -> dict[Path, str]:
    """The tables beside the page, by their files."""
    collected = contents.collected
    tables = {
        ".csv": as_csv(method_rows(contents)),
        ".json": as_json(contents),
        ".tex": as_latex(
            contents.summaries,
            contents.costs,
            contents.test_images,
            collected.task.baseline,
            own_splits=contents.own_splits,
            best_chosen_on=[result["best_chosen_on"] for result in contents.results()],
        ),
    }
    samples, names = collected.task.samples, collected.names
    return {
        page.with_suffix(suffix): in_text(text, contents.metric, samples, names)
        for suffix, text in tables.items()
    }


def _data_recipe(collected: CollectedRuns, root: str | Path | None) -> Any:
    """The recipe of the data: in another folder if one is given, and of the run that is shown."""
    recipe = collected.recipe
    if root is not None:
        plain = {**recipe.data.model_dump(), "root": root}
        recipe = recipe.changed(data=validate(type(recipe.data), plain, "data."))
    main = main_method(collected)  # whose seed the data may depend on
    return recipe if main is None else recipe.changed(seed=min(main.folders))


def _warn_of_other_data(collected: CollectedRuns, data: ReportedData) -> None:
    """Says if the data is not what the shown run was trained and tested on."""
    main = main_method(collected)
    if main is None:
        return
    seed = min(main.folders)
    known = main.variant.results[seed]["fingerprints"].get("data")
    if known is not None and known != data.fingerprint():
        log.warning(
            "the data is not that of %s: something was added, removed or changed, or data.loading "
            "differs. Accuracies are those of the runs; all that is measured now, such as mistakes "
            "and sampling errors, is of the data as it is",
            main.folders[seed],
        )


def _shared_folder(folders: Sequence[Path]) -> Path:
    """The folder that is given, or that holds all of those."""
    if len(folders) == 1:
        return folders[0]
    shared = Path(os.path.commonpath([folder.resolve() for folder in folders]))
    here = Path.cwd()
    return shared.relative_to(here) if shared.is_relative_to(here) else shared


def _identity(folders: Sequence[Path], page: Path) -> str:
    """What tells the report of these runs from others, also after all of them were moved."""
    start = page.resolve().parent
    places = sorted(os.path.relpath(folder.resolve(), start) for folder in folders)
    return hashlib.sha256(json.dumps(places).encode()).hexdigest()[:16]


def _check_files(page: Path, runs: str) -> None:
    """Checks, before any work, that only a report of the same runs is replaced.

    Raises:
        InputError: The folder is missing, or another file has one of the names.
    """
    another = f"choose another name with {option('out', 'PAGE.html')}"
    if page.suffix != ".html":
        raise InputError(f"the page {page} must end in .html; {another}")
    if not page.parent.is_dir():
        raise InputError(f"there is no folder {page.parent}; make it first")
    check_writable(page.parent.absolute(), option("out", "PAGE.html"))
    text = page.read_text("utf-8", "replace") if page.is_file() else ""
    if f'content="{GENERATOR}"' in text:
        if f'name="dskd-runs" content="{runs}"' not in text:
            raise InputError(f"{page} is the report of other runs; remove it, or {another}")
        return
    for path in (page, *(page.with_suffix(suffix) for suffix in _TABLES)):
        if path.exists():
            raise InputError(f"{path} exists and is not part of a report; {another}")
