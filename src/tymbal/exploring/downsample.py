"""Values along a recording of any length in little memory: too many columns are reduced by joining neighbours."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Downsampler"]


class Downsampler:
    """Reduces rows that arrive one after the other to at most twice `most` columns.

    Each column stands for the same number of rows, 1 at first. Too many columns are
    joined two by two, so that the number of rows need not be known in advance.

    Args:
        most: Columns that are enough.
        width: Values of a row.
        how: A column is the `mean` or the `max` of its rows.

    Attributes:
        rows_per_column: Rows of a column; the last one may have fewer.
        rows: Rows that were added.
    """

    def __init__(self, most: int, width: int, how: Literal["mean", "max"]) -> None:
        self.rows_per_column = 1
        self.rows = 0
        self._most, self._how = most, how
        self._columns = np.empty((0, width), np.float32)  # sums or maxima of `rows_per_column` rows each
        self._rest = np.empty((0, width), np.float32)  # the sum or maximum of the `_begun` rows of a begun column
        self._begun = 0

    def add(self, rows: NDArray[np.floating]) -> None:
        """Adds rows, [rows, width]."""
        self.rows += len(rows)
        given = np.asarray(rows, np.float32)
        if self._begun:
            first = given[: self.rows_per_column - self._begun]
            self._begin(np.concatenate([self._rest, first]), self._begun + len(first))
            given = given[len(first) :]
        full_rows = len(given) // self.rows_per_column * self.rows_per_column
        self._append(self._joined(given[:full_rows].reshape(-1, self.rows_per_column, given.shape[1])))
        if len(given) > full_rows:
            self._begin(given[full_rows:], len(given) - full_rows)
        while len(self._columns) > 2 * self._most:
            self._halve()

    @property
    def values(self) -> NDArray[np.float32]:
        """The columns, [columns, width]."""
        columns = self._columns / self.rows_per_column if self._how == "mean" else self._columns
        rest = self._rest / max(self._begun, 1) if self._how == "mean" else self._rest
        return np.concatenate([columns, rest])

    def _begin(self, rows: NDArray[np.float32], count: int) -> None:
        """Keeps `rows`, which stand for `count`, as the begun column, or as a whole one where they are enough."""
        joined = self._joined(rows[None])
        if count == self.rows_per_column:
            self._append(joined)
            self._rest, self._begun = joined[:0], 0
        else:
            self._rest, self._begun = joined, count

    def _halve(self) -> None:
        even = len(self._columns) // 2 * 2
        odd = self._columns[even:]
        self._columns = self._joined(self._columns[:even].reshape(-1, 2, self._columns.shape[1]))
        before, self.rows_per_column = self.rows_per_column, 2 * self.rows_per_column
        if len(odd):
            self._begin(np.concatenate([odd, self._rest]), before + self._begun)

    def _append(self, columns: NDArray[np.float32]) -> None:
        self._columns = np.concatenate([self._columns, columns])

    def _joined(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """[columns, rows, width] to [columns, width]."""
        joined: NDArray[np.float32] = rows.sum(axis=1) if self._how == "mean" else rows.max(axis=1)
        return joined
