"""The script for a lent GPU keeps what it found, whatever becomes of its parts."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("on_gpu")


def test_a_part_that_breaks_or_hangs_is_recorded_and_the_next_one_runs(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = "check: a bad objective"
    parts = {"check: nothing": (60, None), "check: slow": (1, None), bad: (120, None)}
    monkeypatch.setattr(script, "PARTS", parts)
    out = tmp_path / "results/gpu.json"
    monkeypatch.setattr(sys, "argv", ["on_gpu.py", "--small", "--out", str(out)])
    script.main()
    found = json.loads(out.read_text())["parts"]
    assert "invalid choice" in found["check: nothing"]["error"]
    assert "stopped after 4 seconds" in found["check: slow"]["error"]
    assert found[bad]["ok"] is True
    assert found[bad]["each"].keys() == {"plain", "recorded"}
    out.write_text(json.dumps({"parts": {name: {"ok": True} for name in parts}}))
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--continue"])
    script.main()
    assert json.loads(out.read_text())["parts"] == {name: {"ok": True} for name in parts}


def test_what_fails_in_a_check_is_named(script: Any) -> None:
    def check(name: str) -> dict[str, Any]:
        if name == "broken":
            raise ValueError("said so")
        return {"ok": name == "good"}

    found = script.each(["good", "bad", "broken"], check)
    assert found["ok"] is False
    assert "said so" in found["each"]["broken"]["error"]
    assert script.verdict(found).endswith(": bad, broken")
    assert script.verdict({"took": 3.0}) == "done, 3.0 s"
