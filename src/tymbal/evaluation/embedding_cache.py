"""Embeddings saved for the next probe, or the next look at a store, in the user's cache folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tymbal.files import replace_file
from tymbal.inference.encoding import FrozenEncoder, RowEmbeddings
from tymbal.progress import Progress
from tymbal.store.base import SpectrogramSource

__all__ = ["cache_folder", "embed_with_cache", "key_of", "load", "place_for_table", "save"]

_SCHEMA = 1
_ROOM = 2 * 10**9
_TABLES = "tables"
_TABLE = "embeddings.parquet"


def cache_folder() -> Path:
    """The folder of saved embeddings: `$TYMBAL_CACHE`, else a folder of the user's cache."""
    given = os.environ.get("TYMBAL_CACHE")
    if given:
        return Path(given)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "tymbal"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "tymbal"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tymbal"


def key_of(encoder: FrozenEncoder, store: SpectrogramSource, rows: NDArray[np.int64]) -> str:
    """The name of embeddings, by all that decides them but layer and pooling."""
    digest = hashlib.blake2b(digest_size=20)
    for name, value in encoder.encoder.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    facts = {
        "schema": _SCHEMA,
        **asdict(encoder.normalisation),
        "skip_padding": encoder.skip_padding,
        "device": encoder.device.type,
        "dtype": str(encoder.dtype),
    }
    digest.update(json.dumps([asdict(encoder.encoder.config), facts], sort_keys=True, default=str).encode())
    for file in store.description_files:
        digest.update(file.read_bytes())
    for file in store.data_files:  # the same description over other values would be another store
        digest.update(str(file.stat().st_mtime_ns).encode())
    digest.update(rows.tobytes())
    return digest.hexdigest()


def load(key: str) -> NDArray[np.float32] | None:
    """Embeddings that were saved under a name; None where none can be read."""
    path = cache_folder() / f"{key}.npy"
    try:
        values: NDArray[np.float32] = np.load(path, allow_pickle=False)
        os.utime(path)
    except (OSError, ValueError, EOFError):
        return None
    return values


def save(key: str, values: NDArray[np.float32]) -> None:
    """Saves embeddings, and deletes those not used for longest where all take too much room.

    Nothing is saved where the folder cannot be written to.
    """
    folder = cache_folder()
    try:
        with replace_file(folder / f"{key}.npy") as aside, aside.open("wb") as file:
            np.save(file, values, allow_pickle=False)
        files = sorted(folder.glob("*.npy"), key=lambda path: path.stat().st_mtime, reverse=True)
        total = 0
        for path in files:
            total += path.stat().st_size
            if total > _ROOM:
                path.unlink(missing_ok=True)
    except OSError:
        return


def place_for_table(key: str) -> Path | None:
    """The path for a table of embeddings, in a folder of its own; None if the cache cannot be written to.

    The folder exists afterwards and counts as used now. Others, not used for longest, are deleted where all take too
    much room.
    """
    folder = cache_folder() / _TABLES / key
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)
        others = sorted(folder.parent.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
        total = 0
        for other in others:
            total += sum(path.stat().st_size for path in other.rglob("*") if path.is_file())
            if total > _ROOM and other != folder:
                shutil.rmtree(other, ignore_errors=True)
    except OSError:
        return None
    return folder / _TABLE if os.access(folder, os.W_OK) else None


def embed_with_cache(
    encoder: FrozenEncoder,
    store: SpectrogramSource,
    rows: NDArray[np.int64],
    *,
    poolings: Sequence[str],
    layers: Sequence[int | None],
    cached: bool,
    progress: Progress,
) -> RowEmbeddings:
    """Embeds rows of a store from several layers, or loads what an earlier probe has saved.

    Args:
        encoder: The encoder at work.
        store: The store of the spectrograms.
        rows: Which of them, [clips].
        poolings: Poolings, as in `FrozenEncoder.embed`.
        layers: Layers, as in `FrozenEncoder.embed`.
        cached: Whether to load and save; only embeddings of packed stores are.
        progress: Advances batch by batch.
    """
    keys: dict[tuple[str, int | None], str] = {}
    if cached and store.description_files:
        common = key_of(encoder, store, rows)
        keys = {(how, layer): f"{common}-{how}-{layer}" for how in poolings for layer in layers}
        loaded = {place: load(key) for place, key in keys.items()}
        known = {place: values for place, values in loaded.items() if values is not None and len(values) == len(rows)}
        if len(known) == len(keys):
            progress.advance(len(rows))
            return RowEmbeddings(rows=rows, values=known)
    embedded = encoder.embed(store, rows, poolings=poolings, layers=layers, progress=progress)
    if len(embedded.rows) == len(rows):
        for place, key in keys.items():
            save(key, embedded.values[place])
    return embedded
