"""Pairs of generated views, as contrastive training scripts expect them.

    from tymbal.compat import PreGeneratedSpectrogramDataset

    metadata = json.load(open("data/augmented_spectrograms/metadata.json"))
    dataset = PreGeneratedSpectrogramDataset(metadata["train"])
    view1, view2 = dataset[0]                  # float32 [1, mels, frames] each

It also takes a folder, packed or of `.pt` files, and finds out which it is. A file that is damaged is left out of its
batch and named; no other clip takes its place.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from tymbal.audio.failures import Failure
from tymbal.errors import StoreError
from tymbal.store.base import DamagedRowsError
from tymbal.store.pair_store import PairFileStore, PairSource, open_pairs

__all__ = ["PreGeneratedSpectrogramDataset"]

_SPLITS = {"val": "validation"}


class PreGeneratedSpectrogramDataset(Dataset[tuple[Tensor, Tensor]]):
    """Pairs of views, one pair a clip and version.

    Args:
        metadata_list: A list of metadata.json, `train` or `val`; or the folder, packed or of `.pt` files.
        split: Of a folder, the split that is wanted: `train` or `val`. None is all.
        root: Where the files of a list are, if they are not where their entries say.

    Attributes:
        source: Where batches come from.

    Raises:
        StoreError: There are no pairs, or none of this split.
    """

    def __init__(
        self,
        metadata_list: str | os.PathLike[str] | Sequence[Mapping[str, Any]],
        *,
        split: str | None = None,
        root: str | os.PathLike[str] | None = None,
    ) -> None:
        self.source: PairSource
        if isinstance(metadata_list, str | os.PathLike):
            self.source = open_pairs(metadata_list)
        else:
            self.source = PairFileStore(metadata_list, root=root)
        self._rows = self.source.rows(None if split is None else _SPLITS.get(split, split)).tolist()

    @property
    def failures(self) -> list[Failure]:
        """What was left out up to now, and why."""
        return list(self.source.failures) if isinstance(self.source, PairFileStore) else []

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Both views of a clip, float32 [1, mels, frames] each.

        Raises:
            IndexError: There is no such pair.
            StoreError: Its file is damaged.
        """
        found = self.__getitems__([index])
        if not found:
            raise StoreError("this pair cannot be read any more", path=self.source.path)
        return found[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Pairs of a batch, without those whose file is damaged: DataLoader asks for whole batches so.

        Raises:
            StoreError: Not one of them can be read.
        """
        rows = [self._rows[index] for index in indices]
        try:
            pairs = torch.from_numpy(self.source.gather(rows))
        except DamagedRowsError as error:
            rows = [row for row in rows if row not in error.rows]
            if not rows:
                if len(indices) == 1:
                    return []
                raise StoreError("not one pair of a batch can be read any more", path=self.source.path) from error
            pairs = torch.from_numpy(self.source.gather(rows))
        # A copy: the memory of the batch is used again.
        both = pairs.float().transpose(2, 3).unsqueeze(2).contiguous()
        return [(one[0], one[1]) for one in both]
