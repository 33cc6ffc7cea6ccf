"""The files of a report: what they hold, what they leave out, and what they never replace."""

from __future__ import annotations

import csv
import dataclasses
import json
import logging
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import dskd
from dskd.cli import commands as cli
from dskd.data import Dataset
from dskd.deploy import latency
from dskd.engine.user_objects import UserObjects
from dskd.errors import InputError
from dskd.report.build import make_report
from tests.builders import make_dataset, trusted
from tests.report.report_runs import compared, distilled, reported, streamed

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(2)>",
    "a\"'&b",
    "{{ 7*7 }}",
)
"""Names of classes, which come from folders."""


class Page(HTMLParser):
    """What a browser would find: elements, what they point to, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def find(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        return [
            found
            for name, found in self.tags
            if name == tag and attributes.items() <= found.items()
        ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a comparison with a seed that failed."""
    path = tmp_path_factory.mktemp("report")
    compared(path / "runs", "ce", "kd", "dskd", "simkd", seeds=2)
    (path / "runs/dskd/seed1/result.json").unlink()
    (path / "runs/dskd/seed1/failed.txt").write_text("the loss is not finite")
    reported([path / "runs"], path / "report.html")
    return path


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page((folder / "report.html").read_text())


@pytest.mark.slow
def test_the_page_needs_no_network(page: Page, folder: Path) -> None:
    for _, attributes in page.tags:
        for key in ("src", "href"):
            assert (attributes.get(key) or "#").startswith(("#", "data:"))
    (policy,) = page.find("meta", **{"http-equiv": "Content-Security-Policy"})
    assert "default-src 'none'" in (policy["content"] or "")
    style = (folder / "report.html").read_text().partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


@pytest.mark.slow
def test_a_row_a_method_with_its_weights(page: Page) -> None:
    assert len(page.find("th", scope="row")) == 5  # the teacher's too
    for words in (
        "ce=1 kd=1 alpha=1 beta=10 gamma=0",
        "resnet8 distilled from resnet8, on digits",
        "1 of 2",
    ):
        assert words in page.text


@pytest.mark.slow
def test_notes_say_what_the_numbers_cover(page: Page) -> None:
    for words in (
        "It covers what changes with the seed",
        "The sampling error of the 500 test images is ±",
        "The best epoch is chosen on the test split, which makes its accuracy too optimistic.",
        "† simkd deploys more than the plain student: 91,322 parameters instead of 77,754.",
        "dskd , seed 1: the loss is not finite",
        "Latency was measured for this report on one CPU",
        "bands span the lowest to the highest seed",
    ):
        assert words in page.text


@pytest.mark.slow
def test_every_chart_has_its_figure_and_its_caption(page: Page, folder: Path) -> None:
    text = (folder / "report.html").read_text()
    figures = json.loads(re.search(r'id="figures">(.*?)</script>', text)[1])  # type: ignore[index]
    ids = [found["id"] for found in page.find("div", **{"class": "chart"})]
    assert ids == [
        "chart-epochs",
        *(f"chart-{name}" for name in ("parameters", "multiply-adds", "latency", "latency-batch")),
        *(f"chart-training-{name}" for name in ("loss", "accuracy", "lr")),
        *(
            f"chart-stages-0-{name}"
            for name in ("weight", "prediction", "feature", "test_accuracy")
        ),
        *("chart-layers-0", "chart-layers-1", "chart-confusion"),
    ]
    assert figures.keys() == set(ids)
    assert all(page.find("figcaption", id=f"{chart}-caption") for chart in ids)
    heat = figures["chart-layers-0"]["data"][0]
    assert len(heat["z"]) == len(heat["z"][0]) == 5
    assert all(0 <= value <= 1 for row in heat["z"] for value in row)


