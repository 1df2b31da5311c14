"""Two ways to open a sound file behind one interface, libsndfile and FFmpeg (PyAV), and the way to another rate.

A reader says what the file is and yields its sound once, in mono blocks at the file's own rate. It reports a file that
holds less sound than it promises; `tymbal.audio.decode` decides which reader a file gets.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol, Self

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from tymbal.audio.embedded import is_elsewhere, open_bytes
from tymbal.audio.failures import problem
from tymbal.audio.spans import LONGER, Span
from tymbal.errors import AudioError

__all__ = [
    "CANCELLED",
    "AudioInfo",
    "AvReader",
    "Reader",
    "SoundfileReader",
    "SoundfileTrouble",
    "Source",
    "Waveform",
    "context_samples",
    "reach",
    "resample",
    "resample_stream",
]

SoundfileTrouble = soundfile.LibsndfileError
"""What libsndfile raises; it names no path."""

_BLOCK = 1 << 18  # frames: 1 MiB of mono float32, so that the work stays near the cache
_RATES = (100, 10_000_000)
_FRAMES_A_BYTE = 5000  # FLAC packs 65,535 frames of silence into 14 bytes; no format packs more
_BLOCKED = ("MPEG", "ADPCM", "GSM", "G72")  # codings whose last block may hold less than it has room for
_BLOCK_SLACK = 3 * 1152  # decoders differ in how they treat the first and the last block of a compressed file
_INTEGERS = {"PCM_16": "int16", "PCM_24": "int32", "PCM_32": "int32"}
_AV_SLACK = 0.1  # seconds: durations in a container are rounded and include or exclude the encoder's delay
_AV_FRAMES = 2 * 1152  # samples, for the same reason, where the rate is low
_AV_COUNTED = ("flac",)  # containers that tell the number of samples
_AV_TIMED = ("mov", "matroska", "asf", "wav", "aiff", "w64", "flv")  # containers that tell a duration
_AV_PREROLL = 0.25  # seconds decoded before the requested place, for decoders that depend on the packets before


@dataclass(frozen=True)
class AudioInfo:
    """Properties of a sound file.

    Attributes:
        frames: Samples of one channel.
        sample_rate: In Hz.
        channels: Number of channels.
        duration: In seconds.
        format: Container and coding, as in `WAV/PCM_16` or `MOV/AAC`.
        remarks: What is unusual about it although nothing is lost, as far as it was read.
    """

    frames: int
    sample_rate: int
    channels: int
    duration: float
    format: str
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """A file, or a part of one that is a sound file by itself.

    Attributes:
        path: The file's path.
        size: Its size in bytes.
        span: The part; None is the file.
    """

    path: Path
    size: int
    span: Span | None = None

    def opened(self) -> str | BinaryIO:
        """What a decoder opens. The path is whole: FFmpeg takes what stands before a colon for a protocol."""
        if self.span is not None:
            return self.span.open(self.path)
        return open_bytes(self.path) if is_elsewhere(self.path) else str(self.path.absolute())

    def bytes(self) -> BinaryIO:
        """The open file or part."""
        if self.span is not None:
            return self.span.open(self.path)
        return open_bytes(self.path) if is_elsewhere(self.path) else self.path.open("rb")


class Reader(Protocol):
    """An open sound file whose sound is read once, from front to back."""

    @property
    def sample_rate(self) -> int:
        """In Hz."""

    @property
    def channels(self) -> int:
        """Number of channels."""

    @property
    def format(self) -> str:
        """Container and coding."""

    @property
    def frames(self) -> int | None:
        """Samples of one channel, or None where only decoding can tell."""

    @property
    def remarks(self) -> set[str]:
        """What was unusual about the sound read so far, although nothing of it is lost."""

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[Waveform]:
        """Yields the sound from sample `start` to before `stop` (or to the end), mono float32 [samples]."""

    def __enter__(self) -> Self:
        """Stays open within."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the file."""


