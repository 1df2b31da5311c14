"""Wildlife Acoustics' Kaleidoscope: the rows of its `id.csv`, `cluster.csv` and `meta.csv`, read and written.

A row is a part of the file INDIR / FOLDER / IN FILE, from OFFSET on for DURATION seconds. `AUTO ID` (in cluster.csv
`TOP1MATCH`) is what a program says, `MANUAL ID` what a person does; a star behind a name marks a column that
Kaleidoscope shows. DATE and TIME are when the file began; those with -12 are twelve hours earlier, so that a night has
one date. BirdNET's tables of that name have `common_name` and `confidence` instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

__all__ = ["COLUMNS", "KaleidoscopeRows", "Part", "cells_of", "is_kaleidoscope"]

COLUMNS = (
    *("INDIR", "OUTDIR", "FOLDER", "IN FILE", "CHANNEL", "OFFSET", "DURATION", "OUT FILE FS", "OUT FILE ZC"),
    *("DATE", "TIME", "HOUR", "DATE-12", "TIME-12", "HOUR-12"),
    *("AUTO ID*", "PULSES", "MATCHING", "MATCH RATIO", "MARGIN", "ALTERNATE 1", "ALTERNATE 2", "MANUAL ID"),
)
"""Columns that are written, in Kaleidoscope's order."""

_AUTOMATIC = ("AUTO ID", "TOP1MATCH", "common_name")
_SCORES = ("MATCH RATIO", "confidence")


class Part(NamedTuple):
    """A labelled part of a file.

    Attributes:
        file: Its path: where it exists, else as the table has it.
        start: Seconds from the beginning of the file.
        end: Where it ends, in seconds.
        label: What a person said, else what a program did; empty where neither did.
        score: 1 for a person's label; else the match ratio or confidence, 1 where the table has none.
    """

    file: str
    start: float
    end: float
    label: str
    score: float


class KaleidoscopeRows:
    """Reads the rows of one table.

    Args:
        names: Its columns.
        folder: The folder that it lies in, where files are looked for that are not where the table says.

    Attributes:
        has_labels: Whether a column can hold labels.
    """

    def __init__(self, names: Sequence[str], folder: Path) -> None:
        self._names = {_plain(name): name for name in names}
        self._folder = folder
        self._files: dict[tuple[str, ...], str] = {}
        self._automatic = [name for name in _AUTOMATIC if name in self._names]
        self.has_labels = bool(self._automatic) or "MANUAL ID" in self._names

    def part(self, row: Mapping[str, Any]) -> Part:
        """The part of a file that a row is.

        Raises:
            ValueError: It names no file, or OFFSET or DURATION is no number; the message says so.
        """
        start = self._number(row, "OFFSET") or 0.0
        length = self._number(row, "DURATION")
        if length is None:
            raise ValueError("DURATION is empty")
        manual = self._cell(row, "MANUAL ID")
        automatic = next((cell for name in self._automatic if (cell := self._cell(row, name))), "")
        scores = (self._number(row, name) for name in _SCORES if name in self._names)
        score = next((each for each in scores if each is not None), 1.0)
        end = round(start + length, 6)
        return Part(self._file(row), start, end, manual or automatic, 1.0 if manual else score)

    def manual(self, row: Mapping[str, Any]) -> str:
        """What a person said; empty where nobody did."""
        return self._cell(row, "MANUAL ID")

    def channel(self, row: Mapping[str, Any]) -> str:
        """The channel, as it stands there: 0 is the first."""
        return self._cell(row, "CHANNEL")

    def _cell(self, row: Mapping[str, Any], name: str) -> str:
        return str(row.get(self._names.get(name, name)) or "").strip()

    def _number(self, row: Mapping[str, Any], name: str) -> float | None:
        cell = self._cell(row, name)
        try:
            value = float(cell) if cell else None
        except ValueError:
            value = math.nan
        if value is not None and not math.isfinite(value):
            raise ValueError(f"{name} is {cell!r}, which is not a number")
        return value

    def _file(self, row: Mapping[str, Any]) -> str:
        names = tuple(self._cell(row, name) for name in ("INDIR", "FOLDER", "IN FILE"))
        if not names[2]:
            raise ValueError("IN FILE is empty")
        if names not in self._files:
            folder, name = names[1].replace("\\", "/"), names[2].replace("\\", "/")
            there = Path(names[0], folder, name) if names[0] else self._folder / folder / name
            places = (there, self._folder / folder / name, self._folder / name)
            missing = str(PureWindowsPath(*names) if PureWindowsPath(names[0]).drive else there)
            self._files[names] = next((str(place) for place in places if place.is_file()), missing)
        return self._files[names]


def is_kaleidoscope(names: Sequence[str]) -> bool:
    """Whether columns are those of a Kaleidoscope table."""
    return {"IN FILE", "FOLDER", "OFFSET", "DURATION"} <= {_plain(name) for name in names}


def cells_of(row: Mapping[str, Any]) -> list[Any]:
    """A detection as the cells of `COLUMNS`.

    Args:
        row: `file`, `start`, `end`, `label`, `score`, and `start_time`, ISO 8601 or None, the time at `start`.
    """
    path = Path(row["file"]).absolute()
    known: dict[str, Any] = {
        "INDIR": path.parent.parent,
        "FOLDER": path.parent.name,
        "IN FILE": path.name,
        "CHANNEL": 0,
        "OFFSET": f"{row['start']:.3f}",
        "DURATION": f"{row['end'] - row['start']:.3f}",
        "AUTO ID*": row["label"],
        "MATCH RATIO": f"{row['score']:.6f}",
    }
    if row.get("start_time"):
        began = datetime.fromisoformat(row["start_time"]) - timedelta(seconds=row["start"])
        for ending, moment in (("", began), ("-12", began - timedelta(hours=12))):
            known |= {f"DATE{ending}": moment.date(), f"TIME{ending}": f"{moment:%H:%M:%S}"}
            known[f"HOUR{ending}"] = moment.hour
    return [known.get(name, "") for name in COLUMNS]


def _plain(name: str) -> str:
    return name.strip().removesuffix("*").rstrip()
