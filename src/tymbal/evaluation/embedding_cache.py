"""What encoders made of clips, on the disk: embeddings kept from one probe to the next, tokens for one of them.

What they were made of is their name: a hash of the weights, the model's normalisation, the store's description and
index, the rows and the settings. So nothing old is ever taken for something else, and deleting the folder costs only
time.

A clip's tokens are many times its embedding (of ten seconds by a base encoder 0.8 MB in float16), so that they are
written once, clip after clip, and read by batches: memory does not grow with the clips.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tymbal.errors import SettingsError, StoreError
from tymbal.files import replace_file
from tymbal.inference.encoding import Encoded, FrozenEncoder, RowEmbeddings
from tymbal.machine import cache_folder
from tymbal.progress import Progress, tell
from tymbal.store.base import SpectrogramSource

__all__ = [
    "RowTokens",
    "Tokens",
    "embed_with_cache",
    "key_of",
    "load",
    "place_for_table",
    "save",
    "write_tokens",
]

_SCHEMA = 1
_ROOM = 2 * 10**9
_TABLES = "tables"
_TABLE = "embeddings.parquet"


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
    try:
        path = cache_folder() / f"{key}.npy"
        values: NDArray[np.float32] = np.load(path, allow_pickle=False)
        os.utime(path)
    except (OSError, ValueError, EOFError):
        return None
    return values


def save(key: str, values: NDArray[np.float32]) -> None:
    """Saves embeddings, and deletes those not used for longest where all take too much room.

    Nothing is saved where the folder cannot be written to.
    """
    try:
        folder = cache_folder()
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
    try:
        folder = cache_folder() / _TABLES / key
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


_LARGEST = float(np.finfo(np.float16).max)
_SPARE = 64 * 2**20
_WORTH_SAYING = 10**8


@dataclass(frozen=True)
class Tokens:
    """Tokens of clips in a file, float16, one clip behind the other.

    Attributes:
        path: The file.
        shape: Tokens of a clip and their width.
        grid: Rows and columns of patches.
        prefix: Tokens in front of the patches.
        real_columns: Columns at the start of each clip that are read, [clips].
    """

    path: Path
    shape: tuple[int, int]
    grid: tuple[int, int]
    prefix: int
    real_columns: NDArray[np.int64]

    def batch(self, places: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Reads clips.

        Args:
            places: Which, in the order of the file, [clips].

        Returns:
            float32 [clips, tokens, width], and which of the tokens count, bool [clips, tokens].
        """
        values = np.empty((len(places), *self.shape), np.float16)
        with self.path.open("rb") as file:
            for place, row in zip(places.tolist(), values, strict=True):
                file.seek(place * row.nbytes)
                file.readinto(row.data)
        inside = np.arange(self.grid[1]) < self.real_columns[places, None]  # [clips, columns]
        patches = np.broadcast_to(inside[:, None], (len(places), *self.grid)).reshape(len(places), -1)
        real = np.concatenate([np.ones((len(places), self.prefix), bool), patches], axis=1)
        return torch.from_numpy(values).float(), torch.from_numpy(real)


@dataclass(frozen=True)
class RowTokens:
    """Tokens of rows of a store.

    Attributes:
        rows: The rows that could be read, in the order of the files, int64 [clips].
        layers: The tokens by layer.
    """

    rows: NDArray[np.int64]
    layers: dict[int | None, Tokens]


def write_tokens(
    encoder: FrozenEncoder,
    store: SpectrogramSource,
    rows: NDArray[np.int64],
    *,
    layers: Sequence[int | None],
    folder: Path,
    progress: Progress,
) -> RowTokens:
    """Encodes rows of a store, from several layers in one pass, into a file a layer.

    Args:
        encoder: The encoder at work.
        store: The store of the spectrograms.
        rows: Which of them, [clips].
        layers: Layers, as in `FrozenEncoder.batches`.
        folder: The folder for the files.
        progress: Advances batch by batch.

    Raises:
        SettingsError: The disk is too small, or the encoder has no such layer.
        StoreError: Not one of the rows can be read.
    """
    paths = {layer: folder / f"{'last' if layer is None else layer}.tokens" for layer in layers}
    read: list[NDArray[np.int64]] = []
    columns: list[NDArray[np.int64]] = []
    shape, grid, prefix = (0, 0), (0, 0), 0
    with contextlib.ExitStack() as stack:
        files = {layer: stack.enter_context(path.open("wb")) for layer, path in paths.items()}
        for part, encoded in encoder.batches(store, rows, layers=layers, progress=progress):
            one = encoded[layers[0]]
            if not read:
                shape, grid, prefix = (one.tokens.shape[1], one.tokens.shape[2]), one.grid, one.prefix
                _check_space(folder, one, clips=len(rows), layers=len(layers))
            for layer, file in files.items():
                half = encoded[layer].tokens.clamp(-_LARGEST, _LARGEST).half()
                file.write(half.cpu().contiguous().numpy().data)
            columns.append(_real_columns(one, len(part)))
            read.append(part)
    if not read:
        raise StoreError("not one of the clips can be read any more", path=store.path)
    real = np.concatenate(columns)
    tokens = {layer: Tokens(path, shape, grid, prefix, real) for layer, path in paths.items()}
    return RowTokens(np.concatenate(read), tokens)


def _real_columns(encoded: Encoded, clips: int) -> NDArray[np.int64]:
    if encoded.real_columns is None:
        return np.full(clips, encoded.grid[1], np.int64)
    return np.asarray(encoded.real_columns.cpu().numpy(), np.int64)


def _check_space(folder: Path, encoded: Encoded, *, clips: int, layers: int) -> None:
    needed = encoded.tokens[0].numel() * 2 * clips * layers
    free = shutil.disk_usage(folder).free
    if needed >= _WORTH_SAYING:
        tell(f"An attentive probe reads every token: {needed / 1e9:.1f} GB of them are written into {folder} for now")
    if needed + _SPARE > free:
        raise SettingsError(
            f"the tokens for an attentive probe take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free",
            path=folder,
            advice="Set TMPDIR to a folder on a larger disk, give fewer clips or layers, or leave attentive out of "
            "readers.",
        )
