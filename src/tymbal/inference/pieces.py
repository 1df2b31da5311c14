"""Rows on their way into a part of a spool and out of it, a piece at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

__all__ = ["PIECE", "RECORDING", "Held", "Pieces"]

PIECE = 2**23
"""Bytes of a piece."""

RECORDING = "recording"
"""The column that tells to which recording of a part a row belongs."""


class Held:
    """Rows in memory that is taken once: small pieces between the large ones of a batch would tear the heap apart.

    Args:
        schema: Columns: numbers, or lists of a fixed number of them.

    Attributes:
        most: Rows that there is room for.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        shapes = [
            (field.type.value_type, (field.type.list_size,))
            if pa.types.is_fixed_size_list(field.type)
            else (field.type, ())
            for field in schema
        ]
        width = sum(kind.bit_width // 8 * math.prod(shape) for kind, shape in shapes)
        self.most = max(1, PIECE // width)
        self._columns = [np.empty((self.most, *shape), kind.to_pandas_dtype()) for kind, shape in shapes]
        self._count = 0

    def take(self, rows: Mapping[str, NDArray[Any]]) -> bool:
        """Takes rows, if there is room for them."""
        behind = self._count + len(rows[RECORDING])
        if behind > self.most:
            return False
        for name, column in zip(self._schema.names, self._columns, strict=True):
            column[self._count : behind] = rows[name]
        self._count = behind
        return True

    def give(self) -> pa.Table:
        """What is held; it has to be used before more is taken."""
        parts = [column[: self._count] for column in self._columns]
        self._count = 0
        arrays = [
            pa.array(part)
            if part.ndim == 1
            else pa.FixedSizeListArray.from_arrays(pa.array(part.reshape(-1)), part.shape[1])
            for part in parts
        ]
        return pa.Table.from_arrays(arrays, schema=self._schema)


class Pieces:
    """The rows of a part, recording by recording, each piece read once.

    Args:
        file: The part.
        most: Rows of a piece.
    """

    def __init__(self, file: pq.ParquetFile, most: int) -> None:
        self._batches = file.iter_batches(batch_size=min(most, 8192))
        self._batch: pa.RecordBatch | None = None

    def of(self, number: int) -> Iterator[pa.RecordBatch]:
        """The rows of a recording; those of the recordings before are passed over."""
        while True:
            if self._batch is None or not self._batch.num_rows:
                self._batch = next(self._batches, None)
            if self._batch is None:
                return
            numbers = self._batch.column(RECORDING).to_numpy()
            first, behind = np.searchsorted(numbers, (number, number + 1))
            if behind > first:
                yield self._batch.slice(first, behind - first).drop_columns([RECORDING])
            self._batch = self._batch.slice(behind)
            if self._batch.num_rows:
                return
