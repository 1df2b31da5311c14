"""Where in a window a model hears something."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from small_model import small_model
from tones import FEATURES, PITCHES, RATE
from tymbal.inference.frontend import ready_model
from tymbal.inference.streaming import Window
from tymbal.labelling.boxes import Box, BoxFinder, around_peak
from tymbal.settings import EmbedSettings

SECONDS = 1.6


def window(label: str | None, *, at: float = 0.0, seed: int = 0) -> Window:
    """Noise, with a tone of 0.3 s in it."""
    generator = np.random.default_rng(seed)
    sound = generator.normal(scale=0.02, size=round(SECONDS * RATE)).astype(np.float32)
    if label is not None:
        first, count = round(at * RATE), round(0.3 * RATE)
        sound[first : first + count] += 0.3 * np.sin(2 * np.pi * PITCHES[label] * np.arange(count) / RATE)
    return Window(0, sound.astype(np.float32))


def finder(
    folder: Path, pooling: str, *, patch: tuple[int, int] = (4, 4), references: bool = True
) -> tuple[BoxFinder, np.ndarray]:
    """A finder with random weights, and what in its embeddings tells a middle tone from noise."""
    frames = FEATURES.frames_of(round(SECONDS * RATE))
    model = small_model(folder / "model", frames=frames, patch=patch)
    embedder = ready_model(model, EmbedSettings(device="cpu")).embedder(pooling=pooling)
    length = round(SECONDS * RATE)
    noise = [window(None, seed=seed) for seed in range(8)]
    tones = [window("middle", at=at, seed=20 + n) for n, at in enumerate(np.linspace(0.0, 1.3, 8))]
    direction = embedder.windows(tones, length=length).mean(0) - embedder.windows(noise, length=length).mean(0)
    return BoxFinder(embedder, length=length, references=noise if references else []), direction


@pytest.mark.parametrize("pooling", ["rows", "grid4"])
@pytest.mark.parametrize("at", [0.2, 0.9])
def test_find__the_tone_in_time_and_frequency(tmp_path: Path, pooling: str, at: float) -> None:
    find, direction = finder(tmp_path, pooling)
    box = find.find(window("middle", at=at, seed=50), direction)
    assert box is not None
    shared = min(box.end, at + 0.3) - max(box.start, at)
    assert shared / (max(box.end, at + 0.3) - min(box.start, at)) > 0.6
    assert box.low is not None
    assert box.high is not None
    assert box.low < PITCHES["middle"] < box.high < 1200


def test_find__patches_as_high_as_the_spectrogram_tell_times_alone(tmp_path: Path) -> None:
    find, direction = finder(tmp_path, "mean", patch=(16, 4))
    box = find.find(window("middle", at=0.9, seed=50), direction)
    assert box is not None
    assert (box.low, box.high) == (None, None)
    assert box.start == pytest.approx(0.9, abs=0.07)
    assert box.end == pytest.approx(1.2, abs=0.07)


@pytest.mark.parametrize("pooling", ["mean", "cls", "all", "rows"])
def test_shares__are_of_all_patches_however_tokens_are_pooled(tmp_path: Path, pooling: str) -> None:
    find, direction = finder(tmp_path, pooling, references=False)
    shares = find.shares(window("middle", at=0.9), direction)
    columns = (FEATURES.frames_of(round(SECONDS * RATE)) - 4) // 4 + 1
    assert shares.shape == (4, columns)
    assert (shares != 0).mean() > 0.9


def test_find__nothing_where_nothing_speaks_for_it(tmp_path: Path) -> None:
    find, direction = finder(tmp_path, "mean")
    assert find.find(window("middle", at=0.9), np.zeros_like(direction)) is None


def test_after__is_in_the_recording_and_within_the_window() -> None:
    assert Box(0.5, 2.5, 100.0, 200.0).after(10.0, 12.0) == Box(10.5, 12.0, 100.0, 200.0)


def test_around_peak__reaches_as_far_as_half_of_it_in_time_then_in_frequency() -> None:
    shares = np.zeros((5, 9), np.float32)
    shares[2:4, 3:6] = 1.0
    shares[0, 8] = 0.2  # elsewhere, and weaker
    shares[4, 3:6] = 0.4
    shares[1, :] = -1.0  # what speaks against it is no part of it
    assert around_peak(shares) == ((2, 4), (3, 6))
    assert around_peak(np.full((5, 9), 0.5, np.float32)) == ((0, 5), (0, 9))
    assert around_peak(np.zeros((5, 9), np.float32)) is None
    assert around_peak(np.full((1, 3), -1.0, np.float32)) is None
