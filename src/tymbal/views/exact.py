"""Views of sounds, sample by sample: what `views.spectral` approximates, and what can be listened to.

Time stretch and pitch shift are a phase vocoder (Flanagan & Golden 1966; Laroche & Dolson 1999 for its use here): the
magnitudes of a clip's frames are interpolated in time, their phases go on at the frequencies measured between frames,
and the level stays.
A pitch shift is a stretch, played at another speed; both together are one vocoder and one resampling (soxr).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import soxr
import torch
from torch import Tensor

from tymbal.settings import FeatureSettings
from tymbal.views.draw import Draws
from tymbal.views.responses import FILTERS, power_response, room
from tymbal.views.sounds import Bank

__all__ = ["exact_waveforms", "phase_vocoder"]

_N_FFT, _HOP = 1024, 256


def exact_waveforms(
    waveforms: Tensor, clip: Tensor, draws: Draws, *, features: FeatureSettings, banks: dict[str, Bank]
) -> Tensor:
    """Makes the waveforms of views.

    Args:
        waveforms: Clips, float32 [clips, samples], on the CPU.
        clip: Which clip each view is of, int64 [views].
        draws: What happens to the views.
        features: For the sample rate.
        banks: What can be laid over clips.

    Returns:
        float32 [views, samples].
    """
    x = waveforms[clip]
    samples, rate = x.shape[1], features.sample_rate
    for name in ("background", "noise"):
        views = draws.views(name)
        if len(views):
            picked = banks[name].pick(draws.uniform(name, 1)[views])
            ratio = 10 ** (-draws.value(name, "snr")[views] / 20)
            height = ratio * waveforms[clip[views]].square().mean(dim=1).sqrt() / banks[name].level[picked]
            x[views] += banks[name].waveforms[picked] * height[:, None]
    speed = draws.value("speed", "rate")
    stretch = draws.value("time_stretch", "rate")
    pitch = 2 ** (draws.value("pitch_shift", "semitones") / 12)
    for view in draws.views("speed", "time_stretch", "pitch_shift").tolist():
        sound = _played(x[view], slower=float(stretch[view] / pitch[view]), faster=float(speed[view] * pitch[view]))
        x[view] = _fitted(sound, samples)
    shift = (draws.value("shift", "fraction") * samples).round().long()
    for view in draws.views("shift").tolist():
        x[view] = x[view].roll(int(shift[view]))
    views = draws.views(*FILTERS)
    if len(views):
        frequencies = torch.fft.rfftfreq(2 * samples, 1 / rate)
        response = power_response(draws, frequencies)[views].sqrt()
        x[views] = torch.fft.irfft(torch.fft.rfft(x[views], n=2 * samples) * response, n=2 * samples)[:, :samples]
    views = draws.views("reverberation")
    if len(views):
        x[views] += _tail(x[views], draws, views, rate, banks["noise"])
    x *= 10 ** (draws.value("gain", "db") / 20)[:, None]
    x[draws.views("polarity")] *= -1
    return x


def phase_vocoder(waveform: Tensor, rate: float) -> Tensor:
    """Makes a sound shorter (a rate above 1) or longer at the same pitch.

    Args:
        waveform: float32 [samples].
        rate: How many times faster.

    Returns:
        float32 [round(samples / rate)].
    """
    window = torch.hann_window(_N_FFT)
    spectrum = torch.stft(waveform, _N_FFT, _HOP, window=window, pad_mode="constant", return_complex=True)
    magnitude, phase = spectrum.abs(), spectrum.angle()
    advance = 2 * math.pi * _HOP / _N_FFT * torch.arange(len(spectrum))[:, None]
    step = torch.diff(phase, dim=1, append=phase[:, -1:]) - advance
    step = step - 2 * math.pi * (step / (2 * math.pi)).round() + advance
    position = torch.arange(0, spectrum.shape[1] - 1e-6, rate, dtype=torch.float64)
    first = position.long()
    share = (position - first).float()
    after = (first + 1).clamp(max=spectrum.shape[1] - 1)
    height = torch.lerp(magnitude[:, first], magnitude[:, after], share)
    # In float64: after a hundred frames a phase has thousands of turns behind it.
    steps = step[:, first].double()
    turned = phase[:, :1] + torch.cumsum(steps, dim=1) - steps
    result = torch.polar(height, (turned % (2 * math.pi)).float())
    sound = torch.istft(result, _N_FFT, _HOP, window=window, length=round(len(waveform) / rate))
    # Where the phases of neighbouring bins fall apart they cancel: some decibels, which are given back.
    lost = waveform.square().mean() / sound.square().mean().clamp(min=1e-20)
    return sound * lost.sqrt()


def _played(waveform: Tensor, *, slower: float, faster: float) -> Tensor:
    """Stretches by a rate at the same pitch, then plays faster by a factor."""
    if abs(slower - 1) > 1e-6:
        waveform = phase_vocoder(waveform, slower)
    if abs(faster - 1) <= 1e-6:
        return waveform
    result: npt.NDArray[np.float32] = soxr.resample(waveform.numpy(), faster, 1.0, quality="HQ")
    return torch.from_numpy(result)


def _fitted(waveform: Tensor, samples: int) -> Tensor:
    return torch.nn.functional.pad(waveform[:samples], (0, max(samples - len(waveform), 0)))


def _tail(x: Tensor, draws: Draws, views: Tensor, rate: int, bank: Bank) -> Tensor:
    """What a room adds: white noise that falls exponentially, of the energy that is wanted, as impulse response."""
    samples = x.shape[1]
    decay, energy = (value[views] for value in room(draws))
    noise = bank.waveforms[bank.pick(draws.uniform("reverberation", 2)[views])]
    response = noise * torch.exp(-decay[:, None] / 2 * torch.arange(samples) / rate)
    response *= (energy / response.square().sum(dim=1)).sqrt()[:, None]
    size = 2 * samples
    tail: Tensor = torch.fft.irfft(torch.fft.rfft(x, n=size) * torch.fft.rfft(response, n=size), n=size)
    return tail[:, :samples]
