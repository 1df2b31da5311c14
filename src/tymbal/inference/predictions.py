"""Writes spooled scores as tables or annotations, and reads predictions from each of their formats.

    table = read_predictions(Path("night.parquet"))    or night.detections.jsonl, or a folder of selection tables

Windows and detections are told apart by the column `windows`, which only detections have, or by the format.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tymbal.audio.clip_labels import when
from tymbal.audio.decode import sample_rate_of
from tymbal.audio.failures import failures_beside
from tymbal.audio.sources import Recording
from tymbal.errors import AudioError, SettingsError
from tymbal.inference.annotations import DETECTED, Annotation, annotation_files
from tymbal.inference.detections import Detection, Scored, detect, thresholds
from tymbal.inference.frontend import Scorer
from tymbal.inference.spool import Outcome, Spool
from tymbal.inference.streaming import Rows, Window
from tymbal.inference.tables import Kind, RowFormat, choose_format, formats, read_rows, recognised
from tymbal.settings import PredictSettings

__all__ = [
    "DETECTIONS",
    "REVIEW",
    "SCHEMA",
    "WINDOWS",
    "PredictionTable",
    "Predictions",
    "detections_path",
    "failures_path",
    "is_annotations",
    "output_format",
    "read_predictions",
]

WINDOWS: dict[str, Kind] = {
    "file": "text",
    "start": "seconds",
    "end": "seconds",
    "label": "text",
    "score": "score",
    "start_time": "text",
    "end_time": "text",
}
"""Columns of the table of windows."""

DETECTIONS: dict[str, Kind] = {**WINDOWS, "windows": "count"}
"""Columns of the table of detections."""

REVIEW: dict[str, Kind] = {
    "file": "text",
    "start": "seconds",
    "end": "seconds",
    "label": "text",
    "score": "score",
    "of": "count",
}
"""Columns of the table of windows to check; the last says of how many windows with such scores they were drawn."""

SCHEMA = pa.schema([("start", pa.int64()), ("end", pa.int64()), ("label", pa.int32()), ("score", pa.float32())])
"""What is spooled: samples, the place of the label, its score."""

_DETECTED = 0.5


def output_format(output: Path, settings: PredictSettings, recordings: Sequence[Recording]) -> RowFormat:
    """The format in which to write.

    Raises:
        SettingsError: The output does not tell, or cannot hold it.
    """
    kind = choose_format(output, settings.format, RowFormat)
    if not kind.per_recording:
        return kind
    if kind.fits(output):
        if len(recordings) > 1:
            raise SettingsError(
                f"is one file, but {kind.name} has one for each of the {len(recordings):,} recordings",
                path=output,
                advice="Give a folder: -o tables",
            )
    elif output.is_file():
        raise SettingsError(
            f"is a file, but {kind.name} files go into a folder",
            path=output,
            advice=f"Give a folder, or a name in {kind.suffixes[-1]}.",
        )
    return kind


def failures_path(output: Path, kind: RowFormat) -> Path:
    """The path of the list of failures: beside a file, in a folder."""
    in_folder = kind.per_recording and not kind.fits(output)
    return output / "failures.csv" if in_folder else failures_beside(output)


@dataclass(frozen=True)
class _Tables:
    """Functions that write rows of either table; None where windows are not listed."""

    windows: Callable[[Sequence[Any]], None] | None
    detections: Callable[[Sequence[Any]], None]


class _Drawn:
    """Windows that are drawn to be checked: so many at random of each label and tenth of the score, in one pass.

    Args:
        labels: Names of the labels.
        count: How many of each.
    """

    def __init__(self, labels: Sequence[str], count: int) -> None:
        self._labels, self._count = labels, count
        self._random = np.random.default_rng(0)
        self._kept: dict[tuple[int, int], list[tuple[str, Scored]]] = {}
        self._seen: Counter[tuple[int, int]] = Counter()

    def add(self, file: str, one: Scored) -> None:
        """Draws from one more (reservoir sampling, algorithm R of Vitter 1985)."""
        band = min(int(10 * one.score), 9)
        if not band:
            return
        key = (one.label, band)
        self._seen[key] += 1
        kept = self._kept.setdefault(key, [])
        if len(kept) < self._count:
            kept.append((file, one))
        elif (place := int(self._random.integers(self._seen[key]))) < self._count:
            kept[place] = (file, one)

    def rows(self) -> Iterator[tuple[str, float, float, str, float, int]]:
        """What was drawn: by label, the highest scores first, and of how many windows of its tenth each was drawn."""
        for label, band in sorted(self._kept, key=lambda key: (key[0], -key[1])):
            for file, one in sorted(self._kept[label, band], key=lambda each: -each[1].score):
                yield file, one.start, one.end, self._labels[label], one.score, self._seen[label, band]


class Predictions:
    """Selects the scores that reach a table, and writes them.

    Args:
        scorer: Whose scores they are.
        settings: Thresholds and format.
        kind: The format.

    Attributes:
        what: Which scores are spooled: those of `windows` or of `detections`.
        scored: Windows that came so far.
        rejected: Those of them that are too quiet for a label.

    Raises:
        SettingsError: A threshold is for a label that the model does not have.
    """

    def __init__(self, scorer: Scorer, settings: PredictSettings, kind: RowFormat) -> None:
        self._labels, self._rate, self._band = scorer.labels, scorer.sample_rate, scorer.band
        self._settings, self._format = settings, kind
        every, some = settings.threshold, settings.label_thresholds
        self._detected = thresholds(
            scorer.labels, every=every, some=some, otherwise=scorer.description.thresholds or _DETECTED
        )
        listed = thresholds(scorer.labels, every=every, some=some, otherwise=0.0)
        self.what = "detections" if kind.detections_only or kind.per_recording else "windows"
        if scorer.description.background is not None:  # nothing is to be found there
            self._detected[scorer.labels.index(scorer.description.background)] = np.inf
        self._least_scores = self._detected if self.what == "detections" else listed
        self.scored = self.rejected = 0
        if settings.review and self.what == "detections":
            raise SettingsError(
                f"review draws from windows, which {kind.name} does not list", advice="Write a table: -o night.csv"
            )

    def rows(self, scores: NDArray[np.float32], windows: Sequence[Window]) -> Rows:
        """The scores of a batch [windows, labels] that reach their threshold, best first in each window."""
        self.scored += len(scores)
        self.rejected += int((scores[:, 0] < 0).sum())
        order = np.argsort(-scores, axis=1, kind="stable")[:, : self._settings.top]
        ordered = np.take_along_axis(scores, order, axis=1)
        window, place = np.nonzero(ordered >= self._least_scores[order])
        starts, ends = (np.array([getattr(one, side) for one in windows], np.int64) for side in ("start", "end"))
        columns: dict[str, NDArray[Any]] = {
            "start": starts[window],
            "end": ends[window],
            "label": order[window, place].astype(np.int32),
            "score": ordered[window, place],
        }
        return Rows(window, columns)

    def write(self, spool: Spool, recordings: Sequence[Recording], output: Path) -> tuple[int, tuple[Path, ...]]:
        """Writes everything; returns the number of detections and what was written."""
        if not self._format.per_recording:
            return self._write_tables(spool, recordings, output)
        alone = self._format.fits(output)
        files = annotation_files(output, recordings, self._format.suffixes[0])
        count = 0
        for outcome, batches in spool.read(recordings):
            if not outcome.windows:
                continue
            band = _audible(Path(outcome.file), self._band)
            with self._format.open(output if alone else files[outcome.file], DETECTED) as write:
                for hit in self._detect(self._scored(batches)):
                    write((outcome.file, hit.start, hit.end, self._labels[hit.label], hit.score, *band))
                    count += 1
        return count, (output,)

    def _write_tables(
        self, spool: Spool, recordings: Sequence[Recording], output: Path
    ) -> tuple[int, tuple[Path, ...]]:
        both = self.what == "windows"
        detections = output.with_name(f"{output.stem}.detections{output.suffix}") if both else output
        count, drawn = 0, _Drawn(self._labels, self._settings.review) if self._settings.review else None
        with ExitStack() as stack:
            windows = stack.enter_context(self._format.open(output, WINDOWS)) if both else None
            tables = _Tables(windows, stack.enter_context(self._format.open(detections, DETECTIONS)))
            for outcome, batches in spool.read(recordings):
                count += self._write_recording(tables, outcome, batches, drawn)
        written = dict.fromkeys((output, detections))
        if drawn is not None:
            review = output.with_name(f"{output.stem}.review{output.suffix}")
            with self._format.open(review, REVIEW) as write:
                for row in drawn.rows():
                    write(row)
            written[review] = None
        return count, tuple(written)

    def _write_recording(
        self, tables: _Tables, outcome: Outcome, batches: Iterator[pa.RecordBatch], drawn: _Drawn | None
    ) -> int:
        began = None if outcome.began is None else datetime.fromisoformat(outcome.began)

        def row(scored: Scored | Detection) -> tuple[Any, ...]:
            times = (when(began, scored.start), when(began, scored.end))
            return (outcome.file, scored.start, scored.end, self._labels[scored.label], scored.score, *times)

        def listed() -> Iterator[Scored]:
            for one in self._scored(batches):
                if tables.windows is not None:
                    tables.windows(row(one))
                if drawn is not None:
                    drawn.add(outcome.file, one)
                yield one

        count = 0
        for detection in self._detect(listed()):
            count += 1
            tables.detections((*row(detection), detection.windows))
        return count

    def _detect(self, scored: Iterator[Scored]) -> Iterator[Detection]:
        return detect(scored, least=self._detected, merge=self._settings.merge, gap=self._settings.gap)

    def _scored(self, batches: Iterator[pa.RecordBatch]) -> Iterator[Scored]:
        for batch in batches:
            start, end, label, score = (batch.column(name).to_pylist() for name in SCHEMA.names)
            for first, behind, place, value in zip(start, end, label, score, strict=True):
                yield Scored(first / self._rate, behind / self._rate, place, value)


def _audible(file: Path, band: tuple[float, float]) -> tuple[float, float]:
    """The part of the model's band that a recording can hold: Raven draws nothing above half its rate."""
    try:
        highest = sample_rate_of(file) / 2
    except AudioError:  # gone since it was scored
        return band
    return band[0], min(band[1], highest)


