"""Pairs of views as most people make them: librosa and audiomentations, file by file. Run by `benchmarks/views.py`.

    python _views_peer.py JOB.json     # with a Python that has audiomentations and librosa

Nothing of Tymbal is needed. A clip is loaded once and serves all its versions; each view gets 3 changes of the waveform
and 2 of the spectrogram, drawn from the same lists and ranges as Tymbal's side, and goes to a file with its pair.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    try:
        import audiomentations as am
        import librosa
    except ImportError as error:
        sys.exit(f"absent: {error.name}")
    stretch = am.TimeStretch(0.8, 1.25, leave_length_unchanged=True, p=1.0)
    change = am.SomeOf(
        3,
        [
            am.Gain(-12.0, 12.0, p=1.0),
            am.AddGaussianSNR(5.0, 40.0, p=1.0),
            am.PitchShift(-4.0, 4.0, p=1.0),
            stretch,
            am.Shift(-0.3, 0.3, p=1.0),
            am.HighPassFilter(20.0, 1000.0, p=1.0),
            am.LowPassFilter(1500.0, 8000.0, p=1.0),
            am.BandPassFilter(300.0, 4000.0, p=1.0),
            am.PolarityInversion(p=1.0),
        ],
    )
    random = np.random.default_rng(0)
    out = Path(job["output"])
    rate, samples = job["sample_rate"], round(job["seconds"] * job["sample_rate"])

    def view(clip: np.ndarray, other: np.ndarray) -> np.ndarray:
        sound = change(samples=clip, sample_rate=rate)
        mel = librosa.feature.melspectrogram(y=sound, sr=rate, n_fft=2048, hop_length=512, n_mels=128)
        return spectrogram_changes(librosa.power_to_db(mel), other, random)

    other = np.full((128, 1 + samples // 512), -60.0)
    for file in job["files"][:2]:  # the first calls compile
        view(np.resize(librosa.load(file, sr=rate, duration=job["seconds"])[0], samples), other)
    start, busy = time.perf_counter(), time.process_time()
    for number, file in enumerate(job["files"]):
        clip = librosa.util.fix_length(librosa.load(file, sr=rate, duration=job["seconds"])[0], size=samples)
        for version in range(job["versions"]):
            pair = np.stack([view(clip, other), view(clip, other)]).astype(np.float32)
            np.save(out / f"{number:05d}_v{version}.npy", pair)
        other = pair[0]
    print(json.dumps({"seconds": time.perf_counter() - start, "busy": time.process_time() - busy}))


def spectrogram_changes(mel: np.ndarray, other: np.ndarray, random: np.random.Generator) -> np.ndarray:
    bins, frames = mel.shape
    mel = mel.copy()
    for name in random.choice(["time", "frequency", "crop", "mixup", "roll"], 2, replace=False):
        if name == "time":
            width = int(random.uniform(0.02, 0.2) * frames)
            first = random.integers(0, frames - width + 1)
            mel[:, first : first + width] = mel.min()
        elif name == "frequency":
            width = int(random.uniform(0.02, 0.2) * bins)
            first = random.integers(0, bins - width + 1)
            mel[first : first + width] = mel.min()
        elif name == "crop":
            height, width = (int(random.uniform(0.6, 1.0) * size) for size in mel.shape)
            top, left = random.integers(0, bins - height + 1), random.integers(0, frames - width + 1)
            rows = np.linspace(top, top + height - 1, bins)
            columns = np.linspace(left, left + width - 1, frames)
            across = np.stack([np.interp(columns, np.arange(frames), row) for row in mel])
            mel = np.stack([np.interp(rows, np.arange(bins), column) for column in across.T], axis=1)
        elif name == "mixup":
            share = random.uniform(0.05, 0.4)
            mel = 10 * np.log10((1 - share) * 10 ** (mel / 10) + share * 10 ** (other / 10))
        else:
            mel = np.roll(mel, int(random.uniform(-0.5, 0.5) * frames), axis=1)
    return mel


if __name__ == "__main__":
    main()
