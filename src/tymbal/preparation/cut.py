"""Waveforms of the windows of one file, decoding no second of it twice and never holding a long one whole."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from tymbal.audio.decode import read, stream
from tymbal.audio.resample import Waveform
from tymbal.preparation.plan import Window

__all__ = ["cut"]

_BLOCK = 30.0
_SKIP = 30.0


def cut(windows: Sequence[Window], *, sample_rate: int, samples: int) -> Iterator[Waveform]:
    """Yields one waveform a window.

    Args:
        windows: Of one file, ascending by start.
        sample_rate: Wanted rate in Hz.
        samples: Samples of a window; where the file or the clip ends before, there are fewer.

    Raises:
        AudioError: The file cannot be used, or breaks off; the windows yielded before were good.
    """
    for run in _runs(windows, samples / sample_rate):
        yield from _cut_run(run, sample_rate, samples)


def _runs(windows: Sequence[Window], seconds: float) -> Iterator[list[Window]]:
    """Parts windows where so much lies between them that seeking costs less than decoding it."""
    run: list[Window] = []
    for window in windows:
        if run and window.start - (run[-1].start + seconds) > _SKIP:
            yield run
            run = []
        run.append(window)
    yield run


def _cut_run(windows: Sequence[Window], sample_rate: int, samples: int) -> Iterator[Waveform]:
    begin = windows[0].start
    ends = [window.end for window in windows]
    end = None if None in ends else max(end for end in ends if end is not None)
    blocks: Iterable[Waveform]
    if windows[-1].start - begin + samples / sample_rate <= _BLOCK:
        blocks = [read(windows[0].file, sample_rate=sample_rate, start=begin, end=end)[0]]
    else:
        blocks = stream(windows[0].file, sample_rate=sample_rate, block=_BLOCK, start=begin, end=end)
    tape = _Tape(blocks)
    for window in windows:
        first = round((window.start - begin) * sample_rate)
        length = samples
        if window.end is not None:
            length = min(samples, math.ceil((window.end - window.start) * sample_rate - 1e-3))
        yield tape.part(first, first + length)


class _Tape:
    """Blocks that follow each other, held only from the last wanted place on."""

    def __init__(self, blocks: Iterable[Waveform]) -> None:
        self._blocks = iter(blocks)
        self._held: Waveform = np.empty(0, np.float32)
        self._first = 0

    def part(self, start: int, stop: int) -> Waveform:
        """Samples from `start` to before `stop`, fewer at the end; `start` never goes back."""
        while self._first + len(self._held) < stop:
            block = next(self._blocks, None)
            if block is None:
                break
            kept = self._held[max(start - self._first, 0) :]
            self._first += len(self._held) - len(kept)
            self._held = np.concatenate([kept, block]) if len(kept) else block
        return self._held[max(start - self._first, 0) : max(stop - self._first, 0)]
