"""The study on images without labels: its runs, and its page from their numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from evidence.unlabelled import GROUPS, RECIPE, main, page

from dskd.config.recipe import load, load_by_labels
from dskd.config.schema import Recipe
from tests.data.file_writers import write_folder


def test_the_page_compares_each_student_with_the_one_without_images_without_labels() -> None:
    accuracies: dict[str, dict[str, list[float | None]]] = {
        group.name: {method: [50.0, 51.0, 52.0] for method in group.methods} for group in GROUPS
    }
    accuracies["few-unlabelled"]["kd"] = [55.0, 56.1, 57.0]
    accuracies["all"]["dskd"][0] = None
    environment = {"packages": {}, "processor": "", "device": "cpu", "threads": 1, "python": "3"}
    facts = {
        "study": "unlabelled",
        "command": "make",
        "changes": [],
        "commit": "0",
        "date": "",
        "environment": environment,
        "teachers": {"few": 60.0, "all": 80.0},
        "accuracies": accuracies,
    }
    text = page(facts)
    (better,) = (line for line in text.splitlines() if "| better |" in line)
    assert "`kd` | 51.0 ± 2.5 | 56.0 ± 2.5 | +5.0 ± 0.1 | < 0.001 |" in better
    assert "a tenth of all | 60.0 |" in better
    assert "| `dskd` | 51.5 ± 6.4 (1 failed) |" in text
    assert text.count("not significant (p = 1.000)") == 3


@pytest.mark.slow
def test_the_study_goes_on_where_it_was_and_writes_its_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = write_folder(tmp_path / "photos", per_class=12, side=16) / "train"
    small = ["data.size=16", "train.epochs=1", "train.warmup=0", "data.fraction=0.5"]
    small += ["student.name=resnet8", "teacher.name=resnet8"]
    named: list[str] = []

    def with_small_network(path: str, changes: Sequence[str]) -> Recipe:
        named.extend(change for change in changes if change.startswith("student.name=timm"))
        own = [change for change in changes if not change.startswith("teacher.")]
        return load_by_labels(path, [*own, "student.name=resnet8"])

    monkeypatch.setattr("evidence.unlabelled.load_by_labels", with_small_network)
    monkeypatch.setattr(
        "evidence.unlabelled.GROUPS", [one for one in GROUPS if one.teacher != "all"]
    )
    monkeypatch.setattr("evidence.unlabelled.page", lambda facts: json.dumps(facts))
    paths = [str(photos), str(tmp_path / "out")]
    for _ in range(2):
        main([*paths, *small, "--seeds=1", f"--results={tmp_path / 'results'}"])
        facts = json.loads((tmp_path / "results/unlabelled.json").read_text())
        assert facts["accuracies"].keys() == {"labels", "few", "few-unlabelled"}
        assert facts["accuracies"]["few-unlabelled"].keys() == {"kd", "dskd"}
        runs = list((tmp_path / "out/unlabelled").rglob("result.json"))
        stamps = [path.stat().st_mtime_ns for path in runs]
    assert len(runs) == 7
    teacher = load(RECIPE, [f"data.root={photos}"]).teacher
    assert teacher is not None
    assert {*named} == {f"student.name={teacher.name}"}
    assert stamps == [path.stat().st_mtime_ns for path in runs]
    with pytest.raises(SystemExit):
        main([*paths, *small, "train.lr=0.01", "--seeds=1"])
    assert "was started with another recipe: train.lr" in capsys.readouterr().err
