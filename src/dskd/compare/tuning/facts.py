"""``study.json``: what a study is, so that no other one goes on in its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from dskd.compare.tuning.search import Search
from dskd.errors import InputError, option
from dskd.storage.atomic import is_part, replace_file
from dskd.storage.diff import differences
from dskd.storage.json_file import read_json
from dskd.storage.lock import LOCK, LOCK_PID

FACTS = "study.json"
"""Marks the folder of a study."""
BEST = "best.yaml"
"""The recipe of the best configuration."""
OWN_FILES = (FACTS, BEST, "trials.csv", "trials.json", LOCK_PID)
"""The files of the study itself, which a kill may leave half written."""
_LOADING = "or with another data.loading (memory or stream)"
_INPUTS = {
    "data": f"on other images {_LOADING}",
    "tested_data": f"with other test images {_LOADING}",
    "teacher": "with another teacher",
}
"""How a study differs if it has another fingerprint."""


class StudyFacts(BaseModel):
    """The file.

    Attributes:
        recipe: The recipe without its folder.
        space: The tuned settings, as the user wrote them.
        seeds: The seeds of each trial.
        data: Fingerprint of the images of trials.
        tested_data: Fingerprint of the images with the test split, which the best configuration
            reads; None if an earlier version wrote the file.
        teacher: Fingerprint of the teacher; None until there is one.
    """

    model_config = ConfigDict(extra="allow")

    recipe: dict[str, Any]
    space: dict[str, str]
    seeds: list[int]
    data: str | None = None
    tested_data: str | None = None
    teacher: str | None = None


def merged_facts(search: Search, inputs: Mapping[str, str]) -> dict[str, Any]:
    """The new content of the file: the study, merged into what is there.

    Args:
        search: The study.
        inputs: The fingerprints that are known: ``data``, ``tested_data`` and ``teacher``.

    Raises:
        InputError: The folder holds another study, one on other images or with another teacher, or
            other files.
    """
    path, fix = search.path, f"choose another folder with {option('out', 'FOLDER')}"
    own = {**_plain(search), **inputs}
    if not (path / FACTS).is_file():
        if path.is_dir() and any(map(_is_foreign, path.iterdir())):
            raise InputError(f"{path} holds other files; {fix}")
        return own
    wrong = "check the path, or tune anew in another folder"
    there = read_json(path / FACTS, StudyFacts, wrong).model_dump(mode="json")
    before, now = ({"space": one["space"], "seeds": one["seeds"]} for one in (there, own))
    found = [
        search.recipe.differences(there["recipe"], ignored=("out",)),
        differences(before, now),
    ]
    if listed := "; ".join(filter(None, found)):
        raise InputError(f"{path} holds another study: {listed}; {fix}")
    for key, fingerprint in inputs.items():
        if there[key] not in (None, fingerprint):
            raise InputError(f"{path} holds a study {_INPUTS[key]}; give the same, or {fix}")
    return there | own


def write_facts(path: Path, facts: Mapping[str, Any]) -> None:
    """Writes the file into the folder of a study."""
    replace_file(path / FACTS, (json.dumps(facts, indent=2) + "\n").encode())


def _plain(search: Search) -> dict[str, Any]:
    recipe = search.recipe.plain()
    del recipe["out"]
    space = {one.key: one.text for one in search.space}
    return {"recipe": recipe, "space": space, "seeds": list(search.seeds)}


def _is_foreign(path: Path) -> bool:
    """Whether a file is neither a lock nor left by a study that was killed."""
    return path.name not in (LOCK, LOCK_PID) and not is_part(path.name, OWN_FILES)
