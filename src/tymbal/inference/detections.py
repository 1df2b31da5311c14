"""From scores of windows to detections: which scores count, and windows in a row with the same label joined."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tymbal.errors import SettingsError
from tymbal.values import nearest

__all__ = ["Detection", "Scored", "detect", "thresholds"]


class Scored(NamedTuple):
    """A score of one label in one window.

    Attributes:
        start: Seconds from the beginning of the recording.
        end: Where the window ends, in seconds.
        label: Place of the label.
        score: Its score.
    """

    start: float
    end: float
    label: int
    score: float


@dataclass(order=True)
class Detection:
    """A stretch of a recording in which a label was detected.

    Attributes:
        start: Seconds from the beginning of the recording.
        label: Place of the label.
        end: Where it ends, in seconds.
        score: The highest score of its windows.
        windows: Windows that were joined.
    """

    start: float
    label: int
    end: float = field(compare=False)
    score: float = field(compare=False)
    windows: int = field(default=1, compare=False)


def thresholds(
    labels: Sequence[str], *, every: float | None, some: Sequence[str], otherwise: float | Sequence[float]
) -> NDArray[np.float32]:
    """The threshold of each label, [labels].

    Args:
        labels: Names of the labels.
        every: The threshold of all labels.
        some: Thresholds of single labels, `robin=0.3` each, which override `every`.
        otherwise: The threshold where `every` is None, of all or of each.

    Raises:
        SettingsError: There is no such label.
    """
    result = np.full(len(labels), otherwise if every is None else every, np.float32)
    places = {label: place for place, label in enumerate(labels)}
    for item in some:
        label, _, value = item.rpartition("=")
        if label not in places:
            guess = nearest(label, labels)
            raise SettingsError(
                f"label_thresholds has {label!r}, which is no label of the model",
                advice=f"Did you mean {guess}?" if guess else f"Its labels are: {', '.join(labels[:20])}.",
            )
        result[places[label]] = float(value)
    return result


def detect(
    scored: Iterable[Scored], *, least: NDArray[np.float32], merge: bool = True, gap: float = 0.0
) -> Iterator[Detection]:
    """Detections of one recording, in the order of their start.

    Args:
        scored: Scores in the order of the windows' start.
        least: The threshold of each label, [labels].
        merge: Join windows with the same label that overlap, touch, or have no more than `gap` between them.
        gap: Seconds.
    """
    running: dict[int, Detection] = {}
    waiting: list[Detection] = []
    reached = -1.0
    for window in scored:
        if window.start > reached:
            reached = window.start
            # A thousandth of a millisecond: seconds are samples divided by their rate.
            for label in [label for label, open_ in running.items() if open_.end + gap < reached - 1e-6]:
                heapq.heappush(waiting, running.pop(label))
            earliest = min((open_.start for open_ in running.values()), default=reached)
            while waiting and waiting[0].start < earliest:
                yield heapq.heappop(waiting)
        if window.score < least[window.label]:
            continue
        before = running.get(window.label) if merge else None
        if before is not None:
            before.end = max(before.end, window.end)
            before.score = max(before.score, window.score)
            before.windows += 1
            continue
        detection = Detection(window.start, window.label, window.end, window.score)
        if merge:
            running[window.label] = detection
        else:
            heapq.heappush(waiting, detection)
    waiting += running.values()
    yield from sorted(waiting)
