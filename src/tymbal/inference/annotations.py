"""Detections as other programs draw them over a spectrogram, written and read: Raven selections, Audacity labels.

Raven: text with tabs, `View` is `Spectrogram 1`. Opened as a selection table, Raven takes Begin and End Time, which
count from the beginning of all sound that is open; opened as a sound selection table, Begin Path and File Offset. A
table of one file is right in both ways. Audacity: start, end and label with tabs between, seconds with six digits; a
fourth column is not in its format, so that the score stands in the label.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from tymbal.audio.sources import Recording
from tymbal.errors import SettingsError
from tymbal.files import replace_file
from tymbal.inference.detections import Detection

__all__ = [
    "ANNOTATIONS",
    "RAVEN_COLUMNS",
    "Annotation",
    "AnnotationFormat",
    "annotation_files",
    "read_audacity",
    "read_raven",
    "write_audacity",
    "write_raven",
]

AnnotationFormat = Literal["raven", "audacity"]

_RAVEN_LABELS = ("Label", "Common Name", "Species", "Annotation")
"""What the column of labels is called: by us, by BirdNET, and by hand."""

ANNOTATIONS: dict[AnnotationFormat, str] = {"raven": ".selections.txt", "audacity": ".labels.txt"}
"""The endings of their files."""

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
    """What an annotation file says of a stretch of sound.

    Attributes:
        file: The recording; empty where the file does not tell.
        start: Seconds from the beginning of the recording.
        end: Where it ends, in seconds.
        label: What is heard.
        score: How sure that is; 1 where nothing is said of it, as of what a person has drawn.
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
    taken: set[str] = set()
    for recording in recordings:
        place = Path(recording.place)
        inside = Path(place.name) if place.is_absolute() or ".." in place.parts else place
        names = _names(inside)
        name = next(name for name in names if f"{name}{ending}".casefold() not in taken)
        taken.add(f"{name}{ending}".casefold())
        files[str(recording.path)] = folder / f"{name}{ending}"
    return files


def write_raven(
    path: Path, file: str, detections: Iterable[Detection], labels: Sequence[str], *, band: tuple[float, float]
) -> int:
    """Writes the selection table of one recording, whole or not at all.

    Args:
        path: The table.
        file: The recording; its full path becomes Begin Path.
        detections: What was found in it; without any the table has its header only.
        labels: Names of the labels.
        band: Lowest and highest frequency in Hz that the model hears; it does not tell where in between.

    Returns:
        How many there were.
    """
    low, high = (f"{value:.1f}" for value in band)
    whole = str(Path(file).absolute())
    count = 0
    with replace_file(path) as aside, aside.open("w", encoding="utf-8", newline="\n") as table:
        table.write("\t".join(RAVEN_COLUMNS) + "\n")
        for count, one in enumerate(detections, 1):
            start, end = f"{one.start:.6f}", f"{one.end:.6f}"
            cells = (str(count), "Spectrogram 1", "1", start, end, low, high, _line(labels[one.label]))
            table.write("\t".join((*cells, f"{one.score:.4f}", whole, start)) + "\n")
    return count


def write_audacity(path: Path, detections: Iterable[Detection], labels: Sequence[str]) -> int:
    """Writes the label track of one recording, whole or not at all; returns how many labels it has."""
    count = 0
    with replace_file(path) as aside, aside.open("w", encoding="utf-8", newline="\n") as track:
        for one in detections:
            count += 1
            track.write(f"{one.start:.6f}\t{one.end:.6f}\t{_line(labels[one.label])} {one.score:.2f}\n")
    return count


def read_raven(path: Path) -> Iterator[Annotation]:
    """Reads a Raven selection table, ours or another that has labels; a spectrogram's row stands for all its views.

    Times are those in the recording (File Offset) where they are there.

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
        except (KeyError, ValueError):
            raise SettingsError(f"line {number} cannot be read", path=path) from None
        file = row.get("Begin Path") or row.get("Begin File") or ""
        yield Annotation(file, start, start + end - begin, row.get(label, ""), score)


def read_audacity(path: Path) -> Iterator[Annotation]:
    """Reads an Audacity label track, whose labels may end with a score, as those that we write do.

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
        label, _, last = text.rpartition(" ") if len(cells) < 4 else (text, "", cells[3])  # BirdNET: a fourth column
        is_score = bool(label) and re.fullmatch(r"[01]?\.\d+", last) is not None
        yield Annotation("", start, end, label if is_score else text, float(last) if is_score else 1.0)


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
