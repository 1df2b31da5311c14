from __future__ import annotations

import pytest

from tymbal.features.bank import filter_bank
from tymbal.pages.axes import Choice, hertz_marks, number_text, plot, time_marks, value_marks
from tymbal.settings import FeatureSettings


def test_hertz_marks__stand_at_their_bins() -> None:
    features = FeatureSettings(sample_rate=16_000, mel_bins=128)
    found = {text: at for at, text in hertz_marks(features, 128)}
    assert found["1 kHz"] == pytest.approx((filter_bank(features).bin_at(1000) + 0.5) / 128)
    assert list(found.values()) == sorted(found.values())
    assert all(0 <= at <= 1 for at in found.values())


@pytest.mark.parametrize(
    ("start", "end", "texts"),
    [
        (0, 1.29, ["0.0 s", "0.2 s", "0.4 s", "0.6 s", "0.8 s", "1.0 s", "1.2 s"]),
        (14.2, 15.5, ["14.2 s", "14.4 s", "14.6 s", "14.8 s", "15.0 s", "15.2 s", "15.4 s"]),
        (1799.4, 1800.7, ["29:59.4", "29:59.6", "29:59.8", "30:00.0", "30:00.2", "30:00.4", "30:00.6"]),
        (0, 30, ["0 s", "5 s", "10 s", "15 s", "20 s", "25 s", "30 s"]),
        (0, 3600, ["0 s", "10:00", "20:00", "30:00", "40:00", "50:00", "1:00:00"]),
    ],
)
def test_time_marks__are_round_and_few(start: float, end: float, texts: list[str]) -> None:
    found = time_marks(start, end)
    assert [text for _, text in found] == texts
    assert all(-1e-6 <= at <= 1 + 1e-6 for at, _ in found)


def test_plot__tells_what_can_be_chosen_and_what_is() -> None:
    text = plot("map", "Map", "<img>", y=[(0.5, "<1 kHz")], x=[], said='a "map"', choice=Choice(4, 8, 1, 2))
    assert 'data-rows="4" data-columns="8" data-row="1" data-column="2"' in text
    assert "left:25.000%;width:12.500%;bottom:25.000%;height:25.000%" in text
    assert "&lt;1 kHz" in text
    assert 'aria-label="a &quot;map&quot;"' in text
    assert "data-rows" not in plot("map", "Map", "<img>", y=[], x=[], said="")


@pytest.mark.parametrize(
    ("low", "high", "marks"),
    [(0.0, 2.0, (0, 0.5, 1, 1.5, 2)), (0.11, 0.62, (0, 0.2, 0.4, 0.6, 0.8)), (-3, 41, (-10, 0, 10, 20, 30, 40, 50))],
)
def test_value_marks__are_round_and_reach_around(low: float, high: float, marks: tuple[float, ...]) -> None:
    assert value_marks(low, high) == pytest.approx(marks)


def test_value_marks__of_one_value_reach_to_both_sides() -> None:
    for value in (0.0, 5.0, -2e-4):
        found = value_marks(value, value)
        assert found[0] < value < found[-1]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.25, "0.25"), (0.1 + 0.2, "0.3"), (3e-4, "3e-4"), (9999, "9999"), (12_500, "12.5k"), (2e6, "2M")],
)
def test_number_text__is_short(value: float, text: str) -> None:
    assert number_text(value) == text
