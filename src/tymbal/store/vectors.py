"""Vectors of a store's clips, kept on the disk: what a teacher says of each, one vector for each part of its time.

    kept/
        vectors.json     how many rows, parts and numbers, and what decided them; written once
        vectors.bin      float32 [rows, parts, width], as many rows as the store, most of them filled later
        marks.bin        uint32 [rows]: 0 not computed yet, 1 the teacher has nothing to say, else the CRC-32 of the row

Rows are filled one block after the other, values before their marks: after a kill what is marked is whole, and the rest
is computed when it is asked for again. They are read row by row: memory does not grow with them, and a file that is cut
is a message, where a map of it would kill the process.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tymbal.errors import StoreError
from tymbal.files import locked, read_json, replace_folder, verified, with_checksum, write_json

__all__ = ["RowVectors"]

_SCHEMA = 1
_DESCRIPTION, _VALUES, _MARKS = "vectors.json", "vectors.bin", "marks.bin"
_OPEN, _NOTHING = 0, 1
_BLOCK = 4096
_AGAIN = "Delete the folder: it is computed again."


class RowVectors:
    """Vectors by row; opened by `begin`, or by `open` where they are there.

    Attributes:
        path: Their folder.
        count: Rows, as many as the store has.
        parts: Vectors of a row, in order of time.
        width: Numbers of a vector.
        facts: What decided them.
        learned: The rows that are learned from, by which the numbers are scaled; None is all that have vectors.
    """

    learned: npt.NDArray[np.int64] | None = None

    def __init__(self, path: Path, *, count: int, parts: int, width: int, facts: Mapping[str, Any]) -> None:
        self.path = path
        self.count, self.parts, self.width = count, parts, width
        self.facts = dict(facts)

    @classmethod
    def begin(cls, path: Path, *, count: int, parts: int, width: int, facts: Mapping[str, Any]) -> RowVectors:
        """Opens a folder, or makes one for as many rows, of which none is computed yet.

        Raises:
            StoreError: It is there and damaged, or of other vectors.
        """
        if not path.exists():
            shape = {"count": count, "parts": parts, "width": width}
            with replace_folder(path) as aside:
                for name, size in ((_VALUES, 4 * count * parts * width), (_MARKS, 4 * count)):
                    with (aside / name).open("wb") as file:
                        file.truncate(size)
                write_json(aside / _DESCRIPTION, with_checksum({"schema": _SCHEMA, **shape, "facts": dict(facts)}))
        opened = cls.open(path)
        if (opened.count, opened.parts, opened.width) != (count, parts, width):
            raise StoreError("holds vectors of other clips or of another teacher", path=path, advice=_AGAIN)
        return opened

    @classmethod
    def open(cls, path: Path) -> RowVectors:
        """Opens a folder of vectors.

        Raises:
            StoreError: There is none, it is damaged, or a later version wrote it.
        """
        try:
            given = verified(read_json(path / _DESCRIPTION))
            if given["schema"] != _SCHEMA:
                raise StoreError(
                    f"holds vectors of schema {given['schema']}, this Tymbal reads {_SCHEMA}", path=path, advice=_AGAIN
                )
            shape = {name: int(given[name]) for name in ("count", "parts", "width")}
            sizes = [(path / name).stat().st_size for name in (_VALUES, _MARKS)]
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise StoreError(f"the kept vectors cannot be read: {error}", path=path, advice=_AGAIN) from None
        if sizes != [4 * shape["count"] * shape["parts"] * shape["width"], 4 * shape["count"]]:
            raise StoreError("the kept vectors are cut short", path=path, advice=_AGAIN)
        return cls(path, facts=given["facts"], **shape)

    def pending(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Those of some rows that are not computed yet."""
        return np.asarray(rows[self._marks()[rows] == _OPEN])

    def known(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which of some rows have vectors, bool [rows]."""
        return np.asarray(self._marks()[rows] > _NOTHING)

    @contextmanager
    def filling(self) -> Iterator[None]:
        """Within it this process is the only one that adds vectors.

        Raises:
            StoreError: Another process adds some.
        """
        busy = StoreError(
            "another process computes these vectors", path=self.path, advice="Wait until it is done, then run again."
        )
        with locked(self.path, busy):
            yield

    def add(self, rows: npt.NDArray[np.int64], values: npt.NDArray[np.float32], nothing: npt.NDArray[np.int64]) -> None:
        """Keeps the vectors of some rows, and that of others the teacher has nothing to say; within `filling`.

        Args:
            rows: Rows, [n].
            values: Their vectors, [n, parts, width].
            nothing: Other rows.
        """
        self._write(_VALUES, dict(zip(rows.tolist(), values, strict=True)))
        marks = {row: _checksum(row_values) for row, row_values in zip(rows.tolist(), values, strict=True)}
        self._write(_MARKS, {**marks, **dict.fromkeys(nothing.tolist(), np.uint32(_NOTHING))})

    def _write(self, name: str, items: Mapping[int, npt.NDArray[Any] | np.uint32]) -> None:
        with (self.path / name).open("rb+") as file:
            for row in sorted(items):
                data = items[row].tobytes()
                file.seek(row * len(data))
                file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def gather(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Reads the vectors of rows that have some, float32 [rows, parts, width].

        Raises:
            StoreError: One has none, or is not what was written.
        """
        found = np.empty((len(rows), self.parts, self.width), np.float32)
        marks = np.empty((len(rows), 1), np.uint32)
        self._read(_VALUES, rows, found)
        self._read(_MARKS, rows, marks)
        for row, row_values, mark in zip(rows.tolist(), found, marks[:, 0].tolist(), strict=True):
            if _checksum(row_values) != mark:
                what = "has no vectors" if mark in (_OPEN, _NOTHING) else "has other vectors than were written"
                raise StoreError(f"row {row} {what}", path=self.path, advice=_AGAIN)
        return found

    def _marks(self) -> npt.NDArray[np.uint32]:
        """The marks of all rows, as they are now."""
        marks = np.fromfile(self.path / _MARKS, np.uint32)
        if len(marks) != self.count:
            raise self._cut_short()
        return marks

    def _read(self, name: str, rows: npt.NDArray[np.int64], out: npt.NDArray[Any]) -> None:
        """Reads the entries of rows into an array [rows, …]."""
        if not len(rows):
            return
        size = out.nbytes // len(rows)
        room = out.reshape(-1).view(np.uint8).data
        try:
            with (self.path / name).open("rb") as file:
                for place, row in enumerate(rows.tolist()):
                    file.seek(row * size)
                    if file.readinto(room[place * size : (place + 1) * size]) != size:
                        raise self._cut_short()
        except OSError as error:
            raise StoreError(f"the kept vectors cannot be read: {error}", path=self.path, advice=_AGAIN) from None

    def _cut_short(self) -> StoreError:
        return StoreError("the kept vectors are cut short", path=self.path, advice=_AGAIN)

    def moments(self, rows: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Mean and standard deviation of each number over rows, float64 [parts, width] both."""
        total = np.zeros((self.parts, self.width))
        for start in range(0, len(rows), _BLOCK):
            total += self.gather(rows[start : start + _BLOCK]).sum(axis=0, dtype=np.float64)
        mean = total / max(len(rows), 1)
        squares = np.zeros_like(mean)
        for start in range(0, len(rows), _BLOCK):
            squares += np.square(self.gather(rows[start : start + _BLOCK]) - mean).sum(axis=0)
        return mean, np.sqrt(squares / max(len(rows), 1))


def _checksum(values: npt.NDArray[np.float32]) -> np.uint32:
    """CRC-32 of a row, never one of the two marks that mean something else."""
    return np.uint32(max(zlib.crc32(np.ascontiguousarray(values).tobytes()), _NOTHING + 1))
