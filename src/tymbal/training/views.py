"""The pairs of views that contrastive pretraining is given."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from tymbal.audio.failures import write_failures
from tymbal.errors import StoreError
from tymbal.store.base import SpectrogramSource
from tymbal.store.pair_store import PairFileStore, find_pairs, open_pairs
from tymbal.training.source import FAILURES

__all__ = ["clip_numbers", "open_views"]


def open_views(source: str | os.PathLike[str], run: Path) -> SpectrogramSource:
    """Opens pairs of views of either form; what was left out is named in the run's failures.csv.

    Args:
        source: A store of pairs, or a folder of `.pt` files with metadata.
        run: The run folder.

    Raises:
        StoreError: It holds no pairs.
    """
    if not find_pairs(source):
        raise StoreError(
            "holds no pairs of views, which the contrastive objective learns from",
            path=source,
            advice="Make them from sound: tymbal prepare SOUND -o STORE --views 5",
        )
    pairs = open_pairs(source)
    if isinstance(pairs, PairFileStore) and pairs.failures:
        write_failures(run / FAILURES, pairs.failures)
    return pairs


def clip_numbers(store: SpectrogramSource) -> Tensor:
    """A number for the clip of each row, the same for all its versions: int64 [rows]."""
    numbers: dict[str, int] = {}
    names = (name.rpartition("@v")[0] or name for name in store.index["id"].to_pylist())
    return torch.tensor([numbers.setdefault(name, len(numbers)) for name in names])
