"""What a clip's path and a recording's header say about it: its label, its group, its split, when it began."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

from tymbal.audio.manifest import SPLITS, Clip, place
from tymbal.errors import ManifestError, SettingsError
from tymbal.settings import ScanSettings

__all__ = ["group_clips", "label_clips", "recorded_at", "split_by_folders", "when"]


def label_clips(clips: Sequence[Clip], settings: ScanSettings, *, labelled: bool) -> tuple[list[Clip], list[str]]:
    """Gives clips their labels, as `labels` and `label_pattern` say.

    Args:
        clips: Clips with the labels of the list's column, if it has one.
        settings: Where labels come from.
        labelled: Whether there is such a column.

    Returns:
        The clips, and what the user should know about them.

    Raises:
        ManifestError: Labels were asked for where there are none.
        SettingsError: `label_pattern` finds nothing in any path.
    """
    if settings.label_pattern is not None:
        found, notes = _found(clips, settings.label_pattern, "label_pattern", "label")
        return [
            clip.but(labels=() if name is None else (name,)) for clip, name in zip(clips, found, strict=True)
        ], notes
    if settings.labels == "none":
        return [clip.but(labels=()) for clip in clips], []
    if settings.labels == "column" and not labelled:
        raise ManifestError("labels are to come from a column, but there is none", advice="Set labels to auto.")
    if labelled and settings.labels != "folder":
        return list(clips), []
    return _by_folder(clips, certain=settings.labels == "folder")


def group_clips(clips: Sequence[Clip], settings: ScanSettings) -> tuple[list[Clip], list[str]]:
    """Gives clips their groups, as `group_pattern` says; without one they keep those of the list's column.

    Raises:
        SettingsError: `group_pattern` finds nothing in any path.
    """
    if settings.group_pattern is None:
        return list(clips), []
    found, notes = _found(clips, settings.group_pattern, "group_pattern", "group")
    return [clip.but(group=name) for clip, name in zip(clips, found, strict=True)], notes


def split_by_folders(clips: Sequence[Clip]) -> list[Clip]:
    """Gives clips the split whose folder (train, val, test, …) they lie in, where all of them lie in such folders."""
    if any(clip.split for clip in clips) or not _in_split_folders(clips):
        return list(clips)
    return [clip.but(split=SPLITS[_folders(clip)[0].lower()]) for clip in clips]


def _folders(clip: Clip) -> list[str]:
    return place(clip).split("/")[:-1]


def _in_split_folders(clips: Sequence[Clip]) -> bool:
    return all((folders := _folders(clip)) and folders[0].lower() in SPLITS for clip in clips)


def _by_folder(clips: Sequence[Clip], *, certain: bool) -> tuple[list[Clip], list[str]]:
    skip = 1 if _in_split_folders(clips) else 0
    folders = [_folders(clip)[skip:] for clip in clips]
    classes = {path[0] for path in folders if path}
    deep = max((len(path) for path in folders), default=0)
    if certain and not classes:
        raise ManifestError("labels are to come from folders, but no file lies in one", advice="Set labels to none.")
    if not certain and (deep > 1 or len(classes) < 2):
        nested = "folders lie in folders, so none was taken for a label: set labels=folder (the outermost) or a pattern"
        return [clip.but(labels=()) for clip in clips], [nested] if deep > 1 else []
    notes = [
        f"the folder {name!r} stands for several labels: {' and '.join(_split(name))}"
        for name in sorted(classes)
        if "," in name
    ]
    return [clip.but(labels=_split(path[0]) if path else ()) for clip, path in zip(clips, folders, strict=True)], notes


def _split(name: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in name.split(",") if part.strip())


def _found(clips: Sequence[Clip], pattern: str, setting: str, what: str) -> tuple[list[str | None], list[str]]:
    """What the first group of a pattern finds in each path."""
    search = re.compile(pattern).search
    matches = [search(place(clip)) for clip in clips]
    found = [match[1] or None if match else None for match in matches]
    missed = [clip for clip, name in zip(clips, found, strict=True) if name is None]
    if clips and len(missed) == len(clips):
        raise SettingsError(
            f"{setting} {pattern!r} finds nothing in any path",
            advice=f"It is searched in paths like {place(clips[0])}",
        )
    if not missed:
        return found, []
    some = f"{len(missed):,}, as {place(missed[0])}"
    return found, [f"clips without a {what}, as {setting} finds nothing in their path: {some}"]


_NAME = re.compile(
    r"(?<!\d)(\d{4})(-?)(\d{2})\2(\d{2})([T_$ -])(\d{2})([-:]?)(\d{2})\7(\d{2})(?!\d)"
    r"(?:(Z)|([+-]\d{2}):?(\d{2})(?!\d))?"
)
_HEXADECIMAL = re.compile(r"[0-9A-F]{8}")
_COMMENT = re.compile(
    rb"Recorded at (\d\d):(\d\d):(\d\d)(?:\.(\d{3}))? (\d\d)/(\d\d)/(\d{4}) "
    rb"\(UTC(?:([+-])(\d{1,2})(?::(\d\d))?)?\) (?:during deployment [0-9A-F]+ )?by AudioMoth"
)
_HEADER = 512  # bytes: the AudioMoth's header ends before
_YEARS = range(1990, 2100)  # eight digits in a name can be anything
_AUDIOMOTH_YEARS = range(2016, 2030)


def recorded_at(path: Path) -> datetime | None:
    """When a recording began, as far as its header or its name tells; the header is looked for in WAV files only."""
    if path.suffix.lower() in (".wav", ".wave"):
        try:
            with path.open("rb") as file:
                found = _from_comment(file.read(_HEADER))
        except OSError:
            found = None
        if found is not None:
            return found
    return _from_name(path.stem)


def when(start: datetime | None, seconds: float) -> str | None:
    """A time in a recording that began at `start`, in ISO 8601 to the millisecond: `2024-03-22T19:17:30.000`."""
    return None if start is None else (start + timedelta(seconds=seconds)).isoformat(timespec="milliseconds")


def _from_comment(header: bytes) -> datetime | None:
    match = _COMMENT.search(header)
    if match is None:
        return None
    hour, minute, second, day, month, year = (int(match[i]) for i in (1, 2, 3, 5, 6, 7))
    offset = timedelta(hours=int(match[9] or 0), minutes=int(match[10] or 0))
    zone = timezone(-offset if match[8] == b"-" else offset)
    return _time(year, month, day, hour, minute, second, int(match[4] or 0) * 1000, zone=zone)


def _from_name(stem: str) -> datetime | None:
    for match in _NAME.finditer(stem):
        year, month, day, hour, minute, second = (int(match[i]) for i in (1, 3, 4, 6, 8, 9))
        zone = UTC if match[10] else None
        # A sign behind the time is a zone in ISO 8601 alone: elsewhere it may begin a number.
        if match[11] and match[5] == "T":
            minutes = int(match[12]) * (-1 if match[11].startswith("-") else 1)
            zone = timezone(timedelta(hours=int(match[11]), minutes=minutes))
        found = _time(year, month, day, hour, minute, second, zone=zone)
        if found is not None:
            return found
    if _HEXADECIMAL.fullmatch(stem):
        found = datetime.fromtimestamp(int(stem, 16), UTC)
        return found if found.year in _AUDIOMOTH_YEARS else None
    return None


def _time(*parts: int, zone: timezone | None) -> datetime | None:
    try:
        return datetime(*parts, tzinfo=zone) if parts[0] in _YEARS else None  # type: ignore[misc, arg-type]
    except ValueError:
        return None
