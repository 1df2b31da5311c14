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
    """Writes a waveform, [samples] or [channels, samples], by FFmpeg's encoder `codec`."""
    waveform = np.atleast_2d(waveform)
    layout = {1: "mono", 2: "stereo"}[len(waveform)]
    with av.open(str(path), "w", format=container, options=options) as file:
        stream = file.add_stream(codec, rate=rate)
        stream.layout = layout
        if codec.startswith("wma"):
            stream.bit_rate = 48_000  # what it writes by default is more than it can for one channel
        frame = av.AudioFrame.from_ndarray(waveform, format="fltp", layout=layout)
        frame.sample_rate = rate
        file.start_encoding()  # only then is the size of its frames known
        size = stream.codec_context.frame_size or None
        resampler = av.AudioResampler(stream.codec_context.format, layout, rate, frame_size=size)
        for part in resampler.resample(frame) + resampler.resample(None):
            file.mux(stream.encode(part))
        file.mux([packet for packet in stream.encode(None) if packet.size])  # FLAC's last one is empty
    return path


def cut(path: Path, fraction: float = 0.5) -> Path:
    """Keeps only the first part of a file's bytes."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    return path


ENCODINGS = (
    *((f"{codec}.wav", codec, "wav") for codec in (
        "pcm_u8", "pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_f32le", "pcm_f64le", "pcm_alaw", "pcm_mulaw", "adpcm_ms",
        "adpcm_ima_wav", "adpcm_yamaha", "g722", "libmp3lame", "mp2", "wmav2",
    )),
    *((f"{codec}.w64", codec, "w64") for codec in ("pcm_s16le", "pcm_f32le", "adpcm_ima_wav")),
    *((f"{codec}.aiff", codec, "aiff") for codec in ("pcm_s8", "pcm_s16be", "pcm_s24be", "pcm_f32be", "pcm_mulaw")),
    *((f"{codec}.au", codec, "au") for codec in ("pcm_s8", "pcm_s16be", "pcm_s24be", "pcm_f64be", "pcm_alaw")),
    *((f"{codec}.caf", codec, "caf") for codec in ("pcm_s16be", "pcm_f32le", "alac", "adpcm_ima_qt")),
    ("flac.flac", "flac", "flac"),
    ("libopus.ogg", "libopus", "ogg"),
    ("libmp3lame.mp3", "libmp3lame", "mp3"),
    ("mp2.mp2", "mp2", "mp2"),
    *((f"{codec}.m4a", codec, "ipod") for codec in ("aac", "alac", "ac3")),
    *((f"{codec}.mp4", codec, "mp4") for codec in ("aac", "libopus", "libmp3lame")),
    *((f"{codec}.mka", codec, "matroska") for codec in ("pcm_s16le", "libopus", "libmp3lame", "tta")),
    ("libopus.webm", "libopus", "webm"),
    *((f"{codec}.wma", codec, "asf") for codec in ("wmav1", "wmav2", "pcm_s16le")),
    ("aac.aac", "aac", "adts"),
    ("ac3.ac3", "ac3", "ac3"),
    ("tta.tta", "tta", "tta"),
    ("wavpack.wv", "wavpack", "wv"),
    ("amr.amr", "libopencore_amrnb", "amr"),
)  # fmt: skip
"""Name, FFmpeg's encoder and its container, of what can be written here and read."""
