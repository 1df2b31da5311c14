"""How well a classifier does on labelled clips: figures, and which classes are taken for which.

    confusion.csv    a row a true class, a column a predicted one, clips; with several labels a clip a row a class, its
                     hits, misses, false_alarms and rejections
    confusion.png    the shares of each row, with the clips in the cells where there is room

The picture is drawn with Pillow, which TensorBoard brings along, so that it is always there and costs nothing.
"""

from __future__ import annotations

import csv
import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from tymbal.compute.device import choose_device
from tymbal.compute.processes import init_process_group, processes, rank
from tymbal.errors import ModelError, StoreError
from tymbal.evaluation.labelled_clips import labelled_clips
from tymbal.files import replace_file
from tymbal.inference.frontend import probabilities
from tymbal.models.classifier import SpectrogramClassifier
from tymbal.models.folder import LoadedModel, load_model
from tymbal.objectives.classification import ClassificationObjective
from tymbal.objectives.metrics import RunningSums
from tymbal.store.base import SpectrogramSource
from tymbal.store.dataset import normalised_batches

__all__ = ["LabelledScores", "draw_confusion", "figures_of", "score_validation", "write_confusion", "write_decisions"]


@dataclass(frozen=True)
class LabelledScores:
    """Scores of clips beside their labels.

    Attributes:
        classes: Names of the classes.
        rows: Rows of the store that could be read, [clips].
        truth: Which clip is of which class, bool [clips, classes].
        scores: Probabilities, [clips, classes].
        multilabel: Whether a clip may have several labels.
    """

    classes: tuple[str, ...]
    rows: NDArray[np.int64]
    truth: NDArray[np.bool_]
    scores: NDArray[np.float32]
    multilabel: bool


def score_validation(
    loaded: LoadedModel, store: SpectrogramSource, *, batch_size: int, device: torch.device
) -> LabelledScores:
    """Scores the labelled validation clips of a store.

    Args:
        loaded: A model with a classifier.
        store: The clips.
        batch_size: Clips a batch.
        device: The device to compute on.

    Raises:
        ModelError: The model is no classifier.
        StoreError: No labelled validation clip can be read, or clips have labels that the model does not know.
    """
    description, module = loaded.description, _classifier(loaded)
    clips = labelled_clips(store, multilabel=description.multilabel, classes=description.labels)
    read: list[NDArray[np.int64]] = []
    scores: list[NDArray[np.float32]] = []
    for rows, logits in _scored(loaded, module, store, clips.validation, batch_size=batch_size, device=device):
        read.append(rows)
        scores.append(probabilities(logits, multilabel=description.multilabel))
    if not read:
        raise StoreError(_NONE_READ, path=store.path)
    rows = np.concatenate(read)
    return LabelledScores(clips.classes, rows, clips.truth(store, rows), np.concatenate(scores), description.multilabel)


def figures_of(
    model: str | os.PathLike[str],
    store: SpectrogramSource,
    *,
    split: str | None = None,
    batch_size: int = 32,
    device: str = "auto",
) -> dict[str, float]:
    """Scores labelled clips and compares with their labels; several processes share the work and know the result.

    Args:
        model: A run or a model with a classifier.
        store: The clips.
        split: The split of the clips; None is all.
        batch_size: Clips a batch.
        device: As in training.

    Returns:
        The figures that fine-tuning reports of its validation clips.

    Raises:
        ModelError: The model is no classifier.
        StoreError: The clips have labels that the model does not know, or none, or cannot be read.
    """
    loaded = load_model(os.fspath(model))
    description, module = loaded.description, _classifier(loaded, path=model)
    if not store.labels:
        raise StoreError(_NONE_READ, path=store.path)
    columns = _columns(store, description.labels)
    place = choose_device(device)[0]
    init_process_group(place)
    objective = ClassificationObjective(
        module,
        normalisation=description.normalisation,
        columns=torch.from_numpy(columns),
        multilabel=description.multilabel,
    )
    objective.to(place).eval()
    rows = store.rows(split)
    if not description.multilabel:  # where every clip has one class, one without a label tells nothing
        rows = rows[store.label_matrix(rows).any(axis=1)]
    running = RunningSums()
    for part, logits in _scored(loaded, module, store, rows, batch_size=batch_size, device=place, shared=True):
        truth = (store.label_matrix(part)[:, columns] > 0) & (columns >= 0)
        running.add(objective.evaluation_sums(logits, torch.from_numpy(truth).to(place)))
    totals = running.take()
    if not totals:
        raise StoreError(_NONE_READ, path=store.path)
    return objective.metrics(totals)


_NONE_READ = "not one of the clips has a label and can be read"


def _classifier(loaded: LoadedModel, *, path: str | os.PathLike[str] | None = None) -> SpectrogramClassifier:
    if not isinstance(loaded.module, SpectrogramClassifier):
        raise ModelError("the model has no classifier", path=path, advice="Give one that was fine-tuned.")
    return loaded.module


def _scored(
    loaded: LoadedModel,
    module: SpectrogramClassifier,
    store: SpectrogramSource,
    rows: NDArray[np.int64],
    *,
    batch_size: int,
    device: torch.device,
    shared: bool = False,
) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
    """Rows that can be read, [batch], and their logits, float32 [batch, classes], batch by batch.

    Where the work is `shared`, this process takes its share of the batches.
    """
    module = module.to(device).eval()
    for batch in normalised_batches(
        store,
        rows,
        normalisation=loaded.description.normalisation,
        batch_size=batch_size,
        device=device,
        rank=rank() if shared else 0,
        processes=processes() if shared else 1,
    ):
        with torch.inference_mode():
            logits = module(batch.x, frames=batch.frames).float()
        yield batch.rows, logits


def _columns(store: SpectrogramSource, classes: Sequence[str]) -> NDArray[np.int64]:
    """For each class of a model its number among the labels of a store, -1 where the store lacks it."""
    places = {name: place for place, name in enumerate(store.labels)}
    used = {name for labels in store.index["labels"].to_pylist() for name in labels or ()}
    unknown = sorted(used - set(classes))
    if unknown:
        raise StoreError(
            f"the model does not know these labels of the clips: {', '.join(unknown[:10])}",
            path=store.path,
            advice="Give the label_csv that it was trained with, or leave these clips out.",
        )
    return np.array([places.get(name, -1) for name in classes], np.int64)


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
        title: Title of the matrix.
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
    """A font of this height in pixels: Pillow's own, or one of the system for letters that it lacks."""
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
