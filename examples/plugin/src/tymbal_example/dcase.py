"""A table format: DCASE's lists of sound events, which sed_eval and psds_eval score.

    tymbal predict classifier nights -o nights.tsv --format dcase

Text with tabs between cells: filename, onset and offset in seconds, event_label. Scores have no place in it.
"""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tymbal.files import replace_file
from tymbal.inference.tables import Kind, RowFormat

COLUMNS = {"filename": "file", "onset": "start", "offset": "end", "event_label": "label"}
"""DCASE's columns, and Tymbal's of the same meaning."""


class Dcase(RowFormat):
    """A row an event, or a window with a label."""

    name = "dcase"
    suffixes = (".tsv",)

    @contextlib.contextmanager
    def open(self, path: Path, columns: Mapping[str, Kind]) -> Iterator[Callable[[Sequence[Any]], None]]:
        """Opens a file for rows; it appears when all are written."""
        with replace_file(path) as aside, aside.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter="\t", lineterminator="\n")
            writer.writerow(COLUMNS)

            def write(row: Sequence[Any]) -> None:
                cells = dict(zip(columns, row, strict=True))
                writer.writerow([cells["file"], f"{cells['start']:.3f}", f"{cells['end']:.3f}", cells["label"]])

            yield write

    def read(self, path: Path) -> Iterator[dict[str, Any]]:
        """Reads rows under Tymbal's names; what stands in the list counts as certain."""
        with path.open(encoding="utf-8-sig", newline="") as file:
            for row in csv.DictReader(file, delimiter="\t"):
                yield {own: row.get(name) for name, own in COLUMNS.items()} | {"score": 1.0}
