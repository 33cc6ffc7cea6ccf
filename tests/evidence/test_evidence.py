"""The evidence: the splits of the protocol, the labels of the studies, and their pages."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from shutil import copytree, rmtree
from statistics import mean
from typing import Any

import evidence.study
import pytest
import torch
from evidence.design import Study
from evidence.facts import adjust, adjust_alone
from evidence.numbers import verdict
from evidence.opening import answer, certainty, finding
from evidence.page import first, over, page
from evidence.prepare import classes_of, prepare
from evidence.prepare import main as prepare_main
from evidence.study import RESULTS, compute, main, teacher_of
from evidence.why_page import page as why_page
from PIL import Image

from dskd import methods
from dskd.compare.grid import Grid, load_plan
from dskd.compare.summary import VariantResults, summarize
from dskd.compare.variants import method_variants
from dskd.config.recipe import load
from dskd.engine.result import Result
from dskd.errors import InputError, Stopped
from dskd.storage.yaml_file import read_yaml_file
from evidence import choose, design, early_exits, figure, graphs, segmentation, unlabelled, why
from evidence import first as first_study

PRESET = "dskd:preset=paper-abstract"
NAMES = ("ablation", "exploration", "controls", "table", "weights", "mini")


def published(folder: Path, classes: list[str], samples: int = 10) -> Path:
    """A few images in TinyImageNet's published form."""
    root = folder / "tiny-imagenet-200"
    lines = []
    for number, wnid in enumerate(classes):
        images = root / "train" / wnid / "images"
        images.mkdir(parents=True)
        for index in range(samples):
            Image.new("RGB", (64, 64), (40 * number, 3 * index, 9)).save(
                images / f"{wnid}_{index}.JPEG"
            )
        lines.append(f"val_{number}.JPEG\t{wnid}\t0\t0\t63\t63\n")
    (root / "val/images").mkdir(parents=True)
    for number, _ in enumerate(classes):
        Image.new("RGB", (64, 64), (9, 9, number)).save(root / f"val/images/val_{number}.JPEG")
    (root / "val/val_annotations.txt").write_text("".join(lines))
    return folder


def test_a_fifth_of_the_training_images_is_tested_with_the_validation_images(
    tmp_path: Path,
) -> None:
    classes = ["n01", "n02", "n03"]
    folder = prepare(published(tmp_path / "data", classes), "final", tmp_path / "splits", classes)
    for wnid in classes:
        train = {path.name for path in (folder / "train" / wnid).iterdir()}
        test = {path.name for path in (folder / "val" / wnid).iterdir()}
        assert train == {f"{wnid}_{index}.JPEG" for index in (1, 2, 3, 4, 6, 7, 8, 9)}
        held = {f"{wnid}_0.JPEG", f"{wnid}_5.JPEG"}
        assert test == held | {f"val_{classes.index(wnid)}.JPEG"}


def test_a_split_without_its_classes_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    data = published(tmp_path / "data", ["n01"])
    with pytest.raises(InputError, match="lacks 20 classes of the split final"):
        prepare(data, "final", tmp_path / "splits")
    assert not (tmp_path / "splits").exists()


def test_a_folder_that_is_not_the_published_one_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["prepare", str(tmp_path), str(tmp_path / "splits")])
    with pytest.raises(SystemExit) as ended:
        prepare_main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert re.fullmatch(r"error: .*val_annotations.txt is missing; give .* as published\n", said)


def test_the_splits_share_no_class() -> None:
    assert len(classes_of("tuning")) == len(classes_of("final")) == 20
    assert not set(classes_of("tuning")) & set(classes_of("final"))


@pytest.mark.parametrize("name", NAMES)
def test_every_label_of_a_study_is_a_method_with_settings_that_it_has(
    name: str, tmp_path: Path
) -> None:
    study = design.find(name, tmp_path)
    changes = [f"teacher.name={study.teacher_name}", f"data.root={tmp_path}", *study.changes]
    plan = load_plan(study.recipe, changes, study.labels, tmp_path / "out", seeds=study.seeds)
    labels = [variant.label for variant in plan.variants]
    assert study.baseline in labels
    assert (
        len(labels)
        == {
            "ablation": 26,
            "exploration": 21,
            "controls": 15,
            "table": 21,
            "weights": 9,
            "mini": 6,
        }[name]
    )


def test_our_defaults_are_what_the_studies_call_so() -> None:
    label = why.LABELS[-1]
    (variant,) = method_variants([label], load(design.RECIPE, ["data.root=."]), "equal")
    assert variant.method.options == methods.resolve("dskd", {})
    assert label in design.find("mini", Path()).labels


