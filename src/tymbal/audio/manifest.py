"""The manifest: every clip of a data set, in one table that is a CSV or a Parquet file.

A clip is a file or a part of one, with its labels, the group that must stay on one side of a split, and what a scan
measured of it. Columns: file, start, end, label, group, split, duration, sample_rate, channels, hash, id. In a CSV
several labels have `;` between them; in Parquet they are a list. Files below the manifest's folder are written relative
to it, so that both can move together.
"""

from __future__ import annotations

import csv
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath
from typing import Any

from tymbal.audio.file_lists import Row, Table, names_of, number, read_table, text
from tymbal.errors import ManifestError
from tymbal.files import replace_file

__all__ = ["COLUMNS", "SPLITS", "Clip", "Manifest", "clip_id", "place", "relative_path"]

COLUMNS = ("file", "start", "end", "label", "group", "split", "duration", "sample_rate", "channels", "hash", "id")

SPLITS: dict[str, str] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""What the three splits may be called, in a table and as folders."""


@dataclass(frozen=True)
class Clip:
    """A sound file or a part of one.

    Attributes:
        file: Absolute path.
        start: First second of the file that belongs to the clip.
        end: Second before which it ends; None is the end of the file.
        labels: Names of what is heard.
        group: Clips of one group stay on one side of a split.
        split: train, validation, test, or None.
        duration: Seconds of the clip (not of the file).
        sample_rate: The file's sample rate in Hz.
        channels: The file's number of channels.
        hash: Hash of the file's bytes: equal hashes are equal files.
        events: What is heard when, of a recording whose annotations are no clips: begin and end in seconds, and labels.
        id: Name that stays when the whole data set moves: the path relative to the root of its manifest, with
            `#start-end` behind it for a part of a file.
    """

    file: str
    start: float = 0.0
    end: float | None = None
    labels: tuple[str, ...] = ()
    group: str | None = None
    split: str | None = None
    duration: float | None = None
    sample_rate: int | None = None
    channels: int | None = None
    hash: str | None = None
    id: str = ""
    events: tuple[tuple[float, float, tuple[str, ...]], ...] = ()

    def labels_within(self, start: float, end: float) -> tuple[str, ...]:
        """The labels of the clip, and of events that overlap a stretch of it, each once; times are in seconds."""
        heard = (labels for begin, stop, labels in self.events if begin < end and stop > start)
        return tuple(dict.fromkeys((*self.labels, *(label for labels in heard for label in labels))))

    def __post_init__(self) -> None:
        if not self.id:
            object.__setattr__(self, "id", clip_id(self.file, self.start, self.end))

    def but(self, **changes: Any) -> Clip:
        """A copy with other values, the same part of the same file; a tenth of the time of `replace`, for millions."""
        copy = object.__new__(Clip)
        copy.__dict__.update(self.__dict__ | changes)
        return copy


@dataclass(frozen=True)
class Manifest:
    """The clips of a data set.

    Attributes:
        clips: All of them.
        root: The folder that ids are relative to.
    """

    clips: tuple[Clip, ...]
    root: Path

    def __len__(self) -> int:
        return len(self.clips)

    def __iter__(self) -> Iterator[Clip]:
        return iter(self.clips)

    def labels(self) -> list[str]:
        """All label names, sorted."""
        return sorted({label for clip in self.clips for label in clip.labels})

    @property
    def scanned(self) -> bool:
        """Whether every clip was looked at by a scan (its file's hash and the clip's duration are known)."""
        return all(clip.hash is not None and clip.duration is not None for clip in self.clips)

    @classmethod
    def read(cls, path: str | os.PathLike[str], *, label_separator: str | None = None) -> Manifest:
        """Reads a manifest that `write` wrote, or any table that `tymbal.audio.file_lists` understands.

        Args:
            path: The table.
            label_separator: What stands between labels in one text. None tells it from the labels.

        Raises:
            ManifestError: It is unreadable, names no files, or contradicts itself.
        """
        return cls.of(read_table(path, label_separator=label_separator))

    @classmethod
    def of(cls, table: Table, root: Path | None = None, *, keep_repeats: bool = False) -> Manifest:
        """The manifest that a table is; rows of the same clip are merged into one with the labels of all.

        Relative paths begin at the table's folder or, if no such file exists, at the working directory.

        Args:
            table: The rows.
            root: The folder that ids are relative to. None is the table's folder, or the common folder of all files
                where some lie elsewhere.
            keep_repeats: Let each row of the same clip be a clip of its own, with `~2`, `~3`, … behind its id.

        Raises:
            ManifestError: A cell cannot be what its column says, or two rows of a clip contradict each other.
        """
        folder = Path(os.path.abspath(table.path)).parent  # noqa: PTH100 - links keep the user's names
        files = [_file(row, index, table, folder) for index, row in table.numbered()]
        root = root or _common_folder(files, folder)
        clips: dict[tuple[Any, ...], Clip] = {}
        counts: Counter[tuple[Any, ...]] = Counter()
        for file, (index, row) in zip(files, table.numbered(), strict=True):
            clip = _clip(row, file, index, table, root)
            key: tuple[Any, ...] = (clip.file, clip.start, clip.end)
            counts[key] += 1
            if keep_repeats and counts[key] > 1:
                clip = clip.but(id=f"{clip.id}~{counts[key]}")
                key = (*key, counts[key])
            clips[key] = clip if key not in clips else _merged(clips[key], clip, index, table.path)
        return cls(tuple(clips.values()), root)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes a `.csv` or `.parquet` file, whole or not at all.

        Raises:
            ManifestError: The suffix is another one, or a label cannot be written to a CSV.
        """
        path = Path(path)
        folder = path.absolute().parent
        rows = (_row(clip, folder) for clip in self.clips)
        if path.suffix.lower() == ".csv":
            _write_csv(path, rows)
        elif path.suffix.lower() == ".parquet":
            _write_parquet(path, rows)
        else:
            raise ManifestError(
                "a manifest is written as .csv or .parquet", path=path, advice="Give the file one of these suffixes."
            )