class SoundfileReader:
    """WAV, FLAC, Ogg Vorbis and Opus, MP3, AIFF, AU, CAF, W64 and more, by libsndfile.

    Raises:
        LibsndfileError: libsndfile cannot read it.
        AudioError: Its header is nonsense.
    """

    def __init__(self, source: Source) -> None:
        self.remarks: set[str] = set()
        self._path = source.path
        self._file = soundfile.SoundFile(source.opened())
        self.sample_rate: int = self._file.samplerate
        self.channels: int = self._file.channels
        self.frames: int = self._file.frames
        self.format = f"{self._file.format}/{self._file.subtype}"
        self._slack = _BLOCK_SLACK if any(name in self._file.subtype for name in _BLOCKED) else 0
        try:
            _check_header(self, source)
        except AudioError:
            self._file.close()
            raise

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[Waveform]:
        """Yields the sound from sample `start` to before `stop`; see `Reader`."""
        position = start
        end = self.frames if stop is None else min(stop, self.frames)
        if start:
            self._file.seek(min(start, self.frames))
        while position < end:
            block = self._read(min(_BLOCK, end - position))
            if not len(block):
                break
            position += len(block)
            yield _downmix(block.T, self.remarks)
        if position < end - self._slack:
            raise _truncated(position, self.frames, self.sample_rate, self._path)

    def _read(self, frames: int) -> Waveform:
        """The next samples [frames, channels], full scale between -1 and 1.

        Integers are read as such and scaled here: to the same bits as by libsndfile, in a quarter of its time for WAV
        of 16 bits. The factor is a power of two, so each sample is rounded once at most, where 32 bits become 24.
        """
        integer = _INTEGERS.get(self._file.subtype)
        if integer is None:
            block: Waveform = self._file.read(frames, dtype="float32", always_2d=True)
            return block
        samples = self._file.read(frames, dtype=integer, always_2d=True)
        block = samples.astype(np.float32)
        block *= np.float32(-1 / np.iinfo(samples.dtype).min)
        return block

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