_COLUMNS = ("file", "start", "end", "label", "score")


@dataclass(frozen=True)
class PredictionTable:
    """A table of predictions.

    Attributes:
        kind: Whether a row is a window with a label, or a detection.
        rows: The rows, read lazily; can be iterated once.
    """

    kind: Literal["windows", "detections"]
    rows: Iterator[Annotation]


def read_predictions(path: Path) -> PredictionTable:
    """Reads predictions.

    Args:
        path: A table (.csv, .parquet, .json, .jsonl), Kaleidoscope's id.csv, a Raven or Audacity file (.txt), or a
            folder of files for single recordings.

    Raises:
        SettingsError: It is none of these, lacks a column, or a row cannot be read; the last two also while rows are
            iterated.
    """
    if path.is_dir():
        rows_of = (_annotations(file, path) for file in _annotation_files(path))
        return PredictionTable("detections", chain.from_iterable(rows_of))
    table_format = recognised(path)
    if table_format is None:
        known = ", ".join(dict.fromkeys(candidate.suffixes[-1] for candidate in formats(RowFormat)))
        raise SettingsError("is no table of predictions", path=path, advice=f"{_ADVICE}: {known}, or a folder.")
    if table_format.per_recording:
        return PredictionTable("detections", _annotations(path, path.parent, table_format))
    rows = read_rows(path, table_format)
    first = next(rows, None)
    if first is None:  # nothing but its name tells what an empty table would hold
        detected = table_format.detections_only or path.stem.endswith(".detections")
        return PredictionTable("detections" if detected else "windows", iter(()))
    missing = [name for name in _COLUMNS if name not in first]
    if missing:
        raise SettingsError(
            f"is no table of predictions: it lacks {', '.join(missing)}", path=path, advice=f"{_ADVICE}."
        )
    detected = table_format.detections_only or "windows" in first
    kind: Literal["windows", "detections"] = "detections" if detected else "windows"
    return PredictionTable(kind, (_row(row, number, path) for number, row in enumerate(chain([first], rows), 1)))


