"""Detections as other programs show them: Raven selections, Audacity labels, Kaleidoscope's `id.csv`.

Raven: text with tabs, `View` is `Spectrogram 1`. Opened as a selection table, Raven takes Begin and End Time, which
count from the beginning of all sound that is open; opened as a sound selection table, Begin Path and File Offset. A
table of one file is right in both ways. Audacity: start, end and label with tabs between, seconds with six digits; a
fourth column is not in its format, so that the score stands in the label.
"""

from __future__ import annotations

import contextlib
import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tymbal.audio.kaleidoscope import COLUMNS, KaleidoscopeRows, cells_of
from tymbal.audio.sources import Recording
from tymbal.errors import SettingsError
from tymbal.files import replace_file
from tymbal.inference.tables import Kind, RowFormat, Write, has_kaleidoscope_columns

__all__ = ["DETECTED", "RAVEN_COLUMNS", "Annotation", "Audacity", "Kaleidoscope", "Raven", "annotation_files"]

_RAVEN_LABELS = ("Label", "Common Name", "Species", "Annotation")
"""What the column of labels is called: by us, by BirdNET, and by hand."""

DETECTED: dict[str, Kind] = {
    "file": "text",
    "start": "seconds",
    "end": "seconds",
    "label": "text",
    "score": "score",
    "low": "hertz",
    "high": "hertz",
}
"""Columns of the file of a recording: a detection, and the band in Hz in which it may lie."""

RAVEN_COLUMNS = (
    "Selection",
    "View",
    "Channel",
    "Begin Time (s)",
    "End Time (s)",
    "Low Freq (Hz)",
    "High Freq (Hz)",
    "Label",
    "Score",
    "Begin Path",
    "File Offset (s)",
)


class Annotation(NamedTuple):
    """A labelled stretch of sound in an annotation file.

    Attributes:
        file: The recording; empty where the file does not tell.
        start: Seconds from the beginning of the recording.
        end: Where it ends, in seconds.
        label: The label.
        score: Confidence; 1 if the file gives none, as for annotations drawn by a person.
    """

    file: str
    start: float
    end: float
    label: str
    score: float


def annotation_files(folder: Path, recordings: Sequence[Recording], ending: str) -> dict[str, Path]:
    """A file for each recording, by the recording's path: in the same folders, below another one.

    Recordings that would share a file (`a.wav` and `a.flac`, or equal names in two folders that were given) keep their
    own ending, and are numbered where that does not tell them apart.
    """
    files: dict[str, Path] = {}
    used_names: set[str] = set()
    for recording in recordings:
        place = Path(recording.place)
        inside = Path(place.name) if place.is_absolute() or ".." in place.parts else place
        names = _names(inside)
        name = next(name for name in names if f"{name}{ending}".casefold() not in used_names)
        used_names.add(f"{name}{ending}".casefold())
        files[str(recording.path)] = folder / f"{name}{ending}"
    return files


class Raven(RowFormat):
    """Raven's selection table; ours have the whole path of the recording, and the band in which the model hears."""

    name = "raven"
    suffixes = (".selections.txt", ".txt")
    per_recording = True

    @contextlib.contextmanager
    def open(self, path: Path, columns: Mapping[str, Kind]) -> Iterator[Write]:
        """Opens the table of one recording, see `RowFormat`; it needs the columns of `DETECTED`."""
        count = 0
        with replace_file(path) as aside, aside.open("w", encoding="utf-8", newline="\n") as table:
            table.write("\t".join(RAVEN_COLUMNS) + "\n")

            def write(row: Sequence[Any]) -> None:
                nonlocal count
                count += 1
                values = dict(zip(columns, row, strict=True))
                start, end = f"{values['start']:.6f}", f"{values['end']:.6f}"
                band = f"{values['low']:.1f}", f"{values['high']:.1f}"
                cells = (str(count), "Spectrogram 1", "1", start, end, *band, _line(values["label"]))
                absolute = str(Path(values["file"]).absolute())
                table.write("\t".join((*cells, f"{values['score']:.4f}", absolute, start)) + "\n")

            yield write

    def read(self, path: Path) -> Iterator[dict[str, Any]]:
        """Reads a table with labels, ours or another; a spectrogram's row stands for all its views.

        Times are those in the recording if the table has the column File Offset. Beside an `Annotation` a row has the
        frequencies `low` and `high` in Hz, None where the table does not give them.

        Raises:
            SettingsError: It is no such table.
        """
        lines = _lines(path)
        head = next(lines, [])
        label = next((name for name in _RAVEN_LABELS if name in head), "Label")
        missing = [name for name in ("Begin Time (s)", "End Time (s)", label) if name not in head]
        if missing:
            raise SettingsError(f"is no Raven selection table with labels: it lacks {', '.join(missing)}", path=path)
        for number, cells in enumerate(lines, 2):
            row = dict(zip(head, cells, strict=False))
            if row.get("View", "").startswith("Waveform"):
                continue
            try:
                begin, end = float(row["Begin Time (s)"]), float(row["End Time (s)"])
                start = float(row.get("File Offset (s)") or begin)
                score = float(row.get("Score") or row.get("Confidence") or 1)
                names = {"low": "Low Freq (Hz)", "high": "High Freq (Hz)"}
                band = {side: float(row[name]) if row.get(name) else None for side, name in names.items()}
            except (KeyError, ValueError):
                raise SettingsError(f"line {number} cannot be read", path=path) from None
            file = row.get("Begin Path") or row.get("Begin File") or ""
            yield {**Annotation(file, start, start + end - begin, row.get(label, ""), score)._asdict(), **band}

    def recognises(self, path: Path) -> bool:
        """Whether a text file begins as a selection table does."""
        if not self.fits(path):
            return False
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            return file.readline().startswith("Selection\t")


