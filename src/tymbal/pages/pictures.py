"""Spectrograms as PNG files, alone or as a sheet: 64 colours and one for what is hidden, some kilobytes each."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

__all__ = ["image", "limits", "overlay", "png", "sheet", "spectrogram"]

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
_GAP, _LINE = 8, 24  # pixels of a sheet: between its pictures, and for a line of text


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
        hidden: Masked values, [rows, columns].
        grey: From black to white, for what lies below a colour.

    Returns:
        A PNG file.
    """
    return _encoded(_drawn(values, between, hidden=hidden, grey=grey))


def overlay(values: NDArray[np.floating], *, between: tuple[float, float]) -> bytes:
    """A picture to be laid over another one: one colour, the denser the higher the value.

    Args:
        values: [rows, columns], the first row at the top.
        between: Values that are wholly transparent and densest.

    Returns:
        A PNG file.
    """
    density = (np.linspace(0, _DENSEST, _LEVELS) * 255).round().astype(np.uint8)
    return _encoded(_indexed(_shade(values, between), bytes(_GLOW) * _LEVELS), transparency=density.tobytes())


def image(content: bytes, *, alt: str, width: int, height: int, kind: str = "") -> str:
    """A PNG file as HTML, with a text for those who do not see it, and a class of the page's style."""
    code = base64.b64encode(content).decode("ascii")
    look = f' class="{kind}"' if kind else ""
    return f'<img{look} alt="{escape(alt)}" width="{width}" height="{height}" src="data:image/png;base64,{code}">'


def spectrogram(
    values: NDArray[np.floating],
    *,
    alt: str,
    between: tuple[float, float] | None = None,
    hidden: NDArray[np.bool_] | None = None,
    grey: bool = False,
    widest: int = _WIDEST,
) -> str:
    """A spectrogram as HTML, low frequencies below.

    Args:
        values: Log-mel, [frames, mels].
        alt: Description in words, for those who do not see it.
        between: As in `png`; None chooses.
        hidden: Masked values, [frames, mels].
        grey: As in `png`.
        widest: Pixels across at most; neighbouring frames of longer ones are averaged.
    """
    shown, step = _shortened(values, widest)
    cover = None if hidden is None else hidden[::step][: len(shown)].T[::-1]
    content = png(shown.T[::-1], between=between or limits(shown), hidden=cover, grey=grey)
    return image(content, alt=alt, width=len(shown), height=shown.shape[1])


def sheet(
    spectrograms: Sequence[Sequence[NDArray[np.floating]]],
    *,
    between: Sequence[tuple[float, float]],
    columns: Sequence[str],
    rows: Sequence[str],
    scale: int = 2,
) -> bytes:
    """Rows of spectrograms of one size as a PNG file, each row below its title and the columns below theirs.

    Args:
        spectrograms: Log-mel, [frames, mels] each.
        between: Values of the darkest and the brightest colour, for each row.
        columns: Titles of the columns.
        rows: Titles of the rows. Titles that are too wide lose their middle.
        scale: Pixels of the sheet, across and down, for each value.
    """
    width, height = (size * scale for size in spectrograms[0][0].shape)
    font = ImageFont.load_default(14)
    across = len(columns) * (width + _GAP) + _GAP
    down = _LINE + len(rows) * (_LINE + height + _GAP)
    page = Image.new("RGB", (across, down), "white")
    draw = ImageDraw.Draw(page)
    for place, title in enumerate(columns):
        shown = _fitting(title, font, width)
        draw.text((_GAP + place * (width + _GAP), 4), shown, fill="#566069", font=font)
    for number, (title, row, ends) in enumerate(zip(rows, spectrograms, between, strict=True)):
        top = _LINE + number * (_LINE + height + _GAP)
        draw.text((_GAP, top + 4), _fitting(title, font, across - 2 * _GAP), fill="black", font=font)
        for place, values in enumerate(row):
            enlarged = _drawn(values.T[::-1], ends).resize((width, height), Image.Resampling.NEAREST)
            page.paste(enlarged.convert("RGB"), (_GAP + place * (width + _GAP), top + _LINE))
    return _encoded(page.quantize(256))


def _shortened(values: NDArray[np.floating], widest: int) -> tuple[NDArray[np.float32], int]:
    """A spectrogram of at most `widest` frames, as means of neighbouring ones, and how many these are."""
    step = -(-len(values) // widest)
    shown = np.asarray(values, np.float32)
    if step > 1:
        shown = shown[: len(shown) // step * step].reshape(-1, step, shown.shape[1]).mean(axis=1)
    return shown, step


def _drawn(
    values: NDArray[np.floating],
    between: tuple[float, float],
    *,
    hidden: NDArray[np.bool_] | None = None,
    grey: bool = False,
) -> Image.Image:
    shade = _shade(values, between)
    if hidden is not None:
        shade[hidden] = _LEVELS
    steps = np.linspace(0, 255, _LEVELS).round().astype(np.uint8)
    colours = np.repeat(steps, 3).tobytes() if grey else _colours()
    return _indexed(shade, colours + bytes(_HIDDEN))


def _shade(values: NDArray[np.floating], between: tuple[float, float]) -> NDArray[np.uint8]:
    """The number of each value's colour; what is not a number is darkest."""
    low, high = between
    known = np.nan_to_num(np.asarray(values, np.float32), nan=low, posinf=high, neginf=low)
    shade: NDArray[np.uint8] = (
        np.clip((known - low) / (high - low) * (_LEVELS - 1), 0, _LEVELS - 1).round().astype(np.uint8)
    )
    return shade


def _colours() -> bytes:
    """Red, green and blue of each level."""
    places = np.linspace(0, len(_STOPS) - 1, _LEVELS)
    colours = np.stack([np.interp(places, np.arange(len(_STOPS)), _STOPS[:, part]) for part in range(3)], axis=1)
    return colours.round().astype(np.uint8).tobytes()


def _indexed(shade: NDArray[np.uint8], palette: bytes) -> Image.Image:
    rows, columns = shade.shape
    picture = Image.frombytes("P", (columns, rows), shade.tobytes())
    picture.putpalette(palette)
    return picture


def _encoded(picture: Image.Image, *, transparency: bytes | None = None) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True, **({} if transparency is None else {"transparency": transparency}))
    return file.getvalue()


def _fitting(title: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """A title that is not too wide: its beginning and its end."""
    length = len(title)
    shown = title
    while font.getlength(shown) > width and length > 4:
        length -= 2
        shown = f"{title[: length // 2]} … {title[-(length // 2) :]}"
    return shown
