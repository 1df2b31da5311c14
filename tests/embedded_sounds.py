"""Parquet tables with the sounds in them, as `datasets` writes them, made without it."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from tones import RATE, tone

NAMES = ["high", "low", "middle"]


def encoded(label: str, *, seed: int = 0, kind: str = "WAV", seconds: float = 0.335) -> bytes:
    """A tone as the bytes of a file."""
    held = io.BytesIO()
    soundfile.write(held, tone(label, seed=seed, seconds=seconds), RATE, format=kind)
    return held.getvalue()


def sound_table(
    path: Path,
    sounds: Sequence[bytes | None],
    *,
    labels: Sequence[Any] | None = None,
    paths: Sequence[str | None] | None = None,
    group_rows: int = 5,
    column: str = "audio",
    label_column: str = "label",
    **more: pa.Array,
) -> Path:
    """Writes a table; labels are numbers of classes, or lists of them, whose names stand in the schema's metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    given = paths or [f"{number}.wav" for number in range(len(sounds))]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = [{"bytes": sound, "path": name} for sound, name in zip(sounds, given, strict=True)]
    columns: dict[str, pa.Array] = {column: pa.array(cells, kind), **more}
    features: dict[str, Any] = {column: {"_type": "Audio"}}
    if labels is not None:
        named = {"names": NAMES, "_type": "ClassLabel"}
        several = isinstance(labels[0], list)
        columns[label_column] = pa.array(labels, pa.list_(pa.int64()) if several else pa.int64())
        features[label_column] = {"feature": named, "_type": "List"} if several else named
    table = pa.table(columns)
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=group_rows)
    return path
