"""Spoken digits as SSAST's users have them: float16 spectrograms in `.pt` files, and JSON lists."""

from __future__ import annotations

import json
from pathlib import Path

import soundfile
import torch

from tymbal.features.kaldi import KaldiFbank
from tymbal.settings import FeatureSettings

SPEAKERS = ("george", "jackson")
MIDS = {str(digit): f"/m/{digit}" for digit in range(10)}


def digit_files(shared: Path, *, per_digit: int = 2) -> list[Path]:
    """Recordings of all digits by two speakers."""
    return [
        shared / "data" / "fsdd" / f"{digit}_{speaker}_{number}.wav"
        for digit in MIDS
        for speaker in SPEAKERS
        for number in range(per_digit)
    ]


def spectrogram(path: Path, *, mels: int = 128) -> torch.Tensor:
    """Log-mel [frames, mels], float16. The recordings have 8 kHz."""
    waveform, rate = soundfile.read(path, dtype="float32")
    return KaldiFbank(FeatureSettings(sample_rate=rate, mel_bins=mels))(torch.from_numpy(waveform)).half()


def write_digits(folder: Path, files: list[Path], *, mels: int = 128) -> dict[str, torch.Tensor]:
    """A `.pt` file each; gives what is in them, by stem."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {path.stem: spectrogram(path, mels=mels) for path in files}
    for stem, value in values.items():
        torch.save(value, folder / f"{stem}.pt")
    return values


def write_list(path: Path, files: list[Path], *, labels: bool = True) -> Path:
    """SSAST's JSON list, its audio where nobody can reach it."""
    data = [{"wav": f"/cluster/audio/{file.name}"} for file in files]
    if labels:
        for entry, file in zip(data, files, strict=True):
            entry["labels"] = MIDS[file.stem[0]]
    path.write_text(json.dumps({"data": data}))
    return path


def write_label_csv(path: Path) -> Path:
    """SSAST's label table, not in the order of the alphabet."""
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    rows = [f"{index},{MIDS[str(index)]},{name}" for index, name in enumerate(names)]
    path.write_text("\n".join(["index,mid,display_name", *rows]) + "\n")
    return path
