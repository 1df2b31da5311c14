"""Which classes are taken for which: a confusion matrix as a table and as a picture.

    confusion.csv    a row a true class, a column a predicted one, clips; with several labels a clip a row a class, its
                     hits, misses, false_alarms and rejections
    confusion.png    the shares of each row, with the clips in the cells where there is room

The picture is drawn with Pillow, which TensorBoard brings along, so that it is always there and costs nothing.
"""

from __future__ import annotations

import csv
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tymbal.files import replace_file

__all__ = ["draw_confusion", "write_confusion", "write_decisions"]

_INK, _FAINT, _PAPER = (30, 34, 42), (105, 112, 122), (255, 255, 255)
_LOW, _HIGH = (237, 241, 247), (20, 66, 130)
_LONGEST = 32  # letters of a label
_FONTS = ("DejaVuSans.ttf", "arial.ttf", "Arial Unicode.ttf")  # Linux, Windows, macOS

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def write_confusion(path: Path, matrix: NDArray[Any], classes: Sequence[str]) -> None:
    """Writes a confusion matrix [truth, prediction] as a table.

    Args:
        path: The `.csv` file.
        matrix: Counts of clips, [classes, classes].
        classes: Their names.
    """
    _write(path, ["truth", *classes], [[name, *row] for name, row in zip(classes, matrix.tolist(), strict=True)])


def write_decisions(path: Path, counts: NDArray[Any], classes: Sequence[str]) -> None:
    """Writes what was decided of each of several labels.

    Args:
        path: The `.csv` file.
        counts: [4, classes], as from `tymbal.objectives.metrics.multilabel_counts`.
        classes: Their names.
    """
    hits, false_alarms, misses, rejections = counts.tolist()
    rows = zip(classes, hits, misses, false_alarms, rejections, strict=True)
    _write(path, ["class", "hits", "misses", "false_alarms", "rejections"], [list(row) for row in rows])


def _write(path: Path, header: list[str], rows: list[list[Any]]) -> None:
    with replace_file(path) as aside, aside.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def draw_confusion(path: Path, matrix: NDArray[Any], classes: Sequence[str], *, title: str) -> None:
    """Draws a confusion matrix [truth, prediction].

    Args:
        path: The `.png` file.
        matrix: Counts of clips, [classes, classes].
        classes: Their names. In letters that no font here has, a class is shown by its number in the table.
        title: What it is of.
    """
    count = len(classes)
    cell = min(64, max(3, 1800 // count))
    font = _font(min(22, max(cell - 4, 1)), classes)
    heading = _font(22, [title])
    labels = [_shown(name, number, font) for number, name in enumerate(classes, 1)] if cell >= 14 else []
    side = round(max((font.getlength(label) for label in labels), default=0))
    margin, line = 28, 34
    left, top = margin + line + side + 14, margin + 2 * line + side + 24
    width = max(left + count * cell, margin + round(heading.getlength(title))) + margin
    picture = Image.new("RGB", (width, top + count * cell + margin), _PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((margin, margin), title, font=heading, fill=_INK)
    draw.text((left + count * cell / 2, margin + 1.6 * line), "predicted", font=heading, fill=_FAINT, anchor="mm")
    _write_upright(picture, (margin + line // 2 - 4, top + count * cell // 2), "truth", heading, _FAINT, anchor="mm")
    for number, label in enumerate(labels):
        place = number * cell + cell // 2
        draw.text((left - 10, top + place), label, font=font, fill=_INK, anchor="rm")
        _write_upright(picture, (left + place, top - 10), label, font, _INK, anchor="lm")
    _draw_cells(picture, matrix, (left, top), cell)
    with replace_file(path) as aside:
        picture.save(aside, format="PNG", optimize=True)


def _draw_cells(picture: Image.Image, matrix: NDArray[Any], corner: tuple[int, int], cell: int) -> None:
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    low, high = np.array(_LOW), np.array(_HIGH)
    colours = np.rint(low + (high - low) * shares[:, :, None]).astype(np.uint8)
    side = len(matrix) * cell
    picture.paste(Image.fromarray(colours).resize((side, side), Image.Resampling.NEAREST), corner)
    draw = ImageDraw.Draw(picture)
    for line in range(cell - 1, side if cell >= 8 else 0, cell):
        draw.line((corner[0] + line, corner[1], corner[0] + line, corner[1] + side), fill=_PAPER)
        draw.line((corner[0], corner[1] + line, corner[0] + side, corner[1] + line), fill=_PAPER)
    font = _font(max(10, cell // 3), [])
    for row, column in np.argwhere(matrix) if cell >= 14 else []:
        text = str(matrix[row, column])
        if font.getlength(text) <= cell - 6:
            place = (corner[0] + (column + 0.5) * cell, corner[1] + (row + 0.5) * cell)
            draw.text(place, text, font=font, fill=_PAPER if shares[row, column] > 0.5 else _INK, anchor="mm")


def _write_upright(
    picture: Image.Image, place: tuple[int, int], text: str, font: Font, ink: tuple[int, int, int], *, anchor: str
) -> None:
    """Writes from the bottom to the top; `anchor` is `lm`, the middle of the text's begin, or `mm`, its centre."""
    length, height = round(font.getlength(text)) + 2, round(font.getbbox("Ag|")[3]) + 4
    mask = Image.new("L", (length, height), 0)
    ImageDraw.Draw(mask).text((0, height / 2), text, font=font, fill=255, anchor="lm")
    turned = mask.rotate(90, expand=True)
    down = length if anchor == "lm" else length // 2
    picture.paste(ink, (place[0] - height // 2, place[1] - down), turned)


def _font(size: int, texts: Sequence[str]) -> Font:
    """A font of this height in pixels: Pillow's own, or one of the system where letters are wanted that it lacks."""
    if not all(text.isascii() for text in texts):
        for name in _FONTS:
            try:
                return ImageFont.truetype(name, size)
            except OSError:
                continue
    return ImageFont.load_default(size)


def _shown(name: str, number: int, font: Font) -> str:
    """A label, shortened and in letters that the font has."""
    short = name if len(name) <= _LONGEST else name[: _LONGEST - 3] + "..."
    missing = bytes(font.getmask("\uffff"))
    if all(letter.isspace() or bytes(font.getmask(letter)) != missing for letter in short):
        return short
    plain = unicodedata.normalize("NFKD", short).encode("ascii", "ignore").decode()
    return plain if len(plain) >= len(short) / 2 else str(number)
