"""The script for a GPU, rehearsed on the CPU."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from on_gpu import main

from tests import processes


@pytest.mark.slow(seconds=32)
def test_all_checks_pass_and_all_cases_are_measured_in_small(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    # This process only starts others, which are interpreters that find the package by themselves.
    code = f"import on_gpu, sys; sys.exit(on_gpu.main(['--small', '--out', {str(out)!r}]))"
    done = processes.run(["-c", code], folder=tmp_path, environment=environment)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert result["rehearsal"]
    assert result["entries"]["environment"]["device"] == "cpu"
    for name, entry in result["entries"].items():
        assert entry["status"] == ("passed" if name.startswith("check") else "measured"), entry
        assert all(row["n"] == 2 for row in entry.get("rows", {}).values()), entry
    cases = {case for entry in result["entries"].values() for case in entry.get("rows", {})}
    assert cases == {"reference-kd, 2 workers"} | {
        f"{method}{kind}"
        for method in ("kd", "dskd")
        for kind in ("", ", cached", ", compiled", ", cached, compiled")
    }


def test_without_a_gpu_it_says_so_in_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    assert "torch sees no GPU here; rehearse with --small" in capsys.readouterr().err
