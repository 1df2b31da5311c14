from __future__ import annotations

import numpy as np
import pytest

from tymbal.inference.streaming import windows


def cut(total: int, length: int, hop: int, block: int, shortest: int = 1) -> list[tuple[int, int]]:
    sound = np.arange(total, dtype=np.float32)
    pieces = [sound[start : start + block] for start in range(0, total, block)]
    found = list(windows(pieces, length=length, hop=hop, shortest=shortest))
    for window in found:
        np.testing.assert_array_equal(window.samples, sound[window.start : window.end])
    return [(window.start, window.end) for window in found]


@pytest.mark.parametrize("block", [1, 7, 10, 64, 1000])
def test_windows__do_not_depend_on_the_blocks(block: int) -> None:
    assert cut(25, 10, 10, block) == [(0, 10), (10, 20), (20, 25)]
    assert cut(30, 10, 10, block) == [(0, 10), (10, 20), (20, 30)]
    assert cut(26, 10, 4, block) == [(0, 10), (4, 14), (8, 18), (12, 22), (16, 26)]
    assert cut(27, 10, 4, block) == [(0, 10), (4, 14), (8, 18), (12, 22), (16, 26), (20, 27)]


def test_windows__short_recording_is_one_window() -> None:
    assert cut(3, 10, 5, 64) == [(0, 3)]
    assert cut(3, 10, 5, 64, shortest=5) == [(0, 3)]
    assert cut(0, 10, 5, 64) == []


def test_windows__remainder_too_short_to_analyse_is_left_out() -> None:
    assert cut(23, 10, 10, 64, shortest=4) == [(0, 10), (10, 20)]
    assert cut(24, 10, 10, 64, shortest=4) == [(0, 10), (10, 20), (20, 24)]


def test_windows__hold_little() -> None:
    def blocks() -> object:
        for _ in range(10_000):
            yield np.zeros(1000, np.float32)

    starts = [window.start for window in windows(blocks(), length=1600, hop=800)]  # type: ignore[arg-type]
    assert len(starts) == 12_499
    assert starts[-1] == 12_498 * 800
