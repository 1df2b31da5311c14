"""A store of waveforms: each row holds a clip, int16 [samples], of which views are drawn anew in each epoch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tymbal.errors import StoreError
from tymbal.store.format import DESCRIPTION, WAVEFORMS, Description
from tymbal.store.store import Store

__all__ = ["FULL_SCALE", "WaveStore", "holds_waves"]

FULL_SCALE = 32_767
"""The sample that stands for 1."""


class WaveStore(Store):
    """A store whose rows are waveforms; `gather` gives int16 [n, samples]. Its statistics are those of its views."""

    kind = WAVEFORMS
    dtype = np.dtype(np.int16)

    @property
    def samples(self) -> int:
        """Samples of a clip."""
        return self.row_shape[0]

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of a row: [samples]."""
        return (int(self.description.provenance["samples"]),)

    def waveforms(self, rows: npt.ArrayLike) -> npt.NDArray[np.int16]:
        """Waveforms in any order, int16 [n, samples]."""
        found: npt.NDArray[Any] = self.gather(rows)
        return found


def holds_waves(path: str | os.PathLike[str]) -> bool:
    """Whether a folder is a store of waveforms."""
    folder = Path(path)
    if not (folder / DESCRIPTION).is_file():
        return False
    try:
        return Description.read(folder).kind == WAVEFORMS
    except StoreError:
        return False