def test_an_unknown_study_names_the_nearest() -> None:
    with pytest.raises(InputError, match="ablation"):
        design.find("ablations", Path())


def small(**changes: Any) -> Study:
    return Study(
        **{
            "name": "small",
            "title": "A study",
            "split": "final",
            "teacher": design.TrainedTeacher(name="resnet8", epochs=1),
            "baseline": "kd",
            "seeds": 2,
            "groups": {"All": ["ce", "kd"]},
            # Small images. And bfloat16, the recipe's, takes long without the processor's
            # instructions for it.
            "changes": [
                "data.size=16",
                "train.epochs=1",
                "train.batch_size=8",
                "train.precision=float32",
            ],
        }
        | changes
    )


CLASSES = ["n01", "n02"]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("evidence.prepare.classes_of", lambda _: CLASSES)
    return published(tmp_path / "data", CLASSES)


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of studies with a finished study ``table``, which tests only read."""
    folder = tmp_path_factory.mktemp("computed")
    study = small(name="table", groups={"All": [*why.LABELS]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evidence.prepare.classes_of", lambda _: CLASSES)
        compute(study, published(folder / "data", CLASSES), folder / "out", folder / "results")
    return folder / "out"


@pytest.fixture
def out(computed: Path, tmp_path: Path) -> Path:
    """A folder of studies that has the trained teacher of the small study, and its images."""
    for name in ("splits", "teachers"):
        copytree(computed / name, tmp_path / "out" / name)
    return tmp_path / "out"


def rows_of(page: str) -> dict[str, int]:
    """How many seeds each row of a page has."""
    cells = [line.split("|") for line in page.splitlines() if line.startswith("| `")]
    cells = [row for row in cells if len(row) > 4]  # not those of the table of differences
    return {row[1].strip(" `"): len(row[2].split(",")) for row in cells}


@pytest.mark.slow
def test_a_study_is_computed_and_drawn(
    data: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, train = small(), evidence.study.train

    def stops(plan: Grid, jobs: int) -> None:
        if len(plan.seeds) == 2:
            raise Stopped(signal.SIGTERM)
        train(plan, jobs)

    monkeypatch.setattr(evidence.study, "train", stops)
    with pytest.raises(Stopped):
        compute(study, data, out, tmp_path)
    text = (tmp_path / "small.md").read_text()
    assert "**Not finished**: 2 of 4 runs are finished." in text
    assert f"not part of the [protocol](protocol.md)** ({', '.join(small().changes)})" in text
    assert rows_of(text) == {"ce": 1, "kd": 1}
    written = json.loads((tmp_path / "small.json").read_text())
    assert str(tmp_path) not in json.dumps(written), "no path of this machine"
    assert page(written) == text
    assert (tmp_path / "small.svg").read_bytes() == figure.means(written)
    assert all(row["seconds"] > 0 for row in written["rows"].values())
    monkeypatch.undo()
    monkeypatch.setattr("evidence.prepare.classes_of", lambda _: CLASSES)
    compute(study, data, out, tmp_path)
    assert "All 4 runs are finished." in (tmp_path / "small.md").read_text()


@pytest.mark.slow
def test_a_run_that_failed_is_a_row_that_names_no_place(
    data: Path, out: Path, tmp_path: Path
) -> None:
    study = small(seeds=1, groups={"All": ["kd", "fitnet:weight=1e30"]})
    compute(study, data, out, tmp_path)
    text = (tmp_path / "small.md").read_text()
    assert "| `fitnet:weight=1e30` | failed |" in text
    assert "- `fitnet:weight=1e30` failed at seed 0: the loss is not finite. The JSON" in text
    facts = (tmp_path / "small.json").read_text()
    assert "see OUT/small/fitnet+weight=1e30/seed0/nonfinite.json" in facts
    assert str(tmp_path) not in facts


@pytest.mark.slow
def test_what_a_pair_does_not_allow_is_left_out_where_the_study_says_so(
    data: Path, out: Path, tmp_path: Path
) -> None:
    labels = {"All": ["kd", "lskd"]}  # lskd needs three classes
    study = small(seeds=1, groups=labels, leaves_misfits_out=True)
    compute(study, data, out, tmp_path)
    text = (tmp_path / "small.md").read_text()
    assert rows_of(text) == {"kd": 1}
    assert "All 1 runs are finished." in text
    assert "- `lskd` has no row: it cannot be trained with this pair (" in text
    with pytest.raises(InputError, match=r"^lskd: "):
        compute(small(seeds=1, groups=labels), data, out, tmp_path)
    with pytest.raises(InputError, match=r"^lskd: "):
        compute(study.model_copy(update={"baseline": "lskd"}), data, out, tmp_path)


@pytest.mark.slow
def test_a_teacher_can_start_from_that_of_another_study(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evidence.study.find", lambda name, out: small(name=name, split=None))
    root, out = prepare(data, "final", tmp_path / "splits"), tmp_path / "out"
    given = design.TrainedTeacher(name="resnet8", epochs=1, starts_from="first")
    study = small(name="second", split=None, teacher=given)
    weights = teacher_of(study, root, out)
    start = read_yaml_file(weights.parent / "recipe.yaml", "recipe")["student"]["checkpoint"]
    assert Path(start).is_file()
    assert Path(start).is_relative_to(out / "teachers/first")
    shared = small(name="third", split=None, shares_runs_of="second")
    assert teacher_of(shared, root, out) == weights


def test_what_is_no_study_of_the_protocol_says_so() -> None:
    assert design.find("mini", Path()).deviation
    assert design.find("table", Path()).deviation is None


OWN_PAGES: dict[str, Callable[[Any], str]] = {
    "why": why_page,
    "early-exits": early_exits.page,
    "graphs": graphs.page,
    "segmentation": segmentation.page,
    "unlabelled": unlabelled.page,
}
"""The studies that draw their page themselves."""


def test_committed_pages_are_what_their_numbers_draw() -> None:
    for path in RESULTS.glob("*.json"):
        facts = json.loads(path.read_text())
        if "study" in facts:
            text = path.with_suffix(".md").read_text()
            draw: Callable[[Any], str] = OWN_PAGES.get(facts["study"], page)
            assert text == draw(facts), path.name
            if facts["study"] not in OWN_PAGES or facts["study"] in ("why", "early-exits"):
                assert path.with_suffix(".svg").is_file(), path.name
            for image in re.findall(r"\]\(([\w-]+\.(?:svg|png))\)", text):
                assert (RESULTS / image).is_file(), path.name


def test_committed_results_have_the_words_of_their_studies() -> None:
    studies = read_yaml_file(design.HERE / "studies.yaml", "studies")
    for name, study in studies.items():
        assert study["question"].endswith("?"), name
        if (path := RESULTS / f"{name}.json").is_file():
            facts = json.loads(path.read_text())
            for key in ("title", "question", "deviation"):
                assert facts[key] == study.get(key), f"{name}: {key}"
            assert list(facts["groups"]) == list(study["groups"]), name


def test_pages_of_results_open_with_a_question_its_answer_and_its_certainty() -> None:
    names = {path.stem.removesuffix("-cost") for path in RESULTS.glob("*.svg")}
    for name in sorted(names | {"protocol", "speed", "fast-paths", "real-images"}):
        lines = (RESULTS / f"{name}.md").read_text().splitlines()
        bullets = [line.partition(":**")[0] for line in lines[2:12] if line.startswith("- **")]
        assert bullets == ["- **Question", "- **Answer", "- **Certainty"], name


def test_the_opening_of_real_images_has_the_numbers_of_its_runs() -> None:
    gains = []
    for name in ("real-tiny_imagenet", "real-cifar100-format"):
        runs = json.loads((RESULTS / f"{name}.json").read_text())["runs"]
        means = {
            method: mean(run["test_accuracy"] for run in runs if run["method"] == method)
            for method in ("ce", "kd", "dskd")
        }
        gains += [f"{means[method] - means['ce']:.2f}" for method in ("kd", "dskd")]
    text = (RESULTS / "real-images.md").read_text().partition("- **Certainty")[0]
    assert re.findall(r"\d+\.\d+", text) == gains


@pytest.mark.slow
def test_some_get_more_seeds_once_all_have_theirs(data: Path, out: Path, tmp_path: Path) -> None:
    more = design.ExtraSeeds(seeds=2, labels=["kd", "dskd"])
    study = small(seeds=1, groups={"All": ["ce", "kd", "dskd"]}, extra_seeds=more, tests_first=True)
    compute(study, data, out, tmp_path)
    text = (tmp_path / "small.md").read_text()
    assert rows_of(text) == {"ce": 1, "kd": 2, PRESET: 2}
    assert "All 5 runs are finished." in text
    assert "The protocol requires 5 seeds for this test." in text
    assert "](small-cost.svg)" in text
    assert (tmp_path / "small-cost.svg").read_bytes().count(b">dskd</text>") == 2
    assert re.search(r"uncorrected \|\n\|---\|---:\|\n\| `kd` \| [+-]\d", text)
    assert "computed in one place" not in text
    run = out / "small/dskd/seed1"
    environment = json.loads((run.parent / "seed0/environment.json").read_text())
    changed = json.dumps(environment | {"package_code": "0" * 64})
    (run.parent / "seed0/environment.json").write_text(changed)
    (run / "result.json").unlink()
    (run / "failed.txt").write_text("the loss is not finite")
    compute(study, data, out, tmp_path)
    text = (tmp_path / "small.md").read_text()
    assert "Not compared, because runs failed: `dskd` (1 result). **DSKD is not shown" in text
    assert "- 3: " in text
    assert "- 1: " in text
    assert "code 00000000" in text


def test_a_lost_run_is_no_failed_one(tmp_path: Path) -> None:
    folder = tmp_path / "first-leading"
    finished(folder, {"ce": [40.0], "kd": [41.0]})
    lost = folder / "kd/seed0"
    (lost / "lost.txt").write_text("its process died")
    assert choose.mean_accuracies(folder, ["ce", "kd"], "x", [0]) == {"ce": 40.0, "kd": 41.0}
    (lost / "result.json").unlink()
    with pytest.raises(InputError, match=r"kd/seed0 was lost \(see lost\.txt\); run the study x"):
        choose.mean_accuracies(folder, ["ce", "kd"], "x", [0])
    assert choose.mean_accuracies(folder, ["ce"], "x", [0]) == {"ce": 40.0}  # it is not asked for


@pytest.mark.slow
def test_a_study_shows_its_own_rows_of_a_folder_that_it_shares(
    data: Path, computed: Path, tmp_path: Path
) -> None:
    twin = small(name="twin", shares_runs_of="table", groups={"Its own": ["kd"]})
    compute(twin, data, computed, tmp_path)
    assert rows_of((tmp_path / "twin.md").read_text()) == {"kd": 2}
    assert not (computed / "twin").exists()


@pytest.mark.slow
def test_a_study_shows_its_own_seeds_of_a_folder_that_it_shares(
    data: Path, computed: Path, tmp_path: Path
) -> None:
    compute(small(name="twin", shares_runs_of="table", seeds=1), data, computed, tmp_path)
    text = (tmp_path / "twin.md").read_text()
    assert rows_of(text) == {"ce": 1, "kd": 1}
    assert "All 2 runs are finished." in text


def test_labels_that_say_the_same_are_one_row(tmp_path: Path) -> None:
    best = table(crd=50, at=49)
    finished(tmp_path / "table", best)
    usual = choose.configurations_of("crd")[2]
    tuned = design.find("configurations", tmp_path).labels
    finished(
        tmp_path / "ablation", {label: [43.0 if label == usual else 42.0] * 3 for label in tuned}
    )
    study = design.find("defaults", tmp_path)
    assert study.duplicates == {usual: "crd"}
    assert usual not in study.labels
    assert usual in design.find("composition", tmp_path).labels


def test_all_comparisons_of_a_page_are_adjusted_together() -> None:
    rows: dict[str, dict[str, Any]] = {"dskd": {"p": 0.01}, "kd": {"p": None}, "at": {"p": 0.04}}
    question: dict[str, Any] = {"p": 0.03, "label": "dskd", "second": "at"}
    adjust(rows, question, "kd")
    assert [row["p_holm"] for row in rows.values()] == [pytest.approx(0.03), None, 0.06]
    assert question["p_holm"] == 0.06


def test_a_comparison_that_a_row_has_counts_once() -> None:
    rows: dict[str, dict[str, Any]] = {"dskd": {"p": 0.01}, "kd": {"p": None}, "at": {"p": 0.04}}
    question: dict[str, Any] = {"p": 0.01, "label": "dskd", "second": "kd"}
    adjust(rows, question, "kd")
    assert question["p_holm"] == rows["dskd"]["p_holm"] == 0.02


@pytest.mark.slow
def test_a_set_of_changes_or_data_as_they_are_need_no_protocol(data: Path, tmp_path: Path) -> None:
    study = small(split=None, seeds=1, recipe="tiny_imagenet/resnet56-resnet20-32")
    words = data / "tiny-imagenet-200"
    (words / "wnids.txt").write_text("n01\nn02\n")
    (words / "words.txt").write_text("n01\tone\nn02\ttwo\n")
    compute(study, data, tmp_path / "out", tmp_path)
    expected = f"Data set: tiny_imagenet ({', '.join(small().changes)}). The student is resnet20"
    assert expected in (tmp_path / "small.md").read_text()


@pytest.mark.slow
def test_what_the_stages_of_a_table_s_students_know_is_measured_and_drawn(
    computed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(why, "FIRST_EPOCHS", 2)
    why.main([str(computed), "--results", str(tmp_path)])
    facts = json.loads((tmp_path / "why.json").read_text())
    assert facts["seeds"] == [0, 1]
    assert facts["stages"] == ["layer1", "layer2", "layer3"]
    assert {label: len(seeds) for label, seeds in facts["probe"].items()} == dict.fromkeys(
        why.LABELS, 2
    )
    assert {*facts["epochs"]} == {*why.OURS}
    assert [len(norms) for norms in facts["gradient"]["dskd"]["0"]] == [3, 3]
    assert all(norm > 0 for epoch in facts["gradient"]["dskd"]["0"] for norm in epoch)
    assert facts["gradient"]["kd"]["0"] != facts["gradient"]["dskd"]["0"]
    text = (tmp_path / "why.md").read_text()
    for label in (PRESET, "dskd"):
        assert text.count(f"| {label} - kd |") == 4, "three tables and the gradients' ratio"
    assert text.count("| stage 1, weight |") == 2


def test_the_reasons_wait_for_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        why.main([str(tmp_path)])
    assert "table is missing; run the studies table and defaults" in capsys.readouterr().err
    finished(tmp_path / "table", {"ce": [40.0], "kd": [41.0]})
    with pytest.raises(SystemExit):
        why.main([str(tmp_path)])
    assert f"no seed of {', '.join(why.LABELS)} is finished" in capsys.readouterr().err


def test_a_stage_s_gradient_is_the_one_of_its_parameters() -> None:
    net = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 1), "b": torch.nn.Linear(1, 1)})
    for value, parameter in enumerate(net.parameters(), start=1):
        parameter.grad = torch.full_like(parameter, value)
    assert why.norms(net, ("a", "b")) == pytest.approx([6**0.5, 5.0])


@pytest.mark.slow
def test_a_long_study_wants_a_gpu_and_says_how_long_it_would_take(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = data / "tiny-imagenet-200"
    (words / "wnids.txt").write_text("n01\nn02\n")
    (words / "words.txt").write_text("n01\tone\nn02\ttwo\n")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    pair = ["--recipe", "tiny_imagenet/resnet56-resnet20-32"]
    arguments = ["tiny", str(data), str(tmp_path / "out"), *pair, "train.batch_size=4"]
    arguments.append("data.size=16")
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert re.fullmatch(
        r"error: .* no GPU .* tiny-resnet56-resnet20-32 .* about \d+\.\d days .* --anyway\n", said
    )
    assert not (tmp_path / "out").exists()


def test_what_a_study_is_made_of_is_not_changed_by_the_way() -> None:
    study = design.find("ablation", Path())
    with pytest.raises(InputError, match=r"teacher.name is fixed by the study"):
        design.varied(study, None, ["teacher.name=resnet20"])
    with pytest.raises(InputError, match="the recipe of ablation is the protocol's"):
        design.varied(study, "digits", [])
    tiny = design.find("tiny", Path())
    assert tiny.teacher_name == "resnet32x4"
    assert design.varied(tiny, "tiny_imagenet/vgg13-MobileNetV2", []).teacher_name == "vgg13"


def finished(folder: Path, accuracies: Mapping[str, Sequence[float]]) -> None:
    """A comparison's folder, of which only the accuracies matter."""
    found = method_variants(accuracies, load("digits"), "equal")
    facts = {
        "recipe": {},
        "weights": "equal",
        "test_images": 100,
        "seeds": list(range(max(map(len, accuracies.values())))),
        "variants": [variant.plain() for variant in found],
    }
    folder.mkdir(parents=True)
    (folder / "comparison.json").write_text(json.dumps(facts))
    names = set(Result.__annotations__) - {"path", "student"}
    others = dict.fromkeys(names, 0) | {"method": "ce", "best_chosen_on": "test"}
    for variant in found:
        for seed, accuracy in enumerate(accuracies[variant.label]):
            run = folder / variant.folder / f"seed{seed}"
            run.mkdir(parents=True)
            (run / "result.json").write_text(json.dumps(others | {"test_accuracy": accuracy}))


