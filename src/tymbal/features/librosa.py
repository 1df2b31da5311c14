"""librosa's log-mel spectrogram in torch, batched: a centred power spectrum through Slaney's mel filters.

Reference: `librosa.feature.melspectrogram(y, sr, n_fft, hop_length, n_mels, fmin, fmax)` of librosa 0.10 and later,
with its defaults: a periodic Hann window, zeros beyond both ends, triangles that are straight in Slaney's mel and of
equal area. The values are natural logarithms with Tymbal's floor, so that silence is the same number in every store;
`librosa.power_to_db(energy, ref=1.0, top_db=None)` is `10 / ln 10` times as much, above the floor.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tymbal.features.bank import check_waveform
from tymbal.features.normalisation import ENERGY_FLOOR
from tymbal.settings import FeatureSettings

__all__ = ["LibrosaMel", "mel_filters", "slaney_mel", "spectra"]

_LINEAR_STEP = 200 / 3
_LOG_FROM = 1000.0
_LOG_STEP = math.log(6.4) / 27


class LibrosaMel:
    """Waveforms to log-mel spectrograms.

    Args:
        settings: Sample rate, frames and mel bins.
    """

    def __init__(self, settings: FeatureSettings) -> None:
        self.settings = settings

    @torch.no_grad()
    def __call__(self, waveform: Tensor) -> Tensor:
        """Computes the log-mel spectrogram of one waveform or of a batch.

        Args:
            waveform: Samples from -1 to 1, floating point, [samples] or [batch, samples].

        Returns:
            Natural logarithms of mel energies, float32, [frames, mels] or [batch, frames, mels], on the waveform's
            device, with frames = 1 + samples // hop length.

        Raises:
            AudioError: The waveform is not floating point, or has no samples.
        """
        check_waveform(waveform, rate=self.settings.sample_rate)
        settings = self.settings
        spectrum = torch.stft(
            waveform.float(),
            settings.n_fft,
            settings.hop_length,
            window=_window(settings.n_fft, waveform.device),
            center=True,
            pad_mode="constant",
            return_complex=True,
        )
        energy = spectrum.real.square() + spectrum.imag.square()
        mel = torch.from_numpy(mel_filters(settings)).to(waveform.device) @ energy
        return mel.clamp_(min=ENERGY_FLOOR).log_().transpose(-1, -2).contiguous()


def spectra(settings: FeatureSettings, waveforms: Tensor) -> Tensor:
    """The spectra behind `LibrosaMel`.

    Args:
        settings: Sample rate and frames.
        waveforms: float32 [batch, samples].

    Returns:
        complex64 [batch, frames, n_fft // 2 + 1].
    """
    half = settings.n_fft // 2
    frames = nn.functional.pad(waveforms, (half, half)).unfold(1, settings.n_fft, settings.hop_length)
    spectrum: Tensor = torch.fft.rfft(frames * _window(settings.n_fft, waveforms.device), n=settings.n_fft)
    return spectrum


@lru_cache(maxsize=16)
def _window(length: int, device: torch.device) -> Tensor:
    return torch.hann_window(length, device=device)


@lru_cache(maxsize=16)
def mel_filters(settings: FeatureSettings) -> npt.NDArray[np.float32]:
    """Triangles of equal area, straight in Slaney's mel: float32 [mels, n_fft // 2 + 1].

    Slaney's scale is linear to 1 kHz and logarithmic above (Auditory Toolbox, 1998).
    """
    high = settings.high_freq or settings.sample_rate / 2
    edges = _hz(np.linspace(slaney_mel(settings.low_freq), slaney_mel(high), settings.mel_bins + 2))
    frequency = np.linspace(0, settings.sample_rate / 2, settings.n_fft // 2 + 1)
    left, centre, right = (edges[i : i + settings.mel_bins, None] for i in range(3))
    triangles = np.minimum((frequency - left) / (centre - left), (right - frequency) / (right - centre))
    return (np.maximum(triangles, 0) * 2 / (right - left)).astype(np.float32)


def slaney_mel(hz: float) -> float:
    """A frequency in Hz on Slaney's mel scale."""
    return hz / _LINEAR_STEP if hz < _LOG_FROM else _LOG_FROM / _LINEAR_STEP + math.log(hz / _LOG_FROM) / _LOG_STEP


def _hz(mel: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    knee = _LOG_FROM / _LINEAR_STEP
    return np.where(mel < knee, mel * _LINEAR_STEP, _LOG_FROM * np.exp(_LOG_STEP * (mel - knee)))
