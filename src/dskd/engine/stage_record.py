"""The stages that were chosen for the models of a run: shown, and kept in its folder."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import Any

from dskd.errors import InputError, option
from dskd.models.stage_table import table_lines
from dskd.models.staged_model import StagedModel
from dskd.runtime import distributed
from dskd.storage.json_file import read_json
from dskd.storage.run_directory import RunDirectory
from dskd.storage.run_files import STAGES

log = logging.getLogger("dskd")


def log_stages(name: str, model: StagedModel) -> None:
    """Logs the stages of a model as a table, if they were chosen for it."""
    if model.chosen_stages:
        lines = (f"\n  {line}" for line in table_lines(model.chosen_stages))
        log.info("%s: these stages are chosen%s", name, "".join(lines))


@distributed.on_rank_zero
def record_stages(
    directory: RunDirectory, student: StagedModel, teacher: StagedModel | None, resumes: bool
) -> None:
    """Writes the chosen stages of student and teacher into ``stages.json`` of a run.

    Args:
        directory: Of the run.
        student: Of the run.
        teacher: Of the run; None without one.
        resumes: Whether the run continues from a checkpoint.

    Raises:
        InputError: A run that continues had other stages, as another version of timm chose them.
    """
    models = {"student": student, "teacher": teacher}
    chosen = {
        what: [asdict(stage) for stage in model.chosen_stages]
        for what, model in models.items()
        if model is not None and model.chosen_stages
    }
    path = directory.path / STAGES
    if resumes and path.is_file():
        before = read_json(path, dict[str, list[dict[str, Any]]], f"remove {path}")
        for what, stages in before.items():
            there, here = (
                [row.get("name") for row in rows] for rows in (stages, chosen.get(what, []))
            )
            if there != here:
                raise InputError(
                    f"{directory.path} was started with the {what}'s stages {there}, and {here} "
                    "are chosen now; install the versions in its environment.json, or start again "
                    f"with {option('overwrite')}"
                )
    if chosen:
        directory.write_json(STAGES, chosen)
