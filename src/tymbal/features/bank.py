"""Filter banks: the contract that every one fulfils, and Tymbal's two, after Kaldi and after librosa.

A bank is all that is known of a kind of spectrogram: how many frames a clip has, where its mel bins lie, its transform,
and what of it other programs can compute too. Everything else asks the bank that its settings name. A new one is a
class derived from `FilterBank` and a line in `tymbal.plugins`, or an entry point of another package:

    class WideBank(FilterBank):
        is_centred = False
        window_samples = property(lambda self: 1024)
        shift_samples = property(lambda self: 512)
        def mel_of(self, hertz): ...
        def mel_weights(self): ...
        def spectra(self, waveforms): ...

Importing this module costs nothing, and asking for frames imports no torch: whoever plans a store is spared it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from tymbal.errors import AudioError, SettingsError
from tymbal.plugins import FILTER_BANKS
from tymbal.settings import FeatureSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tymbal.features.kaldi import KaldiFbank
    from tymbal.features.librosa import LibrosaMel

__all__ = ["FilterBank", "KaldiBank", "LibrosaBank", "check_waveform", "filter_bank"]


class FilterBank(ABC):
    """Waveforms to log-mel spectrograms, and what is known about these.

    Args:
        settings: Sample rate, frames and mel bins. Settings of a later stage inherit these; the bank stores only these.

    Attributes:
        is_centred: Whether frames are centred on their time, reaching past both ends of the sound.

    An instance can be pickled and shared between threads.
    """

    is_centred: ClassVar[bool] = False

    def __init__(self, settings: FeatureSettings) -> None:
        self.settings = settings.features()

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.settings,))

    @property
    @abstractmethod
    def window_samples(self) -> int:
        """Samples in a frame."""

    @property
    @abstractmethod
    def shift_samples(self) -> int:
        """Samples between two frames."""

    def frames_of(self, samples: int) -> int:
        """Frames in `samples` samples; 0 where they are shorter than one whole frame that is not centred."""
        if self.is_centred:
            return 1 + samples // self.shift_samples if samples else 0
        return 0 if samples < self.window_samples else 1 + (samples - self.window_samples) // self.shift_samples

    def samples_of(self, frames: int) -> int:
        """Fewest samples that give `frames` frames."""
        if self.is_centred:
            return max((frames - 1) * self.shift_samples, 1)
        return self.window_samples + (frames - 1) * self.shift_samples

    @abstractmethod
    def mel_of(self, hertz: float) -> float:
        """A frequency in Hz on the scale on which the centres of the mel bins lie evenly."""

    def bin_at(self, hertz: float) -> float:
        """The mel bin, as a number with a fraction, whose centre has a frequency; bin 0 is the lowest.

        Args:
            hertz: The frequency in Hz.
        """
        settings = self.settings
        low, high = self.mel_of(settings.low_freq), self.mel_of(settings.high_freq or settings.sample_rate / 2)
        return (self.mel_of(hertz) - low) / (high - low) * (settings.mel_bins + 1) - 1

    def hertz_at(self, place: float) -> float:
        """The frequency in Hz at a place between the mel bins, the inverse of `bin_at`.

        It is kept within 0 and half the rate.

        Args:
            place: The mel bin, as a number with a fraction.
        """
        low, high = 0.0, self.settings.sample_rate / 2
        for _ in range(48):  # to a billionth of a hertz
            middle = (low + high) / 2
            low, high = (middle, high) if self.bin_at(middle) < place else (low, middle)
        return (low + high) / 2

    def constant_bins(self, hertz: float) -> int:
        """Mel bins that say nothing of sound that ends at a frequency: above it, or narrower than the transform's bins.

        Args:
            hertz: Half the rate at which the sound was recorded.
        """
        rate = self.settings.sample_rate
        spacing = rate / (1 << (self.window_samples - 1).bit_length())
        highest = min(hertz, self.settings.high_freq or rate / 2)
        filled: set[int] = set()
        for step in range(1, int(highest / spacing) + 1):
            place = self.bin_at(step * spacing)
            filled |= {math.floor(place), math.ceil(place)}
        return self.settings.mel_bins - len(filled & set(range(self.settings.mel_bins)))

    @abstractmethod
    def mel_weights(self) -> Tensor:
        """Weights of the bins of the energy spectrum in each mel bin: float32 [mels, bins].

        Bins lie evenly from 0 Hz to half the sample rate.
        """

    @abstractmethod
    def spectra(self, waveforms: Tensor) -> Tensor:
        """The transform, linear in the sound, so that views can be made behind it.

        Args:
            waveforms: float32 [batch, samples].

        Returns:
            complex64 [batch, frames, bins], on the device of the waveforms.
        """

    def __call__(self, waveform: Tensor) -> Tensor:
        """Computes the log-mel spectrogram of one waveform or of a batch.

        Args:
            waveform: Samples from -1 to 1, floating point, [samples] or [batch, samples].

        Returns:
            Natural logarithms of mel energies, float32, [frames, mels] or [batch, frames, mels], on the waveform's
            device.

        Raises:
            AudioError: The waveform is shorter than one frame, or not floating point.
        """
        from tymbal.features.normalisation import ENERGY_FLOOR

        check_waveform(waveform, rate=self.settings.sample_rate, shortest=self.samples_of(1))
        spectra = self.spectra(waveform.float().reshape(-1, waveform.shape[-1]))
        energy = spectra.real.square() + spectra.imag.square()
        mel = energy @ self.mel_weights().T.to(energy.device)
        return mel.clamp_(min=ENERGY_FLOOR).log_().view(*waveform.shape[:-1], *mel.shape[1:])

    def trial(self, seconds: float) -> Callable[[], Tensor]:
        """Returns the work that `tymbal doctor` times: the spectrogram of some noise.

        Args:
            seconds: Seconds of noise.

        Returns:
            A function that computes it, each time anew.
        """
        import numpy as np
        import torch

        noise = np.random.default_rng(0).normal(0, 0.1, round(seconds * self.settings.sample_rate))
        waveform = torch.from_numpy(noise).float()
        return lambda: self(waveform)

    def convolution(self) -> nn.Module | None:
        """The same in operators that every ONNX runtime has, waveforms [batch, samples] to [batch, frames, mels].

        None where that does not exist; then a model on these spectrograms has no ONNX file.
        """
        return None

    def extractor(self) -> Mapping[str, Any] | None:
        """Configuration with which the feature extractor in our Hugging Face folders computes the same.

        None where it cannot; then such a folder has no extractor.
        """
        return None


class KaldiBank(FilterBank):
    """Kaldi's log mel filter bank, as AST and SSAST compute it (`tymbal.features.kaldi`)."""

    @property
    def window_samples(self) -> int:
        """Samples in a frame (Kaldi truncates)."""
        return int(self.settings.sample_rate * self.settings.frame_length)

    @property
    def shift_samples(self) -> int:
        """Samples between two frames."""
        return int(self.settings.sample_rate * self.settings.frame_shift)

    def mel_of(self, hertz: float) -> float:
        """A frequency on HTK's mel scale, 1127 ln(1 + f / 700)."""
        return 1127.0 * math.log(1.0 + hertz / 700.0)

    def mel_weights(self) -> Tensor:
        """Triangles that are straight in mel: float32 [mels, fft // 2 + 1]."""
        from tymbal.features.kaldi import mel_filters

        return mel_filters(self.settings).T

    def spectra(self, waveforms: Tensor) -> Tensor:
        """Spectra of frames that lose no mean: nearly Kaldi's, and linear."""
        from tymbal.features.kaldi import spectra

        return spectra(self.settings, waveforms)

    @cached_property
    def _fbank(self) -> KaldiFbank:
        from tymbal.features.kaldi import KaldiFbank

        return KaldiFbank(self.settings)

    def __call__(self, waveform: Tensor) -> Tensor:
        """Computes log-mel spectrograms as Kaldi does, see `KaldiFbank`."""
        return self._fbank(waveform)

    def convolution(self) -> nn.Module:
        """The same as a convolution, see `ConvolutionFbank`."""
        from tymbal.features.kaldi import ConvolutionFbank

        return ConvolutionFbank(self.settings)

    def extractor(self) -> Mapping[str, Any]:
        """Frames and band; the extractor's window and mel scale are Kaldi's."""
        return {
            "frame_length": self.window_samples,
            "frame_shift": self.shift_samples,
            "low_frequency": self.settings.low_freq,
            "high_frequency": self.settings.high_freq or self.settings.sample_rate / 2,
        }


