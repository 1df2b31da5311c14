"""Train and validation: which clips are on which side.

The choice depends on the clips' ids and the seed, on nothing else: not on the order of files, not on where they lie.
Each unit (a clip, or all clips that must stay together) draws a number from its name and the seed; the lowest are
validation until its share is full. The share is exact, and files that are added later move hardly any of the others.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from tymbal.audio.manifest import Clip, place
from tymbal.errors import ManifestError, SettingsError
from tymbal.settings import ScanSettings

__all__ = ["assign_splits"]


def assign_splits(clips: Iterable[Clip], settings: ScanSettings) -> list[Clip]:
    """Gives every clip a split: train, validation or test (None with `split="none"`).

    Clips that their source has set aside for testing stay there, whatever is drawn among the others.

    Raises:
        ManifestError: The splits or groups that were asked for are not there.
        SettingsError: `validation_pattern` finds nothing, or everything.
    """
    clips = list(clips)
    if settings.split == "none":
        return [clip.but(split=None) for clip in clips]
    if settings.validation_pattern is not None:
        return _by_pattern(clips, settings.validation_pattern)
    if settings.split == "keep":
        if not any(clip.split for clip in clips):
            raise ManifestError(
                "the split is to be kept, but there is none",
                advice="Fill the column split, or use train and validation folders, or set split to auto.",
            )
        return clips
    if settings.split == "auto" and any(clip.split == "validation" for clip in clips):
        return [clip.but(split=clip.split or "train") for clip in clips]
    return _drawn(clips, settings)


def _by_pattern(clips: list[Clip], pattern: str) -> list[Clip]:
    search = re.compile(pattern).search
    sides = ["validation" if search(place(clip)) else "train" for clip in clips]
    for side, what in (("train", "nothing"), ("validation", "every clip")):
        if sides and set(sides) == {side}:
            raise SettingsError(
                f"validation_pattern {pattern!r} finds {what}",
                advice=f"It is searched in paths like {place(clips[0])}",
            )
    return [clip if clip.split == "test" else clip.but(split=side) for clip, side in zip(clips, sides, strict=True)]


def _drawn(clips: list[Clip], settings: ScanSettings) -> list[Clip]:
    free = [clip for clip in clips if clip.split != "test"]
    unit_of = _unit_of(free, settings.split)
    units: dict[str, list[Clip]] = defaultdict(list)
    for clip in free:
        units[unit_of(clip)].append(clip)
    chosen = _choose(units, settings)
    return [
        clip if clip.split == "test" else clip.but(split="validation" if unit_of(clip) in chosen else "train")
        for clip in clips
    ]


def _unit_of(clips: list[Clip], how: str) -> Callable[[Clip], str]:
    """What stays together: named so that the name outlives a move of the data set."""
    if how == "clips":
        return lambda clip: clip.id
    if how == "groups" and not any(clip.group for clip in clips):
        raise ManifestError(
            "groups are to be split, but no clip has one",
            advice="Fill the column group, or set group_pattern, as 'site_([a-z]+)'.",
        )
    # Parts of one file, and files with the same bytes, would tell validation what training saw. The name is that of
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
