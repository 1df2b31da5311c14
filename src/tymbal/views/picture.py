"""Spectrograms as a picture: an RGB PNG file, without a plotting library."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tymbal.files import replace_file

__all__ = ["coloured", "write_png"]

Picture = npt.NDArray[np.uint8]

_COLOURS = np.array(
    [[0, 0, 10], [48, 13, 92], [120, 28, 109], [190, 55, 82], [236, 105, 38], [252, 180, 40], [252, 255, 190]], float
)
"""Dark to light, evenly spaced to the eye: points on matplotlib's `inferno`."""


def coloured(spectrogram: npt.NDArray[np.floating[Any]], low: float, high: float) -> Picture:
    """A log-mel spectrogram [frames, mels] as a picture [mels, frames, 3], low frequencies at the bottom.

    Args:
        spectrogram: The values.
        low: What is darkest.
        high: What is lightest.
    """
    place = np.clip((spectrogram.T[::-1] - low) / max(high - low, 1e-6), 0, 1) * (len(_COLOURS) - 1)
    first = np.minimum(place.astype(int), len(_COLOURS) - 2)
    share = (place - first)[..., None]
    picture: Picture = np.round(_COLOURS[first] * (1 - share) + _COLOURS[first + 1] * share).astype(np.uint8)
    return picture


def write_png(path: Path, picture: Picture) -> None:
    """Writes a picture [height, width, 3], whole or not at all."""
    height, width, _ = picture.shape
    lines = np.concatenate([np.zeros((height, 1), np.uint8), picture.reshape(height, -1)], axis=1)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(lines.tobytes(), 6)),
        (b"IEND", b""),
    ]
    with replace_file(path) as aside, aside.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for kind, content in chunks:
            file.write(struct.pack(">I", len(content)) + kind + content)
            file.write(struct.pack(">I", zlib.crc32(kind + content)))
