"""Files of strangers: nothing in them runs, and nothing is written where it should not be."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.faults import (
    archives,
    commands,
    data_sets,
    image_files,
    json_facts,
    links,
    method_settings,
    named_code,
    pickles,
    recipes,
    texts,
)

FAMILIES: tuple[ModuleType, ...] = (
    archives,
    commands,
    data_sets,
    json_facts,
    links,
    method_settings,
    named_code,
    pickles,
    image_files,
    recipes,
    texts,
)


@pytest.mark.filterwarnings("ignore")  # of torch and Pillow, on files that are no good
@pytest.mark.parametrize(
    ("family", "case"),
    [
        pytest.param(family, case, id=f"{family.FAMILY}: {name}")
        for family in FAMILIES
        for name, case in family.cases(whole=False)
    ],
)
def test_a_stranger_s_file_does_no_harm(family: Any, case: Any, tmp_path: Path) -> None:
    assert family.check(case, tmp_path)


@pytest.mark.parametrize("name", ["os system", "builtins exec", "subprocess getoutput"])
def test_the_payloads_would_run_elsewhere(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _, payload = dict(pickles.cases())[f"{name}, protocol 2"]
    pickle.loads(payload)
    assert (tmp_path / "mark").exists()
