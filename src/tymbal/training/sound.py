"""Training clips with their waveforms, read from the sound files that a store was prepared from.

Only mixing waveforms needs them; everything else lives on spectrograms. Files are decoded anew for every batch, by
several threads, or in worker processes (`workers`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tymbal.audio.decode import read
from tymbal.errors import SettingsError, StoreError
from tymbal.settings import FeatureSettings
from tymbal.store.base import SpectrogramSource
from tymbal.store.dataset import StoreDataset
from tymbal.store.hands import in_parts

__all__ = ["SoundDataset"]


class SoundDataset(StoreDataset):
    """Some rows of a store, with labels and waveforms.

    Args:
        store: The store.
        rows: Row numbers in the store, [length].

    Raises:
        SettingsError: Nobody knows how its spectrograms were made.
        StoreError: A sound file is not where it was when the store was prepared.
    """

    def __init__(self, store: SpectrogramSource, rows: npt.ArrayLike) -> None:
        super().__init__(store, rows, labels=True)
        if store.features is None:
            raise SettingsError(
                "waveforms cannot be mixed: these spectrograms do not say how they are made from sound",
                path=store.path,
                advice="Set mixup_of to energy, or train from sound or a store that was prepared from it.",
            )
        self.features: FeatureSettings = store.features
        clips = store.index.select(["file", "start", "end"]).take(self.rows).to_pylist()
        self._clips = dict(zip(self.rows.tolist(), clips, strict=True))
        for file in {clip["file"] for clip in clips}:
            if not Path(file).is_file():
                raise StoreError(
                    "is not there any more, and mixing waveforms needs it",
                    path=file,
                    advice="Train where the sound is, or set mixup_of to energy.",
                )

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """One batch as of any store, and `waveform`, float32 [batch, samples], with silence behind the sound."""
        batch = super().__getitems__(indices)
        samples = self.features.samples_of(self.store.frames)
        waveforms = np.zeros((len(batch["row"]), samples), np.float32)
        clips = [self._clips[row] for row in batch["row"].tolist()]

        def fill(start: int, stop: int) -> None:
            for waveform, clip in zip(waveforms[start:stop], clips[start:stop], strict=True):
                sound, _ = read(
                    clip["file"], sample_rate=self.features.sample_rate, start=clip["start"], end=clip["end"]
                )
                waveform[: len(sound)] = sound[:samples]

        # Decoding a clip takes as long as copying many times its size: one clip a thread is worth it.
        in_parts(fill, len(clips), max(4 * samples, 1 << 20))
        return {**batch, "waveform": torch.from_numpy(waveforms)}
