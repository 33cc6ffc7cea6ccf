"""Runs are put together by method, and what does not belong together is refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from dskd.deploy.load_teacher import load_teacher
from dskd.engine.build_data import load_data
from dskd.engine.user_objects import UserObjects
from dskd.errors import InputError
from dskd.report.analysis import _Analyzer
from dskd.report.collect import CollectedRuns, collect
from dskd.report.load_models import load_student
from dskd.teacher.frozen import FrozenTeacher
from tests.report.report_runs import compared, distilled


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of single runs, taught by one teacher."""
    folder = tmp_path_factory.mktemp("runs")
    distilled(folder / "kd0", "method.name=kd")
    teacher = f"teacher.checkpoint={folder / 'kd0/teacher/student.safetensors'}"
    distilled(folder / "kd1", "method.name=kd", "seed=1", teacher)
    distilled(folder / "cold0", "method.name=kd", "method.temperature=1", teacher)
    distilled(folder / "ce0", "method={name: ce}", "teacher=null")
    distilled(folder / "ce1", "method={name: ce}", "seed=1")
    return folder


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison with a seed that failed, one that stopped, and one that never began."""
    folder = compared(tmp_path_factory.mktemp("compared") / "all", "kd", "ce", seeds=3)
    failed, stopped = folder / "kd/seed1", folder / "kd/seed2"
    (failed / "result.json").unlink()
    (failed / "failed.txt").write_text("the loss is not finite\n")
    (stopped / "result.json").unlink()
    first, _ = (stopped / "metrics.jsonl").read_text().splitlines()
    (stopped / "metrics.jsonl").write_text(f"{first}\n")
    shutil.rmtree(folder / "ce/seed2")
    return folder


def seeds(gathered: CollectedRuns) -> dict[str, list[int]]:
    return {runs.label: sorted(runs.folders) for runs in gathered.methods}


@pytest.mark.slow
def test_runs_are_grouped_by_method_and_settings(runs: Path) -> None:
    found = collect([runs / name for name in ("kd0", "ce0", "kd1", "cold0")])
    assert seeds(found) == {"kd": [0, 1], "ce": [0], "kd:temperature=1.0": [0]}
    assert found.methods[0].variant.weights == {"ce": 1.0, "kd": 1.0}
    assert found.methods[0].settings["temperature"] == 4.0
    assert len(found.methods[0].metrics[1]["epoch"]) == 2
    assert found.recipe.student.name == "resnet8"


def test_the_recipe_has_a_teacher_where_a_run_was_taught(runs: Path) -> None:
    assert collect([runs / "ce0"]).recipe.teacher is None
    assert collect([runs / "ce1"]).recipe.teacher is None
    both = collect([runs / "ce0", runs / "kd0"])
    assert both.recipe.teacher is not None
    assert both.recipe.teacher.name == "resnet8"


def test_a_lone_method_needs_no_settings_in_its_name(runs: Path) -> None:
    assert seeds(collect([runs / "cold0"])) == {"kd": [0]}


@pytest.mark.slow
def test_a_comparison_tells_what_became_of_every_seed(comparison: Path) -> None:
    found = collect([comparison])
    assert seeds(found) == {"kd": [0], "ce": [0, 1]}
    failed = {runs.label: dict(runs.variant.failed) for runs in found.methods}
    assert failed == {
        "kd": {1: "the loss is not finite", 2: "not finished, 1 of 2 epochs are done"},
        "ce": {2: "not started"},
    }
    assert found.recipe.train.epochs == 2
    assert found.environments[0]["packages"]["torch"]


def test_a_reason_is_a_line_that_does_nothing_to_a_terminal(
    comparison: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(comparison, copy)
    path = copy / "kd/seed1/failed.txt"
    path.write_text("\x1b[2J\nnot finite\n")
    for paths in ([copy], [path.parent]):
        assert collect(paths).methods[0].variant.failed[1] == r"\x1b[2J not finite"
    os.truncate(path, 6 * 10**8)
    for paths in ([copy], [path.parent]):
        with pytest.raises(InputError, match=r"failed\.txt is longer than"):
            collect(paths)


def test_a_single_run_may_be_unfinished_too(comparison: Path) -> None:
    found = collect([comparison / "kd" / f"seed{seed}" for seed in range(3)])
    assert seeds(found) == {"kd": [0]}
    assert sorted(found.methods[0].variant.failed) == [1, 2]


@pytest.mark.slow
def test_what_does_not_belong_together_is_refused(
    runs: Path, comparison: Path, tmp_path: Path
) -> None:
    other = distilled(tmp_path / "other", "method={name: ce}", "teacher=null", "train.epochs=1")
    foreign = distilled(tmp_path / "foreign", "method.name=kd", "teacher.name=resnet14", "seed=1")
    twin = tmp_path / "twin"
    shutil.copytree(runs / "kd0", twin)
    for paths, words in (
        ([], "no run is given"),
        ([tmp_path], "holds neither a run nor a comparison"),
        ([tmp_path / "gone"], "there is no run"),
        ([runs / "kd0", other], "train.epochs is 2 there, 1 here"),
        ([runs / "ce0", runs / "kd0", foreign], "teacher.name is resnet8 there, resnet14 here"),
        ([runs / "kd0", twin], "are the same run, kd at seed 0"),
        ([comparison, runs / "kd0"], "is a comparison and cannot be combined"),
    ):
        with pytest.raises(InputError, match=words):
            collect(paths)


def test_a_result_of_an_older_version_is_refused(runs: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(runs / "ce0", old)
    result = json.loads((old / "result.json").read_text())
    del result["memory"]
    (old / "result.json").write_text(json.dumps(result))
    with pytest.raises(InputError, match="lacks memory: an older version wrote it"):
        collect([old])
    (old / "result.json").write_text("{")
    with pytest.raises(InputError, match=r"result.json is damaged: Invalid JSON"):
        collect([old])


def test_runs_on_other_images_do_not_stand_side_by_side(runs: Path, tmp_path: Path) -> None:
    other = tmp_path / "ce0"
    shutil.copytree(runs / "ce0", other)
    result = json.loads((other / "result.json").read_text())
    result["fingerprints"]["data"] = "other"
    (other / "result.json").write_text(json.dumps(result))
    with pytest.raises(InputError, match="used different images; make a report of each"):
        collect([runs / "kd0", other])
    del result["fingerprints"]  # as an older version wrote it
    (other / "result.json").write_text(json.dumps(result))
    collect([runs / "kd0", other])


@pytest.mark.parametrize("file", ["result.json", "environment.json", "metrics.jsonl"])
def test_a_file_without_end_is_not_read(runs: Path, tmp_path: Path, file: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs / "ce0", run)
    os.truncate(run / file, 6 * 10**8)
    with pytest.raises(InputError, match="is longer than"):
        assert collect([run]).methods[0].metrics
    (run / file).unlink()
    (run / file).symlink_to("/dev/zero")
    if file != "environment.json":  # then a run that is not finished
        assert not collect([run]).methods[0].metrics.get(0)
    else:
        with pytest.raises(InputError, match="is no plain file"):
            collect([run])


def test_the_teacher_is_found_where_it_lies(runs: Path, comparison: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(comparison, moved)
    for folder in (runs / "kd0", runs / "kd1", moved / "kd/seed0"):
        recipe = collect([moved if folder.is_relative_to(moved) else folder]).recipe
        data = load_data(recipe.data)
        student, teacher = (
            load_student(folder, data, UserObjects()),
            load_teacher(folder, recipe, data, UserObjects()),
        )
        assert teacher is not None
        assert not student.training
        assert not teacher.training
        result = json.loads((folder / "result.json").read_text())
        hits = teacher(data.test.images).logits.argmax(1) == data.test.labels
        assert 100 * hits.double().mean().item() == pytest.approx(result["teacher_accuracy"])


def test_a_teacher_that_is_gone_is_said_to_be(runs: Path, tmp_path: Path) -> None:
    alone = tmp_path / "kd"
    shutil.copytree(runs / "kd0", alone)
    shutil.rmtree(alone / "teacher")
    recipe = collect([alone]).recipe
    with pytest.raises(InputError, match="there are no weights of the teacher resnet8"):
        load_teacher(alone, recipe, load_data(recipe.data), UserObjects())


@pytest.mark.slow
def test_a_student_is_compared_with_the_teacher_that_taught_it(runs: Path, tmp_path: Path) -> None:
    weights = shutil.copy(runs / "ce0/student.safetensors", tmp_path / "teacher.safetensors")
    own = [f"teacher.checkpoint={weights}", "teacher.trust=true", "teacher.epochs=null"]
    collected = collect([runs / "kd1", distilled(tmp_path / "dskd1", *own, "seed=1")])
    data = load_data(collected.recipe.data)
    analyzer = _Analyzer(collected, data, UserObjects())
    for found in collected.methods:
        teacher = FrozenTeacher(analyzer._teacher(found))
        assert teacher.fingerprint() == found.teacher_fingerprint(1)
    prints = [found.teacher_fingerprint(1) for found in collected.methods]
    assert len(set(prints)) == 2
    shutil.copy(runs / "kd0/teacher/student.safetensors", weights)
    with pytest.raises(InputError, match=r"dskd1 is not the one that taught it: .* put the file"):
        analyzer._teacher(collected.methods[1])
    alone = _Analyzer(collect([runs / "ce0", runs / "kd0"]), data, UserObjects())
    assert FrozenTeacher(alone._teacher(alone.finished[0])).fingerprint() == prints[0]


def test_a_student_of_other_images_is_refused(runs: Path) -> None:
    data = load_data(collect([runs / "kd0"]).recipe.data.model_copy(update={"size": 16}))
    with pytest.raises(InputError, match=r"the images are not those .* root=\"FOLDER\""):
        load_student(runs / "kd0", data, UserObjects())
