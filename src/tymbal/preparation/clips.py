"""The clips of any source with the lengths that headers tell: what a plan is made of.

The content of a file is checked when it is decoded, once, on its way into the store.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from tymbal.audio.clip_labels import (
    as_events,
    assign_splits,
    group_clips,
    label_clips,
    renamed,
    seed_note,
    split_by_folders,
    split_settings,
)
from tymbal.audio.decode import info
from tymbal.audio.embedded import open_bytes, size_of
from tymbal.audio.failures import Failure, check_reachable, printable
from tymbal.audio.findings import remarked
from tymbal.audio.hub_datasets import keep_header, kept_header
from tymbal.audio.manifest import Clip, Manifest
from tymbal.audio.sources import Listing, read_source
from tymbal.errors import AudioError, SettingsError
from tymbal.progress import counted
from tymbal.settings import FinetuneSettings, PrepareSettings

__all__ = [
    "ADDED",
    "BACKGROUND",
    "Header",
    "Listed",
    "given_labels",
    "list_clips",
    "read_headers",
    "with_background",
]


@dataclass(frozen=True)
class Listed:
    """Clips before they are decoded.

    Attributes:
        clips: Those whose file could be opened, with labels, groups and splits.
        lengths: Seconds of each file.
        failures: Files that could not be opened.
        added: Files that came into the source after the preparation was begun, which go on without them.
        notes: Remarks for the user about how the source was read.
    """

    clips: list[Clip]
    lengths: dict[str, float]
    failures: list[Failure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    added: list[Failure] = field(default_factory=list)

    @property
    def files(self) -> set[str]:
        """All files of the preparation, failed ones included."""
        return {clip.file for clip in self.clips} | {failure.file for failure in self.failures}


def list_clips(
    source: str | os.PathLike[str] | Manifest | Listing,
    settings: PrepareSettings,
    read_headers: Callable[[Sequence[str]], Iterable[Header | Failure]],
    *,
    unopened: Iterable[Failure] = (),
    planned: Collection[str] | None = None,
    added: Collection[str] = (),
) -> Listed:
    """Lists the clips of a source.

    A manifest that a scan wrote is taken as it is, and completed where settings ask for more. Anything else gets
    labels, groups and splits as a scan would give them, but its files are opened for their headers only.

    Args:
        source: A folder, a list, one sound file, or a manifest.
        settings: The sources of labels, groups and splits.
        read_headers: Reads the headers of files, in any order.
        unopened: Failures of files that stay left out, whatever their headers say now: a plan without them was begun.
        planned: The files of a plan that was begun. Where all of them are still in the source, others are left out.
        added: Files that were left out so when the plan was finished.

    Raises:
        AudioError: Many files, or all, cannot be reached, as if a disk or share were away.
        ManifestError: The source cannot be read or contradicts itself.
        SettingsError: A setting does not fit the source.
    """
    manifest = _scanned(source, settings)
    if manifest is not None:
        clips, later = _as_planned(manifest.clips, planned, added)
        clips, notes = _completed(replace(manifest, clips=tuple(clips)), settings)
        notes += seed_note(manifest.clips, settings)
        notes += _about_rates(settings, [clip.sample_rate for clip in clips if clip.sample_rate])
        return Listed(clips, _file_lengths(manifest), notes=[*notes, *_staying(later)], added=later)
    listing = read_source(
        source,
        label_csv=settings.label_csv,
        label_separator=settings.label_separator,
        columns=settings.their_columns,
    )
    clips, later = _as_planned(listing.clips, planned, added, unopened)
    clips, label_notes = label_clips(clips, settings, labelled=listing.labelled)
    clips = renamed(clips, settings.new_names)
    if settings.annotations == "events":
        clips = as_events(clips)
    clips, group_notes = group_clips(clips, settings)
    clips = split_by_folders(clips)
    files = list(dict.fromkeys(clip.file for clip in clips))
    headers: dict[str, Header] = {}
    failures: dict[str, Failure] = {}
    for header in read_headers(files):
        if isinstance(header, Header):
            headers[header.file] = header
        else:
            failures[header.file] = header
    check_reachable(list(failures.values()), len(files), force=settings.force)
    stay = {failure.file: failure for failure in unopened if failure.file in headers}
    failures |= stay
    headers = {file: header for file, header in headers.items() if file not in stay}
    remarks: dict[str, list[str]] = {}
    for file, header in headers.items():
        for remark in header.remarks:
            remarks.setdefault(remark, []).append(file)
    good = [clip for clip in clips if clip.file in headers]
    return Listed(
        clips=_split(good, headers, settings),
        lengths={file: header.seconds for file, header in headers.items()},
        failures=[*listing.failures, *(failures[name] for name in map(printable, files) if name in failures)],
        notes=[
            *listing.notes,
            *label_notes,
            *group_notes,
            *seed_note(clips, settings),
            *remarked(remarks),
            *_about_rates(settings, [header.rate for header in headers.values()]),
            *_staying([*stay.values(), *later]),
        ],
        added=later,
    )


def _about_rates(settings: PrepareSettings, rates: Sequence[int]) -> list[str]:
    remark = settings.remark_on(rates)
    return [] if remark is None else [remark]


ADDED = "added after this was begun"
"""The reason of files that a plan goes on without."""


def _as_planned(
    clips: Sequence[Clip],
    planned: Collection[str] | None,
    added: Collection[str],
    unopened: Iterable[Failure] = (),
) -> tuple[list[Clip], list[Failure]]:
    """The clips of a plan that was begun, if all its files are there, and the files that came later."""
    files = dict.fromkeys(printable(clip.file) for clip in clips)
    later = {file for file in files if file in added}
    # A folder that could not be looked into is no longer one of the files.
    if planned is not None and set(planned) - {failure.file for failure in unopened} <= files.keys():
        later |= files.keys() - set(planned)
    failures = [Failure(file, ADDED, "A new output folder would have it.") for file in files if file in later]
    return [clip for clip in clips if printable(clip.file) not in later], failures


def _staying(failures: Sequence[Failure]) -> list[str]:
    """The remark on files that a plan was begun without, and that could be used now."""
    names = sorted(failure.file for failure in failures)
    if not names:
        return []
    return [
        "Still left out, since it could not be opened when this was begun or came later: "
        f"{counted(len(names), 'file')}, as {names[0]}. A new output folder would have it."
    ]


BACKGROUND = "background"
"""The label of clips in which nothing is to be found."""


def with_background(source: str | os.PathLike[str] | Listing, folder: Path, settings: FinetuneSettings) -> Listing:
    """The clips of a source with their labels, and those of a folder of background behind them.

    Raises:
        ManifestError: One of them cannot be read.
        SettingsError: The source has clips of that label already.
    """
    read = read_source(source, label_csv=settings.label_csv, label_separator=settings.label_separator)
    clips, notes = label_clips(read.clips, PrepareSettings(), labelled=read.labelled)
    if any(BACKGROUND in clip.labels for clip in clips):
        raise SettingsError(
            f"the clips have the label {BACKGROUND} already",
            advice="Leave background out: they are learned as any other class.",
        )
    other = read_source(folder)
    silent = [clip.but(labels=(BACKGROUND,), split=None, id=Path(clip.file).as_posix()) for clip in other.clips]
    return Listing(
        [*split_by_folders(clips), *silent],
        read.root,
        labelled=True,
        notes=[*read.notes, *notes],
        failures=[*read.failures, *other.failures],
    )


def given_labels(source: str | os.PathLike[str] | Manifest, settings: PrepareSettings) -> dict[str | None, set[str]]:
    """Labels by the split that the source itself gives to their clips (None: no split), before a file is opened.

    Raises:
        ManifestError: As `list_clips`.
    """
    clips: Iterable[Clip] | None = _scanned(source, settings)
    if clips is None:
        listing = read_source(
            source,
            label_csv=settings.label_csv,
            label_separator=settings.label_separator,
            columns=settings.their_columns,
        )
        named = renamed(label_clips(listing.clips, settings, labelled=listing.labelled)[0], settings.new_names)
        clips = split_by_folders(named)
    labels: dict[str | None, set[str]] = {}
    for clip in clips:
        labels.setdefault(clip.split, set()).update(clip.labels)
    return labels


def _scanned(source: str | os.PathLike[str] | Manifest | Listing, settings: PrepareSettings) -> Manifest | None:
    if isinstance(source, Listing) or settings.annotations == "events":
        return None
    if isinstance(source, Manifest):
        manifest = source
    elif Path(source).suffix.lower() in (".csv", ".parquet") and Path(source).is_file():
        manifest = Manifest.read(source, label_separator=settings.label_separator)
    else:
        return None
    return manifest if len(manifest) and manifest.scanned else None


def _completed(manifest: Manifest, settings: PrepareSettings) -> tuple[list[Clip], list[str]]:
    """The clips of a scanned manifest, with what settings say where its columns are empty, and remarks."""
    clips = read_source(manifest, label_csv=settings.label_csv, label_separator=settings.label_separator).clips
    clips = renamed(clips, settings.new_names)
    notes: list[str] = []
    if settings.label_pattern is not None or settings.labels in ("folder", "none"):
        clips, notes = label_clips(clips, settings, labelled=True)
    clips, group_notes = group_clips(clips, settings)
    notes += group_notes
    if settings.split != "auto" or split_settings(settings):
        clips = assign_splits(clips, settings)
    elif not any(clip.split for clip in clips):
        notes.append(
            "the manifest gives no split, so none is made: --split groups, --split clips or --validation makes one"
        )
    return clips, notes


def _file_lengths(manifest: Manifest) -> dict[str, float]:
    """Seconds of each file that its clips cover; nothing behind that is needed."""
    lengths: dict[str, float] = {}
    for clip in manifest:
        reach = clip.start + (clip.duration or 0.0)
        lengths[clip.file] = max(lengths.get(clip.file, 0.0), reach)
    return lengths


def _split(clips: list[Clip], headers: dict[str, Header], settings: PrepareSettings) -> list[Clip]:
    """Splits, keeping files with the same bytes on one side."""
    if not clips:
        return []
    marked = [clip.but(hash=clip.hash or headers[clip.file].fingerprint) for clip in clips]
    split = assign_splits(marked, settings)
    return [clip.but(split=side.split) for clip, side in zip(clips, split, strict=True)]


_ENDS = 1 << 14


@dataclass(frozen=True)
class Header:
    """A file of which only the header and a fingerprint were read.

    Attributes:
        file: Its path.
        seconds: Its length.
        fingerprint: Hash of its size, first and last 16 KiB: files with the same bytes have the same one.
        remarks: What is unusual about it although nothing is lost.
        rate: Its sample rate in Hz.
    """

    file: str
    seconds: float
    fingerprint: str
    remarks: tuple[str, ...] = ()
    rate: int = 0


def read_headers(files: Sequence[str]) -> list[Header | Failure]:
    """Reads headers; what is wrong with a file is returned in its place."""
    return [_read(file) for file in files]


def _read(file: str) -> Header | Failure:
    known = kept_header(file)
    if known is not None:
        return Header(file, known["seconds"], known["fingerprint"], tuple(known["remarks"]), known["rate"])
    try:
        found = info(file)
        header = Header(file, found.duration, _fingerprint(file), found.remarks, found.sample_rate)
    except AudioError as error:
        return Failure.of(error, file)
    except OSError as error:
        return Failure(file, f"unreadable: {error.strerror or error}", "Check its permissions and the disk.")
    keep_header(file, asdict(header))
    return header


def _fingerprint(file: str) -> str:
    path = Path(file)
    with open_bytes(path) as opened:
        size = size_of(path)
        digest = hashlib.blake2b(str(size).encode(), digest_size=8)
        digest.update(opened.read(_ENDS))
        if size > _ENDS:
            opened.seek(max(size - _ENDS, _ENDS))
            digest.update(opened.read(_ENDS))
        return digest.hexdigest()
