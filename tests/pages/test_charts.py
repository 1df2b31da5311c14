"""Charts: where values lie in the drawing, and what those hear of it who do not see it."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tymbal.pages.charts import Line, Point, bar, histogram, legend, lines, marker, scatter


def points(text: str) -> list[list[tuple[float, float]]]:
    """Of each line of a chart."""
    drawn = re.findall(r'<polyline [^>]*points="([^"]*)"', text)
    return [[tuple(map(float, pair.split(","))) for pair in each.split()] for each in drawn]


def test_lines__values_lie_between_the_marks_of_the_axes() -> None:
    text = lines([Line("a", [0, 5, 10], [0.0, 2.0, 1.0])], title="t", x_label="epoch")
    ((first, highest, last),) = points(text)
    assert (first[0], highest[0], last[0]) == (46.0, 189.0, 332.0)  # from the left end of the axis to its right one
    assert (first[1], highest[1], last[1]) == (156.0, 8.0, 82.0)  # 0 at the floor, 2 at the top, 1 between
    marks = re.findall(r'text-anchor="end">([^<]*)</text>', text)
    assert marks == ["0", "0.5", "1", "1.5", "2"]
    assert 'aria-label="t: a 0 to 1"' in text
    assert "legend" not in text  # one line needs none


def test_lines__long_ones_are_averaged_and_single_values_are_dots() -> None:
    text = lines([Line("a", range(3000), [float(x) for x in range(3000)]), Line("b", [5], [7])], title="", x_label="")
    long, short = points(text)
    assert len(long) == 300
    assert len(short) == 1
    assert text.count("<circle") == 1 + 2  # the value of its own, and two of the legend
    assert long[0][1] == pytest.approx(156 - 148 * 4.5 / 3000, abs=0.1)  # the mean of 0 to 9
    bounded = lines([Line("a", [0, 1], [0.4, 9.0])], title="", x_label="", bounds=(0.0, 1.0))
    assert points(bounded)[0][1][1] == 8.0  # what is above is drawn at the edge


def test_histogram__counts_each_value_once() -> None:
    text = histogram(np.array([0.0, 0.0, 0.0, 1.0]), title="t", x_label="x", bins=2)
    heights = [float(each) for each in re.findall(r'<rect [^>]*height="([^"]*)"', text)]
    assert heights[0] == pytest.approx(3 * heights[1], abs=0.2)
    assert "t: 4 values from 0 to 1, median 0" in text
    assert histogram(np.ones(5), title="t", x_label="x").count("<rect") == 1


def test_scatter__points_have_their_group_their_text_and_their_sound() -> None:
    drawn = [Point(0, 0, 0, "<a>", "sound-1"), Point(1, 1, 1, "b"), Point(1, 0, -1, "c")]
    text = scatter(drawn, groups=("one", "two"), title="t")
    assert re.findall(r'<g data-group="(-?\d)"', text) == ["-1", "0", "1"]
    assert 'data-sound="sound-1" tabindex="0" role="button" aria-label="&lt;a&gt;"' in text
    assert text.count("data-sound") == 1
    assert re.findall(r'<button [^>]*data-group="(-?\d)"', text) == ["0", "1", "-1"]
    assert (
        'class="f0" data-sound="sound-1" tabindex="0" role="button" aria-label="&lt;a&gt;" cx="14.0" cy="446.0"' in text
    )
    assert "no label" in text
    assert "no label" not in scatter(drawn[:2], groups=("one", "two"), title="t")


@pytest.mark.parametrize(
    ("group", "shape", "colour"), [(-1, "circle", "fn"), (0, "circle", "f0"), (13, "polygon", "f3")]
)
def test_marker__colours_repeat_and_shapes_help(group: int, shape: str, colour: str) -> None:
    text = marker(group, 1.0, 2.0)
    assert text.startswith(f'<{shape} class="{colour}"')
    corners = {number: marker(number, 0, 0).count(",") for number in range(1, 4)}
    assert corners == {1: 4, 2: 3, 3: 4}


def test_bar__has_a_piece_a_share() -> None:
    first, second = (f'<span class="{each}"></span>' for each in ('b0" style="width:25.00%', 'b1" style="width:33.33%'))
    assert bar([("b0", 0.25), ("b1", 1 / 3)]) == f'<div class="bar">{first}{second}</div>'
    assert 'role="img" aria-label="&lt;3" title="&lt;3"' in bar([], said="<3")


def test_legend__is_text() -> None:
    assert legend(["<a>"]).count("&lt;a&gt;") == 1
    assert "<button" not in legend(["a"])
