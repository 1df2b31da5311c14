"""Inputs of embedding: recordings, read window by window, or the clips of a store."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tymbal.audio.clip_labels import when
from tymbal.audio.failures import Failure
from tymbal.audio.sources import find_recordings
from tymbal.data import open_data
from tymbal.errors import SettingsError
from tymbal.files import address
from tymbal.inference.encoding import check_features
from tymbal.inference.frontend import Embedder
from tymbal.inference.spool import Item, Outcome, Spool
from tymbal.inference.streaming import Rows, Window, cut_for, failures_of, walk
from tymbal.inference.tables import EMBEDDING, vectors
from tymbal.progress import Progress
from tymbal.settings import EmbedSettings, PtSettings
from tymbal.store.base import SpectrogramSource
from tymbal.store.dataset import NormalisedBatch, normalised_batches

__all__ = ["EmbeddingInput", "open_input"]

_BLOCK = 1024  # clips of a store that are done or not as a whole
_LEFT_OUT = "It was readable when the store was opened. Put its file back, and embed again."


class EmbeddingInput(ABC):
    """The items to embed, one by one.

    Attributes:
        items: Recordings, or blocks of a store's clips.
        plural: Word for the items in messages.
        unit: Word for them in progress.
        identity: Identifies a store; empty for recordings, which have a stamp each.
        spooled: Columns that are spooled.
        schema: Columns that are written.
    """

    items: Sequence[Item]
    plural: str
    unit: str
    identity: str
    spooled: pa.Schema
    schema: pa.Schema

    @abstractmethod
    def compute(self, done: set[str], spool: Spool, progress: Progress) -> None:
        """Computes and spools the embeddings of the items but those whose keys are given."""

    @abstractmethod
    def failures(self, outcomes: Sequence[Outcome]) -> list[Failure]:
        """The failures among the outcomes of all items."""

    @abstractmethod
    def tables(self, spool: Spool) -> Iterator[pa.Table]:
        """Reads the spooled rows as tables ready to write, piece by piece."""


def open_input(
    sources: str | Path | Sequence[str | Path], embedder: Embedder, settings: EmbedSettings, *, path: str
) -> EmbeddingInput:
    """Opens what a user gives: one store, or recordings.

    Args:
        sources: The paths that the user gave.
        embedder: The model at work.
        settings: How sound is cut, and clips a batch.
        path: The model, for messages.

    Raises:
        AudioError: There are no recordings.
        ModelError: The store's spectrograms are not the model's.
        SettingsError: The settings do not fit.
    """
    given = [sources] if isinstance(sources, str | Path) else list(sources)
    if len(given) == 1 and (address(given[0]) is not None or Path(given[0]).is_dir()):
        data = open_data(given[0], PtSettings(mel_bins=embedder.description.features.mel_bins))
        if data.has_rows:
            return _StoreClips(data.single_spectrograms(), embedder, settings, path=path)
    return _Recordings(given, embedder, settings)


class _Recordings(EmbeddingInput):
    """Recordings."""

    plural, unit = "recordings", "files"
    identity = ""

    def __init__(self, sources: Sequence[str | Path], embedder: Embedder, settings: EmbedSettings) -> None:
        self._recordings, self._closed = find_recordings(sources)
        self.items = self._recordings
        self._embedder, self._per, self._batch_size = embedder, settings.per, settings.batch_size
        description = embedder.description
        window = settings.window
        if settings.per == "second" and window is None:
            learned = description.features.samples_of(description.encoder.frames) / description.features.sample_rate
            window = float(max(1, int(learned)))
        self._cut = cut_for(description, window=window, hop=settings.hop)
        vector = pa.list_(pa.float32(), embedder.dimensions)
        self.spooled = pa.schema([("start", pa.int64()), ("end", pa.int64()), (EMBEDDING, vector)])
        times = [("start_time", pa.string()), ("end_time", pa.string())]
        seconds = [("start", pa.float64()), ("end", pa.float64())]
        self.schema = pa.schema([("file", pa.string()), *seconds, *times, (EMBEDDING, vector)])

    def compute(self, done: set[str], spool: Spool, progress: Progress) -> None:
        """Walks over the recordings that are left."""
        remaining = [recording for recording in self._recordings if recording.key not in done]
        rows = self._seconds if self._per == "second" else self._windows
        walk(remaining, spool, self._cut, rows, batch_size=self._batch_size, progress=progress)

    def failures(self, outcomes: Sequence[Outcome]) -> list[Failure]:
        """Folders that could not be looked into, and recordings that could not be read to their end."""
        return [*self._closed, *failures_of(outcomes)]

    def _windows(self, windows: Sequence[Window]) -> Rows:
        values = self._embedder.windows(windows, length=self._cut.length)
        start, end = (np.array([getattr(one, side) for one in windows], np.int64) for side in ("start", "end"))
        return Rows(np.arange(len(windows)), {"start": start, "end": end, EMBEDDING: values})

    def _seconds(self, windows: Sequence[Window]) -> Rows:
        values, real = self._embedder.window_seconds(windows, length=self._cut.length)
        window, second = np.nonzero(real)
        first, behind = (np.array([getattr(one, side) for one in windows], np.int64) for side in ("start", "end"))
        start = first[window] + second * self._cut.rate
        end = np.minimum(start + self._cut.rate, behind[window])
        return Rows(window, {"start": start, "end": end, EMBEDDING: values[window, second]})

    def tables(self, spool: Spool) -> Iterator[pa.Table]:
        """Tables of the recordings in the order in which they were embedded."""
        for outcome, batches in spool.read(self.items):
            parts: Iterator[tuple[NDArray[Any], ...]] = (
                (*(batch.column(side).to_numpy() / self._cut.rate for side in ("start", "end")), vectors(batch))
                for batch in batches
            )
            for start, end, values in _mean(parts) if self._per == "file" else parts:
                yield self._table(outcome, start, end, values)

    def _table(self, outcome: Outcome, start: NDArray[Any], end: NDArray[Any], values: NDArray[Any]) -> pa.Table:
        began = None if outcome.began is None else datetime.fromisoformat(outcome.began)
        columns = {
            "file": [outcome.file] * len(start),
            "start": start,
            "end": end,
            "start_time": [when(began, at) for at in start.tolist()],
            "end_time": [when(began, at) for at in end.tolist()],
            EMBEDDING: _lists(values),
        }
        return pa.table(columns, schema=self.schema)


@dataclass(frozen=True)
class _Block:
    """A block of the clips of a store.

    Attributes:
        first: Its first row.
        count: Its rows.
    """

    first: int
    count: int

    @property
    def key(self) -> str:
        """An identifier that no other block has."""
        return f"clips {self.first}"

    def stamp(self) -> None:
        """None: the record of the job distinguishes the store from others."""


class _StoreClips(EmbeddingInput):
    """Clips of a store, in blocks."""

    plural = unit = "blocks of clips"

    def __init__(self, store: SpectrogramSource, embedder: Embedder, settings: EmbedSettings, *, path: str) -> None:
        if settings.window is not None or settings.hop is not None or settings.per == "file":
            raise SettingsError(
                "the clips of a store are cut already: window, hop and per=file are for sound", path=store.path
            )
        check_features(store, embedder.description, path=path)
        self._store, self._embedder = store, embedder
        self._per, self._batch_size = settings.per, settings.batch_size
        self._blocks = [_Block(first, min(_BLOCK, len(store) - first)) for first in range(0, len(store), _BLOCK)]
        self.items = self._blocks
        place = address(store.location) or store.path.absolute()
        self.identity = f"{place}: {len(store)} clips, mean {store.mean:.6f}, std {store.std:.6f}"
        vector = pa.list_(pa.float32(), embedder.dimensions)
        self.spooled = pa.schema([("row", pa.int64()), ("second", pa.int64()), (EMBEDDING, vector)])
        seconds = [("start", pa.float64()), ("end", pa.float64())]
        texts = [(name, pa.string()) for name in ("id", "file", "label")]
        self.schema = pa.schema([*texts, *seconds, (EMBEDDING, vector)])

    def compute(self, done: set[str], spool: Spool, progress: Progress) -> None:
        """Embeds the blocks that are left."""
        for block in self._blocks:
            if block.key in done:
                continue
            rows = np.arange(block.first, block.first + block.count)
            read: set[int] = set()
            for batch in normalised_batches(
                self._store,
                rows,
                normalisation=self._embedder.description.normalisation,
                batch_size=self._batch_size,
                device=self._embedder.device,
            ):
                spool.add(self._rows(batch))
                read.update(batch.rows.tolist())
            left_out = tuple(row for row in rows.tolist() if row not in read)
            spool.end(Outcome(block.key, block.key, None, 0.0, len(read), left_out=left_out))
            progress.advance()

    def _rows(self, batch: NormalisedBatch) -> dict[str, NDArray[Any]]:
        x, frames, rows = batch
        if self._per == "window":
            return {"row": rows, "second": np.zeros_like(rows), EMBEDDING: self._embedder.clips(x, frames)}
        values, real = self._embedder.seconds(x, frames)
        clip, second = np.nonzero(real)
        return {"row": rows[clip], "second": second, EMBEDDING: values[clip, second]}

    def failures(self, outcomes: Sequence[Outcome]) -> list[Failure]:
        """Clips that had become unreadable."""
        rows = [row for outcome in outcomes for row in outcome.left_out]
        files = self._store.index["file"].take(rows).to_pylist() if rows else []
        return [
            Failure(file or str(self._store.path), f"missing: spectrogram {row} of the store", _LEFT_OUT)
            for file, row in zip(files, rows, strict=True)
        ]

    def tables(self, spool: Spool) -> Iterator[pa.Table]:
        """Tables of the clips in the order of the store."""
        for _, batches in spool.read(self.items):
            for batch in batches:
                names = ["id", "file", "start", "end", "frames", "labels"]
                clips = self._store.index.select(names).take(batch.column("row"))
                begin, behind, frames = (clips.column(name).to_numpy() for name in ("start", "end", "frames"))
                # Spectrograms of others do not tell where their sound ends: it is as long as its frames.
                features = self._embedder.description.features
                length = np.array([features.samples_of(int(count)) for count in frames]) / features.sample_rate
                behind = np.where(np.isnan(behind), begin + length, behind)
                start = begin + batch.column("second").to_numpy()
                end = behind if self._per == "window" else np.minimum(start + 1, behind)
                columns = {
                    "id": clips.column("id"),
                    "file": clips.column("file"),
                    "label": [";".join(labels or ()) for labels in clips.column("labels").to_pylist()],
                    "start": start,
                    "end": end,
                    EMBEDDING: batch.column(EMBEDDING),
                }
                yield pa.table(columns, schema=self.schema)


def _mean(parts: Iterator[tuple[NDArray[Any], ...]]) -> Iterator[tuple[NDArray[Any], ...]]:
    """Reduces the rows of all windows to one: their mean, weighted by their length."""
    total, length, last = None, 0.0, 0.0
    for start, end, values in parts:
        weight = end - start
        part = weight @ values.astype(np.float64)
        total = part if total is None else total + part
        length, last = length + float(weight.sum()), max(last, float(end.max()))
    if total is not None:
        yield np.zeros(1), np.array([last]), (total / length).astype(np.float32)[None]


def _lists(values: NDArray[np.float32]) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
