"""Lists clips of a folder, a list, one sound file or a manifest, and the recordings that a user names.

Folders are searched to any depth for files with the suffix of a sound, in any case; what is hidden is ignored. A folder
with Hugging Face's `metadata.csv` (or `.jsonl`, `.parquet`; column `file_name`) is read as that says; one without sound
files, but with Parquet tables that hold sounds, is the rows of these. Lists are those of `tymbal.audio.file_lists`,
among them SSAST's JSON with its label table; a data set on the Hub becomes such a list.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar, cast

from tymbal.audio.embedded import has_sounds, stamp_of
from tymbal.audio.failures import Failure
from tymbal.audio.file_lists import TABLE_SUFFIXES, Table, labels_at, read_label_names, read_table
from tymbal.audio.hub_datasets import (
    HubDataset,
    chosen_files,
    commit_in,
    is_hub_dataset,
    is_hub_list,
    tables_of,
    write_list,
)
from tymbal.audio.manifest import SPLITS, Clip, Manifest, place, relative_path
from tymbal.errors import AudioError, ManifestError
from tymbal.files import address
from tymbal.progress import tell

__all__ = ["AUDIO_SUFFIXES", "Listing", "Recording", "find_recordings", "located", "read_source", "sound_files"]

Source = TypeVar("Source")

# fmt: off
AUDIO_SUFFIXES = frozenset((
    ".wav", ".wave", ".rf64", ".bwf", ".w64", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".mp2", ".aif", ".aiff",
    ".aifc", ".au", ".snd", ".caf", ".m4a", ".m4b", ".mp4", ".aac", ".amr", ".3gp", ".wma", ".webm", ".mka", ".ape",
    ".wv", ".tta", ".ac3",
))
# fmt: on
"""Suffixes by which a folder's sound files are known."""

_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


@dataclass(frozen=True)
class Listing:
    """The clips of a source, before any file is opened.

    Attributes:
        clips: The clips, with the labels, groups and splits that columns give.
        root: The folder that ids are relative to.
        labelled: Whether a column gives labels.
        notes: Remarks for the user about how the source was read.
        failures: Folders that could not be looked into.
    """

    clips: list[Clip]
    root: Path
    labelled: bool = False
    notes: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


def read_source(
    source: str | os.PathLike[str] | Manifest | Listing,
    *,
    label_csv: str | None = None,
    label_separator: str | None = None,
    keep_repeats: bool = False,
    columns: Mapping[str, str] | None = None,
) -> Listing:
    """Lists the clips of a folder, a list, one sound file, a manifest, or a data set on the Hub.

    Args:
        source: One of these, or what this function has given.
        label_csv: SSAST's `index,mid,display_name` table; labels that are mids become display names.
        label_separator: What stands between labels in one text of a list. None tells it from the labels.
        keep_repeats: Let entries of a list that stand there already count again, instead of merging their labels.
        columns: What columns of a list are called, by Tymbal's names, where that differs from what is understood.

    Raises:
        ManifestError: There is no such source, it is unreadable, or it lists nothing.
    """
    source = located(source, columns=columns)
    if is_hub_list(source):
        columns = None
    if isinstance(source, Listing):
        listing = source
    elif isinstance(source, Manifest):
        listing = Listing(list(source.clips), source.root, any(clip.labels for clip in source))
    else:
        path = Path(os.path.abspath(os.path.expanduser(source)))  # noqa: PTH100, PTH111 - links keep their names
        path = labels_at(path) or path
        if not os.path.exists(path):  # noqa: PTH110 - False of what cannot be a path
            raise ManifestError("there is no such folder or list", path=source, advice=_where_sound_is(source))
        if path.is_dir():
            listing = _folder(path, label_separator, columns)
            if label_separator is not None and not listing.labelled:
                listing.notes.append("label_separator has no effect: it is for the cells of lists")
        elif path.suffix.lower() in AUDIO_SUFFIXES:
            listing = Listing([_whole_file(str(path), path.parent)], path.parent)
        else:
            table = read_table(path, label_separator=label_separator, columns=columns)
            manifest = Manifest.of(table, keep_repeats=keep_repeats)
            notes = _notes(table)
            repeats = len(manifest) - len({(clip.file, clip.start, clip.end) for clip in manifest})
            if repeats:
                notes.append(f"{path.name}: entries that stand there already count again: {repeats:,}")
            listing = Listing(list(manifest), manifest.root, "label" in table.columns, notes)
    return listing if label_csv is None else _named(listing, label_csv)


