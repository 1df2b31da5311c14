"""Batches of a store, without rows that have become unreadable: for a `DataLoader`, or normalised in one pass.

    loader = DataLoader(StoreDataset(store, store.rows("train")), batch_sampler=…, collate_fn=whole_batch)

A DataLoader hands all indices of a batch to `__getitems__` and the result to its collate function, which therefore has
nothing left to do. In this process that runs at the speed of a memory copy; worker processes only add the cost of
moving every batch through shared memory.

Masks and augmentation depend on the epoch, and a worker process does not hear about it: so the epoch travels in the
index, epoch * len(dataset) + position.

Clips that have become unreadable since the store was opened are left out of their batch, which is smaller then; the
store has named them. Nothing stands in for them.

Only mixing waveforms needs them; everything else lives on spectrograms. Files are decoded anew for every batch, by
several threads, or in worker processes (`workers`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tymbal.audio.decode import read
from tymbal.errors import SettingsError, StoreError
from tymbal.features.normalisation import Normalisation
from tymbal.progress import Progress
from tymbal.settings import FeatureSettings
from tymbal.store.base import DamagedRowsError, SpectrogramSource
from tymbal.store.parallel_copy import copy_in_parallel

__all__ = [
    "NormalisedBatch",
    "SoundDataset",
    "StoreDataset",
    "normalised_batches",
    "readable_batches",
    "whole_batch",
]

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
        StoreError: Labels are required and some row has none.
    """

    def __init__(self, store: SpectrogramSource, rows: npt.ArrayLike, *, labels: bool = False) -> None:
        self.store = store
        self.rows = np.asarray(rows, dtype=np.int64).reshape(-1)
        self.labels = labels
        self._frames = store.real_frames.astype(np.int64)
        taught = store.taught
        self._taught = taught if taught is not None and taught.known(self.rows).all() else None
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
        """Returns one batch.

        Args:
            indices: epoch * len(self) + position of each spectrogram, [batch].

        Returns:
            `spectrogram` float16 [batch, frames, mels], raw log-mel values; `frames` int64 [batch], those of real
            sound; `row` int64 [batch], in the store; `epoch` int64 [batch]; with labels `labels`, int64 [batch] or
            float32 [batch, labels]; where a teacher knows all of these rows `target`, its vectors, float32
            [batch, parts, width]. The memory of `spectrogram` is used again when nothing refers to it any more. Where
            clips have become unreadable the batch is smaller, down to none at all.
        """
        epoch, position = np.divmod(np.asarray(indices, dtype=np.int64), len(self))
        rows = self.rows[position]
        try:
            values = self.store.gather(rows)
        except DamagedRowsError:
            readable, values = _gather_readable(self.store, rows)
            rows, epoch = rows[readable], epoch[readable]
        batch = {"row": torch.from_numpy(rows), "epoch": torch.from_numpy(epoch)}
        batch |= self._spectrograms(torch.from_numpy(values), batch["row"], batch["epoch"])
        if self.labels and self.store.multilabel:
            batch["labels"] = torch.from_numpy(self.store.label_matrix(rows))
        elif self.labels:
            batch["labels"] = torch.from_numpy(self.store.label_indices(rows))
        if self._taught is not None:
            batch["target"] = torch.from_numpy(self._taught.gather(rows))
        return batch

    def _spectrograms(self, values: Tensor, row: Tensor, epoch: Tensor) -> dict[str, Tensor]:
        """The spectrograms of a batch and their frames of real sound, from the store's own batch.

        Args:
            values: The store's own batch, [batch, …].
            row: Its row numbers, [batch].
            epoch: The epoch of each, [batch].
        """
        del epoch
        return {"spectrogram": values, "frames": torch.from_numpy(self._frames[row.numpy()])}

    @property
    def ahead(self) -> int:
        """Batches to announce before they are asked for."""
        return self.store.ahead

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
        """Returns one batch as any store, and `waveform`, float32 [batch, samples], with silence behind the sound."""
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


class NormalisedBatch(NamedTuple):
    """Spectrograms as an encoder takes them.

    Attributes:
        x: Normalised, float32 [batch, frames, mels], on the device.
        frames: Frames of real sound, int64 [batch], on the device.
        rows: Rows of the store, int64 [batch].
    """

    x: Tensor
    frames: Tensor
    rows: npt.NDArray[np.int64]


def normalised_batches(
    store: SpectrogramSource,
    rows: npt.NDArray[np.int64],
    *,
    normalisation: Normalisation,
    batch_size: int,
    device: torch.device | str = "cpu",
    rank: int = 0,
    processes: int = 1,
    progress: Progress | None = None,
) -> Iterator[NormalisedBatch]:
    """Iterates once over rows of a store in order: the loop of everything that reads clips outside of training.

    Args:
        store: The store of the spectrograms.
        rows: Which of them, [clips].
        normalisation: How the model normalises.
        batch_size: Clips a batch.
        device: The device of the batches.
        rank: Number of this process, which takes every `processes`-th batch.
        processes: Processes that share the rows.
        progress: Advances by the rows of each batch when the next one is requested.

    Yields:
        Batches of the rows that can be read; see `readable_batches`.

    Raises:
        StoreError: The store cannot be read.
    """
    for part, spectrograms in readable_batches(
        store, rows, batch_size=batch_size, rank=rank, processes=processes, progress=progress
    ):
        frames = torch.from_numpy(store.real_frames[part].astype(np.int64)).to(device)
        x = normalisation(torch.from_numpy(spectrograms).to(device), frames)
        yield NormalisedBatch(x, frames, part)


def readable_batches(
    store: SpectrogramSource,
    rows: npt.NDArray[np.int64],
    *,
    batch_size: int,
    rank: int = 0,
    processes: int = 1,
    progress: Progress | None = None,
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float16]]]:
    """Reads rows of a store batch by batch, the next ones announced.

    Rows that have become unreadable are left out, and named by the store: a batch is then smaller, and an empty one is
    passed over. What is computed from the batches is of the rows that come with them, not of those requested.

    Args:
        store: The store of the spectrograms.
        rows: Which of them, [clips].
        batch_size: Clips a batch.
        rank: Number of this process, which takes every `processes`-th batch.
        processes: Processes that share the rows.
        progress: Advances by the rows of each batch when the next one is requested.

    Yields:
        Row numbers [batch] and raw log-mel values, float16 [batch, frames, mels], in memory that is used again when
        nothing refers to it any more.

    Raises:
        StoreError: The store cannot be read.
    """
    parts = [rows[start : start + batch_size] for start in range(rank * batch_size, len(rows), processes * batch_size)]
    for part in parts[1 : store.ahead]:
        store.announce(part)
    for number, part in enumerate(parts, store.ahead):
        store.announce(parts[number] if number < len(parts) else rows[:0])
        readable, spectrograms = _gather_readable(store, part)
        if readable.any():
            yield part[readable], spectrograms
        if progress is not None:
            progress.advance(len(part))


def _gather_readable(
    store: SpectrogramSource, rows: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float16]]:
    """Which of some rows can be read, bool [rows], and the spectrograms of those."""
    readable = np.ones(len(rows), np.bool_)
    while True:
        try:
            return readable, store.gather(rows[readable])
        except DamagedRowsError as error:
            damaged = np.isin(rows, error.rows) & readable
            if not damaged.any():
                raise
            readable &= ~damaged
