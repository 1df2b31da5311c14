"""Marks of axes, and pictures over time with theirs, as HTML: all areas of a page align.

An area that can be clicked says into how many rows and columns it falls; `explore.js` tells which one was meant.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from tymbal.features.bank import filter_bank
from tymbal.settings import FeatureSettings

__all__ = ["Choice", "Mark", "hertz_marks", "number_text", "plot", "time_marks", "value_marks"]

_HERTZ = (50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000)
_SECONDS = (15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400, 43_200)  # steps longer than 10 s
_EDGE = 0.03
_MOST = 7  # steps below a picture
_APART = 0.09  # of the height, between two labels

Mark = tuple[float, str]
"""A label beside an axis: where, from 0 to 1, and what it says."""


@dataclass(frozen=True)
class Choice:
    """The grid of an area to choose in, and the chosen cell.

    Attributes:
        rows: Rows, the lowest first.
        columns: Columns, from left to right.
        row: The chosen row.
        column: The chosen column.
        left: Where the chosen stretch begins, from 0 to 1; None is at its column.
        wide: How wide it is, from 0 to 1; None is a column.
    """

    rows: int
    columns: int
    row: int
    column: int
    left: float | None = None
    wide: float | None = None


def plot(
    name: str,
    title: str,
    area: str,
    *,
    y: Sequence[Mark],
    x: Sequence[Mark],
    said: str,
    choice: Choice | None = None,
    below: str = "",
    tall: bool = True,
) -> str:
    """A picture with its axes.

    Args:
        name: Its identifier on the page.
        title: Title, as HTML.
        area: The drawing, as HTML that fills the area.
        y: Labels at the left, 0 below.
        x: Labels below.
        said: Description of its content and use, for those who do not see it.
        choice: The grid to choose in.
        below: The HTML below it.
        tall: Whether it is a picture rather than a strip.
    """
    attributes, frame = 'role="img"', ""
    if choice is not None:
        attributes = (
            f'role="slider" tabindex="0" aria-valuemin="0" aria-valuemax="{choice.columns - 1}" '
            f'aria-valuenow="{choice.column}" data-rows="{choice.rows}" data-columns="{choice.columns}" '
            f'data-row="{choice.row}" data-column="{choice.column}"'
        )
        left = choice.column / choice.columns if choice.left is None else choice.left
        wide = 1 / choice.columns if choice.wide is None else choice.wide
        tallness = 100 / choice.rows
        frame = (
            f'<span class="chosen" style="left:{100 * left:.3f}%;width:{100 * wide:.3f}%;'
            f'bottom:{choice.row * tallness:.3f}%;height:{tallness:.3f}%"></span>'
        )
    across = "".join(f'<span{_side(at)} style="left:{100 * at:.2f}%">{escape(text)}</span>' for at, text in x)
    up = "".join(f'<span style="bottom:{100 * at:.2f}%">{escape(text)}</span>' for at, text in y)
    return (
        f'<figure class="plot{"" if tall else " strip"}"><h3>{title}</h3>'
        f'<div class="y" aria-hidden="true">{up}</div>'
        f'<div class="area" data-name="{name}" aria-label="{escape(said)}" {attributes}>{area}{frame}</div>'
        f'<div class="x" aria-hidden="true">{across}</div>{below}</figure>'
    )


def hertz_marks(features: FeatureSettings, mels: int) -> list[Mark]:
    """Frequencies at the side of a spectrogram.

    Args:
        features: How it was made.
        mels: Its mel bins, from the lowest on, that are shown.
    """
    marks: list[Mark] = []
    for hertz in _HERTZ:
        at = (filter_bank(features).bin_at(hertz) + 0.5) / mels
        if 0 <= at <= 1 and (not marks or at - marks[-1][0] >= _APART):
            marks.append((at, f"{hertz // 1000} kHz" if hertz >= 1000 else f"{hertz} Hz"))
    return marks


def time_marks(start: float, end: float) -> list[Mark]:
    """Round times below a picture that reaches from `start` to `end`, in seconds."""
    step = _round_step(end - start, _MOST)
    if step > 10:
        step = next((step for step in _SECONDS if (end - start) / step < _MOST), 86_400)
    first, last = math.ceil(start / step - 1e-6), math.floor(end / step + 1e-6)
    return [((n * step - start) / (end - start), _clock(n * step, step)) for n in range(first, last + 1)]


def value_marks(low: float, high: float, *, most: int = 5) -> tuple[float, ...]:
    """Round values, in about `most` steps, that reach from below `low` to above `high`."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # equal but for rounding
        low, high = low - (abs(low) / 10 or 0.5), high + (abs(high) / 10 or 0.5)
    step = _round_step(high - low, most)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return tuple(step * number for number in range(first, last + 1))


def number_text(value: float) -> str:
    """A value beside an axis, as short as it goes: `0.25`, `3e-4`, `12k`."""
    if value and abs(value) < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-")
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k" if abs(value) < 1e6 else f"{value / 1e6:g}M"
    return f"{round(value, 6):g}"


def _round_step(span: float, most: int) -> float:
    """The smallest of 1, 2 and 5 times a power of ten of which `most` are as long as the span."""
    rough = span / most
    unit = 10.0 ** math.floor(math.log10(rough))
    return next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough * 0.999)


def _side(at: float) -> str:
    """A label in the middle would stick out at an edge."""
    return ' class="first"' if at < _EDGE else ' class="last"' if at > 1 - _EDGE else ""


def _clock(seconds: float, step: float) -> str:
    """A time as `1.5 s`, and from two minutes on as `12:30` or `1:12:30`."""
    digits = max(0, -math.floor(math.log10(step)))
    if seconds < 120:
        return f"{seconds:.{digits}f} s"
    minutes, rest = divmod(round(seconds, digits), 60)
    hours, minutes = divmod(int(minutes), 60)
    wide = digits + 3 if digits else 2
    return f"{f'{hours}:{minutes:02d}' if hours else minutes}:{rest:0{wide}.{digits}f}"
