"""The sounds that a dropped one is compared with: a folder of sound, a store, or what `tymbal embed` wrote.

Each of these becomes a table of embeddings, so that one search serves all. The table is kept in the user's cache
folder under a hash of all that decides it: the model, how it pools and cuts, and what the sounds are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tymbal.audio.sources import find_recordings
from tymbal.data import open_data
from tymbal.embed import embed
from tymbal.errors import SettingsError, StoreError
from tymbal.evaluation.embedding_cache import place_for_table
from tymbal.inference.embeddings import nearest_approximately, nearest_exactly, read_record, rows_of
from tymbal.progress import tell
from tymbal.settings import ExploreSettings, PtSettings
from tymbal.store.base import SpectrogramSource

__all__ = ["Library", "Neighbour", "open_library"]

_SCHEMA = 1


@dataclass(frozen=True)
class Neighbour:
    """A sound that is like another one.

    Attributes:
        row: Its row in the table.
        file: Its path when it was embedded.
        start: Seconds from the beginning of the file.
        end: Where it ends, in seconds.
        label: Its labels; empty if it has none, None if no sound of the library has any.
        similarity: Cosine of the angle between the embeddings; 1 is the same.
    """

    row: int
    file: str
    start: float
    end: float
    label: str | None
    similarity: float


@dataclass(frozen=True)
class Library:
    """Sounds with embeddings.

    Attributes:
        name: The path that the user gave.
        table: The Parquet file of embeddings.
        record: Everything that decided the embeddings.
        store: The store whose clips they are, row by row; None of sound files.
        approximate: Search through an index.
    """

    name: Path
    table: Path
    record: Mapping[str, Any]
    store: SpectrogramSource | None = None
    approximate: bool = False

    def __len__(self) -> int:
        return int(pq.read_metadata(self.table).num_rows)

    @property
    def window(self) -> float | None:
        """Seconds of the windows that were embedded, where they are not those that the model was trained on."""
        window: float | None = self.record["window"]
        return window

    def nearest(self, embedding: NDArray[np.float32], top: int) -> list[Neighbour]:
        """The sounds whose embeddings are nearest, the nearest first."""
        search = nearest_approximately if self.approximate else nearest_exactly
        rows, scores = search(self.table, embedding, top)
        return [
            Neighbour(row, each["file"], each["start"], each["end"], each.get("label"), score)
            for row, each, score in zip(rows.tolist(), rows_of(self.table, rows), scores.tolist(), strict=True)
        ]


def open_library(
    source: Path, *, model: str, fingerprint: str, mels: int, pooling: str, settings: ExploreSettings
) -> Library:
    """Opens sounds for comparison; those without embeddings are embedded, once.

    Args:
        source: A folder of sound, a recording, a store, or a `.parquet` file of `tymbal embed`.
        model: The model, as the user gave it.
        fingerprint: Fingerprint of its encoder's weights.
        mels: Mel bins that it takes.
        pooling: Pooling for sounds without embeddings.
        settings: Window for sounds without embeddings.

    Raises:
        AudioError: No sound can be read.
        ModelError: The store's spectrograms are not the model's.
        SettingsError: It is nothing that neighbours can be looked for in.
        StoreError: The store or the table cannot be read.
    """
    if source.suffix.lower() == ".parquet":
        record = read_record(source)
        if "window" not in record:
            raise StoreError("these embeddings do not say how they were cut", path=source, advice="Embed again.")
        if settings.window is not None and settings.window != record["window"]:
            raise SettingsError(
                f"window is {settings.window:g} s, but the embeddings have windows of their own",
                path=source,
                advice="Leave --window out.",
            )
        return Library(source, source, record, approximate=settings.approximate)
    if not source.exists():
        raise SettingsError("there is no such file or folder", path=source, advice="Check the path.")
    data = open_data(source, PtSettings(mel_bins=mels)) if source.is_dir() else None
    store = data.single_spectrograms() if data is not None and data.has_rows else None
    how: dict[str, Any] = {"pooling": pooling, "window": settings.window if store is None else None}
    key = _key(source, store, {"schema": _SCHEMA, "model": fingerprint, "precision": settings.precision, **how})
    table = place_for_table(key)
    if table is None:
        raise StoreError(
            "the embeddings of these sounds cannot be kept: the cache folder cannot be written to",
            path=source,
            advice="Set TYMBAL_CACHE to a folder that can, or give a .parquet file of tymbal embed.",
        )
    if not table.is_file():
        running = {name: getattr(settings, name) for name in ("batch_size", "precision", "device")}
        result = embed(model, source, table, **how, **running)
        if result.failures:
            tell(f"{len(result.failures):,} files cannot be read and are no neighbours: {result.failures_file}")
    return Library(source, table, read_record(table), store, settings.approximate)


def _key(source: Path, store: SpectrogramSource | None, facts: Mapping[str, Any]) -> str:
    """A name for the embeddings, by all that decides them."""
    key = hashlib.blake2b(digest_size=20)
    key.update(json.dumps([str(source.resolve()), facts], sort_keys=True).encode())
    if store is None:
        places: Sequence[Path] = [recording.path for recording in find_recordings(source)[0]]
    else:
        places = store.data_files
        for file in store.description_files:
            key.update(file.read_bytes())
    for place in places:
        stamp = place.stat() if place.is_file() else None
        key.update(f"{place}\0{stamp and stamp.st_size}\0{stamp and stamp.st_mtime_ns}\n".encode())
    return key.hexdigest()
