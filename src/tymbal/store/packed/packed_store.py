"""Packed stores, open for reading: of spectrograms, of pairs of views, of waveforms.

A row number is a spectrogram's place in the index; the index is in the order of the shards. Nothing is read before it
is asked for, so a store of a terabyte opens as fast as a small one and travels to worker processes as its path.
"""

from __future__ import annotations

import math
import os
import zlib
from bisect import bisect_right
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tymbal.errors import StoreError
from tymbal.files import address
from tymbal.progress import Progress
from tymbal.store.base import SpectrogramSource
from tymbal.store.packed.format import (
    CHECKSUMS,
    DESCRIPTION,
    INDEX,
    INDEX_SCHEMA,
    REPAIR,
    SPECTROGRAMS,
    WAVEFORMS,
    DamagedStoreError,
    Description,
    ShardFile,
    check_shard,
)
from tymbal.store.packed.mirror import AHEAD, RemoteRows, refresh, url_of
from tymbal.store.parallel_copy import BufferPool, RowMemory, copy_in_parallel

__all__ = ["FOR_CONTRASTIVE", "FULL_SCALE", "PairStore", "Store", "WaveStore", "open_store", "read_index"]

_ASKED = 2

FOR_CONTRASTIVE = (
    "Pairs and waveforms are for contrastive pretraining (--objective contrastive), single spectrograms for all else."
)
"""What to do where pairs or waveforms are given to a verb that takes single spectrograms."""


