"""The charts of a report: curves over training, rates by group, calibration, shares of time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import ceil, floor, log10

from tlrecipe.artifacts.report.shapes import (
    SERIES,
    Box,
    Dot,
    Figure,
    Hint,
    Label,
    Line,
    Point,
    Shape,
    shortened,
    text_width,
)
from tlrecipe.artifacts.report.text import duration, percent

_ROW = 20.0
_LEGEND_GAP = 15.0


@dataclass(frozen=True)
class Curve:
    """A line of a chart; it is broken between its segments."""

    name: str
    role: str
    segments: Sequence[Sequence[Point]]
    dots: bool = False
    thick: bool = False

    @property
    def points(self) -> list[Point]:
        return [point for segment in self.segments for point in segment]


@dataclass(frozen=True)
class Span:
    """A named stretch of the horizontal axis, such as a phase."""

    name: str
    start: float
    end: float


@dataclass(frozen=True)
class Row:
    """A strip below a chart of rates: what becomes of one group in each span."""

    name: str
    role: str
    cells: Sequence[tuple[str, bool]]
    """For each span a word, and whether the group trains in it."""


def role(index: int) -> str:
    """The colour of series number ``index``, again from the start when all are used."""
    return f"s{index % SERIES + 1}"


@dataclass
class _Plot:
    """The area inside the axes, with its scales."""

    left: float
    right: float
    top: float
    bottom: float
    x: tuple[float, float]
    y: tuple[float, float]
    log: bool = False
    shapes: list[Shape] = field(default_factory=list)

    def at(self, x: float, y: float) -> Point:
        return self.x_at(x), self.y_at(y)

    def x_at(self, x: float) -> float:
        low, high = self.x
        return self.left + (x - low) / (high - low) * (self.right - self.left)

    def y_at(self, y: float) -> float:
        low, high = self.y
        if self.log:
            low, high, y = log10(low), log10(high), log10(max(y, low))
        return self.bottom - (y - low) / (high - low) * (self.bottom - self.top)


def curves(
    series: Sequence[Curve],
    *,
    title: str,
    description: str,
    width: float,
    number: Callable[[float], str],
    x_name: str,
    spans: Sequence[Span] = (),
    rows: Sequence[Row] = (),
    height: float = 250,
    limits: tuple[float | None, float | None] = (None, None),
    log: bool = False,
    hints: Sequence[tuple[float, str]] = (),
) -> Figure:
    """Lines over a common axis, each named at its end, with the spans of the axis marked above.

    Args:
        number: Writes a value of the vertical axis.
        limits: Bounds that the vertical axis must not pass, such as 0 and 1 for shares.
        rows: Strips below the axis, one cell for each span.
        hints: Places of the horizontal axis with what to say there.
    """
    points = [point for curve in series for point in curve.points]
    ticks, y = _axis([value for _, value in points], limits, log)
    label_room = max((text_width(curve.name) for curve in series), default=0)
    left = max(text_width(number(tick)) for tick in ticks) + 12
    if rows:
        left = max(left, min(96.0, max(text_width(row.name) for row in rows)) + 12)
    label_room = min(label_room, width * 0.3)
    first = min([x for x, _ in points] + [span.start for span in spans])
    last = max([x for x, _ in points] + [span.end for span in spans])
    strip = len(rows) * _ROW + (8 if rows else 0)
    plot = _Plot(
        left=left,
        right=width - label_room - 12,
        top=26.0 if len(spans) > 1 else 10.0,
        bottom=height - 36 - strip,
        x=(first, last if last > first else first + 1),
        y=y,
        log=log,
    )
    _draw_spans(plot, spans)
    _draw_axes(plot, ticks, number, x_name, height - strip)
    _draw_rows(plot, rows, spans, height - strip + 2)
    for curve in series:
        for segment in curve.segments:
            if len(segment) > 1:
                line = [plot.at(*point) for point in segment]
                plot.shapes.append(Line(line, curve.role, 2.25 if curve.thick else 1.5))
            if len(segment) == 1 or curve.dots:
                plot.shapes += [Dot(*plot.at(*point), curve.role, 2.5) for point in segment]
    _draw_names(plot, series, label_room)
    for place, text in hints:
        step = (plot.right - plot.left) / max(1, len(hints))
        left_edge = plot.x_at(place) - step / 2
        plot.shapes.append(Hint(left_edge, plot.top, step, plot.bottom - plot.top, text))
    return Figure(width, height, plot.shapes, title, description)


def _draw_spans(plot: _Plot, spans: Sequence[Span]) -> None:
    if len(spans) == 1:
        return
    for index, span in enumerate(spans):
        start, end = plot.x_at(span.start), plot.x_at(span.end)
        if index % 2 == 0:
            plot.shapes.append(Box(start, plot.top, end - start, plot.bottom - plot.top, "band"))
        if index:
            plot.shapes.append(Line([(start, plot.top - 14), (start, plot.bottom)], "muted", 1))
        name = shortened(span.name, end - start - 8)
        if name:
            plot.shapes.append(Label(start + 5, plot.top - 6, name, "ink", bold=True))


def _draw_axes(
    plot: _Plot, ticks: Sequence[float], number: Callable[[float], str], x_name: str, bottom: float
) -> None:
    for tick in ticks:
        y = plot.y_at(tick)
        plot.shapes.append(Line([(plot.left, y), (plot.right, y)], "rule", 1))
        plot.shapes.append(Label(plot.left - 6, y + 4, number(tick), anchor="end"))
    low, high = plot.x
    for tick in _nice(low, high, max(2, int((plot.right - plot.left) / 70)), whole=True):
        x = plot.x_at(tick)
        plot.shapes.append(Line([(x, plot.bottom), (x, plot.bottom + 4)], "muted", 1))
        plot.shapes.append(Label(x, plot.bottom + 17, f"{tick:,.0f}", anchor="middle"))
    plot.shapes.append(Line([(plot.left, plot.bottom), (plot.right, plot.bottom)], "muted", 1))
    plot.shapes.append(Label(plot.right, bottom - 4, x_name, anchor="end"))


def _draw_rows(plot: _Plot, rows: Sequence[Row], spans: Sequence[Span], top: float) -> None:
    for index, row in enumerate(rows):
        y = top + index * _ROW
        plot.shapes.append(
            Label(plot.left - 8, y + 13, shortened(row.name, plot.left - 12), row.role, "end", bold=True)
        )
        for span, (word, trains) in zip(spans, row.cells, strict=True):
            start, end = plot.x_at(span.start) + 1, plot.x_at(span.end) - 1
            box = Box(
                start, y, end - start, _ROW - 4, row.role if trains else "rule", 0.22 if trains else 0.5
            )
            plot.shapes.append(box)
            if text_width(word) < end - start - 8:
                plot.shapes.append(Label(start + 5, y + 12, word, "ink" if trains else "muted"))


def _draw_names(plot: _Plot, series: Sequence[Curve], room: float) -> None:
    ends = [(curve.points[-1][1], curve) for curve in series if curve.points]
    placed = spread([plot.y_at(value) for value, _ in ends], _LEGEND_GAP, plot.top, plot.bottom)
    for (_, curve), y in zip(ends, placed, strict=True):
        name = shortened(curve.name, room + 2)
        plot.shapes.append(Label(plot.right + 8, y + 4, name, curve.role, bold=True))


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places moved as little as possible so that neighbours are at least ``gap`` apart, from ``low`` to
    ``high`` where there is room; in the order given."""
    order = sorted(range(len(places)), key=lambda index: places[index])
    result = list(places)
    floor_ = low
    for index in order:
        result[index] = max(result[index], floor_)
        floor_ = result[index] + gap
    ceiling = high
    for index in reversed(order):
        result[index] = min(result[index], ceiling)
        ceiling = result[index] - gap
    return result


