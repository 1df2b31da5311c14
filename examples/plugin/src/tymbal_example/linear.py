"""A filter bank: triangular bands of equal width in Hz, where the mel scale would squeeze what matters.

    tymbal prepare bats -o store --filter-bank linear --sample-rate 256000 --low-freq 15000 --mel-bins 64

Bats and many insects call where mel bands are wide, and what tells species apart are some kHz there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tymbal.features.bank import FilterBank

if TYPE_CHECKING:  # torch is imported where it is needed: planning a store stays light
    from torch import Tensor


class LinearBank(FilterBank):
    """Hann windows of `frame_length`, every `frame_shift`, through triangles that are straight in Hz."""

    @property
    def window_samples(self) -> int:
        """Samples in a frame."""
        return round(self.settings.sample_rate * self.settings.frame_length)

    @property
    def shift_samples(self) -> int:
        """Samples between two frames."""
        return round(self.settings.sample_rate * self.settings.frame_shift)

    def mel_of(self, hertz: float) -> float:
        """The scale on which the bands lie evenly: Hz themselves."""
        return hertz

    def mel_weights(self) -> Tensor:
        """Triangles of height 1 from one centre to the next: float32 [bands, bins]."""
        import torch

        settings = self.settings
        highest = settings.high_freq or settings.sample_rate / 2
        edges = torch.linspace(settings.low_freq, highest, settings.mel_bins + 2, dtype=torch.float64)
        hertz = torch.linspace(0, settings.sample_rate / 2, self._transform // 2 + 1, dtype=torch.float64)
        rising = (hertz - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
        falling = (edges[2:, None] - hertz) / (edges[2:] - edges[1:-1])[:, None]
        return torch.minimum(rising, falling).clamp(min=0).float()

    def spectra(self, waveforms: Tensor) -> Tensor:
        """Spectra of windowed frames: complex64 [batch, frames, bins]."""
        import torch

        window = torch.hann_window(self.window_samples, device=waveforms.device)
        frames = waveforms.unfold(1, self.window_samples, self.shift_samples)
        return torch.fft.rfft(frames * window, n=self._transform)

    @property
    def _transform(self) -> int:
        """Samples that are transformed: the next power of two, with zeros behind the frame."""
        return 1 << (self.window_samples - 1).bit_length()