class AvReader:
    """MP4, M4A, AMR, WMA, WebM, and what is damaged for libsndfile but not for FFmpeg, by PyAV.

    The rate is that of the first decoded frame: headers of HE-AAC tell half of it.

    Args:
        source: The file.
        seconds: Sound that is known to be in it: reached, no complaint of the decoder matters.

    Raises:
        AudioError: FFmpeg cannot read it either, it has no sound, or its header is nonsense.
    """

    def __init__(self, source: Source, seconds: float | None = None) -> None:
        import av  # 90 ms that most folders never need

        self._av = av
        self.remarks: set[str] = set()
        self._path = source.path
        self._seconds = seconds
        try:
            self._container: Any = av.open(source.opened(), mode="r")
        except (av.error.FFmpegError, ValueError) as error:
            raise problem(
                "unreadable", f"neither libsndfile nor FFmpeg can read it ({_message(error)})", source.path
            ) from None
        try:
            self._open_stream(source)
        except AudioError:
            self._container.close()
            raise

    def _open_stream(self, source: Source) -> None:
        if not self._container.streams.audio:
            raise problem("unreadable", "it has no sound in it", source.path)
        self._stream = self._container.streams.audio[0]
        self._errors = 0
        self._decoded = self._decode()
        first = next(self._decoded, None)
        if first is None:
            raise problem("empty" if not self._errors else "unreadable", "no sound could be decoded", source.path)
        self._first = first
        self.sample_rate: int = first.sample_rate
        self.channels: int = first.layout.nb_channels
        name = self._container.format.name.split(",")[0]
        self.format = f"{name}/{self._stream.codec_context.name}".upper()
        promised = self._promised_seconds(name)
        self._promised = None if promised is None else round(promised * self.sample_rate)
        self._slack = 0 if name in _AV_COUNTED else max(round(_AV_SLACK * self.sample_rate), _AV_FRAMES)
        self.frames: int | None = self._promised if name in (*_AV_COUNTED, "mov") else None
        self._seekable = name == "mov" and first.pts is not None and first.time_base is not None
        _check_header(self, source)

    def _promised_seconds(self, container: str) -> Fraction | None:
        """Duration that the container tells. For MP3, AAC and AMR FFmpeg only guesses it from the bit rate."""
        if container not in _AV_COUNTED + _AV_TIMED:
            return None
        if self._stream.duration is not None and self._stream.time_base is not None:
            promised = Fraction(self._stream.duration * self._stream.time_base)
            index = getattr(self._stream, "index_entries", ()) if container == "mov" else ()
            if len(index) and index[len(index) - 1].timestamp * self._stream.time_base > promised + _AV_SLACK:
                self.remarks.add(LONGER)  # the table of samples goes on behind the header's end
                return None
            return promised
        if self._container.duration is not None:
            return Fraction(self._container.duration, self._av.time_base)
        return None

    def _decode(self) -> Iterator[Any]:
        """Frames in order; packets that cannot be decoded are counted and passed over."""
        try:
            for packet in self._container.demux(self._stream):
                try:
                    yield from packet.decode()
                except self._av.error.FFmpegError:
                    self._errors += 1
        except self._av.error.FFmpegError:
            self._errors += 1

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[Waveform]:
        """Yields the sound from sample `start` to before `stop`; see `Reader`."""
        ends = [end for end in (stop, self.frames) if end is not None]
        end = min(ends) if ends else None
        reached = 0
        for position, samples in self._placed(start):
            reached = position + len(samples)
            part = samples[max(0, start - position) : None if end is None else max(0, end - position)]
            if part.size:
                yield part
            if end is not None and reached >= end:
                return
        self._check_complete(reached, end)

    def _placed(self, start: int) -> Iterator[tuple[int, Waveform]]:
        """Decoded blocks, each with the sample at which it begins."""
        preroll = start - round(_AV_PREROLL * self.sample_rate)
        position = 0
        frames = self._decoded
        if self._seekable and preroll > 0:
            time_base = self._first.time_base
            self._container.seek(
                self._first.pts + int(Fraction(preroll, self.sample_rate) / time_base), stream=self._stream
            )
            self._stream.codec_context.flush_buffers()
            frames = self._decode()
            first = next(frames, None)
            if first is None or first.pts is None:
                return
            position = round((first.pts - self._first.pts) * time_base * self.sample_rate)
        else:
            first = self._first
        for frame in self._at_one_rate(_chain(first, frames)):
            samples = _downmix(np.asarray(frame.to_ndarray(), np.float32), self.remarks)
            yield position, samples
            position += len(samples)

    def _at_one_rate(self, frames: Iterator[Any]) -> Iterator[Any]:
        """Frames as planar float32 at the rate of the first; rate and channels of joined sounds may change."""
        alike = groupby(frames, key=lambda frame: (frame.format.name, frame.layout.name, frame.sample_rate))
        for _, group in alike:
            resampler = self._av.AudioResampler(format="fltp", rate=self.sample_rate)
            for frame in group:
                yield from resampler.resample(frame)
            yield from resampler.resample(None)

    def _check_complete(self, reached: int, end: int | None) -> None:
        promised = self._promised
        if promised is not None and reached < min(promised, promised if end is None else end) - self._slack:
            raise _truncated(reached, promised, self.sample_rate, self._path)
        sure = self._seconds is not None and reached >= (self._seconds - _AV_SLACK) * self.sample_rate
        if promised is None and self._errors and not sure:
            seconds = reached / self.sample_rate
            raise problem("truncated", f"decoding fails after {seconds:.2f} s of sound", self._path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._container.close()


def _chain(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest


CANCELLED = "its channels cancel each other in the mean: the loudest one is read alone"
"""A reader's remark."""

_CANCELLED = 1e-6  # of the channels' energy is left of them in the mean: 60 dB


def _downmix(channels: Waveform, remarks: set[str]) -> Waveform:
    """The mean of the channels, [channels, samples] to [samples]; adding them up is 30 times faster than `mean`.

    Where channels cancel each other (one is wired the wrong way round, or a balanced line was recorded as stereo), the
    mean is silent although the sound is not: the loudest channel stands for them.
    """
    mono: Waveform = channels[0]
    if len(channels) == 1:
        return mono
    mono = mono + channels[1]
    for channel in channels[2:]:
        mono += channel
    mono *= np.float32(1 / len(channels))
    with np.errstate(all="ignore"):  # NaN and infinity are looked for elsewhere
        energies = [float(np.dot(channel, channel)) for channel in channels]
        if float(np.dot(mono, mono)) < _CANCELLED * max(energies):
            remarks.add(CANCELLED)
            mono = channels[energies.index(max(energies))]
    return mono


def _check_header(reader: Reader, source: Source) -> None:
    low, high = _RATES
    if not low <= reader.sample_rate <= high:
        raise problem("unreadable", f"its header tells a sample rate of {reader.sample_rate:,} Hz", source.path)
    if reader.channels < 1:
        raise problem("unreadable", "its header tells no channels", source.path)
    if reader.frames is not None and not 0 <= reader.frames <= _FRAMES_A_BYTE * source.size:
        raise problem(
            "unreadable",
            f"its header tells {reader.frames:,} samples, which {source.size:,} bytes cannot hold",
            source.path,
        )


def _truncated(frames: int, promised: int, rate: int, path: Path) -> AudioError:
    return problem("truncated", f"it promises {promised / rate:.2f} s of sound and holds {frames / rate:.2f} s", path)


def _message(error: Exception) -> str:
    """FFmpeg's own words, without the number and the file name around them."""
    return str(getattr(error, "strerror", None) or error).rstrip(".")


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