class LibrosaBank(FilterBank):
    """librosa's centred power spectrum through Slaney's mel filters (`tymbal.features.librosa`)."""

    is_centred = True

    @property
    def window_samples(self) -> int:
        """Samples in a frame."""
        return self.settings.n_fft

    @property
    def shift_samples(self) -> int:
        """Samples between two frames."""
        return self.settings.hop_length

    def mel_of(self, hertz: float) -> float:
        """A frequency on Slaney's mel scale."""
        from tymbal.features.librosa import slaney_mel

        return slaney_mel(hertz)

    def mel_weights(self) -> Tensor:
        """Triangles of equal area, straight in Slaney's mel: float32 [mels, n_fft // 2 + 1]."""
        import torch

        from tymbal.features.librosa import mel_filters

        return torch.from_numpy(mel_filters(self.settings))

    def spectra(self, waveforms: Tensor) -> Tensor:
        """Spectra of centred frames, with silence before and behind the sound."""
        from tymbal.features.librosa import spectra

        return spectra(self.settings, waveforms)

    @cached_property
    def _fbank(self) -> LibrosaMel:
        from tymbal.features.librosa import LibrosaMel

        return LibrosaMel(self.settings)

    def __call__(self, waveform: Tensor) -> Tensor:
        """Computes log-mel spectrograms as librosa does, see `LibrosaMel`."""
        return self._fbank(waveform)

    def extractor(self) -> Mapping[str, Any]:
        """Frames and band; the extractor's window and mel scale are librosa's."""
        return {
            "filter_bank": "librosa",
            "frame_length": self.window_samples,
            "frame_shift": self.shift_samples,
            "low_frequency": self.settings.low_freq,
            "high_frequency": self.settings.high_freq or self.settings.sample_rate / 2,
        }


