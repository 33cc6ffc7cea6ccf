"""Curves of a report."""

from __future__ import annotations

from dskd.report.charts import MOST_POINTS, over_epochs, show_legend, stage_style


def test_long_curves_are_drawn_at_some_epochs_from_the_first_to_the_last() -> None:
    long = {seed: {epoch: float(epoch + seed) for epoch in range(1, 1001)} for seed in (0, 2)}
    band, line = over_epochs({"kd": long}, {"kd": stage_style(0)}, "loss").data
    assert len(line.x) == len(set(line.x)) == MOST_POINTS
    assert (line.x[0], line.x[-1]) == (1, 1000)
    assert all(y == x + 1 for x, y in zip(line.x, line.y, strict=True))
    assert len(band.x) == 2 * MOST_POINTS
    assert (band.y[0], band.y[-1]) == (3.0, 1.0)


def test_short_curves_have_every_epoch() -> None:
    curve = {0: {1: 3.0, 2: 2.0, 3: 1 / 3}}
    (line,) = over_epochs({"kd": curve}, {"kd": stage_style(0)}, "loss").data
    assert (line.x, line.y) == ((1, 2, 3), (3.0, 2.0, 0.333333))


def test_epochs_without_a_value_are_left_out() -> None:
    curve = {0: {2: 1.0, 4: 2.0, 5: 3.0}, 1: {2: 3.0, 4: 4.0}}
    figure = over_epochs({"kd": curve}, {"kd": stage_style(0)}, "loss")
    band, line = figure.data
    assert (line.x, line.y) == ((2, 4), (2.0, 3.0))
    assert band.x == (2, 4, 4, 2)
    assert figure.layout.xaxis.range[1] > 5


def test_a_legend_names_lines_and_not_their_bands() -> None:
    figure = over_epochs({"kd": {0: {1: 1.0}, 1: {1: 2.0}}}, {"kd": stage_style(0)}, "loss")
    show_legend(figure)
    assert [trace.showlegend for trace in figure.data] == [False, True]
