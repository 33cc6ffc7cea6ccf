"""Untrusted files: no code in them runs, and no file is written where it should not be."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.faults import (
    archives,
    commands,
    datasets,
    image_files,
    json_files,
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
    datasets,
    image_files,
    json_files,
    links,
    method_settings,
    named_code,
    pickles,
    recipes,
    texts,
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch and Pillow, on damaged files
@pytest.mark.parametrize(
    ("family", "case"),
    [
        pytest.param(
            *(family, case),
            id=f"{family.FAMILY}: {name}",
        )
        for family in FAMILIES
        for name, case in family.cases(whole=False)
    ],
)
def test_an_untrusted_file_does_no_harm(family: Any, case: Any, tmp_path: Path) -> None:
    assert family.check(case, tmp_path)


@pytest.mark.parametrize("name", ["os system", "builtins exec", "subprocess getoutput"])
def test_pickle_would_run_the_payloads(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _, payload = dict(pickles.cases())[f"{name}, protocol 2"]
    pickle.loads(payload)
    assert (tmp_path / "mark").exists()