@pytest.mark.slow
def test_a_method_has_one_colour_in_all_charts(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    figures = json.loads(re.search(r'id="figures">(.*?)</script>', text)[1])  # type: ignore[index]
    colours: dict[str, set[str]] = {}
    for figure in figures.values():
        for trace in figure["data"]:
            if "marker" in trace and trace["meta"] in ("ce", "kd", "dskd", "simkd"):
                colours.setdefault(trace["meta"], set()).add(trace["marker"]["color"])
    assert {label: len(found) for label, found in colours.items()} == dict.fromkeys(colours, 1)
    assert len(set.union(*colours.values())) == 4


@pytest.mark.slow
def test_the_same_numbers_are_in_files_next_to_it(folder: Path) -> None:
    rows = list(csv.DictReader((folder / "report.csv").open()))
    record = json.loads((folder / "report.json").read_text(), parse_constant=pytest.fail)
    assert {row["method"] for row in rows} == {"ce", "kd", "dskd", "simkd"}
    for row, told in zip(rows, record["methods"], strict=True):
        assert float(row["test_accuracy"]) == told["test_accuracy"]
        assert int(row["parameters"]) == told["parameters"]
        assert f"{told['parameters']:,}" in (folder / "report.tex").read_text()
        result = folder / "runs" / row["method"] / "seed0/result.json"
        assert told["test_accuracy_seeds"][0] == json.loads(result.read_text())["test_accuracy"]
    assert record["headline"].endswith(".")
    assert record["layer_similarity"][0]["label"] == "dskd"
    assert record["layer_similarity"][1]["label"] == "kd"
    assert record["epochs"]["kd"]["1"]["epoch"] == [1, 2]
    assert record["settings"]["kd"]["temperature"] == 4.0
    different = record["disagreements"]
    assert different["count"] >= different["teacher_right"] + different["student_right"]
    agreement = json.loads((folder / "runs/dskd/seed0/result.json").read_text())["agreement"]
    assert 100 * (1 - different["count"] / 500) == pytest.approx(agreement)
    wrong, result = record["mistakes"], folder / "runs/dskd/seed0/result.json"
    right = sum(row[number] for number, row in enumerate(wrong["matrix"]))
    assert right == 500 - wrong["count"]
    assert 100 * right / 500 == pytest.approx(json.loads(result.read_text())["test_accuracy"])
    assert wrong["worst"]
    assert "source" not in wrong["worst"][0]


@pytest.mark.slow
def test_sections_without_data_say_so_in_a_sentence(tmp_path: Path) -> None:
    alone = distilled(tmp_path / "ce", "method={name: ce}", "teacher=null")
    page = Page(reported([alone], tmp_path / "alone.html").read_text())
    for words in (
        "No run supervised shallow stages, as the method dskd does.",
        "No run has a teacher.",
        "ce reaches",
        "Dot: result. Grey: sampling error of the test split.",
    ):
        assert words in page.text
    charts = [found["id"] for found in page.find("div", **{"class": "chart"})]
    assert len(charts) == 5  # epochs, training and the confusion matrix
    assert len(page.find("th", scope="row")) == 2  # of the results and of the costs


@pytest.mark.slow
def test_a_report_of_one_run_says_nothing_of_other_runs(tmp_path: Path) -> None:
    """No empty column, no note on what is not there, and a table of two points, not charts."""
    one = distilled(tmp_path / "one", "train.epochs=1", "teacher.epochs=1")
    text = reported([one], tmp_path / "one.html").read_text()
    page = Page(text)
    for absent in (
        "vs. kd",
        "p (Holm)",
        "ARI",
        "± is the",
        "Lines are means",
        "to sort",
    ):
        assert absent not in page.text, absent
    assert "All methods" not in page.text
    assert "method dskd seed 0" in " ".join(page.text.split())
    assert 'id="chart-parameters"' not in text
    assert re.search(r"The learning rate is [\d.]+ in every epoch\.", page.text)
    assert 'id="chart-training-lr"' not in text
    rows = re.findall(r'<th scope="row">([^<]*)</th>', text)
    assert rows == ["dskd", "teacher", "teacher compared with student"]
    assert re.search(r'<td class="number">1 times</td>', text)  # the teacher is a resnet8, too


@pytest.mark.slow
def test_charts_draw_the_epochs_that_were_evaluated(tmp_path: Path) -> None:
    own = ("train.epochs=5", "train.evaluate_every=2", "method.name=ce", "teacher=null")
    one = distilled(tmp_path / "one", *own)
    numbers = reported([one], tmp_path / "one.html").with_suffix(".json").read_text()
    (curves,) = json.loads(numbers)["epochs"].values()
    accuracies = curves["0"]["test_accuracy"]
    assert [number is not None for number in accuracies] == [False, True, False, True, True]
    assert None not in curves["0"]["train_loss"]


def test_a_streamed_run_of_many_classes_has_its_errors_with_the_names_of_files(
    tmp_path: Path,
) -> None:
    page = Page(reported([streamed(tmp_path, 41)], tmp_path / "page.html").read_text())
    record = json.loads((tmp_path / "page.json").read_text())["mistakes"]
    charts = [found["id"] for found in page.find("div", **{"class": "chart"})]
    assert charts[-2:] == ["chart-classes", "chart-confusion"]
    assert "The accuracy of a class goes from 0.0 % (class" in page.text
    assert f"matrix has the {len(record['rows'])} most confused classes" in page.text
    assert len(record["class_accuracy"]) == 41
    assert len(record["confused"]) == len(page.find("table", **{"class": "confused"})) * 15
    images = [one for one in page.find("img") if "the student predicts" in (one["alt"] or "")]
    assert len(images) == len(record["worst"]) == 12
    assert "the probability of that class, and its file." in page.text
    for image, error in zip(images, record["worst"], strict=True):
        assert error["file"].removeprefix("test/") in page.text.split()
        assert (tmp_path / "images" / error["file"]).is_file()
        assert (image["title"] or "").endswith(error["file"])
        assert error["file"].startswith(f"test/{error['label']}/")


@pytest.mark.slow
def test_nothing_is_finished_yet(tmp_path: Path) -> None:
    run = distilled(tmp_path / "ce", "method={name: ce}", "teacher=null", "train.epochs=1")
    (run / "result.json").unlink()
    page = Page(reported([run], tmp_path / "page.html").read_text())
    assert page.find("div", **{"class": "chart"}) == []
    assert "No run is finished yet." in page.text
    assert "ce , seed 0: not finished, 1 of 1 epochs are done" in page.text


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, Dataset]:
    """The report of images and a student given in Python, with names that would do harm."""
    path = tmp_path_factory.mktemp("hostile")
    given = named(path / "run", HOSTILE)
    assert isinstance(given.data, Dataset)
    return Page(reported([path / "run"], path / "report.html", given).read_text()), given.data


