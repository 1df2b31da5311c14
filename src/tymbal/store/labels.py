"""The labels of a store as numbers, from the index column of lists of names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tymbal.errors import StoreError

__all__ = ["LabelTable"]


class LabelTable:
    """Labels of all rows.

    Args:
        column: list<string>, one list a row; null and empty both mean no label.
        path: The store, for messages.
        names: All labels in the order of their numbers. None is those that occur, sorted.

    Attributes:
        names: All labels; a label's number is its place here.
        multilabel: Whether any row has more than one label.
    """

    def __init__(self, column: pa.ChunkedArray, path: Path, *, names: Sequence[str] | None = None) -> None:
        self._path = path
        lists = column.combine_chunks()
        counts = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)
        flat = pc.list_flatten(lists)
        self.names: list[str] = sorted(pc.unique(flat).to_pylist()) if names is None else list(names)
        numbers = pc.index_in(flat, value_set=pa.array(self.names, pa.string()))
        self._numbers: npt.NDArray[np.int64] = numbers.to_numpy(zero_copy_only=False).astype(np.int64)
        self._starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        self.multilabel = bool((counts > 1).any())

    def indices(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The label of each row, [rows]; -1 where there is none.

        Raises:
            StoreError: Some row of the store has several labels.
        """
        if self.multilabel:
            raise StoreError(
                "has spectrograms with several labels, so a row is not one class",
                path=self._path,
                advice="Train it as a multi-label task, or leave one label a clip in the manifest.",
            )
        starts = self._starts[rows]
        labelled = self._starts[rows + 1] > starts
        result = np.full(len(rows), -1, np.int64)
        result[labelled] = self._numbers[starts[labelled]]
        return result

    def matrix(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Ones where a row has a label, float32 [rows, names]."""
        result = np.zeros((len(rows), len(self.names)), np.float32)
        starts = self._starts[rows]
        counts = self._starts[rows + 1] - starts
        of_row = np.repeat(np.arange(len(rows)), counts)
        within = np.arange(len(of_row)) - np.repeat(np.cumsum(counts) - counts, counts)
        result[of_row, self._numbers[starts[of_row] + within]] = 1.0
        return result
