"""A recording with known events, and how many of them predictions find."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tymbal.demo.wingbeats import Event, write_events
from tymbal.files import replace_file
from tymbal.inference.found import read_found

if TYPE_CHECKING:
    from tymbal.audio.manifest import Manifest

__all__ = ["Found", "count_found", "join_clips"]


@dataclass(frozen=True)
class Found:
    """What predictions found of what was there.

    Attributes:
        events: Events in the recording.
        found: Events whose label had the best score while they lasted.
        empty: Windows in which there was no event.
        false_alarms: Of these, windows with another label than background.
    """

    events: int
    found: int
    empty: int
    false_alarms: int


def count_found(predictions: Path, events: Sequence[Event], *, background: str | None = None) -> Found:
    """Compares a table of predictions with what was there.

    The scores of the windows that overlap an event are averaged, each with the seconds of its overlap as weight.

    Args:
        predictions: Table of `tymbal predict`, with all labels of each window.
        events: What was there.
        background: Label of windows without an event; None where there are none.
    """
    windows: dict[tuple[float, float], dict[str, float]] = defaultdict(dict)
    for row in read_found(predictions).rows:
        windows[row.start, row.end][row.label] = row.score
    found = 0
    for event in events:
        scores: dict[str, float] = defaultdict(float)
        for (start, end), labels in windows.items():
            overlap = min(end, event.end) - max(start, event.start)
            for label, score in labels.items():
                scores[label] += max(0.0, overlap) * score
        found += max(scores, key=lambda label: scores[label]) == event.label
    empty = [
        labels
        for (start, end), labels in windows.items()
        if background is not None and not any(start < event.end and event.start < end for event in events)
    ]
    alarms = sum(max(labels, key=lambda label: labels[label]) != background for labels in empty)
    return Found(len(events), found, len(empty), alarms)


def join_clips(manifest: Manifest, path: Path, *, seconds: float, sample_rate: int, seed: int) -> list[Event]:
    """Joins validation clips with one label into one recording, and writes `events.csv` (start, end, label) beside it.

    Args:
        manifest: The clips.
        path: The sound file to write, 16-bit FLAC.
        seconds: How long it becomes at most; one clip at least is taken, and cut.
        sample_rate: In Hz.
        seed: Seed of the choice.

    Returns:
        Which label is heard from when to when.
    """
    import soundfile as sf

    from tymbal.audio.decode import read

    clips = [clip for clip in manifest if clip.split == "validation" and len(clip.labels) == 1]
    pieces: list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]] = []
    events: list[Event] = []
    length = 0
    for place in np.random.default_rng(seed).permutation(len(clips)):
        clip = clips[place]
        sound, _ = read(clip.file, sample_rate=sample_rate, start=clip.start, end=clip.end)
        if events and length + len(sound) > seconds * sample_rate:
            break
        sound = sound[: round(seconds * sample_rate)]
        events.append(
            Event(round(length / sample_rate, 3), round((length + len(sound)) / sample_rate, 3), clip.labels[0])
        )
        pieces.append(sound)
        length += len(sound)
    with replace_file(path) as aside:
        sf.write(aside, np.clip(np.concatenate(pieces), -1, 1), sample_rate, format="FLAC", subtype="PCM_16")
    write_events(path.parent / "events.csv", events)
    return events
