"""The filter bank that settings ask for."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from tymbal.features.kaldi import KaldiFbank
from tymbal.features.librosa import LibrosaMel
from tymbal.settings import FeatureSettings

__all__ = ["FilterBank", "filter_bank"]

FilterBank = Callable[[Tensor], Tensor]
"""Waveforms [samples] or [batch, samples] to log-mel spectrograms [frames, mels] or [batch, frames, mels]."""


def filter_bank(settings: FeatureSettings) -> FilterBank:
    """The filter bank of these settings."""
    return LibrosaMel(settings) if settings.filter_bank == "librosa" else KaldiFbank(settings)
