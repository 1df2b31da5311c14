"""Sounds that are laid over others: white noise, and backgrounds from a folder, each a bank of clips of one length.

A bank is the same in every process: noise from a fixed seed, backgrounds from the folder's files in order.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tymbal.audio.decode import read
from tymbal.errors import AudioError, SettingsError
from tymbal.settings.augmentation import AugmentationSettings

__all__ = ["Bank", "background_files", "level_of", "load_banks"]

_CLIPS = 32
_SEED = 20_261_121
_ENDINGS = (".wav", ".flac", ".ogg", ".mp3", ".opus", ".m4a", ".aif", ".aiff")


@dataclass(frozen=True)
class Bank:
    """Clips to lay over others.

    Attributes:
        waveforms: float32 [clips, samples].
        level: Root mean square of each, [clips].
    """

    waveforms: Tensor
    level: Tensor

    def pick(self, numbers: Tensor) -> Tensor:
        """Places of clips from uniform numbers, int64 [views]."""
        return (numbers * len(self.waveforms)).long()


def load_banks(settings: AugmentationSettings, *, sample_rate: int, samples: int) -> dict[str, Bank]:
    """The banks that settings need, by the name of their augmentation.

    Raises:
        SettingsError: The folder of backgrounds has no sound that can be used.
    """
    banks = {}
    if settings.waveform.noise is not None or settings.waveform.reverberation is not None:
        banks["noise"] = _noise(samples)
    if settings.waveform.background is not None:
        banks["background"] = _background(settings.waveform.background.folder, sample_rate, samples)
    return banks


def background_files(folder: str | os.PathLike[str]) -> list[Path]:
    """The sound files of a folder of backgrounds that are used: at most 32, spread over all, in order.

    Raises:
        SettingsError: There are none.
    """
    root = Path(folder)
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in _ENDINGS) if root.is_dir() else []
    if not files:
        raise SettingsError("the folder of backgrounds has no sound files", path=folder, advice="Correct its path.")
    return [files[place * len(files) // min(len(files), _CLIPS)] for place in range(min(len(files), _CLIPS))]


@lru_cache(maxsize=4)
def _noise(samples: int) -> Bank:
    random = np.random.Generator(np.random.Philox(_SEED))
    return _bank(random.standard_normal((_CLIPS, samples), dtype=np.float32))


@lru_cache(maxsize=4)
def _background(folder: str, sample_rate: int, samples: int) -> Bank:
    clips = []
    for path in background_files(folder):
        try:
            clip = read(path, sample_rate=sample_rate, end=None)[0][:samples]
        except AudioError as error:
            raise SettingsError(f"a background cannot be used: {error.what}", path=path, advice=error.advice) from error
        if clip.any():
            # Shorter ones repeat from their beginning.
            clips.append(np.resize(clip, samples))
    if not clips:
        raise SettingsError("all backgrounds are silent", path=folder, advice="Give another folder.")
    return _bank(np.stack(clips))


def _bank(clips: np.ndarray) -> Bank:
    waveforms = torch.from_numpy(clips)
    return Bank(waveforms, level_of(waveforms))


def level_of(waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Root mean square of waveforms [clips, samples], or of the first samples of each, whose silent rest tells nothing.

    Args:
        waveforms: The waveforms, silence behind the end of shorter ones.
        lengths: Samples of sound in each, int64 [clips]; None is all.

    Returns:
        [clips].
    """
    level = waveforms.square().mean(dim=1).sqrt()
    if lengths is None:
        return level
    return level * (waveforms.shape[1] / lengths.clamp(1, waveforms.shape[1]).to(level.device)).sqrt()
