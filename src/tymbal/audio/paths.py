"""What the path of a clip says about it: its label, its group, its split.

Class folders: below the root, or below train/validation/test folders, the name of a folder is the label of the files in
it. A comma in the name stands between several labels (`Wren,Robin`, as BirdNET trains). Without a word from the user,
folders are taken for classes only where there are at least two and no file lies deeper than in one of them: an archive
by year and month has no labels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tymbal.audio.manifest import SPLITS, Clip, place
from tymbal.errors import ManifestError, SettingsError
from tymbal.settings import ScanSettings

__all__ = ["group_clips", "label_clips", "split_by_folders"]


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
