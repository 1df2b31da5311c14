from __future__ import annotations

import numpy as np
import pytest

from tymbal.errors import SettingsError
from tymbal.inference.detections import Detection, Scored, detect, thresholds

LEAST = np.array([0.5, 0.5], np.float32)


def found(*scored: tuple[float, float, int, float], **settings: float) -> list[tuple[float, float, int, float, int]]:
    ones = detect((Scored(*one) for one in scored), least=LEAST, **settings)
    return [(one.start, one.end, one.label, one.score, one.windows) for one in ones]


def test_detect__joins_windows_that_touch_or_overlap():
    assert found((0, 1, 0, 0.6), (1, 2, 0, 0.9), (2, 3, 0, 0.1), (3, 4, 0, 0.7)) == [
        (0, 2, 0, 0.9, 2),
        (3, 4, 0, 0.7, 1),
    ]
    assert found((0, 2, 0, 0.6), (1, 3, 0, 0.4), (2, 4, 0, 0.8)) == [(0, 4, 0, 0.8, 2)]


def test_detect__a_gap_can_be_bridged():
    windows = [(0, 1, 0, 0.6), (2, 3, 0, 0.6), (4.5, 5, 0, 0.6)]
    assert found(*windows) == [(0, 1, 0, 0.6, 1), (2, 3, 0, 0.6, 1), (4.5, 5, 0, 0.6, 1)]
    assert found(*windows, gap=1.0) == [(0, 3, 0, 0.6, 2), (4.5, 5, 0, 0.6, 1)]


def test_detect__without_joining_each_window_is_one():
    assert found((0, 1, 0, 0.6), (1, 2, 0, 0.9), merge=False) == [(0, 1, 0, 0.6, 1), (1, 2, 0, 0.9, 1)]


def test_detect__in_the_order_of_the_start_whichever_ends_first():
    windows = [(0, 1, 0, 0.9), (1, 2, 0, 0.9), (1, 2, 1, 0.9), (2, 3, 0, 0.9), (4, 5, 1, 0.9)]
    assert found(*windows) == [(0, 3, 0, 0.9, 3), (1, 2, 1, 0.9, 1), (4, 5, 1, 0.9, 1)]


def test_detect__gives_what_is_over_before_it_hears_the_rest():
    seen = []

    def listened():
        for start in range(1000):
            seen.append(start)
            yield Scored(2 * start, 2 * start + 1, 0, 0.9)

    first = next(detect(listened(), least=LEAST))
    assert (first, len(seen)) == (Detection(0, 0, 1, 0.9), 2)


def test_thresholds__of_single_labels_stand_above():
    labels = ("robin", "wren", "a=b")
    assert thresholds(labels, every=None, some=(), otherwise=0.5).tolist() == [0.5, 0.5, 0.5]
    chosen = thresholds(labels, every=0.25, some=("wren=0.75", "a=b=1"), otherwise=0.5)
    assert chosen.tolist() == [0.25, 0.75, 1.0]
    with pytest.raises(SettingsError, match=r"'robbin', which is no label of the model\n  Did you mean robin\?"):
        thresholds(labels, every=None, some=("robbin=0.3",), otherwise=0.5)
