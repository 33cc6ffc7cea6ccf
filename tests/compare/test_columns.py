"""The columns of a results table: every output shows the same values."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import pytest

from dskd.compare import columns
from dskd.compare.columns import MISSING, Column, number_column
from dskd.compare.statistics import Difference, Interval
from dskd.compare.summary import Summary
from dskd.compare.table import COLUMNS as TERMINAL
from dskd.compare.table import summary_table
from dskd.report.method_table import COLUMNS as PAGE
from dskd.report.tables import as_csv, as_latex, plain_row

ALL = [value for value in vars(columns).values() if isinstance(value, Column)]
DSKD = Summary(
    label="dskd:beta=0.1",
    method="dskd",
    weights={"ce": 1.0, "beta": 0.1},
    seeds=(0, 1),
    failed={2: "the loss is not finite"},
    test_accuracy=Interval(95.5, 6.353, (95.0, 96.0)),
    best_test_accuracy=Interval(96.0, None, (96.0,)),
    agreement=Interval(90.0, 0.0, (90.0, 90.0)),
    difference=Difference(Interval(1.25, 0.5, (1.0, 1.5)), 0.0001, 0.0004),
    improvement=50.4,
    sampling_error=0.8,
    parameters=77_754,
    extra_parameters=22_356,
    seconds=1234.56,
    memory=8_033_020,
)
EMPTY = Summary("at", "at", {}, (), {0: "not started"})
TEXTS = {
    "method": "dskd:beta=0.1",
    "weights": "ce=1 beta=0.1",
    "seeds": "2 of 3",
    "test_accuracy": "95.50 ± 6.35",
    "best_test_accuracy": "96.00",
    "difference_to_kd": "+1.25 ± 0.50",
    "p_holm": "<0.001",
    "ari": "+50",
    "agreement": "90.00 ± 0.00",
    "parameters": "77,754",
    "extra_parameters": "22,356",
    "student_seconds": "1,234.6",
    "memory_bytes": "8.0",
}


def test_a_column_without_a_value_is_left_out_and_the_accuracy_stays() -> None:
    alone = Summary("ce", "ce", {}, (0,), {}, Interval(95.0, None, (95.0,)), parameters=10)
    found = columns.with_values(PAGE, [alone])
    assert [one.name for one in found] == ["seeds", "test accuracy, %", "parameters"]
    assert columns.with_values(PAGE, [alone, DSKD]) == PAGE
    for seeds, has_p in ((1, False), (2, True)):
        tied = replace(
            alone, difference=Difference(Interval(1.0, None, (1.0,) * seeds), None, None)
        )
        assert (columns.P_VALUE in columns.with_values(PAGE, [tied])) == has_p
    assert columns.TEST_ACCURACY in columns.with_values(PAGE, [EMPTY])
    assert r"vs. kd" not in as_latex([alone], None, 10)
    assert summary_table([alone])[0] == ["method", *(one.name for one in found)]


def test_each_column_has_a_key_of_its_own_a_name_and_a_description() -> None:
    assert len({column.key for column in ALL}) == len({column.name for column in ALL}) == len(ALL)
    assert all(column.description for column in ALL)


@pytest.mark.parametrize("column", ALL, ids=lambda column: column.key)
def test_a_value_is_text_for_a_reader_and_whole_for_a_program(column: Column) -> None:
    assert column.text(DSKD) == TEXTS[column.key]
    fields, value = column.fields(DSKD), column.value(DSKD)
    assert json.loads(json.dumps(fields)) == fields
    if column.is_number:
        assert fields[column.key] == value
    interval = column.interval(DSKD)
    if interval is not None:
        assert value == interval.mean
        assert fields[f"{column.key}_seeds"] == [*interval.values]


@pytest.mark.parametrize("column", ALL, ids=lambda column: column.key)
def test_a_method_without_a_result_has_no_values(column: Column) -> None:
    if column in (columns.METHOD, columns.WEIGHTS, columns.SEEDS):
        return
    assert column.value(EMPTY) is None
    assert column.text(EMPTY) == MISSING
    assert not any(column.fields(EMPTY).values())


def test_terminal_page_csv_and_latex_show_the_same_texts() -> None:
    names, [row, _] = summary_table([DSKD, EMPTY])
    assert dict(zip(names, row, strict=True)) == {c.name: TEXTS[c.key] for c in TERMINAL}
    assert {*PAGE, columns.METHOD} == {*ALL}
    [told] = csv.DictReader(io.StringIO(as_csv([plain_row(DSKD, {})])))
    assert {key for column in ALL for key in column.fields(DSKD)} <= told.keys()
    latex = as_latex([DSKD, EMPTY], {}, 500)
    for text in ("95.50 $\\pm$ 6.35", "+1.25 $\\pm$ 0.50", "77,754", "1,234.6", "2 of 3"):
        assert text in latex


def test_a_number_may_be_shown_in_another_unit() -> None:
    column = number_column("bytes", "MB", "of memory", lambda s: s.memory, ".2f", unit=1e6)
    assert (column.text(DSKD), column.value(DSKD)) == ("8.03", 8_033_020)
