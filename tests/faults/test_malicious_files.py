"""Untrusted files: no code in them runs, and no file is written where it should not be."""

from __future__ import annotations

import pickle
import traceback
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


@pytest.mark.slow(seconds=5)
@pytest.mark.filterwarnings("ignore")  # of torch and Pillow, on damaged files
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.FAMILY)
def test_untrusted_files_do_no_harm(family: Any, tmp_path: Path) -> None:
    """All cases of a family in one test: thousands of tests would take longer than the cases."""
    failures = []
    for number, (name, case) in enumerate(family.cases(whole=False)):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        try:
            assert family.check(case, folder), "there is no outcome"
        except (Exception, pytest.fail.Exception):
            failures.append(f"{name}: {traceback.format_exc()}")
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("name", ["os system", "builtins exec", "subprocess getoutput"])
def test_pickle_would_run_the_payloads(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _, payload = dict(pickles.cases())[f"{name}, protocol 2"]
    pickle.loads(payload)
    assert (tmp_path / "mark").exists()
