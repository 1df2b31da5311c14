"""A store of pairs: each row holds two augmented views of a version of a clip, [2, frames, mels]."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tymbal.errors import StoreError
from tymbal.store.format import DESCRIPTION, Description
from tymbal.store.store import Store

__all__ = ["PairStore", "holds_pairs"]


class PairStore(Store):
    """A store whose rows are pairs of views; `gather` gives float16 [n, 2, frames, mels]."""

    views = 2

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of a row: [2, frames, mels]."""
        return self.views, self.frames, self.mels

    @property
    def told_settings(self) -> dict[str, Any] | None:
        """The settings of the preparation, where they are known."""
        return self.description.settings or None


def holds_pairs(path: str | os.PathLike[str]) -> bool:
    """Whether a folder is a store of pairs of views."""
    folder = Path(path)
    if not (folder / DESCRIPTION).is_file():
        return False
    try:
        return Description.read(folder).views == PairStore.views
    except StoreError:
        return False
