"""The complex spectrum behind a log-mel spectrogram, the way from its energy to mel bins, and a phase vocoder.

Flanagan & Golden 1966, in the form of Laroche & Dolson 1999: magnitudes of frames are interpolated in time, phases go
on by what they turn from one frame to the next. A turn is a complex number of length 1 and a phase a product of turns,
so that no angle is ever computed, wrapped or unwrapped. Frames and turns of a sound serve all its stretches.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tymbal.features.bank import filter_bank
from tymbal.settings import FeatureSettings

__all__ = ["Spectrum", "Vocoder"]

_BLOCKS = 8


class Spectrum:
    """Waveforms to complex spectra, and energies to mel bins, as a filter bank has them.

    Args:
        features: The filter bank.
        device: The device to compute on.

    Attributes:
        frequencies: Frequencies of the bins in Hz, [bins].
    """

    def __init__(self, features: FeatureSettings, device: torch.device | str = "cpu") -> None:
        self._bank = filter_bank(features.features())
        filters = self._bank.mel_weights()
        bins = filters.shape[1]
        self.frequencies = torch.arange(bins, device=device) * (features.sample_rate / (2 * (bins - 1)))
        # Low mel bins look at few bins and high ones at many: blocks leave out most of the zeros.
        self._blocks: list[tuple[slice, Tensor]] = []
        for rows in torch.arange(len(filters)).tensor_split(min(_BLOCKS, len(filters))):
            part = filters[int(rows[0]) : int(rows[-1]) + 1]
            used = part.any(0).nonzero().flatten()
            reach = slice(int(used[0]), int(used[-1]) + 1) if len(used) else slice(0, 1)
            self._blocks.append((reach, part[:, reach].contiguous().to(device)))

    def transform(self, waveforms: Tensor) -> Tensor:
        """Waveforms [batch, samples] to their spectra, complex64 [batch, frames, bins]."""
        return self._bank.spectra(waveforms)

    @staticmethod
    def energy(spectrum: Tensor) -> Tensor:
        """Spectra [batch, frames, bins] to energies, float32 [batch, bins, frames]."""
        real, imaginary = torch.view_as_real(spectrum).unbind(3)
        return torch.addcmul(real.square(), imaginary, imaginary).transpose(1, 2)

    def mel(self, energy: Tensor, response: Tensor | None = None) -> Tensor:
        """Energies in mel bins, after filters if a response is given.

        Args:
            energy: [views, bins, frames], or [1, bins, frames] for all views.
            response: Power gain of each bin, [views, bins].

        Returns:
            [views, mels, frames].
        """
        with torch.autocast(energy.device.type, enabled=False):
            if response is None:
                parts = [weights @ energy[:, bins] for bins, weights in self._blocks]
            else:
                loud = response.unsqueeze(1)
                parts = [_product(weights * loud[:, :, bins], energy[:, bins]) for bins, weights in self._blocks]
            return torch.cat(parts, dim=1)

    def mel_at(self, energy: Tensor, factor: Tensor, response: Tensor | None) -> Tensor:
        """Energies in mel bins after moving each bin to another frequency.

        Args:
            energy: [views, bins, frames], or [1, bins, frames] for all views.
            factor: Factor of the frequencies of each view, [views], on the CPU.
            response: Power gain of each bin, [views, bins]; None without filters.

        Returns:
            [views, mels, frames]; the energy of a bin goes where its new frequency is, none is made or lost.
        """
        bins, views = len(self.frequencies), len(factor)
        lowest, highest = float(factor.min()), float(factor.max())
        position = torch.arange(bins, device=energy.device)[:, None] * factor.to(energy.device)
        below = position.long()
        share = (position - below).unsqueeze(2)
        loud = None if response is None else response.T.unsqueeze(2)
        result = []
        for used, weights in self._blocks:
            first = int((used.start - 1) / highest) if used.start else 0
            reach = slice(first, min(math.ceil(used.stop / lowest), bins))
            # Zeros at both ends of a block's triangles: bins beside the block have no weight.
            columns = F.pad(weights, (2, 2)).T.contiguous()
            place = (below[reach] + 2 - used.start).clamp_(0, len(columns) - 2).flatten()
            height = columns.index_select(0, place).view(-1, views, len(weights))
            height.lerp_(columns.index_select(0, place + 1).view_as(height), share[reach])
            if loud is not None:
                height.mul_(loud[reach])
            result.append(_product(height.permute(1, 2, 0), energy[:, reach]))
        return torch.cat(result, dim=1)


def _product(height: Tensor, energy: Tensor) -> Tensor:
    """Weights [views, mels, bins] times energies, [views, bins, frames] or [1, bins, frames] for all views."""
    if len(energy) == 1:
        return (height.flatten(0, 1) @ energy[0]).view(*height.shape[:2], -1)
    return height @ energy


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
            samples: Most samples to return.

        Returns:
            float32 [round(samples of the sound / rate)], at most `samples`.
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
