"""The evidence: the protocol's sets, studies whose labels exist, and pages of unfinished work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import evidence.study as studies
import pytest
from evidence.page import page, verdict
from evidence.prepare import classes_of, prepare
from PIL import Image

from dskd.compare.grid import load_plan
from dskd.compare.summary import Entry, summarize
from dskd.errors import InputError

NAMES = ("ablation", "table", "mini")


def published(folder: Path, classes: list[str], pictures: int = 10) -> Path:
    """A few pictures in TinyImageNet's published form."""
    root = folder / "tiny-imagenet-200"
    lines = []
    for number, wnid in enumerate(classes):
        images = root / "train" / wnid / "images"
        images.mkdir(parents=True)
        for index in range(pictures):
            Image.new("RGB", (64, 64), (40 * number, 3 * index, 9)).save(
                images / f"{wnid}_{index}.JPEG"
            )
        lines.append(f"val_{number}.JPEG\t{wnid}\t0\t0\t63\t63\n")
    (root / "val/images").mkdir(parents=True)
    for number, _ in enumerate(classes):
        Image.new("RGB", (64, 64), (9, 9, number)).save(root / f"val/images/val_{number}.JPEG")
    (root / "val/val_annotations.txt").write_text("".join(lines))
    return folder


def test_a_fifth_is_held_out_and_judged_beside_the_validation_pictures(tmp_path: Path) -> None:
    classes = ["n01", "n02", "n03"]
    folder = prepare(published(tmp_path / "data", classes), "final", tmp_path / "sets", classes)
    for wnid in classes:
        train = {path.name for path in (folder / "train" / wnid).iterdir()}
        test = {path.name for path in (folder / "val" / wnid).iterdir()}
        assert train == {f"{wnid}_{index}.JPEG" for index in (1, 2, 3, 4, 6, 7, 8, 9)}
        held = {f"{wnid}_0.JPEG", f"{wnid}_5.JPEG"}
        assert test == held | {f"val_{classes.index(wnid)}.JPEG"}


def test_a_set_whose_classes_are_not_there_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    data = published(tmp_path / "data", ["n01"])
    with pytest.raises(InputError, match="lacks 20 classes of the set final"):
        prepare(data, "final", tmp_path / "sets")
    assert not (tmp_path / "sets").exists()


def test_the_sets_share_no_class() -> None:
    assert len(classes_of("tuning")) == len(classes_of("final")) == 20
    assert not set(classes_of("tuning")) & set(classes_of("final"))


@pytest.mark.parametrize("name", NAMES)
def test_every_label_of_a_study_is_a_method_with_settings_that_it_has(
    name: str, tmp_path: Path
) -> None:
    study = studies.find(name)
    changes = [f"teacher.name={study.teacher}", f"data.root={tmp_path}", *study.changes]
    plan = load_plan(studies.RECIPE, changes, study.labels, tmp_path / "out", seeds=study.seeds)
    labels = [contender.label for contender in plan.contenders]
    assert study.baseline in labels
    assert len(labels) == {"ablation": 26, "table": 21, "mini": 5}[name]


def test_an_unknown_study_names_the_nearest() -> None:
    with pytest.raises(InputError, match="ablation"):
        studies.find("ablations")


def test_a_study_is_computed_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classes = ["n01", "n02"]
    data = published(tmp_path / "data", classes)
    monkeypatch.setattr("evidence.prepare.classes_of", lambda _: classes)
    study = studies.Study(
        "mini",
        "A study",
        "final",
        "resnet8",
        1,
        "kd",
        2,
        {"All": ["ce", "kd"]},
        ["train.epochs=1", "train.batch_size=8"],
    )
    comparison, teacher = studies.compare(study, data, tmp_path / "out", seeds=1)
    facts = studies.facts_of(study, comparison, teacher)
    studies.write(facts, tmp_path)
    text = (tmp_path / "mini.md").read_text()
    assert "**Not finished**: 2 of 4 runs are there." in text
    assert [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| `")] == [
        "`ce`",
        "`kd`",
    ]
    kept = json.loads((tmp_path / "mini.json").read_text())
    assert str(tmp_path) not in json.dumps(kept), "no path of this machine"
    assert page(kept) == page(facts)


def row(**changes: Any) -> dict[str, Any]:
    return {"gap": 1.0, "gap_half": 0.5, "p_holm": 0.01} | changes


def test_better_needs_an_interval_without_zero_and_a_small_adjusted_p() -> None:
    assert verdict(row()) == "better"
    assert verdict(row(gap=-1.0)) == "worse"
    assert verdict(row(gap_half=1.0)) == ""
    assert verdict(row(p_holm=0.05)) == ""
    assert verdict(row(gap=None, gap_half=None, p_holm=None)) == ""


def test_differences_can_refer_to_any_label() -> None:
    def entry(label: str, value: float) -> Entry:
        result = {"accuracy": value, "best_accuracy": value, "agreement": None} | dict.fromkeys(
            ("parameters", "extra_parameters", "seconds", "teacher_seconds", "memory"), 1
        )
        return Entry(label, label, {}, {0: result, 1: result}, {})

    ce, dskd = summarize([entry("ce", 40.0), entry("dskd", 42.0)], 100, baseline="dskd")
    assert dskd.difference is None
    assert ce.difference is not None
    assert ce.difference.interval.mean == -2.0
