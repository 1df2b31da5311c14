"""Writing spectrograms: shard by shard, then the index and the description that make the folder a store."""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from tymbal._version import __version__
from tymbal.errors import StoreError
from tymbal.features.normalisation import LOG_FLOOR, Moments
from tymbal.files import replace_file
from tymbal.settings import FeatureSettings
from tymbal.store.packed.format import (
    CHECKSUMS,
    INDEX,
    INDEX_SCHEMA,
    NPY_HEADER,
    SPECTROGRAMS,
    Description,
    Shard,
    shard_name,
    write_header,
)
from tymbal.store.packed.packed_store import Store, open_store

__all__ = ["Entry", "ShardWriter", "finish_store", "open_shard", "write_store"]

_BEHIND = 8 << 20
"""Bytes after which the kernel is asked to begin writing."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A spectrogram's entry in the index, without its place.

    Attributes:
        id: Stable name of the clip.
        file: The sound file.
        start: Seconds of the file at which the spectrogram begins.
        end: Seconds of the file at which its sound ends; None where that is not known.
        frames: Frames of real sound; padding follows.
        labels: Names of its labels.
        group: Name of the group, which must stay on one side of a split.
        split: train, validation, …
        version: The clip's version, if its views are stored.
    """

    id: str
    file: str
    start: float
    end: float | None
    frames: int
    labels: tuple[str, ...] = ()
    group: str | None = None
    split: str | None = None
    version: int | None = None


class ShardWriter:
    """Appends spectrograms to an open file; made by `open_shard`.

    Attributes:
        rows: Spectrograms written so far.
        moments: Moments of all real frames written so far, as stored (float16).
        checksums: CRC-32 of each row's bytes.
    """

    def __init__(
        self,
        file: BinaryIO,
        frames: int,
        mels: int,
        padding: float = LOG_FLOOR,
        *,
        views: int = 1,
        samples: int | None = None,
    ) -> None:
        self.rows = 0
        self.moments = Moments()
        self.checksums: list[int] = []
        self._file = file
        self._padding = padding
        self._row: npt.NDArray[Any] = np.full((views, frames, mels)[views == 1 :], padding, np.float16)
        if samples is not None:
            self._row = np.zeros(samples, np.int16)
        self._header()
        self._handed = 0

    def append(self, spectrogram: npt.NDArray[np.floating]) -> int:
        """Writes one spectrogram [real frames, mels], padded or cut to the frames of the store.

        Returns:
            Its frames of real sound.
        """
        real = min(len(spectrogram), len(self._row))
        self._row[:real] = spectrogram[:real]
        self._row[real:] = self._padding
        self._write()
        self.moments = self.moments.merge(Moments.of(self._row[:real]))
        self.rows += 1
        return real

    def append_views(self, spectrograms: npt.NDArray[np.float16]) -> None:
        """Writes the views of a clip [views, frames, mels], of the frames of the store."""
        self._row[:] = spectrograms
        self._write()
        self.moments = self.moments.merge(Moments.of(self._row))
        self.rows += 1

    def append_waveform(self, samples: npt.NDArray[np.int16], views: npt.NDArray[np.float16]) -> None:
        """Writes a waveform [samples]; the moments are those of its views."""
        self._row[:] = samples
        self._write()
        self.moments = self.moments.merge(Moments.of(views))
        self.rows += 1

    def _write(self) -> None:
        row = self._row.reshape(-1).view(np.uint8).data
        self._file.write(row)
        self.checksums.append(zlib.crc32(row))
        end = self._file.tell()
        if end - self._handed >= _BEHIND and hasattr(os, "posix_fadvise"):
            # Linux begins to write such pages and goes on; the sync at the end then finds little left to wait for.
            self._file.flush()
            os.posix_fadvise(self._file.fileno(), self._handed, end - self._handed, os.POSIX_FADV_DONTNEED)
            self._handed = end

    def finish(self) -> None:
        """Writes the number of rows into the header."""
        self._file.seek(0)
        self._header()

    def _header(self) -> None:
        write_header(self._file, (self.rows, *self._row.shape), self._row.dtype)


@contextlib.contextmanager
def open_shard(
    path: str | os.PathLike[str],
    *,
    frames: int,
    mels: int,
    padding: float = LOG_FLOOR,
    views: int = 1,
    samples: int | None = None,
) -> Iterator[ShardWriter]:
    """Yields a writer; on success the shard is at `path`, synced and of the right size, else nothing is."""
    with replace_file(path) as aside:
        with aside.open("wb") as file:
            writer = ShardWriter(file, frames, mels, padding, views=views, samples=samples)
            yield writer
            writer.finish()
        values = views * frames * mels if samples is None else samples
        size, expected = aside.stat().st_size, NPY_HEADER + writer.rows * values * 2
        if size != expected:
            raise StoreError(
                f"was written with {size} bytes instead of {expected}", path=path, advice="Is the disk full?"
            )


