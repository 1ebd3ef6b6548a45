"""The geometry of line and bar charts; ``templates/figures.html`` draws them as SVG."""

import dataclasses
import math
from collections.abc import Sequence

Number = float | int

WIDTH, HEIGHT = 440, 260
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 42
"""Margins around the plot, in the units of the picture."""


@dataclasses.dataclass(frozen=True)
class Series:
    """A curve.

    Attributes:
        label: for the legend.
        points: x and y, in the order of x.
        run: number of the run, which decides the colour.
        dash: number of the dash pattern.
    """

    label: str
    points: Sequence[tuple[Number, Number]]
    run: int = 0
    dash: int = 0


@dataclasses.dataclass(frozen=True)
class Bar:
    """A bar of a group.

    Attributes:
        value: its height; None for a gap.
        run: number of the run.
        text: what a pointer shows.
    """

    value: Number | None
    run: int
    text: str


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart in the coordinates of its picture.

    Attributes:
        title: what it shows.
        summary: the text alternative.
        x_label: the quantity along the horizontal axis.
        y_label: the quantity along the vertical axis.
        x_ticks: position and text.
        y_ticks: position and text.
        lines: of each curve, the series and its polyline.
        bars: left, top, width and height of each bar, with the bar.
        legend: label, run and dash of each entry; none if there is only one.
    """

    title: str
    summary: str
    x_label: str
    y_label: str
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    lines: Sequence[tuple[Series, str]] = ()
    bars: Sequence[tuple[float, float, float, float, Bar]] = ()
    legend: Sequence[tuple[str, int, int]] = ()


def nice_ticks(low: Number, high: Number, count: int = 5) -> list[float]:
    """Round numbers that cover a range in about ``count`` steps.

    >>> nice_ticks(0, 0.93)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    >>> nice_ticks(0, 1152)
    [0.0, 250.0, 500.0, 750.0, 1000.0, 1250.0]
    """
    span = high - low or abs(high) or 1.0
    power = 10 ** math.floor(math.log10(span / count))
    step = min(
        (factor * power for factor in (1, 2, 2.5, 5, 10)), key=lambda s: abs(span / s - count)
    )
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(round(index * step, 12)) for index in range(first, max(last, first + 1) + 1)]


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    percent: bool = False,
) -> Chart:
    """A chart of curves.

    Args:
        title: what it shows.
        series: one curve or more, each with a point or more.
        x_label: the quantity along the horizontal axis.
        y_label: the quantity along the vertical axis.
        percent: whether y is a fraction, to be shown in percent from 0 to 100.
    """
    xs = [x for one in series for x, _ in one.points]
    ys = [y for one in series for _, y in one.points]
    x_ticks, y_ticks = nice_ticks(min(xs), max(xs)), _y_ticks(ys, percent)
    x_ends, y_ends = (min(xs), max(xs)), (y_ticks[0], y_ticks[-1])
    lines = [
        (one, " ".join(f"{_x(x, x_ends):.1f},{_y(y, y_ends):.1f}" for x, y in one.points))
        for one in series
    ]
    return Chart(
        title=title,
        summary=f"{title}. " + "; ".join(_last(one, percent) for one in series) + ".",
        x_label=x_label,
        y_label=y_label,
        x_ticks=[(_x(x, x_ends), f"{x:g}") for x in x_ticks if x_ends[0] <= x <= x_ends[1]],
        y_ticks=[(_y(y, y_ends), _text(y, percent)) for y in y_ticks],
        lines=lines,
        legend=[(one.label, one.run, one.dash) for one in series] if len(series) > 1 else [],
    )


def bar_chart(
    title: str,
    groups: Sequence[tuple[str, Sequence[Bar]]],
    *,
    x_label: str,
    y_label: str,
    runs: Sequence[str],
    percent: bool = True,
) -> Chart:
    """A chart of groups of bars, one bar per run.

    Args:
        title: what it shows.
        groups: label and bars of each, as many in every group.
        x_label: the quantity along the horizontal axis.
        y_label: the quantity along the vertical axis.
        runs: their names, for the legend.
        percent: whether the values are fractions, to be shown in percent from 0 to 100.
    """
    values = [bar.value for _, bars in groups for bar in bars if bar.value is not None]
    y_ticks = _y_ticks(values, percent)
    y_ends = y_ticks[0], y_ticks[-1]
    slot = (WIDTH - LEFT - RIGHT) / len(groups)
    bars = []
    for number, (_, group) in enumerate(groups):
        width = 0.8 * slot / len(group)
        for index, bar in enumerate(group):
            if bar.value is not None:
                top = _y(bar.value, y_ends)
                left = LEFT + (number + 0.1) * slot + index * width
                bars.append((left, top, width, HEIGHT - BOTTOM - top, bar))
    listed = "; ".join(bar.text for _, group in groups for bar in group if bar.value is not None)
    return Chart(
        title=title,
        summary=f"{title}. {listed}.",
        x_label=x_label,
        y_label=y_label,
        x_ticks=[(LEFT + (n + 0.5) * slot, label) for n, (label, _) in enumerate(groups)],
        y_ticks=[(_y(y, y_ends), _text(y, percent)) for y in y_ticks],
        bars=bars,
        legend=[(name, run, 0) for run, name in enumerate(runs)] if len(runs) > 1 else [],
    )


def _y_ticks(values: Sequence[Number], percent: bool) -> list[float]:
    if percent:
        return [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    return nice_ticks(min(*values, 0.0), max(values))


def _x(x: Number, ends: tuple[Number, Number]) -> float:
    share = (x - ends[0]) / (ends[1] - ends[0]) if ends[1] > ends[0] else 0.5
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def _y(y: Number, ends: tuple[Number, Number]) -> float:
    return HEIGHT - BOTTOM - (y - ends[0]) / (ends[1] - ends[0]) * (HEIGHT - TOP - BOTTOM)


def _text(value: Number, percent: bool) -> str:
    return f"{100 * value:.0f}" if percent else f"{value:g}"


def _last(series: Series, percent: bool) -> str:
    """A curve in words: where it ends."""
    x, y = series.points[-1]
    text = f"{100 * y:.1f} %" if percent else f"{y:.3g}"
    name = f"{series.label}: " if series.label else ""
    return f"{name}{text} at {x:g}"
