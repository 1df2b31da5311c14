"""Detections as other programs draw them over a spectrogram: Raven selection tables, Audacity labels.

Raven: text with tabs, `View` is `Spectrogram 1`. Opened as a selection table, Raven takes Begin and End Time, which
count from the beginning of all sound that is open; opened as a sound selection table, Begin Path and File Offset. A
table of one file is right in both ways. Audacity: start, end and label with tabs between, seconds with six digits; a
fourth column is not in its format, so that the score stands in the label.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from tymbal.files import replace_file
from tymbal.inference.detections import Detection
from tymbal.inference.recordings import Recording

__all__ = ["ANNOTATIONS", "RAVEN_COLUMNS", "AnnotationFormat", "annotation_files", "write_audacity", "write_raven"]

AnnotationFormat = Literal["raven", "audacity"]

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
