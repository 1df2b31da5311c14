"""Inspects one sound file: its format, hash and peak, and what is wrong with it, if anything.

A file is hashed and decoded in blocks, so that memory does not grow with it, and decoded from its path, as everywhere
else: decoders guess by the name, too.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tymbal.audio.decode import AudioInfo, check_name, native_blocks
from tymbal.audio.embedded import open_bytes
from tymbal.audio.failures import ADVICE, Failure, Kind, problem
from tymbal.audio.readers import Waveform
from tymbal.errors import AudioError

__all__ = ["FileReport", "inspect"]

_PIECE = 1 << 20  # bytes


@dataclass(frozen=True)
class FileReport:
    """The result of inspecting a file.

    Attributes:
        file: Its path.
        info: Length, rate, channels and format; None where it could not be decoded.
        hash: blake2b of its bytes, 16 hexadecimal digits; None where it could not be read.
        peak: Largest absolute sample (1 is full scale); None where it could not be decoded.
        problem: What is wrong, beginning with its kind (`truncated: …`), or None.
        advice: What to do about it.
    """

    file: str
    info: AudioInfo | None = None
    hash: str | None = None
    peak: float | None = None
    problem: str | None = None
    advice: str | None = None

    @property
    def failure(self) -> Failure | None:
        """The problem as a row of `failures.csv`."""
        if self.problem is None:
            return None
        return Failure(self.file, self.problem, self.advice or "")


def inspect(path: str | os.PathLike[str], *, silence_db: float = -100.0, min_seconds: float = 0.025) -> FileReport:
    """Inspects a sound file. What is wrong with it is reported, not raised.

    Args:
        path: The file.
        silence_db: It counts as silent if half the distance from its lowest to its highest sample is below this level,
            in dB of full scale; so a constant offset is silence too.
        min_seconds: It counts as too short below this length.
    """
    file = os.fspath(path)
    digest: str | None = None
    try:
        digest = _hash(Path(file))
        reader, blocks = native_blocks(file)
        with reader:
            extent = _Extent()
            for block in blocks:
                extent.add(block)
            duration = extent.frames / reader.sample_rate
            remarks = tuple(sorted(reader.remarks))
            info = AudioInfo(extent.frames, reader.sample_rate, reader.channels, duration, reader.format, remarks)
    except AudioError as error:
        return FileReport(file, hash=digest, problem=error.what, advice=error.advice)
    kind, detail = _judge(extent, duration, silence_db=silence_db, min_seconds=min_seconds)
    if kind is None:
        return FileReport(file, info, digest, extent.peak)
    return FileReport(file, info, digest, extent.peak, f"{kind}: {detail}", ADVICE[kind])


class _Extent:
    """Number, range and finiteness of the samples seen so far."""

    def __init__(self) -> None:
        self.frames = 0
        self.low = np.inf
        self.high = -np.inf
        self.bad = 0

    def add(self, block: Waveform) -> None:
        self.frames += len(block)
        low, high = float(block.min()), float(block.max())  # a NaN comes through both
        if not (np.isfinite(low) and np.isfinite(high)):
            self.bad += int((~np.isfinite(block)).sum())
        self.low, self.high = min(self.low, low), max(self.high, high)

    @property
    def peak(self) -> float:
        return max(abs(self.low), abs(self.high)) if self.frames else 0.0


def _judge(
    extent: _Extent, duration: float, *, silence_db: float, min_seconds: float
) -> tuple[Kind, str] | tuple[None, None]:
    if not extent.frames:
        return "empty", "it has a header and no sound"
    if extent.bad:
        return "not finite", f"samples that are NaN or infinite: {extent.bad:,}"
    if duration < min_seconds:
        return "too short", f"it is {duration:.3f} s long, less than {min_seconds:g} s"
    swing = (extent.high - extent.low) / 2
    if swing < 10 ** (silence_db / 20):
        level = "every sample is the same" if swing == 0 else f"its peak is {20 * np.log10(swing):.0f} dB"
        return "silent", level
    return None, None


def _hash(path: Path) -> str:
    check_name(path)
    try:
        if path.is_dir():
            raise problem("unreadable", "it is a folder, not a file", path)
        digest = hashlib.blake2b(digest_size=8)
        with open_bytes(path) as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
        return digest.hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        raise problem("missing", "there is no such file", path) from None
    except OSError as error:
        advice = "Check its permissions and the disk."
        raise problem("unreadable", error.strerror or str(error), path, advice=advice) from None
