"""Labels, groups and splits of clips: what paths and headers say of them, and which side of a split each is on.

The choice depends on the clips' ids and the seed, on nothing else: not on the order of files, not on where they lie.
Each unit (a clip, or all clips that must stay together) draws a number from its name and the seed; the lowest are
validation until its share is full. The share is exact, and files that are added later move hardly any of the others.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from tymbal.audio.manifest import SPLITS, Clip, place
from tymbal.errors import ManifestError, SettingsError
from tymbal.settings import ScanSettings
from tymbal.settings.fields import recipe_defaults

__all__ = [
    "as_events",
    "assign_splits",
    "group_clips",
    "label_clips",
    "recorded_at",
    "renamed",
    "split_by_folders",
    "split_settings",
    "when",
]


def label_clips(clips: Sequence[Clip], settings: ScanSettings, *, labelled: bool) -> tuple[list[Clip], list[str]]:
    """Gives clips their labels, as `labels` and `label_pattern` say.

    Args:
        clips: Clips with the labels of the list's column, if it has one.
        settings: The source of labels.
        labelled: Whether the list has a column of labels.

    Returns:
        The clips, and what the user should know about them.

    Raises:
        ManifestError: The settings require labels and the list has no such column.
        SettingsError: `label_pattern` finds nothing in any path, or what it finds is not what the column says.
    """
    if settings.label_pattern is not None:
        if settings.labels != "auto":
            raise SettingsError("labels and label_pattern both say where labels come from", advice="Leave one out.")
        names, notes = _match_pattern(clips, settings.label_pattern, "label_pattern", "label")
        return _filled(clips, "label", [() if name is None else (name,) for name in names]), notes
    if settings.labels == "none":
        return [clip.but(labels=()) for clip in clips], []
    if settings.labels == "column" and not labelled:
        raise ManifestError("labels are to come from a column, but there is none", advice="Set labels to auto.")
    if labelled and settings.labels != "folder":
        return list(clips), []
    return _by_folder(clips, certain=settings.labels == "folder")


def group_clips(clips: Sequence[Clip], settings: ScanSettings) -> tuple[list[Clip], list[str]]:
    """Gives clips their groups: those of the list's column, and as `group_pattern` says where it is empty.

    Raises:
        SettingsError: `group_pattern` finds nothing in any path, or what it finds is not what the column says.
    """
    if settings.group_pattern is None:
        return list(clips), []
    names, notes = _match_pattern(clips, settings.group_pattern, "group_pattern", "group")
    return _filled(clips, "group", names), notes


def _filled(clips: Sequence[Clip], column: str, found: Sequence[Any]) -> list[Clip]:
    """Clips with what a pattern has found where their column is empty.

    Raises:
        SettingsError: Both speak, and differ.
    """
    name = {"label": "labels", "group": "group"}[column]
    differing = [
        (clip, value)
        for clip, value in zip(clips, found, strict=True)
        if value and getattr(clip, name) and getattr(clip, name) != value
    ]
    if differing:
        clip, value = differing[0]
        said, seen = (" and ".join(each) if isinstance(each, tuple) else each for each in (getattr(clip, name), value))
        raise SettingsError(
            f"the list's column {column} and {column}_pattern differ on {len(differing):,} clips, as {place(clip)}: "
            f"{said!r} and {seen!r}",
            advice=f"Leave out {column}_pattern, or empty the column.",
        )
    return [
        clip if getattr(clip, name) or not value else clip.but(**{name: value})
        for clip, value in zip(clips, found, strict=True)
    ]


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


def _match_pattern(clips: Sequence[Clip], pattern: str, setting: str, what: str) -> tuple[list[str | None], list[str]]:
    """Returns the text of a pattern's first group in each path (None without a match), and notes on the misses."""
    search = re.compile(pattern).search
    matches = [search(place(clip)) for clip in clips]
    names = [match[1] or None if match else None for match in matches]
    missed = [clip for clip, name in zip(clips, names, strict=True) if name is None]
    if clips and len(missed) == len(clips):
        raise SettingsError(
            f"{setting} {pattern!r} finds nothing in any path",
            advice=f"It is searched in paths like {place(clips[0])}",
        )
    missed = [clip for clip in missed if not (clip.labels if what == "label" else clip.group)]
    if not missed:
        return names, []
    some = f"{len(missed):,}, as {place(missed[0])}"
    return names, [f"clips without a {what}, as {setting} finds nothing in their path: {some}"]


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
    """When a recording began, as its header or its name says; only WAV headers are read."""
    if path.suffix.lower() in (".wav", ".wave"):
        try:
            with path.open("rb") as file:
                moment = _from_comment(file.read(_HEADER))
        except OSError:
            moment = None
        if moment is not None:
            return moment
    return _from_name(path.stem)


