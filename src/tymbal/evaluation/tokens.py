"""Tokens of clips by a frozen encoder, on the disk: what an attentive probe reads again and again.

A clip's tokens are many times its embedding (of ten seconds by a base encoder 0.8 MB in float16), so that they are
written once, clip after clip, and read by batches: memory does not grow with the clips.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tymbal.errors import SettingsError, StoreError
from tymbal.inference.encoding import Encoded, FrozenEncoder
from tymbal.progress import Progress, tell
from tymbal.store.base import SpectrogramSource

__all__ = ["RowTokens", "Tokens", "write_tokens"]

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