# --------------------------------------------------------------------------- scales


def _axis(
    values: Sequence[float], limits: tuple[float | None, float | None], log: bool
) -> tuple[list[float], tuple[float, float]]:
    """Ticks and ends of a vertical axis."""
    if not values:
        values = [0.0, 1.0]
    low, high = min(values), max(values)
    if log:
        first, last = floor(log10(low)), ceil(log10(high))
        if first == last:
            last += 1
        return [10.0**power for power in range(first, last + 1)], (10.0**first, 10.0**last)
    if high - low < 1e-9:
        low, high = low - 0.05 * abs(low) - 1e-3, high + 0.05 * abs(high) + 1e-3
    ticks = _nice(low, high, 5)
    step = ticks[1] - ticks[0] if len(ticks) > 1 else high - low
    low, high = floor(low / step + 1e-9) * step, ceil(high / step - 1e-9) * step
    least, most = limits
    low = low if least is None else max(low, least)
    high = high if most is None else min(high, most)
    return _nice(low, high, 5), (low, high)


def _nice(low: float, high: float, count: int, whole: bool = False) -> list[float]:
    """Round numbers from ``low`` to ``high``, about ``count`` of them."""
    rough = (high - low) / max(1, count)
    power = 10.0 ** floor(log10(rough)) if rough > 0 else 1.0
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    if whole:
        step = max(1.0, step)
    first = ceil(low / step - 1e-9)
    return [index * step for index in range(first, floor(high / step + 1e-9) + 1)]