def renamed(clips: Sequence[Clip], names: Mapping[str, str]) -> list[Clip]:
    """Clips whose labels have new names; those without one are dropped."""
    if not names:
        return list(clips)
    return [
        clip.but(labels=tuple(dict.fromkeys(new for label in clip.labels if (new := names.get(label, label)))))
        for clip in clips
    ]


def as_events(clips: Sequence[Clip]) -> list[Clip]:
    """The recordings that clips with times are parts of, with these as events in them.

    Raises:
        ManifestError: Two of a recording's rows give it another split or group.
    """
    recordings: dict[str, Clip] = {}
    for clip in clips:
        known = recordings.get(clip.file)
        if known is None:
            known = Clip(clip.file, group=clip.group, split=clip.split, id=place(clip))
        elif (known.group, known.split) != (clip.group, clip.split):
            raise ManifestError(
                f"events of one recording have another group or split: {known.id}",
                path=clip.file,
                advice="A recording has one: correct the list.",
            )
        end = math.inf if clip.end is None else clip.end
        heard = ((clip.start, end, clip.labels),) if clip.labels else ()
        recordings[clip.file] = known.but(events=(*known.events, *heard))
    return list(recordings.values())


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
        momentt = _time(year, month, day, hour, minute, second, zone=zone)
        if momentt is not None:
            return momentt
    if _HEXADECIMAL.fullmatch(stem):
        momentt = datetime.fromtimestamp(int(stem, 16), UTC)
        return momentt if momentt.year in _AUDIOMOTH_YEARS else None
    return None


def _time(*parts: int, zone: timezone | None) -> datetime | None:
    try:
        return datetime(*parts, tzinfo=zone) if parts[0] in _YEARS else None  # type: ignore[misc, arg-type]
    except ValueError:
        return None


def assign_splits(clips: Iterable[Clip], settings: ScanSettings) -> list[Clip]:
    """Gives every clip a split: train, validation or test (None with `split="none"`).

    Clips that their source has set aside for testing stay test clips, whatever is drawn among the others.

    Raises:
        ManifestError: The clips have no splits or groups and the settings require them.
        SettingsError: `validation_pattern` finds nothing, or everything; or settings and clips both say what is for
            validation.
    """
    clips = list(clips)
    asked = split_settings(settings)
    if settings.split in ("none", "keep") and asked:
        raise SettingsError(f"{asked[0]} has no effect with split={settings.split}", advice="Leave one of them out.")
    if settings.split == "none":
        return [clip.but(split=None) for clip in clips]
    if settings.validation_pattern is not None:
        return _by_pattern(clips, settings)
    if settings.split == "keep":
        if not any(clip.split for clip in clips):
            raise ManifestError(
                "the split is to be kept, but there is none",
                advice="Fill the column split, or use train and validation folders, or set split to auto.",
            )
        return clips
    if settings.split in ("auto", "sklearn") and any(clip.split == "validation" for clip in clips):
        kept = [clip.but(split=clip.split or "train") for clip in clips]
        # What a manifest was split by may be said again.
        if asked and any(one.split != other.split for one, other in zip(kept, _drawn(clips, settings), strict=True)):
            raise SettingsError(
                f"{asked[0]} is set, and the list or its folders already say otherwise which clips are for validation",
                advice=f"Leave out {asked[0]}; tymbal prepare --split groups (or clips) splits anew.",
            )
        return kept
    return _drawn(clips, settings)


def seed_note(clips: Iterable[Clip], settings: ScanSettings) -> list[str]:
    """A remark where a seed is set and nothing is drawn by it."""
    given = any(clip.split == "validation" for clip in clips) or settings.validation_pattern is not None
    drawn = settings.split in ("clips", "groups") or (settings.split in ("auto", "sklearn") and not given)
    if settings.seed == ScanSettings.seed or drawn or getattr(settings, "views", False):
        return []
    return ["seed has no effect: no split is drawn"]


def split_settings(settings: ScanSettings) -> list[str]:
    """Names of the settings that ask for a split and have not their defaults; `split` itself aside."""
    defaults = {"validation_pattern": None, "validation": ScanSettings.validation, "stratify": False}
    defaults |= {name: value for name, value in recipe_defaults(settings).items() if name in defaults}
    return [name for name, default in defaults.items() if getattr(settings, name) != default]