def located(source: Source, recorded: str | None = None, *, columns: Mapping[str, str] | None = None) -> Source | Path:
    """A source as every verb can read it: a data set on the Hub as the list of its clips, any other as it is.

    Args:
        source: The source.
        recorded: The source that was recorded when this was begun: of the same data set, its commit stays.
        columns: What columns are called there, by Tymbal's names.

    Raises:
        ManifestError: The Hub has no such data set, or cannot be reached, or it holds no sounds.
    """
    if not is_hub_dataset(source):
        return source
    dataset = replace(HubDataset.parse(cast(Path, source)), columns=tuple(sorted((columns or {}).items())))
    commit = commit_in(recorded, dataset)
    if commit is not None and dataset.revision in (None, commit) and dataset.list_at(commit).is_file():
        return dataset.list_at(commit)
    root, files = chosen_files(dataset, recorded)
    splits = {path: canonical_split(split) for path, split in files}
    tables = [path for path in splits if path.suffix == ".parquet" and has_sounds(path)]
    if tables:
        listing = listing_of(root, [(read_table(path, columns=columns), splits[path]) for path in tables])
    else:
        sounds = [str(path) for path in splits if path.suffix.lower() in AUDIO_SUFFIXES]
        lists = [read_table(path, columns=columns) for path in tables_of(files)]
        listing = _audio_folder(root, sounds, lists) if lists else Listing([_whole_file(s, root) for s in sounds], root)
        clips = [clip if clip.split else clip.but(split=splits.get(Path(clip.file))) for clip in listing.clips]
        listing = replace(listing, clips=clips)
    if not listing.clips:
        raise ManifestError(
            f"{dataset} holds no sounds that can be read",
            advice="It must have Parquet tables with a column of sounds, or sound files.",
        )
    for note in listing.notes:
        tell(note, warning=True)
    return write_list(dataset, root, listing.clips, labelled=listing.labelled)


def canonical_split(name: str | None) -> str | None:
    """What a split is called here: `test` for `test_5s`; None where it is none of the three."""
    begin = re.split(r"[-_.]", (name or "").lower(), maxsplit=1)[0]
    return SPLITS.get(begin)


def sound_files(folder: Path) -> tuple[list[str], list[Failure]]:
    """Paths of all sound files below a folder, sorted, and the folders that could not be looked into.

    Hidden files and folders are passed over; links are followed.
    """
    failures: list[Failure] = []
    return sorted(_walk(folder, set(), failures)), failures


def _walk(folder: Path, visited: set[str], failures: list[Failure]) -> Iterator[str]:
    real = os.path.realpath(folder)
    if real in visited:  # a link to a folder above
        return
    visited.add(real)
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        reason = f"unreadable: this folder cannot be looked into ({error.strerror or error})"
        failures.append(Failure(str(folder), reason, "Check its permissions."))
        return
    for entry in entries:
        if entry.name.startswith(".") or entry.name == "__MACOSX":
            continue
        try:
            is_folder = entry.is_dir()
        except OSError as error:  # a link to itself
            reason = f"unreadable: it cannot be looked at ({error.strerror or error})"
            failures.append(Failure(entry.path, reason, "Correct or delete the link."))
            continue
        if is_folder:
            yield from _walk(Path(entry.path), visited, failures)
        elif os.path.splitext(entry.name)[1].lower() in AUDIO_SUFFIXES:  # noqa: PTH122 - ten times faster than Path
            yield entry.path


def _whole_file(file: str, root: Path) -> Clip:
    return Clip(file, id=relative_path(file, root))


def _folder(root: Path, label_separator: str | None, columns: Mapping[str, str] | None) -> Listing:
    files, failures = sound_files(root)
    tables, notes = _metadata(root, label_separator, columns)
    if tables:
        return replace(_audio_folder(root, files, tables), failures=failures)
    if not files:
        embedded = _embedded(root, label_separator, columns)
        if embedded is not None:
            return replace(embedded, failures=failures, notes=[*notes, *embedded.notes])
        raise ManifestError(
            "no sound files in this folder",
            path=root,
            advice=f"Looked for {' '.join(sorted(AUDIO_SUFFIXES))}, and for Parquet tables with sounds, at any depth.",
        )
    return Listing([_whole_file(file, root) for file in files], root, notes=notes, failures=failures)


def _embedded(root: Path, label_separator: str | None, columns: Mapping[str, str] | None) -> Listing | None:
    """The rows of all tables below a folder that hold sounds; None without one."""
    tables = [path for path in sorted(root.rglob("*.parquet")) if not path.name.startswith(".")]
    sounds = [path for path in tables if has_sounds(path)]
    listed = [(path, read_table(path, label_separator=label_separator, columns=columns)) for path in sounds]
    return listing_of(root, [(table, split_of(path, root)) for path, table in listed]) if listed else None


def listing_of(root: Path, tables: Sequence[tuple[Table, str | None]]) -> Listing:
    """The clips of several tables, each with a split for rows that have none of their own.

    Raises:
        ManifestError: A table contradicts itself.
    """
    clips = [
        clip if clip.split else clip.but(split=split) for table, split in tables for clip in Manifest.of(table, root)
    ]
    notes = list(dict.fromkeys(note for table, _ in tables for note in _notes(table)))
    return Listing(clips, root, any("label" in table.columns for table, _ in tables), notes)


def split_of(path: Path, root: Path) -> str | None:
    """The split that the name of a file tells (`train-00000-of-00002.parquet`), else a folder that it lies in."""
    names = (path.stem, *reversed(path.relative_to(root).parts[:-1]))
    return next((split for name in names if (split := canonical_split(name)) is not None), None)


