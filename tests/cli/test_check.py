"""The command ``check``: a page, JSON, and an exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dskd.cli import commands as cli
from dskd.engine.check import steps

DIGITS = ["digits", "data.fraction=0.1", "train.batch_size=64"]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[object, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        cli.main(["check", *arguments])
    return stopped.value.code, *capsys.readouterr()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(steps, "STEPS", 3)


@pytest.mark.slow
def test_the_page_shows_the_findings_and_nothing_is_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, _ = run(capsys, *DIGITS, "--json", "found.json")
    assert code == 0
    for text in (
        "training     130  13  13",
        "teacher                       resnet20: it is trained first",
        "student      3  layer3  64x2x2",
        "gradient at layer1",
        "images/s",
        "time of the run",
        "disk, run",
        "the run can be started",
    ):
        assert text in out
    assert [path.name for path in tmp_path.iterdir()] == ["found.json"]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["ok"] is True
    assert [split["images"] for split in found["data"]["splits"]] == [130, 500]
    shapes = [(stage["name"], stage["channels"]) for stage in found["stages"]["student"]]
    assert shapes == [("layer1", 16), ("layer2", 32), ("layer3", 64)]
    assert {*found["steps"][1]["shares"]} == {"loading", "teacher", "student"}


def test_reasons_end_with_one_and_json_alone_goes_to_stdout(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "STEPS", steps.GROWTH_STEPS)  # from which on growth counts
    code, out, err = run(capsys, *DIGITS, "method.name=ce", "train.lr=1e5", "--json", "-")
    found = json.loads(out)
    assert (code, found["ok"]) == (1, False)
    assert f"dskd: {found['reasons'][0]}\n" in err


def test_bad_input_ends_with_two(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "digits", "student.name=resnet9")
    assert (code, out) == (2, "")
    assert "resnet9" in err


def test_a_missing_folder_is_told_before_the_check(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, *DIGITS, "--json", "missing/found.json")
    assert (code, out) == (2, "")
    assert "there is no folder missing; create it first" in err