def table(**better: float) -> dict[str, list[float]]:
    return {name: [better.get(name, 40.0)] * 3 for name in choose.TABLE}


@pytest.mark.slow
def test_the_baselines_are_the_best_two_of_the_table_without_the_fixed_methods(
    tmp_path: Path,
) -> None:
    finished(tmp_path / "table", table(ce=50, kd=49, dskd=48, crd=47, at=46, sp=45))
    assert choose.baselines(tmp_path / "table") == ["crd", "at"]
    assert design.find("pair", tmp_path).labels == [
        "ce",
        "kd",
        "dskd",
        "crd",
        "at",
        why.LABELS[-1],
    ]
    tuned = design.find("configurations", tmp_path).labels
    assert len(tuned) == 4 * 8
    finished(tmp_path / "ablation", {label: [42.0 + len(label) / 100] for label in tuned})
    leading = design.expand(["<leading configurations>"], tmp_path)
    runs = design.run_count(design.find("configurations", tmp_path), tmp_path)
    assert 2 * len(leading) == runs - len(tuned)
    with pytest.raises(
        InputError, match=r"is not finished in .*ablation; run the study configurations"
    ):
        design.find("composition", tmp_path)
    rmtree(tmp_path / "ablation")
    seeds = {label: 3 if label in leading else 1 for label in tuned}
    finished(
        tmp_path / "ablation",
        {label: [42.0 + len(label) / 100] * seeds[label] for label in tuned},
    )
    best = design.find("composition", tmp_path).labels
    assert [label.partition(":")[0] for label in best] == ["kd", "kd", "dskd", "crd", "at"]
    defaults = design.find("defaults", tmp_path)
    others = {"crd", "at", "fitnet:weight=10"}
    assert {*best, *why.LABELS, *others} == {*defaults.labels, *defaults.duplicates}
    assert max((t for t in tuned if t.startswith("dskd")), key=len) in best


