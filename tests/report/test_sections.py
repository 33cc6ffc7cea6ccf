"""What a report says of costs and of missing differences, from results that no run had to make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dskd.compare.summary import VariantResults, summarize
from dskd.engine.user_objects import UserObjects
from dskd.report import method_table, sections
from dskd.report.analysis import Analysis, ModelCosts
from dskd.report.collect import CollectedRuns, MethodRuns
from dskd.report.contents import ReportContents
from dskd.report.cost import Cost
from dskd.report.images import IMAGE_REPORT
from dskd.report.sections import Section
from dskd.report.styles import styles_of
from dskd.report.task import ReportTask
from tests.report.test_conclusions import KD, WORSE, result

COST = Cost(10, 20, 1.0, 2.0)


def collected(
    accuracies: Mapping[str, Sequence[float]],
    folder: Path | None = None,
    task: ReportTask = IMAGE_REPORT,
) -> CollectedRuns:
    """Runs with these test accuracies, one per seed, that lie in a folder if one is given."""
    more = {"teacher_accuracy": None, "best_chosen_on": "test"}
    recipe = SimpleNamespace(data=SimpleNamespace(split_seed=0))
    runs = []
    for label, values in accuracies.items():
        results = {seed: result(value) | more for seed, value in enumerate(values)}
        variant = VariantResults(label, label, {}, results, {})
        folders = {} if folder is None else dict.fromkeys(results, folder / label)
        runs.append(MethodRuns(variant, {}, folders))
    return CollectedRuns(task, tuple(runs), recipe, (), ({},))


def contents(
    accuracies: Mapping[str, Sequence[float]], costs: ModelCosts | None = None
) -> ReportContents:
    runs = collected(accuracies)
    summaries = tuple(summarize([one.variant for one in runs.methods], 1000))
    return ReportContents(runs, summaries, Analysis(costs=costs), 1000, {"processor": "a CPU"})


def test_the_table_of_costs_names_every_method() -> None:
    labels = [f"m{number}" for number in range(9)]
    costs = ModelCosts(dict.fromkeys(labels, COST), None, " Some are left out.")
    report = contents({label: [70.0 + n] for n, label in enumerate(labels)}, costs)
    found = sections.cost(report, styles_of(labels))
    assert isinstance(found, Section)
    assert found.table is not None
    ((names, accuracies, *_),) = found.table.rows
    assert names == ", ".join(labels)
    assert ("70.00" in accuracies, "78.00" in accuracies) == (True, True)
    assert "Some are left out. Methods whose students cost the same share a row" in found.text


def test_a_row_of_one_method_needs_no_word_on_shared_rows() -> None:
    found = sections.cost(contents({"kd": KD}, ModelCosts({"kd": COST}, None)), styles_of(["kd"]))
    assert isinstance(found, Section)
    assert found.text.endswith("on other machines.")


@pytest.mark.parametrize("kd", [{}, {"kd": []}])
def test_without_a_run_of_kd_the_table_says_why_it_has_no_differences(
    kd: dict[str, list[float]],
) -> None:
    said = "There are no differences to kd, no p and no ARI, since no run of kd is finished."
    assert said in method_table.notes(contents({"ce": WORSE, "dskd": KD, **kd}))
    assert said not in method_table.notes(contents({"dskd": KD}))
    assert said not in method_table.notes(contents({"ce": WORSE, "kd": KD}))
    alone = method_table.notes(contents({"ce": [], "kd": KD}))
    assert any("since no other method has a result" in note for note in alone)


def test_costs_of_segmentation_say_which_methods_were_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segmentation = pytest.importorskip("dskd.report.segmentation")

    class Images(list[Any]):
        def examples(self, count: int) -> list[int]:
            return []

    student = SimpleNamespace(model=None, recipe=SimpleNamespace(student=SimpleNamespace(width=8)))
    monkeypatch.setattr(segmentation, "load_student", lambda _: student)
    monkeypatch.setattr(segmentation, "scores_on", lambda *_: [])
    monkeypatch.setattr(segmentation, "measure", lambda *_, **__: COST)
    monkeypatch.setattr(segmentation, "check_same_data", lambda *_: None)
    data = SimpleNamespace(
        shape=(1, 8, 8), test=Images(), classes=("background", "heart"), fingerprint=str
    )
    task = segmentation.SEGMENTATION_REPORT

    def note(count: int) -> tuple[str, str]:
        accuracies = {f"m{number}": [70.0 + number] for number in range(count)}
        found = task.analyze(collected(accuracies, tmp_path, task), data, UserObjects())
        assert list(found.costs.students) == [f"m{n}" for n in range(count)][::-1][:6]
        return found.costs.note, found.class_scores.text

    note_of_costs, text_of_scores = note(7)
    assert note_of_costs == " 6 methods of 7 are shown, the best results first."
    assert text_of_scores.endswith(note_of_costs)
    assert note(6)[0] == ""
