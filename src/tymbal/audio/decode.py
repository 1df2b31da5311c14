"""Sound files to mono float32 at any rate: whole, in part, or as a stream of any length.

`soundfile` (libsndfile) reads, `soxr` at high quality resamples, the channels are averaged; what libsndfile cannot read
(M4A, MP4, AMR, damaged FLAC, …) goes to FFmpeg through PyAV. No sound is lost in silence: a file that is unreadable,
cut off, empty or not finite is an `AudioError` that names it and says what to do.

    waveform, rate = read("rooster.ogg", sample_rate=16_000)
    for block in stream("night.wav", sample_rate=16_000, block=10.0):
        ...
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from tymbal.audio.containers import Container, examine, what_it_is
from tymbal.audio.embedded import size_of
from tymbal.audio.failures import problem
from tymbal.audio.readers import (
    AudioInfo,
    AvReader,
    Reader,
    SoundfileReader,
    SoundfileTrouble,
    Source,
    Waveform,
    context_samples,
    reach,
    resample,
    resample_stream,
)
from tymbal.errors import AudioError

__all__ = [
    "DISAGREEMENT",
    "AudioInfo",
    "Waveform",
    "check_name",
    "info",
    "native_blocks",
    "read",
    "sample_rate_of",
    "stream",
]

PathLike = str | os.PathLike[str]

DISAGREEMENT = 0.1
"""Seconds by which the requested end may lie behind the end of a file: tables round, and encoders add a little."""


def info(path: PathLike) -> AudioInfo:
    """Describes a sound file, without decoding it if its header tells enough.

    Raises:
        AudioError: It is missing, unreadable, empty, or cut off as far as its header shows.
    """
    opened = _open(path)
    with opened.reader as reader:
        frames = reader.frames
        if frames is None:
            frames = sum(len(block) for block in reader.blocks())
        return _info(reader, frames)


def sample_rate_of(path: PathLike) -> int:
    """The rate of a sound file in Hz, without decoding it.

    Raises:
        AudioError: As `info`.
    """
    with _open(path).reader as reader:
        return reader.sample_rate


def read(
    path: PathLike,
    *,
    sample_rate: int | None = None,
    start: float = 0.0,
    end: float | None = None,
    remarks: set[str] | None = None,
) -> tuple[Waveform, int]:
    """Reads a sound file, or a part of one.

    A part is what the same part of the whole file, resampled, would be: the resampling filter hears what comes before
    and after it.

    Args:
        path: The file.
        sample_rate: Target rate in Hz; None keeps the file's own.
        start: First second to read.
        end: Second before which to stop; None reads to the end.
        remarks: To be filled with what is unusual about the sound although nothing of it is lost.

    Returns:
        The waveform, mono float32 [samples], and its rate in Hz.

    Raises:
        AudioError: It is missing, unreadable, cut off, empty, not finite, or has no sound between `start` and `end`.
    """
    _check_range(path, start, end)
    opened = _open(path)
    with opened.reader as reader:
        part = _Part.of(reader, sample_rate, start, end)
        blocks = list(_native(opened, part.first, part.stop_context))
        if remarks is not None:
            remarks |= reader.remarks
    waveform = _finite(blocks[0] if len(blocks) == 1 else np.concatenate(blocks or [_SILENCE]), path)
    _check_got(part, len(waveform), path)
    waveform = resample(waveform, part.source_rate, part.rate)
    waveform = waveform[part.skip : None if part.length is None else part.skip + part.length]
    if not waveform.size:
        raise problem("empty", f"it is too short for a single sample at {part.rate:,} Hz", path)
    return waveform, part.rate


def stream(
    path: PathLike,
    *,
    sample_rate: int | None = None,
    block: float = 10.0,
    start: float = 0.0,
    end: float | None = None,
    remarks: set[str] | None = None,
) -> Iterator[Waveform]:
    """Reads a file of any length in blocks, in memory that does not grow with it.

    The blocks, put together, are what `read` returns. A file that breaks in the middle raises at that block;
    the blocks before it are good.

    Args:
        path: The file.
        sample_rate: Target rate in Hz; None keeps the file's own.
        block: Seconds of a block; the last one may be shorter.
        start: First second to read.
        end: Second before which to stop; None reads to the end.
        remarks: As in `read`, filled as far as blocks were read.

    Yields:
        Mono float32 [round(block * sample_rate)].

    Raises:
        AudioError: As `read`.
    """
    _check_range(path, start, end)
    opened = _open(path)
    with opened.reader as reader:
        part = _Part.of(reader, sample_rate, start, end)
        length = max(1, round(block * part.rate))
        counted = _Counted(opened, part)
        resampled = resample_stream(counted.blocks(), part.source_rate, part.rate)
        for regular in _regular(_cut(resampled, part.skip, part.length), length):
            if remarks is not None:
                remarks |= reader.remarks
            yield regular
    _check_got(part, counted.frames, path)


def native_blocks(path: PathLike) -> tuple[Reader, Iterator[Waveform]]:
    """Opens a file for one pass over its sound at its own rate, for those who inspect it.

    Returns:
        The reader (to be closed), whose remarks are complete behind the last block, and the blocks, mono float32
        [samples].

    Raises:
        AudioError: It is missing, unreadable, empty or cut off; the blocks raise it too.
    """
    opened = _open(path)
    return opened.reader, _native(opened, 0, None)


_SILENCE = np.empty(0, np.float32)


@dataclass(frozen=True)
class _Opened:
    source: Source
    reader: Reader


@dataclass(frozen=True)
class _Part:
    """The range of samples to read, and the range of resampled ones to keep.

    Attributes:
        source_rate: Rate of the file in Hz.
        rate: Rate of the result in Hz.
        first: First sample to read: that of the start, or an earlier one as context for the resampling filter.
        stop: Sample before which the requested part ends, or None for the end of the file.
        stop_context: As `stop`, plus the context behind it that the filter needs.
        skip: Resampled samples to drop at the front.
        length: Resampled samples to keep, or None for all.
    """

    source_rate: int
    rate: int
    first: int
    stop: int | None
    stop_context: int | None
    skip: int
    length: int | None

    @classmethod
    def of(cls, reader: Reader, sample_rate: int | None, start: float, end: float | None) -> _Part:
        source_rate = reader.sample_rate
        rate = sample_rate or source_rate
        begin = round(start * source_rate)
        before = context_samples(begin, source_rate, rate)
        stop = None if end is None else round(end * source_rate)
        if stop is None:
            return cls(source_rate, rate, begin - before, None, None, before * rate // source_rate, None)
        samples = round((stop - begin) * rate / source_rate)
        stop_context = stop + reach(source_rate, rate)
        return cls(source_rate, rate, begin - before, stop, stop_context, before * rate // source_rate, samples)


class _Counted:
    """The blocks of a part, checked and counted on the way."""

    def __init__(self, opened: _Opened, part: _Part) -> None:
        self.frames = 0
        self._opened = opened
        self._part = part

    def blocks(self) -> Iterator[Waveform]:
        for block in _native(self._opened, self._part.first, self._part.stop_context):
            self.frames += len(block)
            yield _finite(block, self._opened.source.path)


def _open(path: PathLike) -> _Opened:
    whole = _source(path)
    parts, remarks = _parts(whole)
    source, reader = (whole, JoinedReader(parts)) if len(parts) > 1 else (parts[0][0], _reader(*parts[0]))
    if reader.frames == 0:
        with reader:
            raise problem("empty", "it has a header and no sound", source.path)
    reader.remarks.update(remarks)
    return _Opened(source, reader)


def _parts(source: Source) -> tuple[list[tuple[Source, Container]], set[str]]:
    """The sounds in a file, mostly one, in their order, and remarks about it.

    Raises:
        AudioError: One is cut off.
    """
    parts: list[tuple[Source, Container]] = []
    remarks: set[str] = set()
    left = [source]
    while left:
        source = left.pop()
        container = _examine(source)
        if container.truncated is not None:
            raise problem("truncated", container.truncated, source.path)
        remarks |= {container.remark} if container.remark else set()
        inner = [Source(source.path, span.size, span.within(source.span)) for span in container.spans]
        if any(span.prefix for span in container.spans):
            parts += [(mended, container) for mended in inner]
        elif inner:
            left += reversed(inner)
        else:
            parts.append((source, container))
    return parts, remarks


def _reader(source: Source, container: Container) -> Reader:
    if container.guessed:
        return AvReader(source, container.seconds)
    try:
        reader = SoundfileReader(source)
    except SoundfileTrouble:
        return _open_otherwise(source)
    if reader.format.startswith("MP3/") and not container.counted:
        with reader:
            return AvReader(source, container.seconds)
    return reader


class JoinedReader:
    """Several sound files in one, one behind the other, at the rate of the first.

    Each is opened when its turn comes.

    Raises:
        AudioError: One cannot be read.
    """

    def __init__(self, parts: Sequence[tuple[Source, Container]]) -> None:
        self.remarks: set[str] = set()
        self._parts = parts
        self._rates: list[int] = []
        self._frames: list[int | None] = []
        channels, formats = [], []
        for part in parts:
            with _reader(*part) as reader:
                rate = self._rates[0] if self._rates else reader.sample_rate
                frames = reader.frames
                self._frames.append(None if frames is None else round(frames * rate / reader.sample_rate))
                self._rates.append(reader.sample_rate)
                channels.append(reader.channels)
                formats.append(reader.format)
        self.sample_rate = self._rates[0]
        self.channels = channels[0]
        self.format = formats[0]
        known = [frames for frames in self._frames if frames is not None]
        self.frames = sum(known) if len(known) == len(parts) else None

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[Waveform]:
        """Yields the sound from sample `start` to before `stop`; see `Reader`."""
        begin = 0
        for part, rate, frames in zip(self._parts, self._rates, self._frames, strict=True):
            if stop is not None and begin >= stop:
                return
            if frames is not None and begin + frames <= start:
                begin += frames
                continue
            skip = max(0, start - begin)
            left = None if stop is None else stop - begin
            with _reader(*part) as reader:
                if rate == self.sample_rate:
                    begin += skip
                    sound = _continued(part[0], reader, skip, left)
                else:
                    sound = resample_stream(_continued(part[0], reader, 0, None), rate, self.sample_rate)
                    sound = _cut(sound, skip, None if left is None else left - skip)
                    begin += skip
                for block in sound:
                    begin += len(block)
                    yield block
                self.remarks |= reader.remarks

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is open between blocks."""


