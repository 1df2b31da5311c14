"""The filter bank that settings ask for."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from tymbal.features.kaldi import KaldiFbank
from tymbal.features.librosa import LibrosaMel, slaney_mel
from tymbal.settings import FeatureSettings

__all__ = ["FilterBank", "bin_at", "filter_bank"]

FilterBank = Callable[[Tensor], Tensor]
"""Waveforms [samples] or [batch, samples] to log-mel spectrograms [frames, mels] or [batch, frames, mels]."""


def filter_bank(settings: FeatureSettings) -> FilterBank:
    """The filter bank of these settings."""
    return LibrosaMel(settings) if settings.filter_bank == "librosa" else KaldiFbank(settings)


def bin_at(settings: FeatureSettings, hertz: float) -> float:
    """The mel bin, as a number with a fraction, whose centre has a frequency; bin 0 is the lowest.

    Args:
        settings: The filter bank.
        hertz: The frequency in Hz.
    """

    def mel(frequency: float) -> float:
        if settings.filter_bank == "librosa":
            return slaney_mel(frequency)
        return 1127.0 * math.log(1.0 + frequency / 700.0)

    low, high = mel(settings.low_freq), mel(settings.high_freq or settings.sample_rate / 2)
    return (mel(hertz) - low) / (high - low) * (settings.mel_bins + 1) - 1