def named(out: Path, classes: tuple[str, ...]) -> UserObjects:
    """Makes a run on images whose classes have these names; returns its objects."""
    data = dataclasses.replace(make_dataset(len(classes), per_class=3), classes=classes)
    teacher = dskd.load_model("resnet8", num_classes=len(classes))
    dskd.distill(
        student="resnet8",
        teacher=trusted(teacher),
        data=data,
        train={"epochs": 1, "batch_size": 4},
        out=out,
    )
    return UserObjects(data=data, teacher=teacher)


@pytest.mark.slow
def test_names_of_classes_are_only_ever_text(hostile: tuple[Page, Dataset]) -> None:
    page, _ = hostile
    assert len(page.find("script")) == 3  # the library, the figures, the page's own
    assert all("onerror" not in attributes for _, attributes in page.tags)
    assert any(name in page.text for name in HOSTILE)
    assert (
        "49"
        not in page.text.partition("Disagreements of student and teacher")[2].partition("Settings")[
            0
        ]
    )


@pytest.mark.slow
def test_names_that_are_no_text_are_escaped_and_a_root_that_is_none_is_told(tmp_path: Path) -> None:
    run = tmp_path / "run"
    page = reported([run], tmp_path / "report.html", named(run, ("a", "\udcff")))
    assert r"\udcff" in page.read_text("utf-8")
    with pytest.raises(InputError, match=r"data\.root: that user has no home folder"):
        make_report([run], tmp_path / "report.html", root=Path("~nobody-of-this-name/x"))