def _open_otherwise(source: Source) -> AvReader:
    """Opens what libsndfile cannot; says what the file is where it is no sound at all."""
    with source.bytes() as file:
        head = file.read(512)
    guess = what_it_is(head)
    if guess is not None:
        raise problem("unreadable", guess, source.path, advice="Leave it out, or put the sound in its place.")
    return AvReader(source)


def check_name(path: PathLike) -> None:
    """Refuses a name that could be neither written to a table nor printed.

    Raises:
        AudioError: It is not UTF-8.
    """
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        raise problem("unreadable", "its name is not UTF-8", path, advice="Rename it.") from None


def _source(path: PathLike) -> Source:
    path = Path(path)
    check_name(path)
    try:
        size = size_of(path)
    except (OSError, ValueError) as error:
        raise _unopened(error, path) from None
    if path.is_dir():
        raise problem("unreadable", "it is a folder, not a file", path, advice="Give the files in it, or scan it.")
    if size == 0:
        raise problem("empty", "the file has no bytes", path)
    return Source(path, size)


def _unopened(error: OSError | ValueError, path: Path) -> AudioError:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return problem("missing", "there is no such file", path)
    return problem("unreadable", str(getattr(error, "strerror", None) or error), path, advice="Check its permissions.")


def _examine(source: Source) -> Container:
    try:
        with source.bytes() as file:
            return examine(file, source.size)
    except OSError as error:
        raise _unopened(error, source.path) from None


