"""Spectrograms as pictures: in colours, as PNG files, and as a sheet of many."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

__all__ = ["coloured", "png", "sheet"]

Picture = npt.NDArray[np.uint8]

_COLOURS = np.array(
    [[0, 0, 10], [48, 13, 92], [120, 28, 109], [190, 55, 82], [236, 105, 38], [252, 180, 40], [252, 255, 190]], float
)
"""Dark to light, evenly spaced to the eye: points on matplotlib's `inferno`."""

_LEVELS = 128
_GAP, _LINE = 8, 24


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


def png(picture: Picture) -> bytes:
    """A picture [height, width, 3] as a PNG file of few colours."""
    return _encoded(Image.fromarray(picture).quantize(_LEVELS))


def sheet(
    pictures: Sequence[Sequence[Picture]], *, columns: Sequence[str], rows: Sequence[str], scale: int = 2
) -> bytes:
    """Rows of pictures of one size as a PNG file, each row below its title and the columns below theirs.

    Args:
        pictures: [height, width, 3] each.
        columns: Titles of the columns.
        rows: Titles of the rows; what is too long for the sheet loses its middle.
        scale: Pixels of the sheet, across and down, for each of a picture.
    """
    height, width = (size * scale for size in pictures[0][0].shape[:2])
    font = ImageFont.load_default(14)
    across = len(columns) * (width + _GAP) + _GAP
    down = _LINE + len(rows) * (_LINE + height + _GAP)
    page = Image.new("RGB", (across, down), "white")
    draw = ImageDraw.Draw(page)
    for place, title in enumerate(columns):
        draw.text((_GAP + place * (width + _GAP), 4), title, fill="#566069", font=font)
    for number, (title, row) in enumerate(zip(rows, pictures, strict=True)):
        top = _LINE + number * (_LINE + height + _GAP)
        draw.text((_GAP, top + 4), _fitting(title, font, across - 2 * _GAP), fill="black", font=font)
        for place, picture in enumerate(row):
            enlarged = Image.fromarray(picture.repeat(scale, axis=0).repeat(scale, axis=1))
            page.paste(enlarged, (_GAP + place * (width + _GAP), top + _LINE))
    return _encoded(page.quantize(256))


def _fitting(title: str, font: Any, width: int) -> str:
    """A title that is not too wide: its beginning and its end."""
    length = len(title)
    shown = title
    while font.getlength(shown) > width and length > 4:
        length -= 2
        shown = f"{title[: length // 2]} … {title[-(length // 2) :]}"
    return shown


def _encoded(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()
