"""Spectrograms as PNG files inside the page: 64 colours and one for what is hidden, some kilobytes each."""

from __future__ import annotations

import base64
import struct
import zlib
from html import escape

import numpy as np
from numpy.typing import NDArray

__all__ = ["image", "limits", "overlay", "png", "shortened", "spectrogram"]

_LEVELS = 64
_WIDEST = 1024
_HIDDEN = (126, 136, 145)
_GLOW = (255, 140, 0)
_DENSEST = 0.85
# Dark violet to pale yellow, ever lighter, so that it also prints in grey.
_STOPS = np.array(
    [
        (6, 5, 20),
        (40, 17, 89),
        (92, 22, 117),
        (147, 38, 113),
        (201, 60, 88),
        (239, 101, 67),
        (252, 161, 84),
        (253, 236, 178),
    ],
    float,
)


def limits(values: NDArray[np.floating]) -> tuple[float, float]:
    """The values of the darkest and the brightest colour: what lies outside is rare."""
    low, high = np.percentile(np.asarray(values, np.float32), (5, 99.8))
    return float(low), float(max(high, low + 1e-6))


def png(
    values: NDArray[np.floating],
    *,
    between: tuple[float, float],
    hidden: NDArray[np.bool_] | None = None,
    grey: bool = False,
) -> bytes:
    """Draws a picture.

    Args:
        values: [rows, columns], the first row at the top.
        between: Values of the darkest and the brightest colour.
        hidden: What is covered, [rows, columns].
        grey: From black to white, for what lies below a colour.

    Returns:
        A PNG file.
    """
    shade = _shade(values, between)
    if hidden is not None:
        shade[hidden] = _LEVELS
    steps = np.linspace(0, 255, _LEVELS).round().astype(np.uint8)
    return _file(shade, np.repeat(steps, 3).tobytes() + bytes(_HIDDEN) if grey else _palette())


def overlay(values: NDArray[np.floating], *, between: tuple[float, float]) -> bytes:
    """A picture to be laid over another one: one colour, the denser the higher the value.

    Args:
        values: [rows, columns], the first row at the top.
        between: Values that are wholly transparent and densest.

    Returns:
        A PNG file.
    """
    density = (np.linspace(0, _DENSEST, _LEVELS) * 255).round().astype(np.uint8)
    return _file(_shade(values, between), bytes(_GLOW) * _LEVELS, opacity=density.tobytes())


def image(content: bytes, *, alt: str, width: int, height: int) -> str:
    """A PNG file as HTML, with a text for those who do not see it."""
    code = base64.b64encode(content).decode("ascii")
    return f'<img alt="{escape(alt)}" width="{width}" height="{height}" src="data:image/png;base64,{code}">'


def spectrogram(
    values: NDArray[np.floating],
    *,
    alt: str,
    between: tuple[float, float] | None = None,
    hidden: NDArray[np.bool_] | None = None,
) -> str:
    """A spectrogram as HTML, low frequencies below.

    Args:
        values: Log-mel, [frames, mels].
        alt: What it shows, in words.
        between: As in `png`; None chooses.
        hidden: What is covered, [frames, mels].
    """
    shown, step = shortened(values)
    cover = None if hidden is None else hidden[::step][: len(shown)].T[::-1]
    content = png(shown.T[::-1], between=between or limits(shown), hidden=cover)
    return image(content, alt=alt, width=len(shown), height=shown.shape[1])


def shortened(values: NDArray[np.floating]) -> tuple[NDArray[np.float32], int]:
    """A spectrogram that is no wider than a picture, as means of neighbouring frames, and how many these are."""
    step = -(-len(values) // _WIDEST)
    shown = np.asarray(values, np.float32)
    if step > 1:
        shown = shown[: len(shown) // step * step].reshape(-1, step, shown.shape[1]).mean(axis=1)
    return shown, step


def _shade(values: NDArray[np.floating], between: tuple[float, float]) -> NDArray[np.uint8]:
    low, high = between
    known = np.nan_to_num(np.asarray(values, np.float32), nan=low, posinf=high, neginf=low)
    shade: NDArray[np.uint8] = (
        np.clip((known - low) / (high - low) * (_LEVELS - 1), 0, _LEVELS - 1).round().astype(np.uint8)
    )
    return shade


def _file(shade: NDArray[np.uint8], palette: bytes, *, opacity: bytes = b"") -> bytes:
    rows, columns = shade.shape
    scan = np.concatenate([np.zeros((rows, 1), np.uint8), shade], axis=1).tobytes()
    head = struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0)
    parts = [(b"IHDR", head), (b"PLTE", palette), (b"tRNS", opacity), (b"IDAT", zlib.compress(scan, 9)), (b"IEND", b"")]
    chunks = (_chunk(kind, data) for kind, data in parts if data or kind == b"IEND")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _palette() -> bytes:
    places = np.linspace(0, len(_STOPS) - 1, _LEVELS)
    colours = np.stack([np.interp(places, np.arange(len(_STOPS)), _STOPS[:, part]) for part in range(3)], axis=1)
    return colours.round().astype(np.uint8).tobytes() + bytes(_HIDDEN)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