def clip_id(path: str, start: float = 0.0, end: float | None = None) -> str:
    """`rain/a.wav` for a whole file, `rain/a.wav#1.5-3` for a part of it."""
    if start == 0 and end is None:
        return path
    return f"{path}#{_seconds(start)}-{'' if end is None else _seconds(end)}"


def place(clip: Clip) -> str:
    """The path of the clip's file: its id without the part of the file."""
    return clip.id if clip.start == 0 and clip.end is None else clip.id.rpartition("#")[0]


def relative_path(file: str, root: Path) -> str:
    """The path of a file from `root`, with forward slashes on every system; the full path if it lies elsewhere."""
    prefix = os.path.join(root, "")  # noqa: PTH118 - of a million files
    if file.startswith(prefix):
        return file[len(prefix) :].replace(os.sep, "/")
    path = Path(file)
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def _file(row: Row, index: int, table: Table, folder: Path) -> str:
    name = text(row["file"])
    if name is None:
        raise ManifestError(f"row {index} names no file", path=table.path, advice="Fill it in, or delete the row.")
    path = Path(os.path.expanduser(name))  # noqa: PTH111 - where nobody has a home, ~ is a name
    forms = [folder / form for form in _forms(path)]
    if not path.is_absolute():
        forms += [Path.cwd() / form for form in _forms(path)]
    # os.path.exists takes what cannot be a path for one that does not exist.
    existing = next((form for form in forms if os.path.exists(form)), None)  # noqa: PTH110
    if existing is None and os.name != "nt" and PureWindowsPath(name).is_absolute():
        return name  # of another machine: no folder here belongs before it
    return os.path.normpath(existing or folder / path)


