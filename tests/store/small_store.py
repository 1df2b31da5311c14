from __future__ import annotations

from pathlib import Path

import numpy as np

from tymbal.settings import FeatureSettings
from tymbal.store.packed.packed_store import Store
from tymbal.store.packed.writer import Entry, write_store

FRAMES, MELS = 8, 4


def spectrogram(number: int) -> np.ndarray:
    """Row `number` of the small store, before padding: 1 to 8 frames."""
    return np.random.default_rng(number).normal(-6, 3, (1 + number % FRAMES, MELS)).astype(np.float32)


def small_store(path: Path, *, rows: int = 23, several: bool = False) -> Store:
    entries = [
        Entry(
            id=f"clip{i}",
            file=f"/sound/clip{i}.wav",
            start=0.0,
            end=0.1 * (i + 1),
            frames=0,
            labels=("frog", "cicada") if several and i == 1 else ((), ("cicada",), ("frog",))[i % 3],
            group="night" if i % 2 else None,
            split="validation" if i % 5 == 0 else "train",
        )
        for i in range(rows)
    ]
    return write_store(
        path,
        ((spectrogram(i), entry) for i, entry in enumerate(entries)),
        features=FeatureSettings(mel_bins=MELS),
        frames=FRAMES,
        rows_per_shard=5,
    )
