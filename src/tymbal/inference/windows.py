"""A stream of samples cut into overlapping windows, in memory that does not grow with the recording."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Window", "windows"]


@dataclass(frozen=True)
class Window:
    """A piece of a recording.

    Attributes:
        start: Its first sample in the recording.
        samples: Its sound, float32; shorter than the window where the recording ends.
    """

    start: int
    samples: NDArray[np.float32]

    @property
    def end(self) -> int:
        """The sample after its last one, where the recording really ends for the last window."""
        return self.start + len(self.samples)


def windows(blocks: Iterable[NDArray[np.float32]], *, length: int, hop: int, shortest: int = 1) -> Iterator[Window]:
    """Cuts blocks of any sizes into windows.

    Every sample is in some window. Where the recording does not end with a window, one more that starts in step
    reaches to its end and is shorter.

    Args:
        blocks: Consecutive samples, float32 [samples] each.
        length: Samples of a window.
        hop: Samples from the start of one window to that of the next, at most `length`.
        shortest: A remainder of fewer samples is left out, unless it is the whole recording.

    Yields:
        Windows in order, holding copies of the samples.
    """
    held = np.empty(0, np.float32)
    start = 0
    for block in blocks:
        held = np.concatenate([held, block])
        offset = 0
        while offset + length <= len(held):
            yield Window(start + offset, held[offset : offset + length].copy())
            offset += hop
        held, start = held[offset:], start + offset
    # What is held begins with `length - hop` samples that the window before had, except at the very beginning.
    fresh = len(held) if start == 0 else len(held) - (length - hop)
    if len(held) and fresh > 0 and (start == 0 or len(held) >= shortest):
        yield Window(start, held.copy())
