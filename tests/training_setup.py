"""A small store of sounds that can be learned, and settings with which a run takes a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from tymbal.features.normalisation import Normalisation
from tymbal.models.encoder import EncoderConfig
from tymbal.settings import FeatureSettings
from tymbal.store.packed.packed_store import Store
from tymbal.store.packed.writer import Entry, write_store

FRAMES, MELS = 32, 32

TINY: dict[str, Any] = {
    "objective": "joint",
    "width": 16,
    "depth": 2,
    "heads": 2,
    "patch": "8x8",
    "mask": "uniform",
    "mask_ratio": 0.5,
    "normalize_targets": False,
    "batch_size": 8,
    "epochs": 4,
    "learning_rate": 3e-3,
    "log_every": 2,
    "device": "cpu",
    "precision": "float32",
}
"""Settings of a pretraining of 19 steps, evaluated and saved after steps 5, 10, 14 and 19."""


def make_store(
    folder: Path, *, train: int = 37, validation: int = 8, split: str | None = "train", sample_rate: int = 16_000
) -> Store:
    """Ridges that glide up or down at a clip's own speed: masked patches can be told from their neighbours."""
    random = np.random.default_rng(0)
    mel, time = np.arange(MELS)[None, :], np.arange(FRAMES)[:, None]

    def clip() -> np.ndarray:
        centre = random.uniform(0, MELS) + random.uniform(-0.8, 0.8) * time
        return -6 + 5 * np.exp(-(((mel - centre) / 3) ** 2)) + random.normal(0, 0.3, (FRAMES, MELS))

    splits = [split] * train + ["validation"] * validation
    entries = [
        Entry(id=str(number), file=f"{number}.wav", start=0.0, end=0.3, frames=FRAMES, split=split)
        for number, split in enumerate(splits)
    ]
    features = FeatureSettings(mel_bins=MELS, sample_rate=sample_rate)
    return write_store(folder, [(clip(), entry) for entry in entries], features=features, frames=FRAMES)


COLUMNS = EncoderConfig(
    width=16, depth=2, heads=2, mels=16, frames=24, patch=(16, 2), stride=(16, 2), attend_to_padding=False
)
"""A small encoder with patches as high as the spectrogram."""

BY_CLIP = Normalisation(mean=-4.0, std=2.0, padding=-15.0, by="clip")


def noisy_batch(count: int = 8, seed: int = 1) -> dict[str, torch.Tensor]:
    """A batch for `COLUMNS`: clips of several lengths, each of noise about a spectrum of its own."""
    random = torch.Generator().manual_seed(seed)
    frames = torch.randint(8, 25, (count,), generator=random)
    clips = 3 * torch.randn(count, 1, 16, generator=random) + torch.randn(count, 24, 16, generator=random) - 4
    clips[torch.arange(24) >= frames[:, None]] = -15.0
    return {
        "spectrogram": clips.half(),
        "frames": frames,
        "row": torch.arange(count),
        "epoch": torch.zeros(count, dtype=torch.int64),
    }
