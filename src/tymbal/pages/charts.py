"""Charts as inline SVG, drawn for the width of a phone and set side by side on wider screens.

Colours come from the style of the page, so that they suit light and dark; shapes distinguish what colours cannot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from tymbal.pages.axes import number_text, value_marks

__all__ = ["COLOURS", "Line", "Point", "bar", "histogram", "legend", "lines", "marker", "scatter"]

COLOURS = 10
"""Colours that the page's style has."""

_WIDTH, _HEIGHT = 340.0, 190.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 8.0, 8.0, 34.0
_MOST = 300  # points a line; more are averaged


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        name: Its name in the legend.
        x: Places along the axis, ascending.
        y: Values.
        dots: Mark every value, for lines that have few.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    dots: bool = False


@dataclass(frozen=True)
class Point:
    """A point of a map.

    Attributes:
        x: Place, in any unit.
        y: Place, in any unit.
        group: Number of its group; -1 is none.
        text: Its description.
        sound: Name of its player; empty for none.
    """

    x: float
    y: float
    group: int
    text: str
    sound: str = ""


def lines(drawn: Sequence[Line], *, title: str, x_label: str, bounds: tuple[float, float] | None = None) -> str:
    """A chart of lines, with its title and legend.

    Args:
        drawn: The lines, each with one value at least.
        title: Title of the chart.
        x_label: Label of the horizontal axis.
        bounds: Lowest and highest value that are drawn; None fits.
    """
    drawn = [_thinned(line) for line in drawn]
    values = [value for line in drawn for value in line.y]
    axis = _Axes.around([x for line in drawn for x in line.x], list(bounds or values))
    parts = [axis.svg(x_label)]
    for number, line in enumerate(drawn):
        places = [(axis.x(x), axis.y(y)) for x, y in zip(line.x, line.y, strict=True)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline class="line s{number % 5}" points="{path}"/>')
        if line.dots or len(places) == 1:
            parts += [f'<circle class="f{number % 5}" cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>' for x, y in places]
    ends = ", ".join(f"{line.name} {line.y[0]:.4g} to {line.y[-1]:.4g}" for line in drawn)
    names = legend([line.name for line in drawn]) if len(drawn) > 1 else ""
    return f"<figure><h4>{escape(title)}</h4>{names}{_svg(parts, f'{title}: {ends}')}</figure>"


def histogram(values: NDArray[np.floating], *, title: str, x_label: str, bins: int = 24) -> str:
    """How often which values occur."""
    counts, edges = np.histogram(values, bins=1 if values.min() == values.max() else bins)
    axis = _Axes.around([float(edges[0]), float(edges[-1])], [0.0, float(counts.max())])
    parts = [axis.svg(x_label)]
    for count, left, right in zip(counts, edges, edges[1:], strict=False):
        x, y, wide = axis.x(left), axis.y(float(count)), max(axis.x(right) - axis.x(left) - 1, 1)
        parts.append(f'<rect class="f0" x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{axis.y(0) - y:.1f}"/>')
    said = (
        f"{title}: {len(values):,} values from {values.min():.3g} to {values.max():.3g}, median {np.median(values):.3g}"
    )
    return f"<figure><h4>{escape(title)}</h4>{_svg(parts, said)}</figure>"


def scatter(points: Sequence[Point], *, groups: Sequence[str], title: str) -> str:
    """A map of points, one colour and shape a group, with sound where a point has one."""
    width, height, edge = 640.0, 460.0, 14.0
    places = np.array([(point.x, point.y) for point in points])
    low, span = places.min(axis=0), np.maximum(np.ptp(places, axis=0), 1e-9)
    placed = edge + (places - low) / span * (np.array([width, height]) - 2 * edge)
    parts: list[str] = []
    for group in range(-1, len(groups)):  # what has no group lies below
        inside = [
            marker(group, x, height - y, attributes=_sounding(point), inner=f"<title>{escape(point.text)}</title>")
            for point, (x, y) in zip(points, placed, strict=True)
            if point.group == group
        ]
        parts.append(f'<g data-group="{group}" fill-opacity="0.8">{"".join(inside)}</g>')
    shown = [*groups, *(["no label"] if any(point.group < 0 for point in points) else [])]
    buttons = legend(shown, buttons=True)
    drawing = (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="group" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )
    return f'<figure class="map">{buttons}{drawing}<p class="soft screen" aria-live="polite"></p></figure>'


def marker(group: int, x: float, y: float, *, attributes: str = "", inner: str = "", size: float = 4.2) -> str:
    """The shape of a group in its colour, around a place."""
    look = f'class="{"fn" if group < 0 else f"f{group % COLOURS}"}"{attributes}'
    r = size
    shape = group % 4
    if shape == 0 or group < 0:
        return f'<circle {look} cx="{x:.1f}" cy="{y:.1f}" r="{r if group >= 0 else 0.7 * r:.1f}">{inner}</circle>'
    corners = {
        1: ((-r, -r), (r, -r), (r, r), (-r, r)),
        2: ((0, -1.3 * r), (1.2 * r, r), (-1.2 * r, r)),
        3: ((0, -1.4 * r), (1.4 * r, 0), (0, 1.4 * r), (-1.4 * r, 0)),
    }[shape]
    path = " ".join(f"{x + right:.1f},{y + down:.1f}" for right, down in corners)
    return f'<polygon {look} points="{path}">{inner}</polygon>'


def bar(pieces: Sequence[tuple[str, float]], *, said: str = "") -> str:
    """A bar of a table or list.

    Args:
        pieces: From left to right, the class of the page's style that has the colour, and the share of the width.
        said: Description, for those who do not see it.
    """
    inner = "".join(f'<span class="{kind}" style="width:{100 * share:.2f}%"></span>' for kind, share in pieces)
    words = f' role="img" aria-label="{escape(said)}" title="{escape(said)}"' if said else ""
    return f'<div class="bar"{words}>{inner}</div>'


def legend(names: Sequence[str], *, buttons: bool = False) -> str:
    """A legend of colours, with buttons that show one group alone. `no label` has the colour of none."""
    entries: list[str] = []
    for place, name in enumerate(names):
        group = -1 if name == "no label" else place
        shape = marker(group, 8, 8, size=6.0) if buttons else f'<circle class="f{place % 5}" cx="8" cy="8" r="6"/>'
        sign = f'<svg viewBox="0 0 16 16" aria-hidden="true">{shape}</svg>{escape(name)}'
        if buttons:
            sign = f'<button type="button" aria-pressed="false" data-group="{group}">{sign}</button>'
        entries.append(f"<li>{sign}</li>")
    return f'<ul class="legend">{"".join(entries)}</ul>'


@dataclass(frozen=True)
class _Axes:
    """From values to places in the drawing, and the marks on both axes."""

    x_marks: tuple[float, ...]
    y_marks: tuple[float, ...]
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    @classmethod
    def around(cls, xs: Sequence[float], ys: Sequence[float]) -> _Axes:
        y_marks = value_marks(min(ys), max(ys))
        x_range = (min(xs), max(xs)) if max(xs) > min(xs) else (min(xs) - 0.5, max(xs) + 0.5)
        x_marks = tuple(mark for mark in value_marks(*x_range) if x_range[0] <= mark <= x_range[1])
        return cls(x_marks, y_marks, x_range, (y_marks[0], y_marks[-1]))

    def x(self, value: float) -> float:
        low, high = self.x_range
        return _LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_range
        inside = min(max(value, low), high)
        return _HEIGHT - _BOTTOM - (inside - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    def svg(self, x_label: str) -> str:
        floor = _HEIGHT - _BOTTOM
        parts = [f'<path class="axis" d="M{_LEFT:g},{floor:g}H{_WIDTH - _RIGHT:g}"/>']
        for mark in self.y_marks:
            height = self.y(mark)
            parts.append(f'<path class="axis" d="M{_LEFT:g},{height:.1f}H{_WIDTH - _RIGHT:g}" opacity=".55"/>')
            parts.append(f'<text x="{_LEFT - 5:g}" y="{height + 3.5:.1f}" text-anchor="end">{number_text(mark)}</text>')
        parts += [
            f'<text x="{self.x(mark):.1f}" y="{floor + 14:g}" text-anchor="middle">{number_text(mark)}</text>'
            for mark in self.x_marks
        ]
        middle = (_LEFT + _WIDTH - _RIGHT) / 2
        parts.append(f'<text x="{middle:g}" y="{_HEIGHT - 4:g}" text-anchor="middle">{escape(x_label)}</text>')
        return "".join(parts)


def _svg(parts: Sequence[str], said: str) -> str:
    return f'<svg viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" aria-label="{escape(said)}">{"".join(parts)}</svg>'


def _sounding(point: Point) -> str:
    if not point.sound:
        return ""
    return f' data-sound="{point.sound}" tabindex="0" role="button" aria-label="{escape(point.text)}"'


def _thinned(line: Line) -> Line:
    if len(line.x) <= _MOST:
        return line
    parts = np.array_split(np.arange(len(line.x)), _MOST)
    x, y = np.asarray(line.x, float), np.asarray(line.y, float)
    return Line(line.name, [float(x[part].mean()) for part in parts], [float(y[part].mean()) for part in parts])