class Store(SpectrogramSource):
    """A folder of spectrograms; open one with `Store.open`.

    Attributes:
        path: The folder.
        description: The contents of `store.json`.
        index: One row a spectrogram: id, file, start, end, frames, labels, group, split, shard, row, version.
        views: Spectrograms a row.
        checksums: CRC-32 of each row's bytes, [count]; None in stores of earlier versions. Each row is compared with
            its own when a process first reads it.
    """

    views = 1
    kind = SPECTROGRAMS

    def __init__(self, path: Path, description: Description, index: pa.Table) -> None:
        super().__init__(path, index, description)
        self.description = description
        self.checksums: npt.NDArray[np.uint32] | None = None
        self._verified = bytearray(len(self))
        self._all_verified = False
        self._first_rows = list(accumulate((shard.rows for shard in description.shards), initial=0))
        self._shards: dict[int, ShardFile] = {}
        self._pool = BufferPool()
        self._announced: deque[list[int]] = deque(maxlen=2)
        self._elsewhere: RemoteRows | None = None
        self._rows_in_memory = RowMemory(len(self), self.row_shape, self.dtype)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Opens a store and checks that it is whole.

        Raises:
            StoreError: It is no store, unfinished, damaged, or of another schema; the message says which and where.
        """
        return cls._opened(Path(path), Description.read(Path(path)))

    @classmethod
    def _opened(cls, folder: Path, description: Description) -> Self:
        if (description.kind, description.views) != (cls.kind, cls.views):
            what = "pairs of augmented views" if description.views > 1 else "single spectrograms, not pairs of views"
            raise StoreError(
                f"holds {'waveforms' if description.kind == WAVEFORMS else what}",
                path=folder,
                advice=FOR_CONTRASTIVE,
            )
        for shard in description.shards:
            check_shard(folder / shard.file, shard, ())
        index, checksums = read_index(folder, description)
        rows = sum(shard.rows for shard in description.shards)
        if not index.num_rows == rows == description.count:
            raise StoreError(
                f"the index has {index.num_rows} spectrograms, the shards {rows}, {DESCRIPTION} {description.count}",
                path=folder,
                advice=REPAIR,
            )
        least, most = (pc.min_max(index["frames"])[which].as_py() or 0 for which in ("min", "max"))
        if not 0 <= least <= most <= description.frames:
            raise StoreError(
                f"has spectrograms of {least} to {most} frames, {DESCRIPTION} says {description.frames}",
                path=folder / INDEX,
                advice=REPAIR,
            )
        store = cls(folder, description, index)
        store.checksums = checksums
        url = url_of(folder)
        if url is not None:
            store._elsewhere = RemoteRows(store, url)
        return store

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self).open, (self.path,))

    @property
    def location(self) -> str:
        """Where its rows come from: the address elsewhere, else the path."""
        return super().location if self._elsewhere is None else self._elsewhere.url

    @property
    def ahead(self) -> int:
        """Batches to announce before they are asked for: several where rows come from elsewhere."""
        return super().ahead if self._elsewhere is None else AHEAD

    @property
    def recorded_settings(self) -> Mapping[str, Any]:
        """Settings of the verb that made the store."""
        return self.description.settings

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Versions, time and source."""
        return self.description.provenance

    @property
    def description_files(self) -> Sequence[Path]:
        """`store.json` and the index."""
        return [self.path / DESCRIPTION, self.path / INDEX]

    @property
    def data_files(self) -> Sequence[Path]:
        """The shards."""
        return [self.path / shard.file for shard in self.description.shards]

    def gather(self, rows: npt.ArrayLike, out: npt.NDArray[np.float16] | None = None) -> npt.NDArray[np.float16]:
        """Copies spectrograms out of the store, as raw log-mel values.

        Args:
            rows: Row numbers in any order, [n].
            out: Where to put them, C-contiguous float16 [n, frames, mels]. None takes memory that is used again once
                neither the result nor anything that shares its memory is alive.

        Returns:
            float16 [n, frames, mels].

        Raises:
            IndexError: A row number is not in the store.
            StoreError: A shard cannot be read.
        """
        asked = np.asarray(rows, dtype=np.int64).reshape(-1)
        indices = self._listed(asked)
        out = self._memory(len(indices), out, self._pool)
        if self._rows_in_memory.recall(asked, out):
            return out
        places = [self.place_of(row) for row in indices]
        size = math.prod(self.row_shape) * 2

        def read(start: int, stop: int) -> None:
            for number in range(start, stop):
                shard, row = places[number]
                shard.read(row, view[number * size : (number + 1) * size])

        view = out.reshape(-1).view(np.uint8).data
        if self._elsewhere is None and all(announced != indices for announced in self._announced):
            self._fetch(indices)
        copy_in_parallel(read, len(indices), size)
        if self._elsewhere is not None:
            self._elsewhere.complete(indices, view)
        elif self.checksums is not None and not self._all_verified:
            self._verify(indices, view, size, places)
        self._rows_in_memory.keep(indices, out)
        return out

    def _verify(self, rows: list[int], values: memoryview, size: int, places: Sequence[tuple[ShardFile, int]]) -> None:
        """Compares rows with their checksums that this process reads for the first time.

        Raises:
            StoreError: A row is not what was written.
        """
        fresh = [number for number, row in enumerate(rows) if not self._verified[row]]
        if not fresh or self.checksums is None:
            return
        expected = self.checksums[[rows[number] for number in fresh]].tolist()
        altered: list[int] = []

        def check(start: int, stop: int) -> None:
            for number, crc in zip(fresh[start:stop], expected[start:stop], strict=True):
                if zlib.crc32(values[number * size : (number + 1) * size]) == crc:
                    self._verified[rows[number]] = 1
                else:
                    altered.append(number)

        copy_in_parallel(check, len(fresh), size)
        if altered:
            shard, row = places[min(altered)]
            raise StoreError(
                f"row {row} of the shard is not what was written: its checksum differs", path=shard.path, advice=REPAIR
            )
        self._all_verified = 0 not in self._verified

    def check_whole(self, progress: Progress | None = None) -> None:
        """Reads all shards and compares them with their checksums; of stores of earlier versions only their sizes.

        Args:
            progress: Advances by the rows of each shard.

        Raises:
            StoreError: A shard is not what was written.
        """
        if self._elsewhere is not None:
            self._elsewhere.check_whole(progress)
            return
        for number, shard in enumerate(self.description.shards):
            check_shard(self.path / shard.file, shard, self.checksums_of(number))
            if progress is not None:
                progress.advance(shard.rows)

    def checksums_of(self, number: int) -> Sequence[int]:
        """The checksums of the rows of a shard; none in stores of earlier versions."""
        if self.checksums is None:
            return ()
        checksums: list[int] = self.checksums[self._first_rows[number] : self._first_rows[number + 1]].tolist()
        return checksums

    def announce(self, rows: npt.ArrayLike) -> None:
        """Tells the kernel which rows come next, so that it fetches what is not cached in the background.

        If the sampled rows are cached, all are taken to be. A no-op where the system has no such call. Rows that lie
        elsewhere are fetched from there.
        """
        indices = self._listed(rows)
        if self._rows_in_memory.is_whole:
            return
        if self._elsewhere is not None:
            self._elsewhere.announce(indices)
            return
        self._announced.append(indices)
        self._fetch(indices)

    def _fetch(self, rows: list[int]) -> None:
        """Asks the kernel to fetch rows all at once, in the background, where they do not seem to be cached."""
        sample = [self.place_of(row) for row in rows[:: max(len(rows) // _ASKED, 1)][:_ASKED]]
        if not all(shard.cached(row) for shard, row in sample):
            for row in rows:
                shard, within = self.place_of(row)
                shard.announce(within)

    def _listed(self, rows: npt.ArrayLike) -> list[int]:
        # A batch flushes the processor's cache: after it few and simple steps in Python cost less than fast ones in
        # numpy, whose code has to be fetched anew.
        indices: list[int] = np.asarray(rows, dtype=np.int64).reshape(-1).tolist()
        if indices and not 0 <= min(indices) <= max(indices) < len(self):
            raise IndexError(f"rows {min(indices)} to {max(indices)} of a store of {len(self)} spectrograms")
        return indices

    def place_of(self, row: int) -> tuple[ShardFile, int]:
        """The shard of a row, and its place in it."""
        number = bisect_right(self._first_rows, row) - 1
        return self._shards.get(number) or self._shard(number), row - self._first_rows[number]

    def shard_number(self, row: int) -> int:
        """The number of the shard in which a row lies."""
        return bisect_right(self._first_rows, row) - 1

    def first_row(self, number: int) -> int:
        """The first row of a shard."""
        return self._first_rows[number]

    def forget_shard(self, number: int) -> None:
        """Closes a shard whose file has been replaced; it is opened again when a row is asked for."""
        self._shards.pop(number, None)

    def _shard(self, number: int) -> ShardFile:
        description = self.description.shards[number]
        shard = ShardFile(self.path / description.file, description.rows, self.row_shape, self.dtype)
        self._shards[number] = shard
        return shard


def read_index(folder: Path, description: Description) -> tuple[pa.Table, npt.NDArray[np.uint32] | None]:
    """Reads the index of a store, and the checksums of its rows, where it has them.

    Raises:
        DamagedStoreError: It is missing, or not what was written.
    """
    path = folder / INDEX
    try:
        if description.index_crc not in (None, zlib.crc32(path.read_bytes())):
            raise DamagedStoreError("is not what was written: its checksum differs", path=path, advice=REPAIR)
        # By its path: Arrow's threads may outlive a buffer of Python's, and then abort the process at its end.
        index = pq.read_table(path)
    except FileNotFoundError:
        raise DamagedStoreError("is missing", path=path, advice=REPAIR) from None
    except (OSError, pa.ArrowException) as error:
        raise DamagedStoreError(f"cannot be read: {error}", path=path, advice=REPAIR) from error
    checksums = None
    if CHECKSUMS in index.column_names:
        checksums = index[CHECKSUMS].to_numpy().astype(np.uint32)
    if "version" not in index.column_names:
        # Stores older than views lack the column.
        index = index.append_column("version", pa.nulls(index.num_rows, pa.int32()))
    missing = [name for name in INDEX_SCHEMA.names if name not in index.column_names]
    if missing:
        raise DamagedStoreError(f"has no column {', '.join(missing)}", path=path, advice=REPAIR)
    try:
        return index.select(INDEX_SCHEMA.names).cast(INDEX_SCHEMA).combine_chunks(), checksums
    except pa.ArrowException as error:
        raise DamagedStoreError(f"is damaged: {error}", path=path, advice=REPAIR) from error


class PairStore(Store):
    """A store whose rows are pairs of views; `gather` gives float16 [n, 2, frames, mels]."""

    views = 2


FULL_SCALE = 32_767
"""The sample that stands for 1."""


class WaveStore(Store):
    """A store whose rows are waveforms; `gather` gives int16 [n, samples]. Its statistics are those of its views."""

    kind = WAVEFORMS
    dtype = np.dtype(np.int16)

    @property
    def samples(self) -> int:
        """Samples of a clip."""
        return int(self.description.provenance["samples"])

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of a row: [samples]."""
        return (self.samples,)

    def waveforms(self, rows: npt.ArrayLike) -> npt.NDArray[np.int16]:
        """Waveforms in any order, int16 [n, samples]."""
        waveforms: npt.NDArray[Any] = self.gather(rows)
        return waveforms


def open_store(path: str | os.PathLike[str]) -> Store:
    """Opens a store of single spectrograms, of pairs of views, or of waveforms, on this machine or elsewhere.

    Args:
        path: Its folder, or its address (`s3://bucket/folder`).

    Raises:
        StoreError: It is no store, unfinished, damaged, or of another schema.
    """
    url = address(path)
    path = path if url is None else refresh(url)
    description = Description.read(Path(path))
    kinds: list[type[Store]] = [Store, PairStore, WaveStore]
    fitting = (each for each in kinds if (each.kind, each.views) == (description.kind, description.views))
    return next(fitting, Store)._opened(Path(path), description)