# --------------------------------------------------------------------------- single charts


def interval(
    share: float,
    low: float,
    high: float,
    marks: Sequence[tuple[str, float]],
    *,
    width: float,
    description: str,
) -> Figure:
    """A share with its interval on an axis from 0 to 100 %, and other shares to measure it by."""
    plot = _Plot(8, width - 8, 0, 40, (0.0, 1.0), (0.0, 1.0))
    y = 14.0
    plot.shapes.append(Line([(plot.left, y), (plot.right, y)], "rule", 6))
    plot.shapes.append(Line([(plot.left, y), (plot.x_at(share), y)], "s1", 6))
    plot.shapes.append(Line([(plot.x_at(low), y), (plot.x_at(high), y)], "ink", 2))
    for edge in (low, high):
        plot.shapes.append(Line([(plot.x_at(edge), y - 6), (plot.x_at(edge), y + 6)], "ink", 2))
    taken = -1.0
    for name, value in sorted(marks, key=lambda mark: mark[1]):
        x = plot.x_at(value)
        plot.shapes.append(Line([(x, y - 7), (x, y + 9)], "muted", 1.5))
        text = f"{name} {percent(value)}"
        start = max(x - 3, taken)
        plot.shapes.append(Label(start, y + 24, text))
        taken = start + text_width(text) + 8
    plot.shapes.append(Label(plot.right, y + 24, percent(1, 0), anchor="end"))
    return Figure(width, 42, plot.shapes, "Accuracy with its 95 % interval", description)


