"""What embeddings are made of: recordings, which are walked over, or the clips of a store."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from tymbal.audio.failures import Failure
from tymbal.audio.paths import when
from tymbal.audio.sources import Recording, find_recordings
from tymbal.data import open_data
from tymbal.errors import SettingsError
from tymbal.inference.embeddings import COLUMN, vectors
from tymbal.inference.encoding import check_features
from tymbal.inference.frontend import Embedder
from tymbal.inference.spool import Outcome, Spool
from tymbal.inference.streaming import Rows, Window, cut_for, walk
from tymbal.progress import Progress
from tymbal.settings import EmbedSettings, PtSettings
from tymbal.store.base import SpectrogramSource

__all__ = ["EmbeddingInput", "material"]

_BLOCK = 1024  # clips of a store that are done or not as a whole


class EmbeddingInput(ABC):
    """What is embedded, in pieces that are done or not.

    Attributes:
        pieces: Recordings, or blocks of a store's clips.
        unit: What a piece is called.
        source: What tells one store from another; empty for recordings, which are told apart one by one.
        closed: Folders that could not be looked into.
        spooled: Columns that are spooled.
        schema: Columns that are written.
    """

    pieces: list[Recording]
    unit: str
    source: str
    closed: Sequence[Failure]
    spooled: pa.Schema
    schema: pa.Schema

    @abstractmethod
    def compute(self, left: list[Recording], spool: Spool, *, batch_size: int, progress: Progress) -> None:
        """Computes and spools the embeddings of those pieces that are left."""

    @abstractmethod
    def tables(self, spool: Spool) -> Iterator[pa.Table]:
        """What is spooled as it is to be written, piece by piece."""


def material(
    sources: str | Path | Sequence[str | Path], embedder: Embedder, settings: EmbedSettings, *, path: str
) -> EmbeddingInput:
    """What a user means: one store, or recordings.

    Args:
        sources: What was given.
        embedder: The model at work.
        settings: How sound is cut.
        path: The model, for messages.

    Raises:
        AudioError: There are no recordings.
        ModelError: The store's spectrograms are not the model's.
        SettingsError: The settings do not fit.
    """
    given = [sources] if isinstance(sources, str | Path) else list(sources)
    if len(given) == 1 and Path(given[0]).is_dir():
        data = open_data(given[0], PtSettings(mel_bins=embedder.description.features.mel_bins))
        if data.has_rows:
            return _Clips(data.single_spectrograms(), embedder, settings, path=path)
    return _Sounds(given, embedder, settings)


class _Sounds(EmbeddingInput):
    """Recordings."""

    unit = "files"
    source = ""

    def __init__(self, sources: Sequence[str | Path], embedder: Embedder, settings: EmbedSettings) -> None:
        self.pieces, self.closed = find_recordings(sources)
        self._embedder, self._per = embedder, settings.per
        description = embedder.description
        window = settings.window
        if settings.per == "second" and window is None:
            learned = description.features.samples_of(description.encoder.frames) / description.features.sample_rate
            window = float(max(1, int(learned)))
        self._cut = cut_for(description, window=window, hop=settings.hop)
        vector = pa.list_(pa.float32(), embedder.dimensions)
        self.spooled = pa.schema([("start", pa.int64()), ("end", pa.int64()), (COLUMN, vector)])
        times = [("start_time", pa.string()), ("end_time", pa.string())]
        seconds = [("start", pa.float64()), ("end", pa.float64())]
        self.schema = pa.schema([("file", pa.string()), *seconds, *times, (COLUMN, vector)])

    def compute(self, left: list[Recording], spool: Spool, *, batch_size: int, progress: Progress) -> None:
        """Walks over the recordings that are left."""
        rows = self._seconds if self._per == "second" else self._windows
        walk(left, spool, self._cut, rows, batch_size=batch_size, progress=progress)

    def _windows(self, windows: Sequence[Window]) -> Rows:
        values = self._embedder.windows(windows, length=self._cut.length)
        start, end = (np.array([getattr(one, side) for one in windows], np.int64) for side in ("start", "end"))
        return Rows(np.arange(len(windows)), {"start": start, "end": end, COLUMN: values})

    def _seconds(self, windows: Sequence[Window]) -> Rows:
        values, real = self._embedder.window_seconds(windows, length=self._cut.length)
        window, second = np.nonzero(real)
        first, behind = (np.array([getattr(one, side) for one in windows], np.int64) for side in ("start", "end"))
        start = first[window] + second * self._cut.rate
        end = np.minimum(start + self._cut.rate, behind[window])
        return Rows(window, {"start": start, "end": end, COLUMN: values[window, second]})

    def tables(self, spool: Spool) -> Iterator[pa.Table]:
        """Tables of the recordings in the order in which they were embedded."""
        for outcome, batches in spool.read(self.pieces):
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
            COLUMN: _lists(values),
        }
        return pa.table(columns, schema=self.schema)


class _Clips(EmbeddingInput):
    """Clips of a store, in blocks."""

    unit = "blocks of clips"
    closed = ()

    def __init__(self, store: SpectrogramSource, embedder: Embedder, settings: EmbedSettings, *, path: str) -> None:
        if settings.window is not None or settings.hop is not None or settings.per == "file":
            raise SettingsError(
                "the clips of a store are cut already: window, hop and per=file are for sound", path=store.path
            )
        check_features(store, embedder.description, path=path)
        self._store, self._embedder, self._per = store, embedder, settings.per
        starts = range(0, len(store), _BLOCK)
        # No file has such a name: what tells one block from another is its place alone.
        self.pieces = [Recording(Path(f"clips {first}"), f"clips {first}") for first in starts]
        self.source = f"{store.path.absolute()}: {len(store)} clips, mean {store.mean:.6f}, std {store.std:.6f}"
        vector = pa.list_(pa.float32(), embedder.dimensions)
        self.spooled = pa.schema([("row", pa.int64()), ("second", pa.int64()), (COLUMN, vector)])
        seconds = [("start", pa.float64()), ("end", pa.float64())]
        texts = [(name, pa.string()) for name in ("id", "file", "label")]
        self.schema = pa.schema([*texts, *seconds, (COLUMN, vector)])

    def compute(self, left: list[Recording], spool: Spool, *, batch_size: int, progress: Progress) -> None:
        """Embeds the blocks that are left."""
        for piece in left:
            first = int(piece.place.removeprefix("clips "))
            block = np.arange(first, min(first + _BLOCK, len(self._store)))
            for start in range(0, len(block), batch_size):
                rows = block[start : start + batch_size]
                self._store.announce(block[start + batch_size : start + 2 * batch_size])
                spool.add(self._rows(rows))
            spool.end(Outcome(str(piece.path), piece.place, None, 0.0, len(block)))
            progress.advance()

    def _rows(self, rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        device = self._embedder.device
        frames = torch.from_numpy(self._store.real_frames[rows].astype(np.int64)).to(device)
        raw = torch.from_numpy(self._store.gather(rows)).to(device)
        x = self._embedder.description.normalisation(raw, frames)
        if self._per == "window":
            return {"row": rows, "second": np.zeros_like(rows), COLUMN: self._embedder.clips(x, frames)}
        values, real = self._embedder.seconds(x, frames)
        clip, second = np.nonzero(real)
        return {"row": rows[clip], "second": second, COLUMN: values[clip, second]}

    def tables(self, spool: Spool) -> Iterator[pa.Table]:
        """Tables of the clips in the order of the store."""
        for _, batches in spool.read(self.pieces):
            for batch in batches:
                names = ["id", "file", "start", "end", "frames", "labels"]
                told = self._store.index.select(names).take(batch.column("row"))
                begin, behind, frames = (told.column(name).to_numpy() for name in ("start", "end", "frames"))
                # Spectrograms of others do not tell where their sound ends: it is as long as its frames.
                features = self._embedder.description.features
                length = np.array([features.samples_of(int(count)) for count in frames]) / features.sample_rate
                behind = np.where(np.isnan(behind), begin + length, behind)
                start = begin + batch.column("second").to_numpy()
                end = behind if self._per == "window" else np.minimum(start + 1, behind)
                columns = {
                    "id": told.column("id"),
                    "file": told.column("file"),
                    "label": [";".join(labels or ()) for labels in told.column("labels").to_pylist()],
                    "start": start,
                    "end": end,
                    COLUMN: batch.column(COLUMN),
                }
                yield pa.table(columns, schema=self.schema)


def _mean(parts: Iterator[tuple[NDArray[Any], ...]]) -> Iterator[tuple[NDArray[Any], ...]]:
    """One row for all windows: their mean, weighted by their length."""
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