@pytest.mark.slow
def test_images_are_in_the_page_with_words_for_them(hostile: tuple[Page, Dataset]) -> None:
    page, data = hostile
    images = page.find("img")
    assert images
    for image in images:
        assert (image["src"] or "").startswith("data:image/png;base64,")
        found = re.match(
            r"Test image (\d+), labelled (.*); the (?:teacher|student) predicts", image["alt"] or ""
        )
        assert found
        assert data.classes[int(data.test.labels[int(found[1])])] == found[2]
        assert image["class"] == "pixels"


@pytest.mark.slow
def test_images_that_are_not_to_be_had_are_asked_for(
    hostile: tuple[Page, Dataset], tmp_path: Path
) -> None:
    result = dskd.train(
        student="resnet8",
        data=hostile[1],
        train={"epochs": 1, "batch_size": 4},
        out=tmp_path / "run",
    )
    with pytest.raises(InputError, match="images were given in Python"):
        make_report([result.path], tmp_path / "report.html")
    assert not list(tmp_path.glob("report.*"))


@pytest.mark.slow
def test_only_reports_are_replaced(folder: Path, tmp_path: Path) -> None:
    run = folder / "runs/ce/seed0"
    for output, words in (
        (tmp_path / "report.pdf", r"must end in \.html"),
        (tmp_path / "gone/report.html", "there is no folder"),
        (run / "result.html", r"result\.json exists and is not part of a report"),
    ):
        with pytest.raises(InputError, match=words):
            make_report([run], output)
    mine = tmp_path / "mine.html"
    mine.write_text("<p>my own page</p>")
    with pytest.raises(InputError, match=r"mine\.html exists and is not part of a report"):
        make_report([run], mine)
    assert mine.read_text() == "<p>my own page</p>"
    output = tmp_path / "report.html"
    reported([run], output)
    reported([run], output)
    before = output.read_bytes()
    with pytest.raises(
        InputError, match=r'is the report of other runs; remove it, or .* out="PAGE'
    ):
        reported([folder / "runs/kd/seed0"], output)
    assert output.read_bytes() == before


@pytest.mark.slow
def test_a_report_is_written_where_its_runs_are(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dskd")
    monkeypatch.setattr(latency, "SECONDS", 0.0)
    there = shutil.copytree(folder / "runs", tmp_path / "there")
    names = ["report.html", "report.csv", "report.json", "report.tex"]
    alone = there / "kd/seed0"
    assert make_report([alone]) == tuple(alone / name for name in names)
    monkeypatch.chdir(tmp_path)
    both = [there / "kd/seed0", there / "ce/seed0"]
    assert make_report(both) == tuple(Path("there") / name for name in names)
    with pytest.raises(InputError, match="is the report of other runs"):
        make_report([there])  # the whole comparison
    (row,) = csv.DictReader((alone / "report.csv").read_text().splitlines())
    assert (row["seeds"], row["seed_numbers"]) == ("1", "0")
    moved = (tmp_path / "there").rename(tmp_path / "moved")
    make_report([moved / "kd/seed0"])
    assert "replacing the report that these runs have in" in caplog.text


@pytest.mark.slow
def test_the_command_says_where_the_page_is(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(latency, "SECONDS", 0.0)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    output = tmp_path / "page.html"

    def call(*arguments: object) -> Any:
        with pytest.raises(SystemExit) as stopped:
            cli.main(["report", *map(str, arguments)])
        return stopped.value.code, *capsys.readouterr()

    code, out, _ = call(folder / "runs/kd/seed0", folder / "runs/ce/seed0", "--out", output)
    written = [output.with_suffix(suffix) for suffix in (".html", ".csv", ".json", ".tex")]
    assert (code, out) == (0, "".join(f"{path}\n" for path in written))
    assert all(path.is_file() for path in written)
    code, out, err = call(tmp_path)
    assert (code, out) == (2, "")
    assert "holds neither a run nor a comparison" in err
    assert err.count("\n") == 1


def test_importing_the_package_does_not_import_the_charts() -> None:
    code = (
        "import sys, dskd, dskd.cli.commands; "
        "assert not {'plotly', 'dskd.report'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