class Audacity(RowFormat):
    """Audacity's label track."""

    name = "audacity"
    suffixes = (".labels.txt", ".txt")
    per_recording = True

    @contextlib.contextmanager
    def open(self, path: Path, columns: Mapping[str, Kind]) -> Iterator[Write]:
        """Opens the label track of one recording, see `RowFormat`."""
        with replace_file(path) as aside, aside.open("w", encoding="utf-8", newline="\n") as track:

            def write(row: Sequence[Any]) -> None:
                values = dict(zip(columns, row, strict=True))
                track.write(
                    f"{values['start']:.6f}\t{values['end']:.6f}\t{_line(values['label'])} {values['score']:.2f}\n"
                )

            yield write

    def read(self, path: Path) -> Iterator[dict[str, Any]]:
        """Reads a label track, whose labels may end with a score, as those that we write do.

        Raises:
            SettingsError: It is no such track.
        """
        for number, cells in enumerate(_lines(path), 1):
            if cells[:1] == ["\\"]:  # the frequencies of the label above
                continue
            try:
                start, end = float(cells[0]), float(cells[1])
            except (IndexError, ValueError):
                raise SettingsError(f"line {number} is none of an Audacity label track", path=path) from None
            text = cells[2] if len(cells) > 2 else ""
            # BirdNET writes the score into a fourth column.
            label, _, last = text.rpartition(" ") if len(cells) < 4 else (text, "", cells[3])
            is_score = bool(label) and re.fullmatch(r"[01]?\.\d+", last) is not None
            score = float(last) if is_score else 1.0
            yield Annotation("", start, end, label if is_score else text, score)._asdict()


class Kaleidoscope(RowFormat):
    """Kaleidoscope's `id.csv`, which it opens as results; the score stands where it has its match ratio."""

    name = "kaleidoscope"
    suffixes = (".csv",)
    detections_only = True

    @contextlib.contextmanager
    def open(self, path: Path, columns: Mapping[str, Kind]) -> Iterator[Write]:
        """Opens a table, see `RowFormat`; it needs file, start, end, label, score and start_time."""
        with replace_file(path) as aside, aside.open("w", encoding="utf-8", newline="") as table:
            writer = csv.writer(table, lineterminator="\r\n")
            writer.writerow(COLUMNS)
            yield lambda row: writer.writerow(cells_of(dict(zip(columns, row, strict=True))))

    def read(self, path: Path) -> Iterator[dict[str, Any]]:
        """Reads a table, ours, Kaleidoscope's or BirdNET's; what a person said stands above what a program did.

        Raises:
            SettingsError: A row cannot be read.
        """
        with path.open(encoding="utf-8-sig", newline="") as table:
            rows = csv.DictReader(table)
            reader = KaleidoscopeRows(rows.fieldnames or (), path.parent)
            for row in rows:
                try:
                    yield reader.part(row)._asdict()
                except ValueError as error:
                    raise SettingsError(f"line {rows.line_num} cannot be read: {error}", path=path) from None

    def recognises(self, path: Path) -> bool:
        """Whether a table has Kaleidoscope's columns."""
        return self.fits(path) and has_kaleidoscope_columns(path)


def _lines(path: Path) -> Iterator[list[str]]:
    """The cells of each line with content."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            for line in file:
                if line.strip():
                    yield line.rstrip("\r\n").split("\t")
    except UnicodeDecodeError:
        raise SettingsError("is not UTF-8 text", path=path, advice="Save it as UTF-8.") from None
    except OSError as error:
        raise SettingsError(error.strerror or str(error), path=path) from None


def _names(place: Path) -> Iterator[str]:
    yield place.with_suffix("").as_posix()
    yield place.as_posix()
    number = 2
    while True:
        yield f"{place.as_posix()}-{number}"
        number += 1


def _line(text: str) -> str:
    """Text without tabs and line breaks, which stand between cells and rows."""
    return " ".join(text.split())
