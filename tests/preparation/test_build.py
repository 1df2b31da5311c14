from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from tymbal.audio import decode
from tymbal.audio.decode import read
from tymbal.errors import AudioError
from tymbal.preparation import build as module
from tymbal.preparation.build import cut
from tymbal.preparation.plan import Window

RATE = 8000


def window(file: Path, start: float, end: float | None) -> Window:
    return Window(f"{file.name}#{start}", str(file), start, end, False, (), None, None)


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """100 seconds at 22,050 Hz."""
    path = tmp_path / "night.flac"
    samples = np.random.default_rng(0).normal(0, 0.1, 100 * 22_050)
    soundfile.write(path, samples.astype(np.float32), 22_050)
    return path


def test_cut__windows_are_parts_of_the_whole(recording: Path) -> None:
    whole, _ = read(recording, sample_rate=RATE)
    starts = [0.0, 1.5, 2.0, 20.0, 55.2, 98.5]
    windows = [window(recording, start, None if start == 98.5 else start + 2.005) for start in starts]
    parts = list(cut(windows, sample_rate=RATE, samples=2 * RATE))
    assert [len(part) for part in parts] == [2 * RATE] * 5 + [RATE * 3 // 2]
    for start, part in zip(starts, parts, strict=True):
        first = round(start * RATE)
        np.testing.assert_allclose(part, whole[first : first + len(part)], atol=2e-4)


def test_cut__clip_that_ends_before_its_window(recording: Path) -> None:
    (part,) = cut([window(recording, 10.0, 10.5)], sample_rate=RATE, samples=2 * RATE)
    assert len(part) == RATE // 2


def test_cut__decodes_nothing_twice(recording: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    streamed: list[tuple[float, float | None]] = []

    def counting(path: str, *, sample_rate: int, block: float, start: float, end: float | None, **_: object):
        streamed.append((start, end))
        return decode.stream(path, sample_rate=sample_rate, block=block, start=start, end=end)

    monkeypatch.setattr(module, "stream", counting)
    monkeypatch.setattr(module, "read", lambda *_, **__: pytest.fail("should have been streamed"))
    windows = [window(recording, float(start), start + 2.0) for start in range(60)]
    assert len(list(cut(windows, sample_rate=RATE, samples=2 * RATE))) == 60
    assert streamed == [(0.0, 61.0)]


def test_cut__seeks_over_long_gaps(recording: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_parts: list[tuple[float, float | None]] = []

    def counting(path: str, *, sample_rate: int, start: float, end: float | None, **_: object):
        read_parts.append((start, end))
        return decode.read(path, sample_rate=sample_rate, start=start, end=end)

    monkeypatch.setattr(module, "read", counting)
    windows = [window(recording, 1.0, 2.0), window(recording, 4.0, 5.0), window(recording, 80.0, 81.0)]
    assert [len(part) for part in cut(windows, sample_rate=RATE, samples=RATE)] == [RATE] * 3
    assert read_parts == [(1.0, 5.0), (80.0, 81.0)]


def test_cut__what_comes_before_a_break_is_good(recording: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaking(*_, **__):
        yield np.ones(30 * RATE, np.float32)
        raise AudioError("truncated: it breaks off", path=recording)

    monkeypatch.setattr(module, "stream", breaking)
    windows = [window(recording, float(start), start + 2.0) for start in range(0, 60, 2)]
    parts = cut(windows, sample_rate=RATE, samples=2 * RATE)
    assert sum(1 for _, _ in zip(range(15), parts, strict=False)) == 15
    with pytest.raises(AudioError, match="breaks off"):
        next(parts)
