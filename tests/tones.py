"""Sound that is quickly made and quickly learned: tones of three pitches in noise, as waveforms, files and a store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
import torch

from tymbal.features.kaldi import KaldiFbank
from tymbal.settings import FeatureSettings
from tymbal.store.packed.packed_store import Store
from tymbal.store.packed.writer import Entry, write_store

RATE = 8000
PITCHES = {"high": 3000.0, "low": 300.0, "middle": 1000.0}
FEATURES = FeatureSettings(sample_rate=RATE, mel_bins=16)
FRAMES = 32  # 0.335 s


def tone(label: str, *, seconds: float = 0.335, seed: int = 0) -> np.ndarray:
    """A tone in noise, float32 [samples]."""
    generator = np.random.default_rng(seed)
    time = np.arange(round(seconds * RATE)) / RATE
    pitch = PITCHES[label] * generator.uniform(0.9, 1.1)
    noise = generator.normal(scale=0.05, size=len(time))
    return (0.3 * np.sin(2 * np.pi * pitch * time) + noise).astype(np.float32)


def tone_folder(path: Path, *, clips: int = 4, splits: tuple[str, ...] = ("train", "validation")) -> Path:
    """A folder `split/label/number.wav`."""
    for split in splits:
        for label in PITCHES:
            folder = path / split / label
            folder.mkdir(parents=True)
            for number in range(clips):
                sound = tone(label, seed=number + 100 * splits.index(split))
                soundfile.write(folder / f"{number}.wav", sound, RATE, subtype="PCM_16")
    return path


def tone_store(
    path: Path, *, clips: int = 16, validation: int = 4, multilabel: bool = False, only_validation: str | None = None
) -> Store:
    """A store with `clips` clips a label, of which `validation` are for validation; every third clip is short."""
    fbank = KaldiFbank(FEATURES)
    found = []
    for place, label in enumerate(PITCHES):
        for number in range(clips):
            split = "validation" if number < validation or label == only_validation else "train"
            sound = tone(label, seconds=0.2 if number % 3 == 0 else 0.335, seed=number + 1000 * place)
            labels: tuple[str, ...] = (label,)
            if multilabel and number % 2:
                other = list(PITCHES)[(place + 1) % 3]
                sound = sound + tone(other, seconds=len(sound) / RATE, seed=number + 7)
                labels = (label, other)
            entry = Entry(
                id=f"{label}/{number}",
                file=f"/tones/{label}/{number}.wav",
                start=0.0,
                end=len(sound) / RATE,
                frames=0,
                labels=labels,
                group=f"group {number % 4}",
                split=split,
            )
            found.append((fbank(torch.from_numpy(sound)).numpy(), entry))
    return write_store(path, found, features=FEATURES, frames=FRAMES)


WINDOW = 2680 / RATE
"""Seconds of a clip of `FRAMES` frames."""


def evening(folder: Path, *, recordings: int = 2, windows: int = 40) -> Path:
    """Recordings of noise, in each of which every tenth window holds a low tone, and another one a high tone."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(recordings):
        parts = []
        for place in range(windows):
            seed = 1000 * number + place
            noise = np.random.default_rng(seed).normal(scale=0.05, size=round(WINDOW * RATE)).astype(np.float32)
            heard = heard_at(place * WINDOW)
            parts.append(tone(heard, seconds=WINDOW, seed=seed) if heard else noise)
        soundfile.write(folder / f"evening-{number}.wav", np.concatenate(parts), RATE, subtype="PCM_16")
    return folder


def heard_at(start: float) -> str | None:
    """The tone of the window of an evening that starts then; None is noise."""
    return {3: "low", 7: "high"}.get(round(start / WINDOW) % 10)
