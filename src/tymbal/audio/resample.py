"""From one sample rate to another, by soxr at high quality (aliases at -144 dB), in one piece or as a stream."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import soxr

__all__ = ["Waveform", "context_samples", "reach", "resample", "resample_stream"]

Waveform = npt.NDArray[np.float32]
"""Mono sound, float32 [samples], full scale between -1 and 1."""

_QUALITY = "HQ"
_REACH = 256  # samples of the lower of both rates; the filter's reach was measured to be below 128


def resample(waveform: Waveform, source_rate: int, target_rate: int) -> Waveform:
    """Resamples a waveform.

    Args:
        waveform: float32 [samples].
        source_rate: Its rate in Hz.
        target_rate: The target rate in Hz.

    Returns:
        float32 [round(samples * target_rate / source_rate)]; the same array where the rates are equal.
    """
    if source_rate == target_rate:
        return waveform
    result: Waveform = soxr.resample(waveform, source_rate, target_rate, quality=_QUALITY)
    return result


def resample_stream(blocks: Iterable[Waveform], source_rate: int, target_rate: int) -> Iterator[Waveform]:
    """Resamples blocks that follow each other, to the samples that `resample` gives for all of them at once.

    Blocks come out as long as the filter happens to make them; their number is not that of the blocks put in.
    """
    if source_rate == target_rate:
        yield from blocks
        return
    stream = soxr.ResampleStream(source_rate, target_rate, 1, dtype="float32", quality=_QUALITY)
    for block in blocks:
        out: Waveform = stream.resample_chunk(block)
        if out.size:
            yield out
    rest: Waveform = stream.resample_chunk(np.empty(0, np.float32), last=True)
    if rest.size:
        yield rest


def reach(source_rate: int, target_rate: int) -> int:
    """Samples at the source rate that the filter hears on either side of a sample; 0 where nothing is resampled."""
    if source_rate == target_rate:
        return 0
    return math.ceil(_REACH * max(1.0, source_rate / target_rate))


def context_samples(start: int, source_rate: int, target_rate: int) -> int:
    """Samples before `start` that the filter should hear, so that a part sounds as if it was cut from the whole.

    The number is a multiple of the shortest time that is whole in both rates: the samples to be thrown away after
    resampling are then whole too.

    Args:
        start: First sample of the part, at the source rate.
        source_rate: Rate of the file in Hz.
        target_rate: Target rate in Hz.
    """
    step = source_rate // math.gcd(source_rate, target_rate)
    return min(math.ceil(reach(source_rate, target_rate) / step), start // step) * step