def finish_store(
    path: str | os.PathLike[str],
    *,
    shards: Sequence[tuple[Shard, Sequence[Entry]]],
    checksums: Sequence[Sequence[int]],
    features: FeatureSettings | None,
    frames: int,
    moments: Moments,
    mels: int | None = None,
    padding: float = LOG_FLOOR,
    views: int = 1,
    kind: str = SPECTROGRAMS,
    statistics: tuple[float, float] | None = None,
    settings: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Store:
    """Writes the index and, last, the description of shards that stand already.

    Args:
        path: The store.
        shards: Each shard with what it holds, in order; shards without rows are left out.
        checksums: CRC-32 of the rows of each shard; of a shard of earlier versions none.
        features: How the spectrograms were computed; None if unknown.
        frames: Frames of a spectrogram, padding included.
        moments: Moments of all values of real frames.
        mels: Mel bins, where the features do not tell.
        padding: Log-mel value behind the end of a short spectrogram.
        views: Spectrograms a row.
        kind: `spectrograms` or `waveforms`.
        statistics: Mean and standard deviation that the store gives, instead of those of the moments.
        settings: Settings of the verb that made the store.
        provenance: Beside version and time, what is known of the origin.
    """
    store = Path(path)
    mels = _mels(features, mels)
    mean, std = (moments.mean, moments.std) if statistics is None else statistics
    filled = [(shard, entries) for shard, entries in shards if shard.rows]
    columns: dict[str, list[Any]] = {name: [] for name in INDEX_SCHEMA.names}
    for number, (_, entries) in enumerate(filled):
        for row, entry in enumerate(entries):
            for name, value in vars(entry).items():
                columns[name].append(value)
            columns["shard"].append(number)
            columns["row"].append(row)
    index = pa.table(columns, schema=INDEX_SCHEMA)
    known = [crc for (shard, _), of_shard in zip(shards, checksums, strict=True) if shard.rows for crc in of_shard]
    if len(known) == index.num_rows:
        index = index.append_column(CHECKSUMS, pa.array(known, pa.uint32()))
    with replace_file(store / INDEX) as aside:
        pq.write_table(index, aside)  # to a path, as it is read
        index_crc = zlib.crc32(aside.read_bytes())
    Description(
        features=features,
        frames=frames,
        mels=mels,
        count=index.num_rows,
        shards=tuple(shard for shard, _ in filled),
        mean=mean,
        std=std,
        real_frames=moments.count // mels,
        padding=padding,
        views=views,
        kind=kind,
        index_crc=index_crc,
        settings=dict(settings or {}),
        provenance={
            "tymbal": __version__,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            **(provenance or {}),
        },
    ).write(store)
    return open_store(store)


def write_store(
    path: str | os.PathLike[str],
    spectrograms: Iterable[tuple[npt.NDArray[np.floating], Entry]],
    *,
    features: FeatureSettings | None,
    frames: int,
    mels: int | None = None,
    padding: float = LOG_FLOOR,
    statistics: tuple[float, float] | None = None,
    rows_per_shard: int = 256,
    provenance: Mapping[str, Any] | None = None,
) -> Store:
    """Writes spectrograms that exist already as a store.

    Args:
        path: A folder that is no store yet.
        spectrograms: Log-mel values [real frames, mels] with what the index says of them; `frames` of an entry is
            set to the frames stored.
        features: How they were computed; None if unknown.
        frames: Frames of a spectrogram in the store: shorter ones are padded, longer ones cut.
        mels: Mel bins, where the features do not tell.
        padding: Log-mel value behind the end of a short spectrogram; silence by default.
        statistics: Mean and standard deviation that the store gives, instead of those of its real frames.
        rows_per_shard: Spectrograms a shard.
        provenance: Known facts of their origin.
    """
    store = Path(path)
    mels = _mels(features, mels)
    shards: list[tuple[Shard, list[Entry]]] = []
    checksums: list[list[int]] = []
    moments = Moments()
    rest = iter(spectrograms)
    while True:
        name, entries = shard_name(len(shards)), []
        with open_shard(store / name, frames=frames, mels=mels, padding=padding) as writer:
            for values, entry in rest:
                real = writer.append(values)
                entries.append(replace(entry, frames=real))
                if writer.rows == rows_per_shard:
                    break
        if not entries:
            (store / name).unlink()
            break
        moments = moments.merge(writer.moments)
        shards.append((Shard(name, len(entries), (store / name).stat().st_size), entries))
        checksums.append(writer.checksums)
    return finish_store(
        store,
        shards=shards,
        checksums=checksums,
        features=features,
        frames=frames,
        moments=moments,
        mels=mels,
        padding=padding,
        statistics=statistics,
        provenance=provenance,
    )


def _mels(features: FeatureSettings | None, mels: int | None) -> int:
    if features is not None:
        return features.mel_bins
    if mels is None:
        raise ValueError("mels is needed where the features are not known")
    return mels
