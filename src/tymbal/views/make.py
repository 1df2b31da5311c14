"""Waveforms to augmented views, in either mode: the one place that generated and fresh views both come from."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from tymbal.features.floor import ENERGY_FLOOR
from tymbal.settings import FeatureSettings
from tymbal.settings.augmentation import AugmentationSettings
from tymbal.views.draw import Draws
from tymbal.views.exact import exact_waveforms
from tymbal.views.sounds import load_banks
from tymbal.views.spectral import Clips, SpectralViews
from tymbal.views.spectrogram import change_spectrograms

__all__ = ["Mode", "ViewMaker"]

Mode = Literal["spectral", "exact"]


class ViewMaker:
    """Makes views of clips of one length.

    Args:
        settings: What may happen to a view.
        features: The filter bank.
        samples: Samples of a clip.
        mode: `spectral` changes one transform of a clip, `exact` its waveform.
        device: Where to compute; `exact` is for the CPU.

    Raises:
        SettingsError: Backgrounds cannot be used.
    """

    def __init__(
        self,
        settings: AugmentationSettings,
        features: FeatureSettings,
        samples: int,
        *,
        mode: Mode = "spectral",
        device: torch.device | str = "cpu",
    ) -> None:
        self.settings = settings
        self.features = features
        self.mode = mode
        self._banks = load_banks(settings, sample_rate=features.sample_rate, samples=samples)
        self._spectral = SpectralViews(features, self._banks, device=device)

    @torch.no_grad()
    def clean(self, waveforms: Tensor) -> Tensor:
        """Energies of clips [clips, samples] in mel bins, as partners for mixup: [clips, mels, frames]."""
        return self._spectral.mel(waveforms)

    @torch.no_grad()
    def transform(self, waveforms: Tensor) -> Clips:
        """What `spectral` needs of clips [clips, samples] on the device."""
        return self._spectral.transform(waveforms)

    @torch.no_grad()
    def views(self, clips: Clips | Tensor, clip: Tensor, draws: Draws, partners: Tensor) -> Tensor:
        """Makes views.

        Args:
            clips: Clips that `transform` gave, or for `exact` their waveforms, [clips, samples].
            clip: Which clip each view is of, int64 [views], on the CPU.
            draws: What happens to the views.
            partners: Energies in mel bins of the clip that each view may be mixed with, [views, mels, frames].

        Returns:
            Log-mel, float32 [views, frames, mels].
        """
        if isinstance(clips, Clips):
            mel = self._spectral(clips, clip, draws)
        else:
            mel = self.clean(self.waveforms(clips, clip, draws))
        return change_spectrograms(mel, partners, draws)

    def log_mel(self, mel: Tensor) -> Tensor:
        """Energies in mel bins [clips, mels, frames] as log-mel spectrograms [clips, frames, mels]."""
        return mel.clamp(min=ENERGY_FLOOR).log_().transpose(1, 2)

    @torch.no_grad()
    def waveforms(self, waveforms: Tensor, clip: Tensor, draws: Draws) -> Tensor:
        """The waveforms of views, in `exact` mode: [views, samples]; arguments as in `views`."""
        return exact_waveforms(waveforms, clip, draws, features=self.features, banks=self._banks)
