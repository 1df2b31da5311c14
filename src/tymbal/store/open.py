"""Opens a packed store of either kind."""

from __future__ import annotations

import os

from tymbal.store.pairs import PairStore, holds_pairs
from tymbal.store.store import Store
from tymbal.store.waves import WaveStore, holds_waves

__all__ = ["open_store"]


def open_store(path: str | os.PathLike[str]) -> Store:
    """Opens a store of single spectrograms, of pairs of views, or of waveforms.

    Raises:
        StoreError: It is no store, unfinished, damaged, or of another schema.
    """
    if holds_waves(path):
        return WaveStore.open(path)
    return PairStore.open(path) if holds_pairs(path) else Store.open(path)
