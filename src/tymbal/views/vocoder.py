"""A phase vocoder: sounds that become longer or shorter at the same pitch.

Flanagan & Golden 1966, in the form of Laroche & Dolson 1999: magnitudes of frames are interpolated in time, phases go
on by what they turn from one frame to the next. A turn is a complex number of length 1 and a phase a product of turns,
so that no angle is ever computed, wrapped or unwrapped. Frames and turns of a sound serve all its stretches.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["Vocoder"]

_N_FFT, _HOP = 1024, 256
_OVERLAP = _N_FFT // _HOP
_SILENT = 1e-12


class Vocoder:
    """The frames of one sound, to stretch it.

    Args:
        waveform: float32 [samples], on the CPU.
    """

    def __init__(self, waveform: Tensor) -> None:
        self._waveform = waveform
        # Silence behind the end as well, so that the last sample lies in as many frames as any other.
        padded = torch.nn.functional.pad(waveform, (_N_FFT // 2, _N_FFT + _HOP))
        self._window = torch.hann_window(_N_FFT)
        spectrum = torch.fft.rfft(padded.unfold(0, _N_FFT, _HOP) * self._window)
        parts = torch.view_as_real(spectrum)
        real, imaginary = parts.unbind(2)
        self._height = torch.addcmul(real.square(), imaginary, imaginary).sqrt_()
        phase = torch.view_as_complex(parts * self._height.clamp(min=_SILENT).reciprocal_().unsqueeze(2))
        phase.masked_fill_(self._height < _SILENT, 1)
        # The first phase, and how far each goes on to the next: row n + 1 leads from frame n.
        self._turns = torch.cat([phase[:1], phase[1:] * phase[:-1].conj(), torch.ones_like(phase[:1])])

    def stretched(self, rate: float, samples: int | None = None) -> Tensor:
        """The sound at another speed and the same pitch and level.

        Args:
            rate: How many times faster.
            samples: How many are wanted at most.

        Returns:
            float32 [round(samples of the sound / rate)], or as many as are wanted.
        """
        length = round(len(self._waveform) / rate)
        length = length if samples is None else min(length, samples)
        frames = math.ceil(length / _HOP) + _OVERLAP // 2
        position = torch.arange(frames, dtype=torch.float64).mul_(rate).clamp_(max=len(self._height) - 1)
        first = position.long()
        share = (position - first).float().unsqueeze(1)
        after = (first + 1).clamp_(max=len(self._height) - 1)
        height = torch.lerp(self._height[first], self._height[after], share)
        turns = self._turns[torch.cat([first[:1], first[:-1] + 1])]
        spectrum = torch.view_as_real(turns.cumprod(0)).mul_(height.unsqueeze(2))
        sound = _added(torch.fft.irfft(torch.view_as_complex(spectrum), n=_N_FFT).mul_(self._window), self._window)
        sound = sound[_N_FFT // 2 :][:length]
        # Where the phases of neighbouring bins fall apart they cancel: some decibels, which are given back.
        source = self._waveform[: round(length * rate)]
        return sound.mul_((source.square().mean() / sound.square().mean().clamp(min=1e-20)).sqrt())


def _added(frames: Tensor, window: Tensor) -> Tensor:
    """Frames [frames, size], windowed twice, laid over each other to a sound [(frames + overlap - 1) * hop]."""
    parts = frames.view(len(frames), _OVERLAP, _HOP)
    sound = torch.zeros(len(frames) + _OVERLAP - 1, _HOP)
    weight = torch.zeros_like(sound)
    squares = window.square().view(_OVERLAP, _HOP)
    for place in range(_OVERLAP):
        sound[place : place + len(frames)] += parts[:, place]
        weight[place : place + len(frames)] += squares[place]
    return sound.div_(weight.clamp_(min=1e-8)).flatten()