def _native(opened: _Opened, start: int, stop: int | None) -> Iterator[Waveform]:
    return _continued(opened.source, opened.reader, start, stop)


def _continued(source: Source, reader: Reader, start: int, stop: int | None) -> Iterator[Waveform]:
    """Blocks from sample `start` to before `stop`; where libsndfile breaks off, FFmpeg takes over at that sample."""
    position = start
    try:
        for block in reader.blocks(start, stop):
            position += len(block)
            yield block
    except SoundfileTrouble:
        with AvReader(source) as other:
            yield from other.blocks(position, stop)
            reader.remarks.update(other.remarks)


def _info(reader: Reader, frames: int) -> AudioInfo:
    duration = frames / reader.sample_rate
    return AudioInfo(
        frames, reader.sample_rate, reader.channels, duration, reader.format, tuple(sorted(reader.remarks))
    )


def _check_range(path: PathLike, start: float, end: float | None) -> None:
    if not (math.isfinite(start) and start >= 0):
        raise problem("out of range", f"a start at {start:g} s cannot be", path)
    if end is not None and not (math.isfinite(end) and end > start):
        raise problem("out of range", f"from {start:g} to {end:g} s there is no time", path)


def _check_got(part: _Part, got: int, path: PathLike) -> None:
    """Raises unless the file reached as far as requested; `got` counts samples from `part.first`."""
    length = (part.first + got) / part.source_rate
    begin = part.first + part.skip * part.source_rate // part.rate
    if part.first + got <= begin:
        if part.first + got == 0:
            raise problem("empty", "it has a header and no sound", path)
        raise problem("out of range", f"it ends before {begin / part.source_rate:.2f} s", path)
    if part.stop is not None and length < part.stop / part.source_rate - DISAGREEMENT:
        raise problem(
            "out of range",
            f"it is {length:.2f} s long and was to be read up to {part.stop / part.source_rate:.2f} s",
            path,
        )


def _finite(waveform: Waveform, path: PathLike) -> Waveform:
    if not np.isfinite(waveform).all():
        bad = int((~np.isfinite(waveform)).sum())
        raise problem("not finite", f"samples that are NaN or infinite: {bad:,}", path)
    return waveform


def _cut(blocks: Iterator[Waveform], skip: int, samples: int | None) -> Iterator[Waveform]:
    """Drops `skip` samples at the front, and everything after the next `samples`."""
    left = math.inf if samples is None else samples
    for block in blocks:
        rest = block[skip:]
        skip = max(0, skip - len(block))
        if rest.size > left:
            rest = rest[: int(left)]
        left -= rest.size
        if rest.size:
            yield rest


def _regular(blocks: Iterator[Waveform], length: int) -> Iterator[Waveform]:
    """Blocks of exactly `length` samples, but for the last."""
    out = np.empty(length, np.float32)
    filled = 0
    for block in blocks:
        used = 0
        while used < len(block):
            take = min(length - filled, len(block) - used)
            out[filled : filled + take] = block[used : used + take]
            filled += take
            used += take
            if filled == length:
                yield out
                out, filled = np.empty(length, np.float32), 0
    if filled:
        yield out[:filled]
