"""Every encoding that FFmpeg can write here, read by Tymbal and by FFmpeg: lengths, and how far the samples lie apart.

    python benchmarks/decoding.py [--seconds 2]

A tone with noise is written by each of FFmpeg's audio encoders (as PyAV brings them) into each container that takes it,
at several rates, mono and stereo. A row is a combination of coding and container: how many files could be written, how
many Tymbal read with FFmpeg's length (within one frame of the codec), the largest difference of lengths in samples, the
largest root of the mean squared difference in dB of the sound's own, and what was refused, with its reason. Mono is the
mean of the channels in both.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.codec import Codec

from tymbal.audio.decode import info, read
from tymbal.audio.inspect import inspect
from tymbal.errors import AudioError

RATES = (8_000, 16_000, 22_050, 44_100, 48_000, 96_000)
CONTAINERS = {
    "wav": "wav", "w64": "w64", "aiff": "aiff", "au": "au", "caf": "caf", "flac": "flac", "ogg": "ogg", "mp3": "mp3",
    "mp2": "mp2", "adts": "aac", "ipod": "m4a", "mp4": "mp4", "mov": "mov", "3gp": "3gp", "matroska": "mka",
    "webm": "webm", "asf": "wma", "amr": "amr", "ac3": "ac3", "eac3": "eac3", "tta": "tta", "wv": "wv",
}  # fmt: skip
FRAME = 2048  # samples, of AAC with SBR
LOW = -200.0  # dB: no difference

Wave = npt.NDArray[np.float32]


@dataclass
class Row:
    """The files of one coding in one container."""

    written: int = 0
    right: int = 0
    samples: int = 0
    decibels: float = LOW
    refused: Counter[str] = field(default_factory=Counter)


def write(path: Path, sound: Wave, rate: int, codec: str, container: str) -> bool:
    """Writes [channels, samples]; False where the encoder or the container does not take it."""
    layout = "mono" if len(sound) == 1 else "stereo"
    try:
        with av.open(str(path), "w", format=container) as file:
            stream: Any = file.add_stream(codec, rate=rate)
            stream.layout = layout
            if codec.startswith("wma"):
                stream.bit_rate = 48_000 * len(sound)
            frame = av.AudioFrame.from_ndarray(sound, format="fltp", layout=layout)
            frame.sample_rate = rate
            file.start_encoding()
            if stream.codec_context.sample_rate != rate:
                return False
            size = stream.codec_context.frame_size or None
            resampler = av.AudioResampler(stream.codec_context.format, layout, rate, frame_size=size)
            for part in resampler.resample(frame) + resampler.resample(None):
                file.mux(stream.encode(part))
            file.mux(stream.encode(None))
    except (av.error.FFmpegError, ValueError):
        return False
    return path.stat().st_size > 0


def by_ffmpeg(path: Path) -> tuple[Wave, int] | None:
    """FFmpeg's decode, mono, and its rate; None where it cannot read what it wrote."""
    parts, rate = [], 0
    with contextlib.suppress(av.error.FFmpegError, IndexError), av.open(str(path)) as container:
        resampler = av.AudioResampler(format="fltp")
        for packet in container.demux(audio=0):
            for frame in packet.decode():
                rate = frame.sample_rate
                parts += [part.to_ndarray().mean(axis=0) for part in resampler.resample(frame)]
    return (np.concatenate(parts), rate) if parts else None


def compare(path: Path, row: Row) -> None:
    """Reads a file in all ways and adds to its row."""
    row.written += 1
    expected = by_ffmpeg(path)
    if expected is None:
        row.refused["FFmpeg cannot read it"] += 1
        return
    wave, rate = expected
    try:
        got, own_rate = read(path)
        frames = info(path).frames
    except AudioError as error:
        row.refused[error.what.partition(":")[0]] += 1
        return
    report = inspect(path)
    if report.info is None or not frames == len(got) == report.info.frames:
        row.refused["scan and read differ"] += 1
        return
    if own_rate != rate:  # Opus: libsndfile keeps the rate that was recorded, FFmpeg decodes at 48 kHz
        got, _ = read(path, sample_rate=rate)
    apart = abs(len(got) - len(wave))
    row.samples = max(row.samples, apart)
    row.right += apart <= FRAME
    row.decibels = max(row.decibels, decibels(got, wave))


def decibels(one: Wave, other: Wave) -> float:
    """The difference of two decodes, at the shift by which they differ least, relative to the sound, in dB."""
    best = np.inf
    for shift in {0, len(one) - len(other), *range(-2, 3)}:
        left, right = one[max(0, shift) :], other[max(0, -shift) :]
        length = min(len(left), len(right)) - FRAME
        if length > FRAME:
            best = min(best, float(np.mean(np.square(left[FRAME:length] - right[FRAME:length]))))
    power = float(np.mean(np.square(other)))
    return LOW if best == 0 or not power else max(LOW, 10 * float(np.log10(best / power)))


def main() -> None:
    """Writes, reads and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=2.0)
    seconds = parser.parse_args().seconds
    encoders = [name for name in sorted(av.codecs_available) if is_audio_encoder(name)]
    rows: dict[tuple[str, str], Row] = {}
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for codec in encoders:
            for container, suffix in CONTAINERS.items():
                row = Row()
                for rate in RATES:
                    for channels in (1, 2):
                        samples = round(seconds * rate)
                        tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(samples) / rate)
                        sound = (tone + 0.01 * generator.standard_normal((channels, samples))).astype(np.float32)
                        path = Path(folder) / f"sound.{suffix}"
                        path.unlink(missing_ok=True)
                        if write(path, sound, rate, codec, container):
                            compare(path, row)
                if row.written:
                    rows[codec, container] = row
    print(f"{'coding':20}{'container':12}{'files':>6}{'right':>7}{'samples':>9}{'dB':>8}  refused")
    for (codec, container), row in rows.items():
        why = ", ".join(f"{reason} ({count})" for reason, count in row.refused.items())
        print(f"{codec:20}{container:12}{row.written:6}{row.right:7}{row.samples:9}{row.decibels:8.0f}  {why}".rstrip())
    total = Counter[str]()
    for row in rows.values():
        total.update(files=row.written, right=row.right, refused=row.refused.total())
    lost = total["files"] - total["right"] - total["refused"]
    print(
        f"{len(rows)} rows, {total['files']} files: {total['right']} of FFmpeg's length, {total['refused']} refused",
        end="",
    )
    print(f" with a reason, {lost} of another length")


def is_audio_encoder(name: str) -> bool:
    """Whether FFmpeg has an encoder of this name that is for sound."""
    try:
        return Codec(name, "w").type == "audio"
    except ValueError:
        return False


if __name__ == "__main__":
    main()
