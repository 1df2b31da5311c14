"""Sounds that the tests make themselves, in any format that the installed libraries can write."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import numpy.typing as npt


def tone(seconds: float, rate: int, *, frequency: float = 440.0, seed: int = 0) -> npt.NDArray[np.float32]:
    """A tone with a little noise: [samples], peak near 0.35."""
    samples = round(seconds * rate)
    noise = np.random.default_rng(seed).standard_normal(samples)
    return (0.3 * np.sin(2 * np.pi * frequency * np.arange(samples) / rate) + 0.01 * noise).astype(np.float32)


def write_av(
    path: Path, waveform: npt.NDArray[np.float32], rate: int, codec: str, *, container: str, **options: str
) -> Path:
    """Writes a mono waveform by FFmpeg's encoder `codec`."""
    with av.open(str(path), "w", format=container, options=options) as file:
        stream = file.add_stream(codec, rate=rate)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(waveform[None], format="fltp", layout="mono")
        frame.sample_rate = rate
        size = stream.codec_context.frame_size or None
        resampler = av.AudioResampler(stream.codec_context.format, "mono", rate, frame_size=size)
        for part in resampler.resample(frame) + resampler.resample(None):
            file.mux(stream.encode(part))
        file.mux(stream.encode(None))
    return path


def cut(path: Path, fraction: float = 0.5) -> Path:
    """Keeps only the first part of a file's bytes."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    return path
