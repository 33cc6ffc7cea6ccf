"""Reading the folder of a comparison."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dskd.compare.reader import read_comparison
from dskd.errors import InputError


def test_a_damaged_result_is_named_and_not_the_comparison(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "damaged"
    shutil.copytree(finished, out)
    (out / "kd/seed0/result.json").write_text("{")
    with pytest.raises(InputError, match=r"kd/seed0/result\.json is damaged.*remove .*kd/seed0"):
        read_comparison(out)