def _metadata(
    root: Path, label_separator: str | None, columns: Mapping[str, str] | None
) -> tuple[list[Table], list[str]]:
    """The metadata tables of a Hugging Face AudioFolder: in the folder itself, or in its split folders."""
    folders = [root, *(entry for entry in sorted(root.iterdir()) if entry.is_dir() and entry.name.lower() in SPLITS)]
    paths = [folder / name for folder in folders for name in _METADATA if (folder / name).is_file()]
    tables, notes = [], []
    for path in paths:
        if path.suffix != ".parquet" and "file_name" not in path.read_text(encoding="utf-8", errors="replace")[:4096]:
            # Many data sets have some metadata.csv of their own.
            notes.append(f"{relative_path(str(path), root)} was not read: it has no column file_name")
            continue
        tables.append(read_table(path, label_separator=label_separator, columns=columns))
    return tables, notes


def _audio_folder(root: Path, files: list[str], tables: list[Table]) -> Listing:
    clips: list[Clip] = []
    for table in tables:
        split = None if table.path.parent == root else SPLITS[table.path.parent.name.lower()]
        clips += [clip if clip.split else replace(clip, split=split) for clip in Manifest.of(table, root)]
    notes = [note for table in tables for note in _notes(table)]
    unlisted = set(files) - {clip.file for clip in clips}
    if unlisted:
        some = relative_path(min(unlisted), root)
        notes.append(
            f"sound files that {tables[0].path.name} does not list were left out: {len(unlisted):,}, as {some}"
        )
    return Listing(clips, root, any("label" in table.columns for table in tables), notes)


def _notes(table: Table) -> list[str]:
    if not table.ignored:
        return list(table.notes)
    ignored = f"{table.path.name}: columns without a meaning here were ignored: {', '.join(table.ignored)}"
    return [ignored, *table.notes]


def _named(listing: Listing, label_csv: str) -> Listing:
    names = read_label_names(label_csv)
    if not any(clip.labels for clip in listing.clips):
        note = "label_csv names no label here: it is for lists whose labels are mids"
        return replace(listing, notes=[*listing.notes, note])
    unknown = sorted({label for clip in listing.clips for label in clip.labels} - names.keys() - set(names.values()))
    if unknown:
        raise ManifestError(
            f"{len(unknown)} labels of the list are not in this table, as {unknown[0]}",
            path=label_csv,
            advice="Give the label_csv that belongs to the list.",
        )
    clips = [replace(clip, labels=tuple(names.get(label, label) for label in clip.labels)) for clip in listing.clips]
    return replace(listing, clips=clips)


@dataclass(frozen=True)
class Recording:
    """A sound file to read.

    Attributes:
        path: Its path, as the user gave it.
        place: Its path from the folder that was given; its name, where the file itself was.
    """

    path: Path
    place: str

    @property
    def key(self) -> str:
        """An identifier that no other recording has."""
        return str(self.path)

    def stamp(self) -> tuple[int, int] | None:
        """Size and time of change, which identify a version of the file; None if it does not exist."""
        return stamp_of(self.path)


def find_recordings(files: str | Path | Sequence[str | Path]) -> tuple[list[Recording], list[Failure]]:
    """Lists the requested recordings, each once, and the folders that could not be read.

    They are the files given, and the sound files below the folders given, in order of name; or those of one list.

    Raises:
        AudioError: There are none.
        ManifestError: The list cannot be read.
    """
    paths = [located(path) for path in ([files] if isinstance(files, str | os.PathLike) else files)]
    recordings: dict[Path, Recording] = {}
    failures: list[Failure] = []
    # Among others, as where a shell names all files of a folder, a text is no list.
    if len(paths) == 1 and Path(paths[0]).suffix.lower() in TABLE_SUFFIXES and Path(paths[0]).is_file():
        return _listed(Path(paths[0])), []
    for path in map(Path, paths):
        if path.is_dir():
            inside, closed = sound_files(path)
            failures += closed
            for file in inside:
                recordings.setdefault(Path(file), Recording(Path(file), relative_path(file, path)))
        elif path.suffix.lower() in AUDIO_SUFFIXES or path.exists():
            recordings.setdefault(path, Recording(path, path.name))
        else:
            raise AudioError("there is no such folder or sound file", path=path, advice=_where_sound_is(path))
    if not recordings:
        names = ", ".join(map(str, paths)) or "nothing was given"
        raise AudioError(f"there are no sound files: {names}", advice="Give files, or folders with files.")
    return list(recordings.values()), failures


def _listed(path: Path) -> list[Recording]:
    """The recordings that a list names, each once and whole."""
    clips = list(Manifest.of(read_table(path)))
    if any(clip.start or clip.end is not None for clip in clips):
        tell(f"{path} lists parts of files; whole files are read", warning=True)
    return [Recording(Path(file), name) for file, name in {clip.file: place(clip) for clip in clips}.items()]


def _where_sound_is(path: str | os.PathLike[str]) -> str:
    if address(path) is None:
        return "Check the path."
    return (
        "Sound is read on the machine where it is: copy it here, or prepare a store there. Stores are read elsewhere."
    )
