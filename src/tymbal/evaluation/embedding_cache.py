"""Embeddings that are kept from one probe, and one look at a store, to the next, in the user's cache folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tymbal.compute.device import choose_device, choose_precision
from tymbal.files import replace_file
from tymbal.inference import encoding as embed
from tymbal.models.description import ModelDescription
from tymbal.models.encoder import SpectrogramEncoder
from tymbal.progress import Progress
from tymbal.settings import ProbeSettings
from tymbal.store.base import SpectrogramSource
from tymbal.store.packed.format import DESCRIPTION, INDEX
from tymbal.store.packed.packed_store import Store

__all__ = ["cache_folder", "embed_with_cache", "key_of", "load", "place_for_table", "save"]

_SCHEMA = 1
_ROOM = 2 * 10**9
_TABLES = "tables"
_TABLE = "embeddings.parquet"


def cache_folder() -> Path:
    """Where embeddings are kept: `$TYMBAL_CACHE`, else a folder of the user's cache."""
    given = os.environ.get("TYMBAL_CACHE")
    if given:
        return Path(given)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "tymbal"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "tymbal"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tymbal"


def key_of(
    encoder: SpectrogramEncoder,
    description: ModelDescription,
    store: Store,
    rows: NDArray[np.int64],
    settings: Mapping[str, Any],
) -> str:
    """The name of embeddings, by all that decides them."""
    found = hashlib.blake2b(digest_size=20)
    for name, value in encoder.state_dict().items():
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().numpy().tobytes())
    facts = {"schema": _SCHEMA, **asdict(description.normalisation), **settings}
    found.update(json.dumps([asdict(encoder.config), facts], sort_keys=True, default=str).encode())
    for file in (DESCRIPTION, INDEX):
        found.update((store.path / file).read_bytes())
    for shard in store.description.shards:  # the same description over other values would be another store
        found.update(str((store.path / shard.file).stat().st_mtime_ns).encode())
    found.update(rows.tobytes())
    return found.hexdigest()


def load(key: str) -> NDArray[np.float32] | None:
    """What was kept under a name; None where there is nothing that can be read."""
    path = cache_folder() / f"{key}.npy"
    try:
        values: NDArray[np.float32] = np.load(path, allow_pickle=False)
        os.utime(path)
    except (OSError, ValueError, EOFError):
        return None
    return values


def save(key: str, values: NDArray[np.float32]) -> None:
    """Keeps embeddings, and lets go of those not used for longest where all take too much room.

    A folder that cannot be written to keeps nothing.
    """
    folder = cache_folder()
    try:
        with replace_file(folder / f"{key}.npy") as aside, aside.open("wb") as file:
            np.save(file, values, allow_pickle=False)
        files = sorted(folder.glob("*.npy"), key=lambda path: path.stat().st_mtime, reverse=True)
        held = 0
        for path in files:
            held += path.stat().st_size
            if held > _ROOM:
                path.unlink(missing_ok=True)
    except OSError:
        return


def place_for_table(key: str) -> Path | None:
    """Where a table of embeddings is kept, in a folder of its own; None where nothing can be kept.

    The folder is there afterwards and counts as used now. Others that were not used for longest are let go of where all
    take too much room.
    """
    folder = cache_folder() / _TABLES / key
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)
        others = sorted(folder.parent.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
        held = 0
        for other in others:
            held += sum(path.stat().st_size for path in other.rglob("*") if path.is_file())
            if held > _ROOM and other != folder:
                shutil.rmtree(other, ignore_errors=True)
    except OSError:
        return None
    return folder / _TABLE if os.access(folder, os.W_OK) else None


def embed_with_cache(
    encoder: SpectrogramEncoder,
    description: ModelDescription,
    store: SpectrogramSource,
    rows: NDArray[np.int64],
    *,
    layers: Sequence[int | None],
    settings: ProbeSettings,
    lasting: bool,
    progress: Progress,
) -> dict[tuple[str, int | None], NDArray[np.float32]]:
    """Embeds rows of a store from several layers, or takes what an earlier probe has kept.

    Args:
        encoder: The encoder.
        description: How its model normalises.
        store: Where the spectrograms are.
        rows: Which of them, [clips].
        layers: Layers, as in `embed_layers`.
        settings: Poolings, device and whether embeddings are kept.
        lasting: Whether the store will still be there for the next probe.
        progress: Told of each batch.

    Returns:
        For each pooling and layer [clips, dimensions].
    """
    device, _ = choose_device(settings.device)
    dtype, _ = choose_precision(settings.precision, device)
    places = [(pooling, layer) for pooling in settings.pooling for layer in layers]
    keys: dict[tuple[str, int | None], str] = {}
    if settings.cache and lasting and isinstance(store, Store):
        how = {"skip_padding": settings.skip_padding, "device": device.type, "dtype": str(dtype)}
        common = key_of(encoder, description, store, rows, how)
        keys = {(pooling, layer): f"{common}-{pooling}-{layer}" for pooling, layer in places}
        held = {place: load(key) for place, key in keys.items()}
        known = {place: values for place, values in held.items() if values is not None and len(values) == len(rows)}
        if len(known) == len(places):
            progress.advance(len(rows))
            return known
    found = embed.embed_layers(
        encoder,
        store,
        rows,
        description=description,
        poolings=settings.pooling,
        layers=layers,
        skip_padding=settings.skip_padding,
        batch_size=settings.batch_size,
        device=device,
        dtype=dtype,
        progress=progress,
    )
    for place, key in keys.items():
        save(key, found[place])
    return found
