"""The script for a lent GPU keeps what it found, whatever becomes of its parts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gpu_aims
import on_gpu
import pytest
import torch
from gpu_bench import each


def test_a_part_that_breaks_or_hangs_is_recorded_and_the_next_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = "check: a bad objective"
    parts = {"check: nothing": (60, None), "check: slow": (0.05, None), bad: (120, None)}
    monkeypatch.setattr(on_gpu, "PARTS", parts)
    out = tmp_path / "results/gpu.json"
    monkeypatch.setattr(sys, "argv", ["on_gpu.py", "--small", "--out", str(out)])
    on_gpu.main()
    found = json.loads(out.read_text())["parts"]
    assert "invalid choice" in found["check: nothing"]["error"]
    assert "stopped after 0 seconds" in found["check: slow"]["error"]
    assert found[bad]["ok"] is True
    assert found[bad]["each"].keys() == {"plain", "recorded"}
    out.write_text(json.dumps({"parts": {name: {"ok": True} for name in parts}}))
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--continue"])
    on_gpu.main()
    assert json.loads(out.read_text())["parts"] == {name: {"ok": True} for name in parts}


def test_a_run_is_rehearsed_and_what_it_says_of_the_aims_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gpu.json"
    part = gpu_aims.KEPT_RUN
    monkeypatch.setattr(sys, "argv", ["on_gpu.py", "--small", "--only", part, "--out", str(out)])
    on_gpu.main()
    result = json.loads(out.read_text())
    found = result["parts"][part]
    assert result["rehearsal"] is True
    assert found["epochs"] == 3
    assert found["extrapolated"] is True
    assert found["teacher_cache_hit_rate"] == 1
    (aim,) = result["aims"]
    assert (aim["wanted"], aim["found"]) == (90, found["seconds"])
    said = capsys.readouterr().out
    assert "a rehearsal: no number of it means anything" in said
    assert said.splitlines()[-1] == gpu_aims.line(aim)
    assert said.rstrip().endswith("extrapolated")


def test_a_machine_without_a_gpu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["on_gpu.py"])
    with pytest.raises(SystemExit, match="2"):
        on_gpu.main()


def test_the_aims_are_read_off_the_parts() -> None:
    steps = {"kd, plain": {"seconds": 0.004}, "kd, recorded": {"seconds": 0.002}, "took": 9.0}
    parts = {
        gpu_aims.BFLOAT16: steps | {"dskd, recorded": {"seconds": 0.001}},
        gpu_aims.KEPT: {"ok": False, "error": "stopped"},
        gpu_aims.REFERENCE: {
            "ce, 2 workers": {"seconds": 0.001},
            "kd, 2 workers": {"seconds": 0.03},
            "kd, 8 workers, pinned": {"seconds": 0.008},
        },
        gpu_aims.EIGHT: {"eight kd": {"seconds": 0.08}, "eight plain": {"seconds": 0.08}},
        gpu_aims.ONLINE_RUN: {"seconds": 151.0, "extrapolated": False},
    }
    rows = gpu_aims.reached(parts)
    assert [(row["wanted"], row["found"], row["holds"]) for row in rows] == [
        (10, pytest.approx(15), True),
        (5, pytest.approx(4), False),
        (150, 151, False),
        (1, 1, True),
    ]
    assert not any(row["extrapolated"] for row in rows)


def test_what_fails_in_a_check_is_named() -> None:
    def check(name: str) -> dict[str, Any]:
        if name == "broken":
            raise ValueError("said so")
        return {"ok": name == "good"}

    found = each(["good", "bad", "broken"], check)
    assert found["ok"] is False
    assert "said so" in found["each"]["broken"]["error"]
    assert on_gpu.verdict(found).endswith(": bad, broken")
    assert on_gpu.verdict({"took": 3.0}) == "done, 3.0 s"
