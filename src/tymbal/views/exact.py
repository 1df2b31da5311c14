"""Views of sounds, sample by sample: what `views.fast_views` approximates, and what can be listened to.

Time stretch and pitch shift are a phase vocoder (`views.stft`). A pitch shift is a stretch, played at another speed;
both together are one vocoder and one resampling (soxr). A filter and a room behind it are one product of spectra of the
whole clip. Views are computed together wherever they are of one length.
"""

from __future__ import annotations

import bisect
import math

import soxr
import torch
from torch import Tensor

from tymbal.settings import FeatureSettings
from tymbal.views.draw import Draws
from tymbal.views.overlays import Bank, level_of
from tymbal.views.spectrogram_ops import FILTERS, ROOM_DECAY, lowest_edge, power_response, room
from tymbal.views.stft import Vocoder

__all__ = ["exact_waveforms"]

_OVER = ("background", "noise")
_SAME = 1e-6
_MARGIN = 256  # samples that the resampler reads behind the last one of the result
_PERIODS = 3
_FAST: list[int] = sorted(
    2**two * 3**three * 5**five for two in range(5, 28) for three in range(4) for five in range(3)
)
"""Lengths without a prime factor above 5."""


def exact_waveforms(
    waveforms: Tensor,
    clip: Tensor,
    draws: Draws,
    *,
    features: FeatureSettings,
    banks: dict[str, Bank],
    lengths: Tensor | None = None,
) -> Tensor:
    """Makes the waveforms of views.

    Args:
        waveforms: Clips, float32 [clips, samples], on the CPU.
        clip: Which clip each view is of, int64 [views].
        draws: The drawn augmentations of the views.
        features: For the sample rate.
        banks: Sounds to lay over clips.
        lengths: Samples of sound in each clip, int64 [clips]; None is all.

    Returns:
        float32 [views, samples].
    """
    x = waveforms[clip]
    samples, rate = x.shape[1], features.sample_rate
    for name in _OVER:
        views = draws.views(name)
        if len(views):
            picked = banks[name].pick(draws.uniform(name, 1)[views])
            ratio = 10 ** (-draws.value(name, "snr")[views] / 20)
            ends = None if lengths is None else lengths[clip[views]]
            height = ratio * level_of(waveforms[clip[views]], ends) / banks[name].level[picked]
            x[views] += banks[name].waveforms[picked] * height[:, None]
    _play(x, waveforms, clip, draws)
    shift = (draws.value("shift", "fraction") * samples).round().long()
    for view in draws.views("shift").tolist():
        x[view] = x[view].roll(int(shift[view]))
    reverberant = draws.views("reverberation")
    filtered = draws.views(*FILTERS)
    filtered = filtered[~torch.isin(filtered, reverberant)]
    if len(filtered):
        x[filtered] = _through_filters(x[filtered], draws.at(filtered), rate)
    if len(reverberant):
        x[reverberant] = _through_filters(x[reverberant], draws.at(reverberant), rate, banks["noise"])
    x *= 10 ** (draws.value("gain", "db") / 20)[:, None]
    x[draws.views("polarity")] *= -1
    return x


def _play(x: Tensor, waveforms: Tensor, clip: Tensor, draws: Draws) -> None:
    """Changes pitch, time and speed of views [views, samples] in place."""
    samples = x.shape[1]
    speed = draws.value("speed", "rate")
    stretch = draws.value("time_stretch", "rate")
    pitch = 2 ** (draws.value("pitch_shift", "semitones") / 12)
    own = set(draws.views(*_OVER).tolist())
    shared: dict[int, Vocoder] = {}
    for view in draws.views("speed", "time_stretch", "pitch_shift").tolist():
        slower, faster = float(stretch[view] / pitch[view]), float(speed[view] * pitch[view])
        needed = math.ceil(samples * faster) + _MARGIN
        sound = x[view]
        if abs(slower - 1) > _SAME:
            source = int(clip[view])
            if view not in own and source not in shared:
                shared[source] = Vocoder(waveforms[source])
            sound = (Vocoder(sound) if view in own else shared[source]).stretched(slower, needed)
        if abs(faster - 1) > _SAME:
            sound = torch.from_numpy(soxr.resample(sound[:needed].numpy(), faster, 1.0, quality="HQ"))
        count = min(len(sound), samples)
        x[view, :count] = sound[:count]
        x[view, count:] = 0


def _through_filters(x: Tensor, draws: Draws, rate: int, noise: Bank | None = None) -> Tensor:
    """Sounds [views, samples] behind their filters, and in a room where noise is given for its echoes."""
    samples = x.shape[1]
    # Without a phase, a filter rings on both sides of a sound, for some periods of its lowest edge.
    ringing = min(samples, math.ceil(_PERIODS * rate / lowest_edge(draws)))
    room = None if noise is None else _echoes(draws, samples, rate, noise)
    size = _fast_length(samples + ringing + (0 if room is None else room.shape[1]))
    spectrum = torch.fft.rfft(x, n=size)
    response = power_response(draws, torch.fft.rfftfreq(size, 1 / rate)).sqrt_()
    torch.view_as_real(spectrum).mul_(response.unsqueeze(2))
    if room is not None:
        spectrum.addcmul_(spectrum, torch.fft.rfft(room, n=size))
    result: Tensor = torch.fft.irfft(spectrum, n=size)
    return result[:, :samples]


def _echoes(draws: Draws, samples: int, rate: int, noise: Bank) -> Tensor:
    """Impulse responses: white noise that falls exponentially, of the drawn energy, [views, up to samples]."""
    decay, energy = room(draws)
    # Behind 90 dB nothing is left.
    count = min(samples, math.ceil(1.5 * rate * ROOM_DECAY / float(decay.min())))
    picked = noise.waveforms[noise.pick(draws.uniform("reverberation", 2)), :count]
    response = picked * torch.exp(-decay[:, None] / 2 * torch.arange(count) / rate)
    return response.mul_((energy / response.square().sum(dim=1)).sqrt()[:, None])


def _fast_length(least: int) -> int:
    """The smallest length from `least` on whose transform is fast."""
    return _FAST[bisect.bisect_left(_FAST, least)]