def filter_bank(settings: FeatureSettings) -> FilterBank:
    """The filter bank that settings name.

    Raises:
        SettingsError: There is none of this name, or what another package has registered is none.
    """
    kind = FILTER_BANKS.load(settings.filter_bank)
    if not (isinstance(kind, type) and issubclass(kind, FilterBank)):
        raise SettingsError(
            f"the filter bank {settings.filter_bank!r} is {kind!r}, no class derived from FilterBank",
            advice="See tymbal.features.bank for what it must have.",
        )
    return kind(settings)


def check_waveform(waveform: Tensor, *, rate: int, shortest: int = 1) -> None:
    """Refuses what is no waveform, or too short for a frame.

    Args:
        waveform: Should be floating point, [samples] or [batch, samples].
        rate: Samples a second.
        shortest: Fewest samples that have a frame.

    Raises:
        AudioError: It is something else, or shorter.
    """
    if not waveform.is_floating_point() or waveform.ndim not in (1, 2):
        raise AudioError(
            "a waveform must be floating point, [samples] or [batch, samples], "
            f"not {str(waveform.dtype).removeprefix('torch.')} {list(waveform.shape)}",
            advice="Mix channels down first; divide 16-bit samples by 32768.",
        )
    samples = waveform.shape[-1]
    if samples < shortest:
        raise AudioError(
            f"{samples} samples ({samples / rate:.4g} s) are shorter than one frame, "
            f"which takes {shortest} samples ({shortest / rate:.4g} s at {rate} Hz)",
            advice="Use a longer clip, or a shorter frame_length.",
        )
