"""What `tymbal predict` wrote, read back from each of its forms: tables, Raven selections, Audacity labels.

    found = read_found(Path("night.parquet"))    or night.detections.jsonl, or a folder of selection tables

Windows and detections are told apart by the column `windows`, which only detections have.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from tymbal.errors import SettingsError
from tymbal.inference.annotations import ANNOTATIONS, Annotation, AnnotationFormat, read_audacity, read_raven
from tymbal.inference.tables import TABLES, read_rows

__all__ = ["FoundTable", "beside", "is_annotations", "read_found"]

_COLUMNS = ("file", "start", "end", "label", "score")
_READERS = {"raven": read_raven, "audacity": read_audacity}


@dataclass(frozen=True)
class FoundTable:
    """What was found.

    Attributes:
        kind: Whether a row is a window with a label, or a detection.
        rows: The rows, read as they are asked for; once.
    """

    kind: Literal["windows", "detections"]
    rows: Iterator[Annotation]


def read_found(path: Path) -> FoundTable:
    """Reads predictions.

    Args:
        path: A table (.csv, .parquet, .json, .jsonl), a Raven or Audacity file (.txt), or a folder of these.

    Raises:
        SettingsError: It is none of these, lacks a column, or a row cannot be read; the last two also while rows are
            asked for.
    """
    if path.is_dir():
        return FoundTable(
            "detections", chain.from_iterable(_annotations(file, path) for file in _annotation_files(path))
        )
    if path.suffix.lower() == ".txt":
        return FoundTable("detections", _annotations(path, path.parent))
    if path.suffix.lower().removeprefix(".") not in TABLES:
        raise SettingsError("is no table of predictions", path=path, advice=_ADVICE)
    rows = read_rows(path)
    first = next(rows, None)
    if first is None:  # nothing but its name tells what an empty table would hold
        return FoundTable("detections" if path.stem.endswith(".detections") else "windows", iter(()))
    missing = [name for name in _COLUMNS if name not in first]
    if missing:
        raise SettingsError(f"is no table of predictions: it lacks {', '.join(missing)}", path=path, advice=_ADVICE)
    kind: Literal["windows", "detections"] = "detections" if "windows" in first else "windows"
    return FoundTable(kind, (_row(row, number, path) for number, row in enumerate(chain([first], rows), 1)))


def is_annotations(folder: Path) -> bool:
    """Whether Raven or Audacity files of `tymbal predict` lie in a folder, or in one below it."""
    return folder.is_dir() and bool(_annotation_files(folder))


def beside(path: Path) -> Path | None:
    """The table of detections that lies beside one of windows; None where there is none."""
    other = path.with_name(f"{path.stem}.detections{path.suffix}")
    return other if path.is_file() and other.is_file() else None


def _row(row: Mapping[str, Any], number: int, path: Path) -> Annotation:
    found: Annotation | None
    try:
        start, end, score = (float(row[name]) for name in ("start", "end", "score"))
        found = Annotation(str(row["file"]), start, end, str(row["label"]), score)
    except (KeyError, TypeError, ValueError):
        found = None
    if found is None or not all(map(math.isfinite, (found.start, found.end, found.score))):
        raise SettingsError(f"row {number} cannot be read", path=path, advice="Was the table cut short?")
    return found


def _annotations(path: Path, folder: Path) -> Iterator[Annotation]:
    kind: AnnotationFormat = "raven" if _is_raven(path) else "audacity"
    # A label track does not name its recording; its own name does, all but the ending.
    name = path.relative_to(folder).as_posix().removesuffix(ANNOTATIONS[kind]).removesuffix(".txt")
    for one in _READERS[kind](path):
        yield one if one.file else one._replace(file=name)


def _is_raven(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            return file.readline().startswith("Selection\t")
    except OSError as error:
        raise SettingsError(error.strerror or str(error), path=path) from None


def _annotation_files(folder: Path) -> list[Path]:
    return sorted(path for ending in ANNOTATIONS.values() for path in folder.rglob(f"*{ending}"))


_ADVICE = "Give what `tymbal predict` wrote: .csv, .parquet, .json, .jsonl, .txt, or a folder of .txt files."
