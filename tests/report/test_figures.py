"""The geometry of charts, by hand."""

import pytest

from pgfl_jax.report.figures import Bar, Series, bar_chart, line_chart, nice_ticks


def test_a_line_is_where_its_numbers_are():
    curve = Series("a", [(1, 0.0), (11, 0.5), (21, 1.0)])
    chart = line_chart("CMC", [curve], x_label="k", y_label="%", percent=True)
    # The plot is 376 wide from 52 on, and 206 high from 218 upwards.
    ((_, points),) = chart.lines
    assert points == "52.0,218.0 240.0,115.0 428.0,12.0"
    assert chart.y_ticks[0] == (218.0, "0") and chart.y_ticks[-1] == (12.0, "100")
    assert chart.legend == [] and chart.summary == "CMC. a: 100.0 % at 21."


def test_bars():
    bars = [("0–20", [Bar(0.5, 0, "x"), Bar(None, 1, "")]), ("20–40", [Bar(1.0, 0, "y")] * 2)]
    chart = bar_chart("mAP", bars, x_label="hidden", y_label="mAP", runs=["a", "b"])
    left, top, width, height, bar = chart.bars[0]
    assert (left, top, height) == (pytest.approx(52 + 18.8), 115.0, 103.0) and bar.text == "x"
    assert width == pytest.approx(0.4 * 188)
    assert len(chart.bars) == 3  # no bar for what is missing
    assert chart.legend == [("a", 0, 0), ("b", 1, 0)]
    assert chart.summary == "mAP. x; y; y."


@pytest.mark.parametrize("ends", [(0, 0), (3, 3), (1e-9, 2e-9), (-5, 7), (0.02, 12345)])
def test_ticks_cover_the_range(ends):
    ticks = nice_ticks(*ends)
    assert 2 <= len(ticks) <= 9 and ticks == sorted(ticks)
    assert ticks[0] <= ends[0] and (ends[0] == ends[1] or ticks[-1] >= ends[1])
