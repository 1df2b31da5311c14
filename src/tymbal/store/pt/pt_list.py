"""Lists `.pt` files and what is known of each, from SSAST's lists or from a folder.

A list is SSAST's `{"data": [{"wav", "labels"}]}`, or any other table of clips that `tymbal.audio.file_lists` reads. An
entry's file name without its ending is the stem, and `{data_dir}/{stem}.pt` its spectrogram. Where `data_dir` is not
given, it is the first of these that holds any of the list's files:

    train/ beside train.json, precomputed/train/, precomputed/, the folder of train.json

A folder is searched for `.pt` files at any depth. Folders train, validation and test in it are the splits; folders one
deep below are classes, if there are at least two. Where lists with the names of splits lie in it (train.json, val.json,
…), or spectrograms.json, the folder is what they say.

Lists that `tymbal convert` wrote carry more, which SSAST does not look at: see `Header`.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tymbal.audio.clip_labels import assign_splits
from tymbal.audio.file_lists import Row, Table, names_of, number, read_label_names, read_table, text
from tymbal.audio.manifest import SPLITS, Clip
from tymbal.errors import ManifestError, SettingsError, StoreError
from tymbal.files import parse_json
from tymbal.progress import tell
from tymbal.settings import FeatureSettings, PtSettings, ScanSettings

__all__ = ["HEADER", "UNSPLIT", "Header", "PtFile", "PtListing", "files_beside", "list_pt", "pt_files", "stem_of"]

HEADER = "tymbal"
"""The key beside `data` under which a list carries what SSAST does not know."""

UNSPLIT = "spectrograms.json"
"""The list of a folder whose clips have no split."""

_ENDING = ".pt"


class PtFile(NamedTuple):  # a third of the time of a dataclass, which two million of them take
    """A `.pt` file and the clip whose spectrogram it holds.

    Attributes:
        path: The file.
        id: Stable name of the clip.
        source: The sound file, as the list calls it; the `.pt` file without a list.
        start: Seconds of the sound file at which the clip begins.
        end: Seconds at which it ends; None is not known.
        labels: Names of its labels.
        group: Name of the group, which must stay on one side of a split.
        split: train, validation, test, or None.
    """

    path: str
    id: str
    source: str
    start: float = 0.0
    end: float | None = None
    labels: tuple[str, ...] = ()
    group: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class Header:
    """The description of all spectrograms in a list that Tymbal wrote.

    Attributes:
        features: How they were computed.
        frames: Frames of the store that they come from.
        mels: Mel bins.
        mean: Its mean.
        std: Its standard deviation.
        padding: Log-mel value behind the end of short ones.
        label_csv: SSAST's table of labels, relative to the list.
        layout: The order of a file's axes, so that square ones are read right.
    """

    features: FeatureSettings | None = None
    frames: int | None = None
    mels: int | None = None
    mean: float | None = None
    std: float | None = None
    padding: float | None = None
    label_csv: str | None = None
    layout: str = "auto"


@dataclass(frozen=True)
class PtListing:
    """The files of a data set, before any of them is opened.

    Attributes:
        path: The list or the folder.
        files: The files, in order.
        header: The header of a list that Tymbal wrote.
        label_names: Names of all labels in the order of the label table, if any.
    """

    path: Path
    files: tuple[PtFile, ...]
    header: Header = field(default_factory=Header)
    label_names: tuple[str, ...] | None = None


def list_pt(
    source: str | os.PathLike[str],
    *,
    data_dir: str | os.PathLike[str] | None = None,
    validation: str | os.PathLike[str] | None = None,
    data_val_dir: str | os.PathLike[str] | None = None,
    label_csv: str | os.PathLike[str] | None = None,
    label_separator: str | None = None,
    validation_fraction: float = 0.0,
) -> PtListing:
    """Lists the `.pt` files of a list or a folder.

    Args:
        source: A list, or a folder.
        data_dir: Folder of the list's files. None looks beside the list.
        validation: List, or folder, of the clips to validate on.
        data_val_dir: Folder of their files. None looks in `data_dir`, then beside the list.
        label_csv: SSAST's `index,mid,display_name` table. Labels of the list are mids then, and become names.
        label_separator: What stands between labels in one text of a list. None tells it from the labels.
        validation_fraction: Fraction of the clips that is drawn for validation where nothing says which.

    Raises:
        ManifestError: A list cannot be read, lists nothing, or has two entries with one stem.
        StoreError: There is no such folder, or no `.pt` file in it.
        SettingsError: Settings do not go together.
    """
    path = Path(source)
    if not path.exists():
        raise StoreError("there is no such list or folder of .pt files", path=path, advice="Check the path.")
    parts = _parts(path, validation, data_val_dir)
    if path.is_dir() and data_dir is not None and parts[0][1] == path:
        raise SettingsError(
            f"data_dir goes with a list, but {path} is a folder", advice="Give the list, or leave data_dir out."
        )
    header = Header()
    files: list[PtFile] = []
    for split, part in parts:
        if part.is_dir():
            files += _folder(part, split)
            continue
        table = read_table(part, label_separator=label_separator)
        for note in table.notes:
            tell(note)
        given = (data_val_dir, data_dir) if split == "validation" else (data_dir, None)
        listed = _listed(table, _data_folder(table, *given).absolute(), split)
        recorded, sources = _recorded(part)
        header = recorded if header == Header() else header
        for index, name in sources.items():
            listed[index] = listed[index]._replace(source=name)
        files += listed
    names = None
    if label_csv is None and header.label_csv is not None:
        label_csv = (path if path.is_dir() else path.parent) / header.label_csv
    if label_csv is not None:
        files, names = _named(files, label_csv)
    _warn_of_overlap(files)
    if validation_fraction > 0:
        files = _drawn(files, validation_fraction)
    return PtListing(path, tuple(files), header, names)


def files_beside(table: Table) -> Path | None:
    """The folder beside a list that holds any of its `.pt` files; None if none does."""
    return _first_with_any(_candidates(table.path), table)


def pt_files(folder: Path) -> Iterator[str]:
    """All `.pt` files below a folder, without hidden ones."""
    visited = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in visited:  # a link to a folder above
            folders.clear()
            continue
        visited.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if name.endswith(_ENDING) and not name.startswith("."):
                yield os.path.join(place, name)  # noqa: PTH118 - a hundred thousand of them


def stem_of(name: str) -> str:
    """The name of a file without its folders, on whatever system, and without its ending."""
    return os.path.splitext(re.split(r"[\\/]", name)[-1])[0]  # noqa: PTH122 - a hundred thousand of them


def _parts(
    path: Path, validation: str | os.PathLike[str] | None, data_val_dir: str | os.PathLike[str] | None
) -> list[tuple[str | None, Path]]:
    """Lists and folders with the split that each stands for."""
    if validation is not None:
        return [("train", path), ("validation", Path(validation))]
    if not path.is_dir():
        return [(None, path)]
    if data_val_dir is not None:
        return [("train", path), ("validation", Path(data_val_dir))]
    lists = [(split, path / f"{name}.json") for name, split in SPLITS.items()]
    existing: list[tuple[str | None, Path]] = [(split, file) for split, file in lists if file.is_file()]
    if (path / UNSPLIT).is_file():
        existing.append((None, path / UNSPLIT))
    existing = [(split, file) for split, file in existing if files_beside(read_table(file)) is not None]
    return existing or [(None, path)]


def _listed(table: Table, folder: Path, split: str | None) -> list[PtFile]:
    """The files of a list."""
    path = table.path
    by_stem: dict[str, tuple[int, str]] = {}
    again: list[str] = []
    files = []
    for index, row in enumerate(table.rows, 1):
        name = text(row["file"])
        if name is None:
            raise ManifestError(f"entry {index} names no file", path=path, advice="Fill it in, or delete the entry.")
        stem = stem_of(name)
        if stem in by_stem and by_stem[stem][1] == name:
            again.append(name)
        elif stem in by_stem:
            first, other = by_stem[stem]
            raise ManifestError(
                f"entries {first} ({other}) and {index} ({name}) have one stem: both would be {stem}{_ENDING}",
                path=path,
                advice="Rename one of them and its .pt file, or take it off the list.",
            )
        by_stem[stem] = (index, name)
        files.append(
            PtFile(
                path=os.path.join(folder, stem + _ENDING),  # noqa: PTH118 - a hundred thousand of them
                id=text(row.get("id")) or name,
                source=name,
                start=number(row.get("start"), column="start", row=index, path=path) or 0.0,
                end=number(row.get("end"), column="end", row=index, path=path),
                labels=names_of(row.get("label"), table.label_separator),
                group=text(row.get("group")),
                split=_split(row, index, path) or split,
            )
        )
    if again:
        # Merged lists and oversampling have them.
        tell(f"{path.name}: entries that stand there already count again: {len(again):,}, as {again[0]}")
    return files


def _split(row: Row, index: int, path: Path) -> str | None:
    split = text(row.get("split"))
    if split is not None and split.lower() not in SPLITS:
        raise ManifestError(
            f"split in entry {index} is {split!r}", path=path, advice=f"One of {', '.join(SPLITS)}, or empty."
        )
    return None if split is None else SPLITS[split.lower()]


def _folder(path: Path, split: str | None) -> list[PtFile]:
    """The files of a folder, with splits and classes as its folders say."""
    if not path.is_dir():
        raise StoreError("there is no such folder", path=path, advice="Check the path.")
    path = path.absolute()
    places = sorted(Path(file).relative_to(path) for file in pt_files(path))
    if not places:
        raise StoreError("there is no .pt file in this folder", path=path, advice="Check the path.")
    splits = [SPLITS.get(place.parts[0].lower()) if len(place.parts) > 1 else None for place in places]
    inside = [place.parts[1:] if part_split else place.parts for place, part_split in zip(places, splits, strict=True)]
    classes = {parts[0] for parts in inside if len(parts) == 2}
    classed = len(classes) > 1 and all(len(parts) == 2 for parts in inside)
    return [
        PtFile(
            path=str(path / place),
            id=place.as_posix(),
            source=str(path / place),
            labels=(parts[0],) if classed else (),
            split=split or part_split,
        )
        for place, part_split, parts in zip(places, splits, inside, strict=True)
    ]


def _data_folder(table: Table, own: str | os.PathLike[str] | None, other: str | os.PathLike[str] | None) -> Path:
    """The folder of a list's files: its own or another list's, if given, else one beside the list."""
    folders = [Path(folder) for folder in (own, other) if folder is not None]
    for folder in folders:
        if not folder.is_dir():
            raise StoreError("there is no such folder of .pt files", path=folder, advice="Check data_dir.")
    match = _first_with_any(folders, table)
    if match is None and own is not None:
        return folders[0]  # every file will be named as missing from it
    match = match or files_beside(table) or next(iter(folders), None)
    if match is None:
        places = ", ".join(str(folder) for folder in _candidates(table.path))
        raise StoreError(
            "none of the list's .pt files lies beside it", path=table.path, advice=f"Give data_dir. Looked in {places}."
        )
    return match


def _candidates(path: Path) -> list[Path]:
    """Folders that may hold the files of a list, best first."""
    beside = path.parent
    return [beside / path.stem, beside / "precomputed" / path.stem, beside / "precomputed", beside]


def _first_with_any(folders: Iterable[Path], table: Table) -> Path | None:
    """The first folder that holds the file of any entry."""
    names = (text(row["file"]) for row in table.rows)
    file_names = {stem_of(name) + _ENDING for name in names if name is not None}
    for folder in folders:
        try:
            with os.scandir(folder) as entries:
                if any(entry.name in file_names for entry in entries):
                    return folder
        except OSError:
            continue
    return None


def _recorded(path: Path) -> tuple[Header, dict[int, str]]:
    """Reads a list of ours: its header, and sound files whose names are not those of their `.pt` files."""
    if path.suffix.lower() != ".json":
        return Header(), {}
    content = parse_json(path.read_text(encoding="utf-8-sig"))
    recorded = content.get(HEADER) if isinstance(content, Mapping) else None
    if not isinstance(recorded, Mapping):
        return Header(), {}
    sources = {index: str(entry["source"]) for index, entry in enumerate(content["data"]) if "source" in entry}
    try:
        features = None if recorded.get("features") is None else FeatureSettings(**recorded["features"])
        return Header(**{**recorded, "features": features}), sources
    except (TypeError, SettingsError) as error:
        raise ManifestError(
            f"what it says under {HEADER!r} is damaged: {error}", path=path, advice="Convert the store again."
        ) from error


def _named(files: Sequence[PtFile], table: str | os.PathLike[str]) -> tuple[list[PtFile], tuple[str, ...]]:
    """Files with the names of their labels, and the names of all labels of the table, in its order."""
    names = read_label_names(table)
    if len(set(names.values())) < len(names):  # then a name does not tell which class it is
        names = {mid: mid for mid in names}
    known = names.keys() | set(names.values())
    unknown = sorted({label for file in files for label in file.labels} - known)
    if unknown:
        raise ManifestError(
            f"{len(unknown)} labels of the list are not in this table, as {unknown[0]}",
            path=table,
            advice="Give the label_csv that belongs to the list.",
        )
    named = [file._replace(labels=tuple(names.get(label, label) for label in file.labels)) for file in files]
    return named, tuple(names.values())


def _warn_of_overlap(files: Sequence[PtFile]) -> None:
    sides: dict[str, set[str | None]] = {}
    for file in files:
        sides.setdefault(file.path, set()).add(file.split)
    both = [path for path, splits in sides.items() if {"train", "validation"} <= splits]
    if both:
        tell(f"Files that are in training and in validation: {len(both):,}, as {both[0]}", warning=True)


def _drawn(files: Sequence[PtFile], fraction: float) -> list[PtFile]:
    """The files with a split each; unless some are for validation, drawn by their names as in `prepare`."""
    if any(file.split == "validation" for file in files):
        if fraction != PtSettings.validation:
            tell(f"validation={fraction:g} has no effect: other files are for validation already", warning=True)
        return [file._replace(split=file.split or "train") for file in files]
    names = Counter(file.id for file in files)
    ids = [file.id if names[file.id] == 1 else file.path for file in files]
    clips = [Clip(file.path, group=file.group, split=file.split, id=id_) for file, id_ in zip(files, ids, strict=True)]
    assigned = assign_splits(clips, ScanSettings(validation=fraction))
    return [file._replace(split=clip.split) for file, clip in zip(files, assigned, strict=True)]
