"""Views of sounds without reading their samples again: one transform of a clip serves all its views.

The result is a log-mel spectrogram, which has no phase. So a gain adds to it, filters multiply the energy of each
bin, a pitch shift and a change of speed stretch the frequency axis and a time stretch the time axis of the energy, a
room lets energy trail. Only what is laid over a sound needs the phase: its complex spectrum is added to the clip's
before the magnitude is taken. Energies in mel bins commute with everything that happens along time, so that those steps
work on 128 mel bins instead of a thousand bins.

Everything is batched: the views of one clip on a CPU, those of a whole batch on a GPU. What happens to which view is
drawn on the host, so nothing waits for the device.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tymbal.settings import FeatureSettings
from tymbal.views.draw import Draws
from tymbal.views.overlays import Bank, level_of
from tymbal.views.spectrogram_ops import FILTERS, power_response, room
from tymbal.views.stft import Spectrum

__all__ = ["Clips", "SpectralViews"]

_OVER = ("background", "noise")
_FREQUENCY = ("speed", "pitch_shift")
_TIME = ("speed", "time_stretch", "shift")


@dataclass(frozen=True)
class Clips:
    """Transformed clips, which any number of views can be made of.

    Attributes:
        spectrum: Their spectra, complex64 [clips, frames, bins].
        energy: Energies of the bins, float32 [clips, bins, frames].
        mel: Energies of mel bins, [clips, mels, frames].
        level: Root mean square of the waveforms, [clips].
        waveforms: Their samples, float32 [clips, samples], where they are changed before; else None.
        lengths: Samples of sound in each, int64 [clips]; None is all.
    """

    spectrum: Tensor
    energy: Tensor
    mel: Tensor
    level: Tensor
    waveforms: Tensor | None = None
    lengths: Tensor | None = None

    def part(self, start: int, stop: int) -> Clips:
        """The clips from `start` to before `stop`."""
        some = slice(start, stop)
        sound, lengths = (None if one is None else one[some] for one in (self.waveforms, self.lengths))
        return Clips(self.spectrum[some], self.energy[some], self.mel[some], self.level[some], sound, lengths)


class SpectralViews:
    """Makes views of transformed clips.

    Args:
        features: The filter bank.
        banks: Sounds to lay over clips, see `views.overlays`.
        device: The device to compute on.
    """

    def __init__(
        self, features: FeatureSettings, banks: dict[str, Bank], *, device: torch.device | str = "cpu"
    ) -> None:
        self.features = features
        self.spectrum = Spectrum(features, device)
        self._device = torch.device(device)
        self._picks = {name: bank for name, bank in banks.items() if name in _OVER}
        self._banks = {name: self.transform(bank.waveforms.to(device)) for name, bank in self._picks.items()}

    def transform(self, waveforms: Tensor, lengths: Tensor | None = None) -> Clips:
        """Transforms waveforms.

        Args:
            waveforms: float32 [clips, samples], on the device.
            lengths: Samples of sound at the start of each, int64 [clips], which its level is that of; None is all.
        """
        spectrum = self.spectrum.transform(waveforms)
        energy = self.spectrum.energy(spectrum)
        return Clips(spectrum, energy, self.spectrum.mel(energy), level_of(waveforms, lengths))

    def mel(self, waveforms: Tensor) -> Tensor:
        """Energies in mel bins of waveforms [clips, samples] on the device: [clips, mels, frames]."""
        return self.spectrum.mel(self.spectrum.energy(self.spectrum.transform(waveforms)))

    def __call__(self, clips: Clips, clip: Tensor, draws: Draws) -> Tensor:
        """Makes views, up to their energies in mel bins.

        Args:
            clips: Transformed clips.
            clip: Which clip each view is of, int64 [views], on the CPU.
            draws: The drawn augmentations of the views.

        Returns:
            float32 [views, mels, frames].
        """
        mel = clips.mel.index_select(0, clip.to(self._device))
        over, moved, filtered = (draws.have(*names) for names in (_OVER, _FREQUENCY, FILTERS))
        for chosen in (over & moved, over & ~moved, moved & ~over, filtered & ~moved & ~over):
            views = torch.from_numpy(np.flatnonzero(chosen))
            if len(views):
                mel[views.to(self._device)] = self._changed(clips, clip[views], draws.at(views))
        mel = self.along_time(mel, draws)
        mel = self._in_room(mel, draws)
        if len(draws.views("gain")):
            mel *= (10 ** (draws.value("gain", "db") / 10)).to(self._device)[:, None, None]
        return mel

    def _changed(self, clips: Clips, clip: Tensor, draws: Draws) -> Tensor:
        """Energies in mel bins of views that all have, or all have not, sounds over them or other frequencies."""
        source = clip.to(self._device)
        if draws.have(*_OVER)[0]:
            energy = self._overlaid(clips, source, draws)
        else:
            # All views of a single clip are products with its one energy.
            energy = clips.energy if len(clips.level) == 1 else clips.energy.index_select(0, source)
        is_moved, is_filtered = draws.have(*_FREQUENCY)[0], draws.have(*FILTERS).any()
        if not is_moved:
            response = power_response(draws, self.spectrum.frequencies) if is_filtered else None
            return self.spectrum.mel(energy, response)
        factor = draws.value("speed", "rate") * 2 ** (draws.value("pitch_shift", "semitones") / 12)
        response = None
        if is_filtered:
            response = power_response(draws, self.spectrum.frequencies * factor.to(self._device)[:, None])
        return self.spectrum.mel_at(energy, factor, response)

    def _overlaid(self, clips: Clips, source: Tensor, draws: Draws) -> Tensor:
        """Energies of views with sounds laid over them, [views, bins, frames]."""
        spectrum = torch.view_as_real(clips.spectrum if len(clips.level) == 1 else clips.spectrum[source])
        for name, bank in self._picks.items():
            if not draws.have(name).any():
                continue
            # Views without it get it too, 200 dB below the clip.
            picked = bank.pick(draws.uniform(name, 1)).to(self._device)
            ratio = 10 ** (-draws.value(name, "snr") / 20)
            overlay = self._banks[name]
            height = ratio.to(self._device) * clips.level[source] / overlay.level[picked]
            sounds = torch.view_as_real(overlay.spectrum.index_select(0, picked))
            spectrum = torch.addcmul(spectrum, sounds, height[:, None, None, None])
        return self.spectrum.energy(torch.view_as_complex(spectrum))

    def along_time(self, mel: Tensor, draws: Draws) -> Tensor:
        """Faster, slower, later and earlier: interpolates magnitudes between frames, as a phase vocoder does.

        Args:
            mel: Energies of the views, of any number of bins, [views, bins, frames]; they are changed in place.
            draws: What happens to the views.
        """
        views = draws.views(*_TIME)
        if not len(views):
            return mel
        rate = draws.value("speed", "rate") * draws.value("time_stretch", "rate")
        frames = mel.shape[2]
        shift = draws.value("shift", "fraction") * frames
        rate, shift, place = (value.to(self._device) for value in (rate[views], shift[views], views))
        position = (torch.arange(frames, device=self._device) - shift[:, None]) % frames * rate[:, None]
        first = position.floor()
        share = (position - first)[:, None]
        magnitude = mel.index_select(0, place).sqrt_()
        inside = (position < frames)[:, None]
        lower, upper = (
            magnitude.gather(2, (first + step).long().clamp(0, frames - 1)[:, None].expand_as(magnitude))
            for step in (0, 1)
        )
        mel[place] = (torch.lerp(lower, upper, share) * inside).square_()
        return mel

    def _in_room(self, mel: Tensor, draws: Draws) -> Tensor:
        """Reverberation as trailing energy: each frame adds an exponential tail to the frames after it."""
        views = draws.views("reverberation")
        if not len(views):
            return mel
        decay, energy = (value[views].to(self._device) for value in room(draws))
        frames = mel.shape[2]
        step = self.features.shift_samples / self.features.sample_rate
        frame = torch.arange(frames, device=self._device)
        lag = frame[None, :] - frame[:, None]  # [from, to]
        falling = (-decay * step)[:, None, None]
        tail = torch.exp(falling * lag.clamp(min=0)) * (1 - torch.exp(falling)) * (lag >= 0)
        place = views.to(self._device)
        own = mel.index_select(0, place)
        mel[place] = own + energy[:, None, None] * (own @ tail)
        return mel
