"""What lies in a store folder, and the reading and writing of its description.

    store/
      store.json       schema version, features, shape, shards, statistics, settings, provenance; written last
      index.parquet    one row a spectrogram, in the order of the shards
      shards/00000.npy float16 [rows, frames, mels]; of a store of pairs of views [rows, 2, frames, mels];
                       of a store of waveforms int16 [rows, samples]
      failures.csv     what was left out, and why
    work/            while it is being prepared: what it was begun with, and a sidecar a finished shard

A folder without `store.json` is no store: it is written when everything else stands.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from tymbal.errors import SettingsError, StoreError
from tymbal.features.floor import LOG_FLOOR
from tymbal.files import write_json
from tymbal.settings import FeatureSettings

__all__ = [
    "DESCRIPTION",
    "INDEX",
    "INDEX_SCHEMA",
    "NPY_HEADER",
    "SCHEMA",
    "SHARDS",
    "SPECTROGRAMS",
    "WAVEFORMS",
    "WORK",
    "Description",
    "Shard",
    "shard_name",
]

SCHEMA = 1
SPECTROGRAMS, WAVEFORMS = "spectrograms", "waveforms"
DESCRIPTION = "store.json"
INDEX = "index.parquet"
SHARDS = "shards"
WORK = "work"

NPY_HEADER = 128
"""Bytes before the first spectrogram of a shard: an `.npy` header of this shape always fits, padded with spaces."""

INDEX_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("file", pa.string()),
        ("start", pa.float64()),
        ("end", pa.float64()),
        ("frames", pa.int32()),
        ("labels", pa.list_(pa.string())),
        ("group", pa.string()),
        ("split", pa.string()),
        ("shard", pa.int32()),
        ("row", pa.int32()),
        ("version", pa.int32()),
    ]
)
"""Columns of the index: `start` and `end` in seconds of the file, `frames` of real sound, `row` within the shard,
`version` of the clip, null but for views."""


def shard_name(number: int) -> str:
    """The path of a shard inside its store."""
    return f"{SHARDS}/{number:05d}.npy"


@dataclass(frozen=True)
class Shard:
    """One shard file: its path inside the store, spectrograms and bytes."""

    file: str
    rows: int
    bytes: int


@dataclass(frozen=True)
class Description:
    """`store.json`.

    Attributes:
        features: How the spectrograms were computed; None where nobody wrote it down.
        frames: Frames of a spectrogram, padding included.
        mels: Mel bins.
        count: Spectrograms in all shards.
        shards: The shard files.
        mean: Mean of all log-mel values of real frames.
        std: Standard deviation of all log-mel values of real frames.
        real_frames: Real frames in the whole store.
        settings: The settings of the verb that made the store.
        provenance: Versions, time and source.
        padding: Log-mel value behind the end of a short spectrogram.
        views: Spectrograms a row: 1, or 2 in a store of pairs of views.
        kind: `spectrograms` or `waveforms`.
    """

    features: FeatureSettings | None
    frames: int
    mels: int
    count: int
    shards: tuple[Shard, ...]
    mean: float
    std: float
    real_frames: int
    settings: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    padding: float = LOG_FLOOR
    views: int = 1
    kind: str = SPECTROGRAMS

    def write(self, store: Path) -> None:
        """Writes `store.json`, whole or not at all."""
        write_json(
            store / DESCRIPTION,
            {
                "schema": SCHEMA,
                "features": None if self.features is None else dataclasses.asdict(self.features),
                "frames": self.frames,
                "mels": self.mels,
                "views": self.views,
                "kind": self.kind,
                "dtype": _DTYPES[self.kind],
                "padding": self.padding,
                "count": self.count,
                "shards": [dataclasses.asdict(shard) for shard in self.shards],
                "statistics": {"mean": self.mean, "std": self.std, "frames": self.real_frames},
                "settings": self.settings,
                "provenance": self.provenance,
            },
        )

    @classmethod
    def read(cls, store: Path) -> Description:
        """Reads `store.json`.

        Raises:
            StoreError: There is none, it is damaged, or its schema is not ours.
        """
        path = store / DESCRIPTION
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise _no_store(store) from None
        except ValueError as error:
            raise StoreError(f"is not JSON: {error}", path=path, advice=_AGAIN) from None
        schema = value.get("schema") if isinstance(value, dict) else None
        if schema != SCHEMA:
            newer = isinstance(schema, int) and schema > SCHEMA
            raise StoreError(
                f"has schema {schema!r}, this version of Tymbal reads {SCHEMA}",
                path=path,
                advice="Update Tymbal." if newer else _AGAIN,
            )
        try:
            return cls._from_json(value)
        except (KeyError, TypeError, ValueError, SettingsError) as error:
            raise StoreError(f"is damaged: {type(error).__name__}: {error}", path=path, advice=_AGAIN) from error

    @classmethod
    def _from_json(cls, value: dict[str, Any]) -> Description:
        kind = value.get("kind", SPECTROGRAMS)
        if value["dtype"] != _DTYPES[kind]:
            raise ValueError(f"dtype is {value['dtype']!r}, not {_DTYPES[kind]}")
        statistics = value["statistics"]
        return cls(
            features=None if value["features"] is None else FeatureSettings(**value["features"]),
            frames=int(value["frames"]),
            mels=int(value["mels"]),
            count=int(value["count"]),
            shards=tuple(Shard(**shard) for shard in value["shards"]),
            mean=float(statistics["mean"]),
            std=float(statistics["std"]),
            real_frames=int(statistics["frames"]),
            settings=dict(value["settings"]),
            provenance=dict(value["provenance"]),
            padding=float(value.get("padding", LOG_FLOOR)),
            views=int(value.get("views", 1)),
            kind=kind,
        )


_DTYPES = {SPECTROGRAMS: "float16", WAVEFORMS: "int16"}
_AGAIN = "Make the store again with `tymbal prepare`."


def _no_store(store: Path) -> StoreError:
    if not store.exists():
        return StoreError("there is no such folder", path=store, advice="Make a store with `tymbal prepare`.")
    if (store / WORK).is_dir():
        return StoreError(
            "is a store whose preparation has not finished",
            path=store,
            advice="Run the same `tymbal prepare` again: it continues.",
        )
    return StoreError(
        f"is no store: it has no {DESCRIPTION}", path=store, advice="Make a store of it with `tymbal prepare`."
    )
