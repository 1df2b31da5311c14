"""Batches of a store for a plain `torch.utils.data.DataLoader`, a whole batch at once.

    loader = DataLoader(StoreDataset(store, store.rows("train")), batch_sampler=…, collate_fn=whole_batch)

A DataLoader hands all indices of a batch to `__getitems__` and the result to its collate function, which therefore has
nothing left to do. In this process that runs at the speed of a memory copy; worker processes only add the cost of
moving every batch through shared memory.

Masks and augmentation depend on the epoch, and a worker process does not hear about it: so the epoch travels in the
index, epoch * len(dataset) + position.

Clips that have become unreadable since the store was opened are left out of their batch, which is smaller then; the
store has named them. Nothing stands in for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tymbal.errors import StoreError
from tymbal.store.base import DamagedRowsError, SpectrogramSource

__all__ = ["StoreDataset", "whole_batch"]

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
