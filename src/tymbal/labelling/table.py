"""The table of labels: what people have said of stretches of recordings, a row a label.

    file,start,end,low,high,label,who,when,round
    nights/a.wav,35.000,40.000,,,robin,ann,2026-05-01T06:12:09.310+00:00,4
    nights/a.wav,40.000,45.000,,,,ann,2026-05-01T06:12:11.020+00:00,4

Times are seconds of the recording, frequencies Hz; a box that was drawn narrows them. A row without a label was looked
at, and nothing is there; `?` is unsure. `round` says of which fit of the model the question was, `check` that it was
one of the blind sample, `begin` that it was read from other annotations. Paths below the table's folder are relative
to it. The table is written at every answer, whole or not at all.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from tymbal.audio.failures import printable
from tymbal.audio.file_lists import LABEL_COLUMNS, LABELS, UNSURE, labels_at
from tymbal.audio.manifest import relative_path
from tymbal.errors import AudioError, SettingsError
from tymbal.files import replace_file

if TYPE_CHECKING:
    from tymbal.inference.tables import RowFormat

__all__ = [
    "BEGIN",
    "CHECK",
    "Answer",
    "Row",
    "Window",
    "answers_of",
    "read_annotations",
    "read_table",
    "rows_of_answer",
    "table_at",
    "write_annotations",
    "write_table",
]

CHECK, BEGIN = "check", "begin"
"""The rounds of the blind sample, and of other annotations."""


@dataclass(frozen=True)
class Window:
    """A window of a recording.

    Attributes:
        row: Its row in the table of embeddings.
        file: The recording.
        start: Seconds from the beginning of the recording.
        end: Where it ends, in seconds.
    """

    row: int
    file: str
    start: float
    end: float


@dataclass(frozen=True)
class Answer:
    """What a person said of a window.

    Attributes:
        window: The window.
        labels: What is heard in it.
        kind: Whether it has `labels`, `nothing` is there, or the person is `unsure`.
        start: Where what is heard begins, in seconds of the recording; None is the window.
        end: Where it ends.
        low: Its lowest frequency in Hz; None is any.
        high: Its highest frequency.
        check: Whether the window is one of the blind sample, of which the model's opinion was not shown.
    """

    window: Window
    labels: tuple[str, ...] = ()
    kind: Literal["labels", "nothing", "unsure"] = "labels"
    start: float | None = None
    end: float | None = None
    low: float | None = None
    high: float | None = None
    check: bool = False


class Row(NamedTuple):
    """A row of the table; its attributes are the columns."""

    file: str
    start: float
    end: float
    low: float | None = None
    high: float | None = None
    label: str = ""
    who: str = ""
    when: str = ""
    round: str = ""


def table_at(path: Path) -> Path:
    """The table that a folder of a labelling holds; a file is the table itself."""
    return path / LABELS if path.is_dir() else path


def rows_of_answer(answer: Answer, *, who: str, when: str, round: str) -> list[Row]:  # noqa: A002 - the column
    """The rows of an answer, one a label.

    Raises:
        SettingsError: It says that labels are heard and names none, or a label is empty or `?`.
    """
    labels: Sequence[str] = {"nothing": ("",), "unsure": (UNSURE,)}.get(answer.kind, answer.labels)
    if answer.kind == "labels":
        if not labels:
            raise SettingsError("the answer names no label", advice="Say that nothing is there, or name one.")
        wrong = next((label for label in labels if not label.strip() or label.strip() == UNSURE), None)
        if wrong is not None:
            raise SettingsError(f"a label is {wrong!r}", advice="Give it a name, with at least one letter.")
    window = answer.window
    start = window.start if answer.start is None else answer.start
    end = window.end if answer.end is None else answer.end
    if not start < end:
        raise SettingsError(f"an answer is from {start:g} to {end:g} s", advice="Its end lies behind its start.")
    return [
        Row(window.file, start, end, answer.low, answer.high, label.strip(), who, when, round)
        for label in dict.fromkeys(labels)
    ]


def answers_of(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """The rows of each answer, in the order of the table; rows that were read from other annotations are none."""
    together: dict[tuple[str, float, float, str, str], list[Row]] = {}
    for row in rows:
        if row.round != BEGIN:
            together.setdefault((row.file, row.start, row.end, row.who, row.when), []).append(row)
    yield from together.values()


def write_table(path: Path, rows: Iterable[Row]) -> None:
    """Writes a table, whole or not at all."""
    folder = path.absolute().parent
    with replace_file(path) as aside, aside.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(LABEL_COLUMNS)
        for row in rows:
            times = (f"{row.start:.3f}", f"{row.end:.3f}")
            band = ("" if value is None else f"{value:.1f}" for value in (row.low, row.high))
            writer.writerow(
                (printable(relative_path(row.file, folder)), *times, *band, row.label, row.who, row.when, row.round)
            )


def read_table(path: Path) -> list[Row]:
    """Reads a table that `write_table` wrote.

    Raises:
        SettingsError: It is none, or a cell cannot be read.
    """
    rows: list[Row] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in LABEL_COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise SettingsError(
                    f"is no table of labels: it lacks {', '.join(missing)}",
                    path=path,
                    advice="Give a table or a folder of `tymbal label`.",
                )
            rows.extend(_row(cells, reader.line_num, path) for cells in reader)
    except OSError as error:
        raise SettingsError(error.strerror or str(error), path=path, advice="Check the path.") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise SettingsError(f"the table cannot be read: {error}", path=path, advice="Save it as CSV, UTF-8.") from None
    return rows


def _row(cells: Mapping[str, str | None], line: int, path: Path) -> Row:
    try:
        start, end = (float(cells[name] or "") for name in ("start", "end"))
        low, high = (float(cell) if (cell := cells[name]) else None for name in ("low", "high"))
    except ValueError:
        start = end = float("nan")
        low = high = None
    if not start < end:
        raise SettingsError(
            f"line {line} has no stretch of sound", path=path, advice="start and end are seconds, end behind start."
        )
    file = cells["file"] or ""
    place = file if os.path.isabs(file) else os.path.normpath(path.absolute().parent / file)  # noqa: PTH117
    label, who, when, round_ = ((cells[name] or "").strip() for name in ("label", "who", "when", "round"))
    return Row(place, start, end, low, high, label, who, when, round_)


def read_annotations(path: Path, files: Sequence[str]) -> list[Row]:
    """Reads annotations of other programs as a beginning, or a table of ours.

    Args:
        path: A table of Raven, Audacity, BirdNET or Kaleidoscope, a list with labels (CSV, Parquet, JSON), or a folder
            of these. One that does not name its recording is named like it (`night.Table.1.selections.txt`).
        files: The recordings, by which names are known again.

    Raises:
        ManifestError: A list cannot be read.
        SettingsError: They cannot be read, or are of none of the recordings.
    """
    ours = labels_at(path)
    if ours is not None:
        return read_table(ours)
    by_name = _by_name(files)
    count, rows, first = 0, [], ""
    for source in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if path.is_dir() and source.suffix.lower() not in (".txt", ".csv", ".tsv"):
            continue
        for one in _annotations(source):
            count, first = count + 1, first or one.file
            file = _recording(one.file, by_name)
            if file is not None and one.start < one.end:
                rows.append(one._replace(file=file, who=source.name))
    if not rows:
        what = f"its {count:,} annotations are of none of the recordings, the first of {first}"
        raise SettingsError(
            what if count else "there are no annotations with labels",
            path=path,
            advice="Give the recordings that were annotated, or name the file like its recording.",
        )
    return rows


def _annotations(path: Path) -> Iterator[Row]:
    """The labelled stretches of a file of annotations, of the recordings that it names, or that it is named like."""
    from tymbal.audio.manifest import Manifest
    from tymbal.inference.tables import read_rows, recognised

    kind = recognised(path)
    if kind is None or not kind.per_recording:
        for clip in Manifest.read(path):
            end = math.inf if clip.end is None else clip.end
            yield from (Row(clip.file, clip.start, end, label=label, round=BEGIN) for label in clip.labels)
        return
    for row in read_rows(path, kind):
        if row["label"]:
            band = (row.get("low"), row.get("high"))
            yield Row(row["file"] or path.name, row["start"], row["end"], *band, label=row["label"], round=BEGIN)


def write_annotations(rows: Sequence[Row], folder: Path, kind: RowFormat) -> tuple[Path, ...]:
    """Writes labels as another program takes them, a file a recording; what is unsure, or nothing, is no annotation.

    Args:
        rows: Rows of a table.
        folder: The folder to write into.
        kind: A format that has a file for each recording, as Raven's and Audacity's.

    Returns:
        The files.
    """
    from tymbal.audio.sources import Recording
    from tymbal.inference.annotations import DETECTED, annotation_files

    by_file: dict[str, list[Row]] = {}
    for row in rows:
        by_file.setdefault(row.file, [])
        if row.label not in ("", UNSURE):
            by_file[row.file].append(row)
    recordings = [Recording(Path(file), Path(file).name) for file in by_file]
    files = annotation_files(folder, recordings, kind.suffixes[0])
    for file, own in by_file.items():
        with kind.open(files[str(Path(file))], DETECTED) as write:
            for row in sorted(own, key=lambda row: (row.start, row.label)):
                write((row.file, row.start, row.end, row.label, 1.0, row.low or 0.0, row.high or _rate(row.file) / 2))
    return tuple(files.values())


def _rate(file: str) -> float:
    """The sample rate of a recording; one that cannot be read has the lowest usual one."""
    from tymbal.audio.decode import sample_rate_of

    try:
        return sample_rate_of(Path(file))
    except AudioError:
        return 16_000


def _by_name(files: Iterable[str]) -> dict[str, str | None]:
    """Recordings by path, name, and name without its ending; None where several have a name."""
    names: dict[str, str | None] = {}
    for file in files:
        path = Path(file)
        for name in {file, path.name, path.stem}:
            names[name] = file if name not in names or names[name] == file else None
    return names


def _recording(name: str, by_name: Mapping[str, str | None]) -> str | None:
    """The recording of a name; endings are left out one by one until one has what remains."""
    path = Path(name.replace("\\", "/"))
    forms = [name, str(Path(name).absolute()), path.name]
    while "." in forms[-1]:
        forms.append(forms[-1].rpartition(".")[0])
    return next((file for form in forms if (file := by_name.get(form)) is not None), None)