def is_annotations(folder: Path) -> bool:
    """Whether a folder, or one below it, has files for single recordings, as Raven's and Audacity's."""
    return folder.is_dir() and bool(_annotation_files(folder))


def detections_path(path: Path) -> Path | None:
    """The table of detections beside one of windows; None without one."""
    other = path.with_name(f"{path.stem}.detections{path.suffix}")
    return other if path.is_file() and other.is_file() else None


def _row(row: Mapping[str, Any], number: int, path: Path) -> Annotation:
    annotation: Annotation | None
    try:
        start, end, score = (float(row[name]) for name in ("start", "end", "score"))
        annotation = Annotation(str(row["file"]), start, end, str(row["label"]), score)
    except (KeyError, TypeError, ValueError):
        annotation = None
    if annotation is None or not all(map(math.isfinite, (annotation.start, annotation.end, annotation.score))):
        raise SettingsError(f"row {number} cannot be read", path=path, advice="Was the table cut short?")
    return annotation


def _annotations(path: Path, folder: Path, kind: RowFormat | None = None) -> Iterator[Annotation]:
    kind = kind or recognised(path)
    if kind is None:
        return
    # A label track does not name its recording; its own name does, all but the ending.
    name = path.relative_to(folder).as_posix()
    for suffix in kind.suffixes:
        name = name.removesuffix(suffix)
    for number, row in enumerate(read_rows(path, kind), 1):
        annotation = _row(row, number, path)
        yield annotation if annotation.file else annotation._replace(file=name)


def _annotation_files(folder: Path) -> list[Path]:
    endings = {candidate.suffixes[0] for candidate in formats(RowFormat) if candidate.per_recording}
    return sorted(path for ending in endings for path in folder.rglob(f"*{ending}"))


_ADVICE = "Give what `tymbal predict` wrote"
