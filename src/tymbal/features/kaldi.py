"""Kaldi's log mel filter bank in torch, as AST and SSAST compute it, without torchaudio.

Reference: `torchaudio.compliance.kaldi.fbank(w - w.mean(), htk_compat=True, use_energy=False, window_type="hanning",
dither=0.0)`, itself after Kaldi's `feature-window.cc` and `mel-computations.cc`. A frame loses its mean, is
pre-emphasised, weighted by a symmetric Hann window and padded to a power of two; its power spectrum goes through
triangles that are straight in mel; the natural logarithm has a floor. Only whole frames count (`snip_edges`).

Some mel bins of a frame lie 90 dB below its loudest, where float32 leaves three digits. There the reference is 1e-3
away from the same sum in float64, so agreeing with it to 5e-4 means rounding as it does: the same steps in the same
order, window and triangles computed in float32. On x86 with MKL the difference is then 1e-6. Another FFT (CUDA,
Apple) leaves a few such bins in ten thousand up to 1e-3 away; all others agree to 5e-4.

Four things make it fast on a CPU:

- Clip by clip, in pieces that fit the cache, through buffers that are reused. Batches at once are for GPUs.
- Pre-emphasis runs over the piece as one long row. What leaks over the edge of a frame falls on the window's first
  sample, which is 0, or on the padding, where the window is continued with zeros.
- Squares of real and imaginary parts are weighted by the same triangles: the filter bank's rows stand twice.
- Low mel bins look at few FFT bins and high ones at many: a few dense blocks leave out most of the zeros.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from tymbal.features.bank import check_waveform
from tymbal.features.normalisation import ENERGY_FLOOR, LOG_FLOOR
from tymbal.settings import FeatureSettings

__all__ = ["LOG_FLOOR", "PREEMPHASIS", "ConvolutionFbank", "KaldiFbank", "mel_filters", "spectra"]

PREEMPHASIS = 0.97

_PIECE = 2**18
_BLOCKS = 8


class KaldiFbank:
    """Waveforms to log-mel spectrograms.

    Args:
        settings: Sample rate, frames and mel bins.

    An instance can be pickled and shared between threads.
    """

    def __init__(self, settings: FeatureSettings | None = None) -> None:
        self.settings = (settings or FeatureSettings()).features()
        self._local = threading.local()

    def __reduce__(self) -> tuple[Any, ...]:
        return (KaldiFbank, (self.settings,))

    @torch.no_grad()
    def __call__(self, waveform: Tensor) -> Tensor:
        """Computes the log-mel spectrogram of one waveform or of a batch.

        Args:
            waveform: Samples from -1 to 1, floating point, [samples] or [batch, samples].

        Returns:
            Natural logarithms of mel energies, float32, [frames, mels] or [batch, frames, mels], on the waveform's
            device, with frames = 1 + (samples - frame length) // frame shift.

        Raises:
            AudioError: The waveform is shorter than one frame, or not floating point.
        """
        check_waveform(waveform, rate=self.settings.sample_rate, shortest=self.settings.window_samples)
        waveform = waveform.to(torch.float32)
        tables = _tables(self.settings, waveform.device)
        # A constant offset does not change the result, but costs digits in everything that follows.
        waveform = waveform - waveform.mean(-1, keepdim=True)
        frames = waveform.unfold(-1, self.settings.window_samples, self.settings.shift_samples)
        if waveform.device.type != "cpu":
            return self._batch(frames, tables)
        result = torch.empty(*frames.shape[:-1], self.settings.mel_bins, dtype=torch.float32)
        if waveform.ndim == 1:
            self._clip(frames, result, tables)
        else:
            for clip, out in zip(frames, result, strict=True):
                self._clip(clip, out, tables)
        return result

    def _batch(self, frames: Tensor, tables: _Tables) -> Tensor:
        """All clips at once: waveforms in frames [..., frames, samples] → [..., frames, mels]."""
        length = frames.shape[-1]
        centred = frames - frames.mean(-1, keepdim=True)
        windowed = torch.zeros_like(centred)
        windowed[..., 1:] = (centred[..., 1:] - PREEMPHASIS * centred[..., :-1]) * tables.window[1:length]
        spectrum = torch.view_as_real(torch.fft.rfft(windowed, n=tables.fft))
        squares = spectrum.square().flatten(-2)
        with torch.autocast(frames.device.type, enabled=False):
            mel = torch.cat([squares[..., block.bins] @ block.weights for block in tables.blocks], dim=-1)
        return mel.clamp_(min=ENERGY_FLOOR).log_()

    def _clip(self, frames: Tensor, out: Tensor, tables: _Tables) -> None:
        """One clip in cache-sized pieces: waveform in frames [frames, samples] → `out` [frames, mels]."""
        length = frames.shape[-1]
        buffers = self._buffers(tables.fft)
        for start in range(0, len(frames), buffers.rows):
            piece, mel = frames[start : start + buffers.rows], out[start : start + buffers.rows]
            n = len(piece)
            centred, scaled, windowed, squares = (buffer[:n] for buffer in buffers.tensors)
            torch.sub(piece, piece.mean(1, keepdim=True), out=centred[:, :length])
            torch.mul(centred, PREEMPHASIS, out=scaled)
            torch.sub(centred.view(-1)[1:], scaled.view(-1)[:-1], out=windowed.view(-1)[1:])
            windowed.mul_(tables.window)
            spectrum = torch.view_as_real(torch.fft.rfft(windowed)).view(n, -1)
            torch.mul(spectrum, spectrum, out=squares)
            for block in tables.blocks:
                torch.mm(squares[:, block.bins], block.weights, out=mel[:, block.mels])
            mel.clamp_(min=ENERGY_FLOOR).log_()

    def _buffers(self, fft: int) -> _Buffers:
        buffers: _Buffers | None = getattr(self._local, "buffers", None)
        if buffers is None:
            rows = max(_PIECE // fft, 1)
            sizes = (fft, fft, fft, fft + 2)
            buffers = self._local.buffers = _Buffers(
                rows, tuple(torch.zeros(rows, n, dtype=torch.float32) for n in sizes)
            )
        return buffers


def mel_filters(settings: FeatureSettings) -> Tensor:
    """Triangles that are straight in mel (1127 ln(1 + f / 700)): float32 [fft // 2 + 1, mels].

    The FFT bin at half the sample rate has no weight, as in Kaldi. With many mel bins at a low sample rate the lowest
    triangles can fall between two FFT bins: those mel bins always hold `LOG_FLOOR`, in the reference too.
    """
    fft = _fft_size(settings)
    low = 1127.0 * math.log(1.0 + settings.low_freq / 700.0)
    high = 1127.0 * math.log(1.0 + (settings.high_freq or settings.sample_rate / 2) / 700.0)
    step = (high - low) / (settings.mel_bins + 1)
    bins = torch.arange(settings.mel_bins, dtype=torch.float32)
    left, centre, right = (low + (bins + i) * step for i in range(3))
    frequency = settings.sample_rate / fft * torch.arange(fft // 2, dtype=torch.float32)
    mel = 1127.0 * (1.0 + frequency / 700.0).log()[:, None]
    triangles = torch.minimum((mel - left) / (centre - left), (right - mel) / (right - centre)).clamp(min=0)
    return torch.nn.functional.pad(triangles, (0, 0, 0, 1))


def spectra(settings: FeatureSettings, waveforms: Tensor) -> Tensor:
    """Spectra of frames that lose no mean of their own: nearly those behind `KaldiFbank`, and linear.

    Args:
        settings: Sample rate and frames.
        waveforms: float32 [batch, samples].

    Returns:
        complex64 [batch, frames, fft // 2 + 1].
    """
    changed = waveforms - waveforms.mean(1, keepdim=True)
    changed[:, 1:] -= PREEMPHASIS * changed[:, :-1].clone()
    frames = changed.unfold(1, settings.window_samples, settings.shift_samples)
    window = _window(settings.window_samples, waveforms.device)
    spectrum: Tensor = torch.fft.rfft(frames * window, n=_fft_size(settings))
    return spectrum


class ConvolutionFbank(nn.Module):
    """`KaldiFbank` as a convolution, a square, a product and a logarithm, which every ONNX runtime has.

    Not every runtime knows ONNX's Fourier transform. But all that happens to a frame before its power spectrum is
    linear: mean, pre-emphasis, window and transform are one matrix, which laid over the waveform with the frames' shift
    is a convolution. It is computed in float64 and rounded once.

    Args:
        settings: Sample rate, frames and mel bins.
    """

    def __init__(self, settings: FeatureSettings) -> None:
        super().__init__()
        self._shift = settings.shift_samples
        filters = mel_filters(settings)
        self.register_buffer("kernel", _analysis(settings, bins=len(filters))[:, None])
        self.register_buffer("filters", filters.T.contiguous())

    def forward(self, waveform: Tensor) -> Tensor:
        """Waveforms [batch, samples] to log-mel spectrograms [batch, frames, mels]."""
        waveform = waveform - waveform.mean(-1, keepdim=True)
        spectrum = nn.functional.conv1d(waveform[:, None], cast(Tensor, self.kernel), stride=self._shift)
        real, imaginary = spectrum.chunk(2, dim=1)
        power = real * real + imaginary * imaginary  # [batch, bins, frames]
        mel = (cast(Tensor, self.filters) @ power).transpose(1, 2)
        return mel.clamp(min=ENERGY_FLOOR).log()


def _analysis(settings: FeatureSettings, *, bins: int) -> Tensor:
    """The matrix that maps a frame to the real and imaginary parts of its spectrum: float32 [2 bins, frame length]."""
    length = settings.window_samples
    eye = torch.eye(length, dtype=torch.float64)
    centred = eye - 1 / length  # [samples, frame length]: a column a sample of the frame
    # Kaldi continues the frame to the left with its first sample, where the window is 0.
    before = torch.cat([centred[:1], centred[:-1]])
    window = torch.hann_window(length, periodic=False, dtype=torch.float32).double()
    windowed = (centred - PREEMPHASIS * before) * window[:, None]
    spectrum = torch.fft.rfft(windowed, n=2 * (bins - 1), dim=0)
    return torch.cat([spectrum.real, spectrum.imag]).float()


@lru_cache(maxsize=16)
def _window(length: int, device: torch.device) -> Tensor:
    return torch.hann_window(length, periodic=False, device=device)


@dataclass(frozen=True)
class _Block:
    """Mel bins `mels` look at no squares but `bins`: weights [bins, mels]."""

    bins: slice
    mels: slice
    weights: Tensor


@dataclass(frozen=True)
class _Tables:
    """Tables that depend on the settings alone; the window is padded with zeros to the length of the FFT."""

    fft: int
    window: Tensor
    blocks: tuple[_Block, ...]


@dataclass(frozen=True)
class _Buffers:
    """Room for `rows` frames: centred, scaled, windowed [rows, fft], squares [rows, fft + 2]."""

    rows: int
    tensors: tuple[Tensor, ...]


@lru_cache(maxsize=16)
def _tables(settings: FeatureSettings, device: torch.device) -> _Tables:
    fft = _fft_size(settings)
    # Row 2 k weights the squared real part of FFT bin k, row 2 k + 1 the squared imaginary part.
    filters = mel_filters(settings).repeat_interleave(2, dim=0)
    blocks = []
    for mels in torch.arange(settings.mel_bins).tensor_split(min(_BLOCKS, settings.mel_bins)):
        columns = slice(int(mels[0]), int(mels[-1]) + 1)
        used = filters[:, columns].any(1).nonzero().flatten()
        bins = slice(int(used[0]), int(used[-1]) + 1) if len(used) else slice(0, 1)
        blocks.append(_Block(bins, columns, filters[bins, columns].contiguous().to(device)))
    window = torch.hann_window(settings.window_samples, periodic=False, dtype=torch.float32)
    padded = torch.nn.functional.pad(window, (0, fft - settings.window_samples))
    return _Tables(fft, padded.to(device), tuple(blocks))


def _fft_size(settings: FeatureSettings) -> int:
    return 1 << (settings.window_samples - 1).bit_length()
