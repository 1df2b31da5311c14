"""Batches of a store for a plain `torch.utils.data.DataLoader`, a whole batch at once, with waveforms on demand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tymbal.audio.decode import read
from tymbal.errors import SettingsError, StoreError
from tymbal.settings import FeatureSettings
from tymbal.store.base import DamagedRowsError, SpectrogramSource
from tymbal.store.parallel_copy import copy_in_parallel

__all__ = ["SoundDataset", "StoreDataset", "whole_batch"]

Batch = TypeVar("Batch")


def whole_batch(batch: Batch) -> Batch:
    """The collate function for batches that come whole."""
    return batch


class StoreDataset(Dataset[dict[str, Tensor]]):
    """Some rows of a store.

    Args:
        store: The store.
        rows: Row numbers in the store, [length].
        labels: Give labels too: one class a row, or ones and zeros where the store has rows with several.

    Raises:
        StoreError: Labels are wanted and some row has none.
    """

    def __init__(self, store: SpectrogramSource, rows: npt.ArrayLike, *, labels: bool = False) -> None:
        self.store = store
        self.rows = np.asarray(rows, dtype=np.int64).reshape(-1)
        self.labels = labels
        self._frames = store.real_frames
        if labels and not store.labels:
            raise StoreError(
                "has no labels",
                path=store.path,
                advice="Prepare it from class folders or from a manifest with a label column.",
            )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """One batch.

        Args:
            indices: epoch * len(self) + position of each spectrogram, [batch].

        Returns:
            `spectrogram` float16 [batch, frames, mels], raw log-mel values; `frames` int64 [batch], those of real
            sound; `row` int64 [batch], in the store; `epoch` int64 [batch]; with labels `labels`, int64 [batch] or
            float32 [batch, labels]. The memory of `spectrogram` is used again when nothing refers to it any more.
            Where clips have become unreadable the batch is smaller, down to none at all.
        """
        epoch, position = np.divmod(np.asarray(indices, dtype=np.int64), len(self))
        rows = self.rows[position]
        try:
            spectrograms = self.store.gather(rows)
        except DamagedRowsError as error:
            readable = ~np.isin(rows, error.rows)
            rows, epoch = rows[readable], epoch[readable]
            spectrograms = self.store.gather(rows)
        batch = {
            "spectrogram": torch.from_numpy(spectrograms),
            "frames": torch.from_numpy(self._frames[rows].astype(np.int64)),
            "row": torch.from_numpy(rows),
            "epoch": torch.from_numpy(epoch),
        }
        if self.labels and self.store.multilabel:
            batch["labels"] = torch.from_numpy(self.store.label_matrix(rows))
        elif self.labels:
            batch["labels"] = torch.from_numpy(self.store.label_indices(rows))
        return batch

    def announce(self, indices: Sequence[int]) -> None:
        """Tells the store which indices come next."""
        self.store.announce(self.rows[np.asarray(indices, dtype=np.int64) % len(self)])


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
        copy_in_parallel(fill, len(clips), max(4 * samples, 1 << 20))
        return {**batch, "waveform": torch.from_numpy(waveforms)}