def reliability(
    bins: Sequence[tuple[float, float, float, float, int]], *, width: float, description: str
) -> Figure:
    """Accuracy over confidence: a bar for each bin of ``(low, high, mean confidence, accuracy, images)``,
    the line on which both agree, and below how many images there are in each bin."""
    height, low_height = 300.0, 44.0
    plot = _Plot(46, width - 14, 12, height - low_height - 48, (0.0, 1.0), (0.0, 1.0))
    base = height - 36
    for tick in (0, 0.25, 0.5, 0.75, 1):
        y = plot.y_at(tick)
        plot.shapes.append(Line([(plot.left, y), (plot.right, y)], "rule", 1))
        plot.shapes.append(Label(plot.left - 6, y + 4, percent(tick, 0), anchor="end"))
        anchor = "end" if tick == 1 else "middle"
        plot.shapes.append(Label(plot.x_at(tick), height - 20, percent(tick, 0), anchor=anchor))
    most = max((number for *_, number in bins), default=1)
    for low, high, confidence, accuracy, number in bins:
        left, right, top = plot.x_at(low), plot.x_at(high), plot.y_at(accuracy)
        tall = max(1.0, number / most * (low_height - 4))
        plot.shapes.append(Box(left + 1, top, right - left - 2, plot.bottom - top, "s1", 0.3))
        plot.shapes.append(Line([(left + 1, top), (right - 1, top)], "s1", 2))
        plot.shapes.append(Box(left + 1, base - tall, right - left - 2, tall, "muted", 0.55))
        hint = f"confidence {percent(confidence)}, accuracy {percent(accuracy)}, {number:,} images"
        plot.shapes.append(Hint(left, plot.top, right - left, base - plot.top, hint))
    plot.shapes.append(Line([plot.at(0, 0), plot.at(1, 1)], "ink", 1.5, dashed=True))
    plot.shapes.append(Line([(plot.left, base), (plot.right, base)], "muted", 1))
    plot.shapes.append(Label(plot.left + 6, plot.top + 14, "accuracy", "s1", bold=True))
    plot.shapes.append(Label(plot.left - 6, base - 4, "images", anchor="end"))
    plot.shapes.append(Label(plot.right, height - 4, "confidence of the prediction", anchor="end"))
    return Figure(width, height, plot.shapes, "Reliability diagram", description)


def shares(parts: Sequence[tuple[str, float]], *, width: float, title: str, description: str) -> Figure:
    """Seconds by kind of work: a bar for each, longest first, with its time."""
    kept = sorted((part for part in parts if part[1] > 0), key=lambda part: -part[1])
    total = sum(seconds for _, seconds in kept) or 1.0
    name_room = max((text_width(name) for name, _ in kept), default=0) + 10
    figures = [f"{duration(seconds)} · {_whole_percent(seconds / total)}" for _, seconds in kept]
    room = width - name_room - max((text_width(text) for text in figures), default=0) - 12
    longest = max((seconds for _, seconds in kept), default=1.0)
    shapes: list[Shape] = []
    for index, ((name, seconds), text) in enumerate(zip(kept, figures, strict=True)):
        y = index * 24.0
        length = max(1.5, seconds / longest * room)
        shapes.append(Label(name_room - 10, y + 15, name, "ink", "end"))
        shapes.append(Box(name_room, y + 3, length, 16, "s1", 0.75))
        shapes.append(Label(name_room + length + 6, y + 15, text))
    return Figure(width, max(24.0, len(kept) * 24.0), shapes, title, description)


def _whole_percent(share: float) -> str:
    return percent(share, 0) if share >= 0.005 else f"under {percent(0.01, 0)}"


def meter(share: float, interval: tuple[float, float] | None = None) -> str:
    """A small bar, with its interval if there is one, for a cell of a table whose text says the same: no
    figure of its own."""
    line = ""
    if interval is not None:
        low, high = interval
        line = f'<path class="line ink" stroke-width="1.5" d="M{80 * low:.1f} 5H{80 * high:.1f}"/>'
    return (
        '<svg class="meter" viewBox="0 0 80 10" width="80" height="10" aria-hidden="true">'
        '<rect class="box rule" y="3" width="80" height="4"/>'
        f'<rect class="box s1" y="3" width="{80 * share:.1f}" height="4"/>{line}</svg>'
    )


def sparkline(values: Iterable[float]) -> str:
    """Values as a line of block characters, for a terminal."""
    numbers = list(values)
    low, high = min(numbers), max(numbers)
    blocks = "▁▂▃▄▅▆▇█"
    if high == low:
        return blocks[3] * len(numbers)
    return "".join(blocks[round((value - low) / (high - low) * 7)] for value in numbers)