def test_baselines_wait_for_the_table(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not finished .*; run the study table"):
        design.find("pair", tmp_path)
    finished(tmp_path / "table", table() | {"at": [40.0, 41.0]})
    with pytest.raises(InputError, match=r"at is not finished .*; run the study table"):
        design.find("pair", tmp_path)


@pytest.mark.parametrize("name", ["kd", *(n for n in choose.TABLE if n not in choose.FIXED)])
def test_every_baseline_has_eight_configurations_that_exist(name: str) -> None:
    tuned = choose.configurations_of(name)
    assert len(set(tuned)) == 8
    assert len(method_variants(tuned, load("digits"), "equal")) == 8


@pytest.mark.parametrize("name", [n for n in first_study.METHODS if n not in ("ce", "dskd")])
def test_every_method_of_the_second_protocol_has_24_configurations_that_exist(name: str) -> None:
    """They are drawn anew each time, and are the same."""
    drawn = first_study.configurations(name)
    assert drawn == first_study.configurations(name)
    assert drawn[0] == name
    assert len(set(drawn)) == 24
    assert len(method_variants(drawn, load("digits"), "equal")) == 24


def test_drawn_values_lie_in_the_stated_space() -> None:
    for variant in method_variants(first_study.configurations("at"), load("digits"), "equal"):
        options = variant.method.options
        assert options["kd"] in (0, 0.5, 1, 2)
        assert options["temperature"] in (2, 4, 8)
        assert 1000 / 16 * 0.99 < options["weight"] < 1000 * 16 * 1.01


def test_methods_whose_own_loss_has_the_weight_kd_have_the_space_of_kd() -> None:
    for name in ("dist", "dkd", "lskd", "wkd"):
        assert first_study.space_of(name)["kd"] == first_study.SPACES["kd"]["kd"]
        assert "weights" not in first_study.space_of(name)
    assert first_study.space_of("reviewkd")["kd"] == [0, 0.5, 1, 2]


def test_a_space_is_refused_that_is_too_small_or_that_a_factor_changes_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(first_study.SPACES, "dskd", {"alpha": [0.3, 1], "beta": [1, 10]})
    with pytest.raises(InputError, match=r"the space of dskd has only 4 configurations"):
        first_study.configurations("dskd")
    monkeypatch.setitem(first_study.SPACES, "at", {"weight": [1000, 2000]})
    with pytest.raises(InputError, match=r"at.weight would be drawn, and scaled by weights"):
        first_study.configurations("at")


def test_the_methods_of_the_second_protocol_exist() -> None:
    assert {*first_study.METHODS} <= {*methods.names()} - {"sskd"}


def test_each_part_of_the_chosen_dskd_is_taken_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert first_study._changed("dskd:deep_stage=map:beta=1", first_study._PARTS[0]) == (
        "dskd:beta=0"
    )
    chosen = ["kd", "dskd:alpha=0.3:beta=20"]
    monkeypatch.setattr(first_study, "chosen", lambda out: chosen)
    monkeypatch.setitem(design.FIRST, "<chosen configurations>", lambda out: chosen)
    assert first_study.parts(tmp_path) == [
        "dskd:alpha=0.3:beta=20",
        "dskd:alpha=0.3:beta=0",
        "dskd:beta=20:alpha=0",
        "dskd:alpha=0.3:beta=20:allocation=uniform",
    ]
    for name in ("first-abstract", "first-pair", "first-flowers"):
        study = design.find(name, tmp_path)
        assert study.baseline in study.labels
        load(study.recipe, [f"data.root={tmp_path}"])
    assert design.find("first-abstract", tmp_path).baseline == "dskd:alpha=0.3:beta=20"


@pytest.mark.slow
def test_the_second_protocol_chooses_its_baselines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [*first_study.METHODS]
    better = {"ce": 50, "kd": 49, "dskd": 48, "crd": 47, "at": 46, "sp": 45, "vid": 44}
    means = {name: [float(better.get(name, 40))] for name in names}
    finished(tmp_path / "first-leading", means)
    assert first_study.baselines(tmp_path) == ["crd", "at", "sp", "vid"]
    monkeypatch.delitem(first_study.SPACES, "dskd")
    with pytest.raises(InputError, match=r"no space of dskd; state it there"):
        first_study.searched(tmp_path)
    assert design.find("first-baselines", tmp_path).labels == names


def row(**changes: Any) -> dict[str, Any]:
    return {"gap": 1.0, "gap_half": 0.5, "p": 0.01, "p_holm": 0.01} | changes


def test_better_needs_an_interval_without_zero_and_a_small_adjusted_p() -> None:
    assert verdict(row()) == "better"
    assert verdict(row(gap=-1.0)) == "worse"
    assert verdict(row(gap_half=1.0)) == ""
    assert verdict(row(p_holm=0.05)) == ""
    assert verdict(row(gap=None, gap_half=None, p_holm=None)) == ""


def test_differences_can_refer_to_any_label() -> None:
    def entry(label: str, value: float) -> VariantResults:
        result = {
            "test_accuracy": value,
            "best_test_accuracy": value,
            "agreement": None,
        } | dict.fromkeys(
            ("parameters", "extra_parameters", "seconds", "teacher_seconds", "memory"), 1
        )
        return VariantResults(label, label, {}, {0: result, 1: result}, {})

    ce, dskd = summarize([entry("ce", 40.0), entry("dskd", 42.0)], 100, baseline="dskd")
    assert dskd.difference is None
    assert ce.difference is not None
    assert ce.difference.interval.mean == -2.0


def test_first_is_said_of_five_seeds_and_a_difference() -> None:
    facts = {"label": "dskd", "mean": 43.0, "second": "kd", "second_mean": 42.0, "seeds": 5}
    assert "**DSKD is first.**" in first(facts | row())
    assert "**DSKD is not first.**" in first(facts | row(gap_half=1.5))
    assert "The protocol requires 5 seeds for this test." in first(facts | row() | {"seeds": 3})
    assert "**DSKD is better**, in a study that is not" in first(facts | row(), added=True)
    assert "requires 8 seeds for this test." in first(facts | row() | {"required_seeds": 8})
    assert first(facts | row() | {"decides": False}).endswith(" **DSKD is better.**")


def test_a_test_of_its_own_is_corrected_for_the_rows_with_as_many_seeds() -> None:
    gaps = {
        "kd": {"gap": 1.0, "gap_half": 0.5, "p": 0.03},
        "at": {"gap": 2.0, "gap_half": 0.5, "p": 0.01},
    }
    question: dict[str, Any] = {"label": "dskd", "second": "kd", "over": gaps, "p": 0.03}
    adjust_alone(question)
    assert question["p_holm"] == 0.03
    assert gaps["at"]["p_holm"] == 0.02
    assert "| `at` | 2.00 ± 0.50 | 0.020 |" in over(question).replace("+", "")


def test_a_page_says_how_far_a_strong_teacher_stands_above_its_student() -> None:
    facts = json.loads((RESULTS / "forms.json").read_text())
    gap = facts["teacher"]["test_accuracy"] - facts["rows"]["kd"]["mean"]
    assert gap < 8
    where = "above" if gap > 0 else "below"
    assert f"It stands {abs(gap):.1f} points {where} the student of `kd`. This does" in page(facts)


def opened(rows: Mapping[str, dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """The facts that an opening reads."""
    return {
        "rows": {
            label: {"accuracies": [50.0] * 3, "mean": 50.0, "p": one["p_holm"]} | one
            for label, one in rows.items()
        },
        "baseline": "kd",
        "done": 9,
        "runs": 9,
        "first": None,
        "split": "final",
        "deviation": None,
        "changes": [],
    } | changes


PLAIN = {"gap": None, "gap_half": None, "p_holm": None}
"""A row that is not compared with the baseline."""


def test_an_answer_names_the_rows_with_a_verdict_and_the_highest_mean() -> None:
    facts = opened(
        {
            "kd": PLAIN,
            "at": row(mean=51.0),
            "sp": row(gap=-1.0, mean=49.0),
            "crd": row(p_holm=0.2),
            "pkt": row(mean=52.0, p_holm=0.0001),
            "semckd": PLAIN | {"accuracies": [], "mean": None},
        }
    )
    assert answer(facts) == (
        "Better than `kd`: `pkt` and `at`. Worse: `sp`. No difference is shown for the other "
        "tested row. The highest mean is 52.00 % (`pkt`; difference: +1.00 ± 0.50 "
        "points, p < 0.001). All runs of `semckd` failed."
    )
    assert certainty(facts) == (
        "Each row has 3 seeds and is compared with `kd`; the p-values are corrected for all 4 "
        "comparisons of the page (Holm). With so few seeds, a difference that is not shown may "
        "still exist."
    )


def test_an_answer_claims_no_difference_that_no_test_shows() -> None:
    facts = opened({"kd": PLAIN, "at": row(p_holm=0.05), "sp": row(gap_half=1.0)})
    assert answer(facts).startswith("None of the 2 tested rows is shown to differ from `kd`.")
    many = opened({"kd": PLAIN} | {f"at:weight={weight}": row() for weight in range(5)})
    assert answer(many).startswith("Better than `kd`: 5 rows. The highest")


def test_words_replace_an_answer_while_the_tables_have_their_numbers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "findings.yaml").write_text("small: KD is 1.25 points better.\n")
    monkeypatch.setattr("evidence.opening._FINDINGS", tmp_path / "findings.yaml")
    assert finding("small", "| kd | +1.25 |") == "KD is 1.25 points better."
    assert not finding("small", "| kd | +1.26 |")
    assert not finding("table", "| kd | +1.25 |")


def test_findings_are_shown_on_their_pages() -> None:
    for name, words in read_yaml_file(design.HERE / "findings.yaml", "findings").items():
        assert f"- **Answer:** {words}\n" in (RESULTS / f"{name}.md").read_text(), name


def test_one_seed_ranks_nothing() -> None:
    one = {"accuracies": [50.0]}
    facts = opened({"kd": PLAIN | one, "at": PLAIN | one | {"mean": 51.0, "gap": 1.0}})
    assert answer(facts) == (
        "All 9 runs are finished; the accuracies go from 50.00 % (`kd`) to 51.00 % (`at`)."
    )
    assert certainty(facts) == "One seed has no interval and no test, so this page ranks nothing."
    mixed = opened({"kd": PLAIN, "at": row(), "sp": PLAIN | one | {"mean": 60.0}})
    assert "The highest mean is 50.00 %" in answer(mixed)
    assert certainty(mixed).startswith(
        "1 row has one seed and no test; each other row has 3 seeds and is"
    )


def test_an_unfinished_study_has_no_answer() -> None:
    facts = opened({"kd": PLAIN, "at": row()}, done=8)
    assert answer(facts) == "None yet. **Not finished**: 8 of 9 runs are finished."


def test_an_answer_says_whether_dskd_is_better_than_the_best_other_method() -> None:
    found = row() | {"label": "dskd", "second": "at", "seeds": 5}
    rows = {"kd": PLAIN, "dskd": row(), "at": row()}
    said = answer(opened(rows, first=found))
    assert said.endswith(
        "DSKD's best row, `dskd`, is better than the best row of the other methods, `at` "
        "(+1.00 ± 0.50 points, p = 0.010)."
    )
    assert "is not shown to differ from" in answer(opened(rows, first=found | {"p_holm": 0.2}))
    assert "DSKD's best row" not in answer(opened(rows, first=found | {"seeds": 3}))
    assert (
        "all 3 comparisons of the page (Holm): 2 with `kd`, and one of DSKD's best row with the "
        "best row of the other methods. With so few" in certainty(opened(rows, first=found))
    )
    assert "all 2 comparisons" in certainty(opened(rows, first=found | {"second": "kd"}))