def _by_pattern(clips: list[Clip], settings: ScanSettings) -> list[Clip]:
    pattern = settings.validation_pattern or ""
    others = [name for name in split_settings(settings) if name != "validation_pattern"]
    others += ["split"] if settings.split != "auto" else []
    if others:
        raise SettingsError(f"{others[0]} has no effect with validation_pattern", advice="Leave one of them out.")
    search = re.compile(pattern).search
    sides = ["validation" if search(place(clip)) else "train" for clip in clips]
    for side, what in (("train", "nothing"), ("validation", "every clip")):
        if sides and set(sides) == {side}:
            raise SettingsError(
                f"validation_pattern {pattern!r} finds {what}",
                advice=f"It is searched in paths like {place(clips[0])}",
            )
    for clip, side in zip(clips, sides, strict=True):
        if clip.split not in (None, "test", side):
            raise SettingsError(
                f"validation_pattern and the list or its folders differ: {place(clip)} is {side} and {clip.split}",
                advice="Leave out validation_pattern, or empty the column split.",
            )
    return [clip if clip.split == "test" else clip.but(split=side) for clip, side in zip(clips, sides, strict=True)]


def _drawn(clips: list[Clip], settings: ScanSettings) -> list[Clip]:
    free = [clip for clip in clips if clip.split != "test"]
    if settings.split == "sklearn" and not any(clip.group for clip in free):
        taken = _taken_by_sklearn(free, settings)
        sides = ["validation" if place(clip) in taken else "train" for clip in clips]
        return [clip if clip.split == "test" else clip.but(split=side) for clip, side in zip(clips, sides, strict=True)]
    unit_of = _unit_of(free, settings.split)
    units: dict[str, list[Clip]] = defaultdict(list)
    for clip in free:
        units[unit_of(clip)].append(clip)
    chosen = _choose(units, settings)
    return [
        clip if clip.split == "test" else clip.but(split="validation" if unit_of(clip) in chosen else "train")
        for clip in clips
    ]


def _taken_by_sklearn(clips: list[Clip], settings: ScanSettings) -> set[str]:
    """The files that `sklearn.model_selection.train_test_split(sorted(files), test_size=…, random_state=…)` sets aside.

    One file at least is left to learn from, where it would leave none and fail.
    """
    files = sorted({place(clip) for clip in clips})
    count = min(math.ceil(settings.validation * len(files)), len(files) - 1)
    if count < 1:
        return set()
    from sklearn.model_selection import train_test_split

    return set(train_test_split(files, test_size=count, random_state=settings.seed)[1])


def _unit_of(clips: list[Clip], how: str) -> Callable[[Clip], str]:
    """Names the unit that a split keeps together; the name outlives a move of the data set."""
    if how == "clips":
        return lambda clip: clip.id
    if how == "groups" and not any(clip.group for clip in clips):
        raise ManifestError(
            "groups are to be split, but no clip has one",
            advice="Fill the column group, or set group_pattern, as 'site_([a-z]+)'.",
        )
    # Parts of one file, and files with the same bytes, would leak training data into validation. The name is that of
    # the first of them.
    first: dict[str, str] = {}
    for clip in clips:
        content = clip.hash or clip.file
        first[content] = min(first.get(content, place(clip)), place(clip))
    return lambda clip: f"group {clip.group}" if clip.group else first[clip.hash or clip.file]


def _choose(units: Mapping[str, Sequence[Clip]], settings: ScanSettings) -> set[str]:
    """The units for validation: greedily, in drawn order, each that brings the strata nearer to their quotas."""
    if settings.validation == 0 or len(units) < 2:
        return set()
    strata = {name: Counter(_strata(members, stratify=settings.stratify)) for name, members in units.items()}
    quotas = _quotas(sum(strata.values(), Counter()), settings)
    missing = dict(quotas)

    def gain(name: str) -> int:
        return sum(abs(missing[key]) - abs(missing[key] - count) for key, count in strata[name].items())

    order = sorted(units, key=lambda name: _draw(settings.seed, name))
    chosen = set()
    for name in order:
        if gain(name) > 0:
            chosen.add(name)
            for key, count in strata[name].items():
                missing[key] -= count
    # Neither side stays empty, however large the groups are.
    if not chosen:
        chosen.add(max(order, key=gain))
    if len(chosen) == len(units):
        chosen.remove(order[-1])
    return chosen


def _strata(clips: Sequence[Clip], *, stratify: bool) -> Iterable[str]:
    for clip in clips:
        yield from (clip.labels or ("",)) if stratify else ("",)


def _quotas(sizes: Mapping[str, int], settings: ScanSettings) -> dict[str, int]:
    """Clips of each stratum for validation: whole numbers with the exact sum, by largest remainder."""
    shares = {key: size * settings.validation for key, size in sizes.items()}
    quotas = {key: int(share) for key, share in shares.items()}
    left = max(1, round(sum(sizes.values()) * settings.validation)) - sum(quotas.values())
    by_remainder = sorted(shares, key=lambda key: (quotas[key] - shares[key], _draw(settings.seed, key)))
    for key in by_remainder[:left]:
        quotas[key] += 1
    return quotas


def _draw(seed: int, name: str) -> bytes:
    return hashlib.blake2b(f"{seed}\n{name}".encode(errors="surrogateescape"), digest_size=16).digest()
