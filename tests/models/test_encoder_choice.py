"""The patch and size that a sound suggests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tymbal.models.encoder_choice import TimeStructure, is_full_height, patch_for, size_for, time_structure
from tymbal.settings import FeatureSettings
from tymbal.store.packed.packed_store import Store
from tymbal.store.packed.writer import Entry, write_store

MELS, FRAMES = 16, 64


def store_of(path: Path, clips: list[np.ndarray]) -> Store:
    entries = [
        Entry(id=str(number), file=f"{number}.wav", start=0.0, end=1.0, frames=len(clip), split="train")
        for number, clip in enumerate(clips)
    ]
    return write_store(
        path, list(zip(clips, entries, strict=True)), features=FeatureSettings(mel_bins=MELS), frames=FRAMES
    )


def steady(random: np.random.Generator) -> np.ndarray:
    """A spectrum of its own that stays."""
    return random.normal(-6, 3, (1, MELS)) + random.normal(0, 1, (FRAMES, MELS))


def word(random: np.random.Generator) -> np.ndarray:
    """Energy that moves through one spectrum, in an order of its own."""
    course = np.repeat(random.normal(0, 3, (8, MELS)), FRAMES // 8, axis=0)
    return -6 + course + random.normal(0, 0.5, (FRAMES, MELS))


def test_time_structure__tells_what_stays_from_what_unfolds(tmp_path: Path):
    random = np.random.default_rng(0)
    stays = store_of(tmp_path / "stays", [steady(random) for _ in range(40)])
    unfolds = store_of(tmp_path / "unfolds", [word(random)[: random.integers(30, 65)] for _ in range(40)])
    rows = np.arange(40)
    still, moving = time_structure(stays, rows), time_structure(unfolds, rows)
    assert (still.unfolds, still.steady) == (False, True)
    assert (moving.unfolds, moving.steady) == (True, False)
    assert patch_for(still, mels=MELS, frames=FRAMES)[0] == "16x16"
    assert patch_for(moving, mels=MELS, frames=FRAMES)[0] == "16x4"


def test_time_structure__is_as_written_out(tmp_path: Path):
    random = np.random.default_rng(1)
    clips = [word(random)[:length].astype(np.float16).astype(float) for length in (64, 40)]
    slow, means = [], []
    for clip in clips:
        x = (clip - clip.mean()) / (2 * clip.std())
        fine = np.repeat(x, 8, axis=0).reshape(8, -1, MELS)  # a frame of n in 8 parts of n eighths
        parts = fine.mean(1)
        slow.append(parts.var(0).sum() / x.var(0).sum())
        means.append(parts)
    course = np.array([each - each.mean(0) for each in means]).var(0).mean(0).sum()
    between = np.array([each.mean(0) for each in means]).var(0).sum()
    ours = time_structure(store_of(tmp_path / "store", clips), np.arange(2))
    assert ours.slow == pytest.approx(np.median(slow), rel=1e-3)
    assert ours.over_spectrum == pytest.approx(course / between, rel=1e-3)


def test_patch_for__fits_small_spectrograms():
    structure = TimeStructure(slow=0.1, over_spectrum=0.1)
    assert patch_for(structure, mels=8, frames=100)[0] == "8x4"
    assert patch_for(structure, mels=128, frames=3)[0] == "128x3"
    assert patch_for(structure, mels=128, frames=100)[0] == "16x16"


def test_size_for__grows_with_the_sound(tmp_path: Path):
    store = store_of(tmp_path / "store", [steady(np.random.default_rng(2)) for _ in range(3)])
    size, why = size_for(store, np.arange(3))
    assert (size, why) == ("mini", "0 minutes of sound")


def test_is_full_height__asks_whether_there_is_one_row():
    assert is_full_height("128x4", 128)
    assert is_full_height("80x4", 128)
    assert not is_full_height("64x4", 128)
