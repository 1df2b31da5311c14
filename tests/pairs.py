"""A small store of pairs of views, of random numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tymbal.settings import FeatureSettings
from tymbal.store.packed.format import Shard, shard_name
from tymbal.store.packed.packed_store import PairStore
from tymbal.store.packed.writer import Entry, finish_store, open_shard

FEATURES = FeatureSettings(filter_bank="librosa", sample_rate=8000, mel_bins=4, n_fft=64, hop_length=32)
CLIPS, VERSIONS, FRAMES = 6, 2, 8


def pair_store(path: Path) -> PairStore:
    """Clips 0 to 5 in folders a and b, whose names repeat, in two versions."""
    entries = []
    with open_shard(path / shard_name(0), frames=FRAMES, mels=4, views=2) as writer:
        for clip in range(CLIPS):
            for version in range(VERSIONS):
                random = np.random.default_rng(10 * clip + version)
                writer.append_views(random.normal(-5, 3, (2, FRAMES, 4)).astype(np.float16))
                name = f"{'ab'[clip % 2]}/{clip // 2}.wav"
                entries.append(
                    Entry(
                        id=f"{name}@v{version}",
                        file=f"/sound/{name}",
                        start=0.0,
                        end=0.1,
                        frames=FRAMES,
                        labels=("frog",),
                        split="validation" if clip == 5 else "train",
                        version=version,
                    )
                )
    shard = Shard(shard_name(0), len(entries), (path / shard_name(0)).stat().st_size)
    settings = {"window": 0.5, "augmentations.num_waveform_augs": 3, "augmentations.num_spectrogram_augs": 2}
    store = finish_store(
        path,
        shards=[(shard, entries)],
        checksums=[writer.checksums],
        features=FEATURES,
        frames=FRAMES,
        views=2,
        moments=writer.moments,
        settings=settings,
    )
    assert isinstance(store, PairStore)
    return store