def _forms(path: Path) -> Iterator[Path]:
    """A path as it may be spelled elsewhere: with backslashes, or with other code points for the same letters."""
    yield path
    for form in ("NFC", "NFD"):
        name = unicodedata.normalize(form, str(path))
        yield Path(name)
        yield Path(name.replace("\\", "/"))


def _common_folder(files: list[str], folder: Path) -> Path:
    if all(file.startswith(f"{folder}{os.sep}") for file in files):
        return folder
    try:
        return Path(os.path.commonpath([os.path.dirname(file) for file in files]))  # noqa: PTH120 - a million files
    except ValueError:  # several drives
        return folder


def _clip(row: Row, file: str, index: int, table: Table, root: Path) -> Clip:
    start = number(row.get("start"), column="start", row=index, path=table.path) or 0.0
    end = number(row.get("end"), column="end", row=index, path=table.path)
    if start < 0 or (end is not None and end <= start):
        raise ManifestError(
            f"row {index} runs from {start:g} to {end if end is None else f'{end:g}'} s",
            path=table.path,
            advice="start is 0 or more, end is behind it; leave both empty for the whole file.",
        )
    split = text(row.get("split"))
    if split is not None and split.lower() not in SPLITS:
        raise ManifestError(
            f"split in row {index} is {split!r}", path=table.path, advice=f"One of {', '.join(SPLITS)}, or empty."
        )
    duration, rate, channels = (
        number(row.get(column), column=column, row=index, path=table.path)
        for column in ("duration", "sample_rate", "channels")
    )
    return Clip(
        file=file,
        start=start,
        end=end,
        labels=names_of(row.get("label"), table.label_separator),
        group=text(row.get("group")),
        split=None if split is None else SPLITS[split.lower()],
        duration=duration,
        sample_rate=None if rate is None else int(rate),
        channels=None if channels is None else int(channels),
        hash=text(row.get("hash")),
        id=_id(row, file, start, end, root),
    )


def _id(row: Row, file: str, start: float, end: float | None, root: Path) -> str:
    # A foreign table's `id` may be anything; beside a hash it is one that a scan wrote.
    own = text(row.get("id")) if text(row.get("hash")) else None
    return own or clip_id(relative_path(file, root), start, end)


def _merged(one: Clip, other: Clip, row: int, path: Path) -> Clip:
    for column in ("group", "split"):
        values = {getattr(one, column), getattr(other, column)} - {None}
        if len(values) > 1:
            raise ManifestError(
                f"row {row} gives {one.id} another {column} than a row before: {' and '.join(sorted(values))}",
                path=path,
                advice=f"A clip has one {column}: correct one of the rows.",
            )
    labels = tuple(dict.fromkeys((*one.labels, *other.labels)))
    return replace(one, labels=labels, group=one.group or other.group, split=one.split or other.split)


def _seconds(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".")


def _row(clip: Clip, folder: Path) -> dict[str, Any]:
    row = {column: getattr(clip, column) for column in COLUMNS if column != "label"}
    row["file"] = relative_path(clip.file, folder)
    row["label"] = list(clip.labels)
    return row


def _write_csv(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with replace_file(path) as aside, aside.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            for label in row["label"]:
                if ";" in label:
                    raise ManifestError(
                        f"the label {label!r} holds a semicolon, which stands between labels in a CSV",
                        path=path,
                        advice="Write a .parquet manifest, or rename the label.",
                    )
            writer.writerow({**row, "label": ";".join(row["label"])})


def _write_parquet(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {
        "start": pa.float64(),
        "end": pa.float64(),
        "label": pa.list_(pa.string()),
        "duration": pa.float64(),
        "sample_rate": pa.int32(),
        "channels": pa.int32(),
    }
    schema = pa.schema([(column, types.get(column, pa.string())) for column in COLUMNS])
    with replace_file(path) as aside:
        pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), aside)
