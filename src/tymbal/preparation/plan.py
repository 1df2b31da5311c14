"""Plans which part of which file becomes which spectrogram: clips → windows → shards, before decoding any sound.

The plan depends on the clips, their lengths and the settings, not on the number of processes or on what failed on the
way: so a preparation that was stopped continues with the same shards, and one process or twenty write the same bytes.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from tymbal.audio.manifest import Clip, clip_id, place
from tymbal.errors import SettingsError
from tymbal.machine import memory
from tymbal.settings import PrepareSettings

__all__ = ["LONGEST_WINDOW", "Plan", "Window", "make_plan", "window_starts"]

LONGEST_WINDOW = 10.24
"""Seconds of a window where neither `window` nor `frames` says: AudioSet's clips, 1024 frames."""

_FRAME_MULTIPLE = 16
_SHARDS_AT_LEAST = 32
_ROWS_AT_LEAST = 32
_PARTS, _MIXED_AT_LEAST, _MIXED = 8, 4, 16
_ROUNDING = 1e-6
_SPARE = 0.005  # seconds read beyond a window, so that rounding to samples never costs it its last frame


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a file that becomes one spectrogram.

    Attributes:
        id: The clip's id, followed by `#start-end` if the window is a part of the clip.
        file: The sound file.
        start: Seconds of the file at which it begins.
        end: Seconds at which to stop reading; None is the end of the file.
        whole: Whether it is all of its clip.
        labels: The clip's labels.
        group: The clip's group.
        split: The clip's split.
    """

    id: str
    file: str
    start: float
    end: float | None
    whole: bool
    labels: tuple[str, ...]
    group: str | None
    split: str | None


@dataclass(frozen=True)
class Plan:
    """All windows of a store, in the order of its rows.

    Attributes:
        windows: Windows of one file follow each other, by start.
        seconds: Length of a window.
        frames: Frames of a spectrogram, padding included.
        shard_rows: Windows a shard.
        by_split: No shard holds windows of several splits.
    """

    windows: tuple[Window, ...]
    seconds: float
    frames: int
    shard_rows: int
    by_split: bool = False

    def shards(self) -> Iterator[tuple[Window, ...]]:
        """The windows of each shard, in order."""
        parts = [self.windows]
        if self.by_split:
            splits = dict.fromkeys(window.split for window in self.windows)
            parts = [tuple(window for window in self.windows if window.split == split) for split in splits]
        for part in parts:
            for start in range(0, len(part), self.shard_rows):
                yield part[start : start + self.shard_rows]

    def files(self) -> list[str]:
        """All files, in order."""
        return [file for file, _ in groupby(self.windows, key=lambda window: window.file)]

    def digest(self) -> str:
        """Tells one plan from another: blake2b of everything in it, 16 hexadecimal digits."""
        shape = (self.seconds, self.frames, self.shard_rows, *(["by split"] if self.by_split else []))
        digest = hashlib.blake2b(repr(shape).encode(), digest_size=8)
        for window in self.windows:
            digest.update(repr(window).encode())
        return digest.hexdigest()


def make_plan(
    clips: Sequence[Clip], lengths: Mapping[str, float], settings: PrepareSettings, *, coarse: bool = False
) -> Plan:
    """Cuts clips into windows and gathers windows into shards.

    Args:
        clips: The clips to prepare.
        lengths: Seconds of each file.
        settings: Window, hop, frames, which clips, and size of a shard.
        coarse: Make shards of few views as large as earlier versions did.

    Raises:
        SettingsError: The window is shorter than one frame.
    """
    spans = [_span(clip, lengths[clip.file]) for clip in clips]
    seconds = _window_seconds([end - start for start, end in spans], settings)
    frames = _frames(seconds, settings)
    read = seconds if settings.views else settings.samples_of(frames) / settings.sample_rate
    windows = [
        window
        for clip, (start, end) in zip(clips, spans, strict=True)
        for window in _windows(clip, start, end, seconds=seconds, read=read, settings=settings)
    ]
    windows = _thinned(windows, settings.every)
    row_bytes = frames * settings.mel_bins * 2 * max(2 * settings.views, 1)
    rows = max(settings.shard_mib * 2**20 // row_bytes, 1)
    # Many small shards keep many processes busy; a large data set has them anyway.
    fewest = _fewest_views(len(windows)) if settings.views and not coarse else _ROWS_AT_LEAST
    few = max(len(windows) // _SHARDS_AT_LEAST, fewest)
    return Plan(tuple(_by_file(windows)), seconds, frames, min(rows, few), by_split=settings.views > 0)


def _fewest_views(windows: int) -> int:
    """Windows of a shard of views at least: few enough that each part of the work gets some, enough to mix."""
    return min(max(windows // _PARTS, _MIXED_AT_LEAST), _MIXED)


def window_starts(length: float, *, window: float, hop: float, min_fill: float) -> list[float]:
    """Start times of the windows of a clip longer than one, in seconds from its beginning.

    The last window may reach past the end of the clip: it is kept if at least `min_fill` of it is sound and some of
    that is in no window before.
    """
    starts = [0.0]
    while (start := len(starts) * hop) + window <= length + _ROUNDING:
        starts.append(start)
    covered = starts[-1] + window
    if length - start >= min_fill * window - _ROUNDING and length > covered + _ROUNDING:
        starts.append(start)
    return starts


def _windows(
    clip: Clip, start: float, end: float, *, seconds: float, read: float, settings: PrepareSettings
) -> Iterator[Window]:
    length = end - start
    if length <= seconds + _ROUNDING:
        starts = [0.0]
    elif settings.longer == "windows":
        starts = window_starts(length, window=seconds, hop=settings.hop or seconds, min_fill=settings.min_fill)
    else:
        starts = [0.0 if settings.longer == "crop-start" else (length - seconds) / 2]
    for offset in starts:
        begin = round(start + offset, 6)
        reached = round(min(begin + seconds, end), 6)
        stop = round(begin + read + _SPARE, 6)
        whole = length <= seconds + _ROUNDING
        yield Window(
            id=clip.id if whole else clip_id(place(clip), begin, reached),
            file=clip.file,
            start=begin,
            end=clip.end if stop >= end - _ROUNDING else stop,
            whole=whole,
            labels=clip.labels_within(begin, reached) if clip.events else clip.labels,
            group=clip.group,
            split=clip.split,
        )


def _span(clip: Clip, length: float) -> tuple[float, float]:
    """First and last second of a clip within its file."""
    return clip.start, length if clip.end is None else min(clip.end, length)


def _window_seconds(lengths: Sequence[float], settings: PrepareSettings) -> float:
    if settings.window is not None:
        return settings.window
    if settings.frames is not None:
        return settings.samples_of(settings.frames) / settings.sample_rate
    return min(max(lengths, default=LONGEST_WINDOW), LONGEST_WINDOW)


def _frames(seconds: float, settings: PrepareSettings) -> int:
    whole = settings.frames_of(round(seconds * settings.sample_rate))
    if whole == 0 and settings.window is not None:
        raise SettingsError(
            f"window is {seconds:g} s, shorter than one frame of {settings.window_samples / settings.sample_rate:g} s",
            advice="Set a longer window, or a shorter frame_length.",
        )
    size = 2 * max(whole, settings.frames or 0) * settings.mel_bins  # of one spectrogram, float16
    room = memory()
    if room is not None and size > room:
        raise SettingsError(
            f"a clip of {seconds:,.6g} s is a spectrogram of {size / 1e9:,.3g} GB, more than this machine's memory",
            advice="Set a shorter window; longer recordings become many clips.",
        )
    if settings.views and settings.frames not in (None, whole):
        raise SettingsError(
            f"frames is {settings.frames}, and views of {seconds:g} s have {whole}",
            advice="Give window or frames, and not both.",
        )
    if settings.views:
        return whole
    return settings.frames or max(-(-whole // _FRAME_MULTIPLE), 1) * _FRAME_MULTIPLE


def _thinned(windows: list[Window], every: int) -> list[Window]:
    """Keeps the first and then every `every`-th window of each split and first label, so that no class gets lost."""
    if every == 1:
        return windows
    counts: Counter[tuple[str | None, tuple[str, ...]]] = Counter()
    thinned = []
    for window in windows:
        kind = (window.split, window.labels[:1])
        if counts[kind] % every == 0:
            thinned.append(window)
        counts[kind] += 1
    return thinned


def _by_file(windows: Iterable[Window]) -> list[Window]:
    """Brings the windows of a file together, in the place of its first: then it is opened once."""
    order: dict[str, int] = {}
    return sorted(windows, key=lambda window: (order.setdefault(window.file, len(order)), window.start))
