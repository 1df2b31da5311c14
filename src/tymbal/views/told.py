"""What was drawn for a view, and what may be drawn, in words with units."""

from __future__ import annotations

from dataclasses import fields

from tymbal.settings.augmentation import SPECTROGRAM, WAVEFORM, AugmentationSettings
from tymbal.views.draw import Draws

__all__ = ["may_be_drawn", "told"]

_WORDS = {
    "background": "background {0:.0f} dB below",
    "noise": "noise {0:.0f} dB below",
    "speed": "{0:.2f} times the speed",
    "pitch_shift": "pitch {0:+.1f} semitones",
    "time_stretch": "{0:.2f} times as fast, same pitch",
    "shift": "shift {0:+.0%} of the clip",
    "high_pass": "high pass {0:.0f} Hz",
    "low_pass": "low pass {0:.0f} Hz",
    "band_pass": "band pass {0:.0f} Hz, {1:.1f} octaves",
    "reverberation": "reverberation {0:.2f} s, {1:.0f} dB",
    "gain": "gain {0:+.1f} dB",
    "polarity": "polarity turned",
    "mixup": "mixup {0:.0%} of another clip",
    "random_resized_crop": "crop {0:.0%} of the bins, {1:.0%} of the time",
    "roll": "roll {0:+.0%} of the clip",
    "frequency_mask": "mask of {0:.0%} of the bins",
    "time_mask": "mask of {0:.0%} of the time",
}


def told(draws: Draws, view: int) -> tuple[str, ...]:
    """What happens to a view, in the order in which it is done."""
    active = zip(WAVEFORM + SPECTROGRAM, draws.active[view].tolist(), strict=True)
    return tuple(_WORDS[name].format(*draws.values_of(name, view)) for name, is_on in active if is_on)


def may_be_drawn(settings: AugmentationSettings, kind: str) -> list[str]:
    """Each augmentation of a kind, `waveform` or `spectrogram`, with its ranges."""
    group = getattr(settings, kind)
    lines = []
    for item in fields(group):
        augmentation = getattr(group, item.name)
        if augmentation is None:
            continue
        parts = []
        for setting in fields(augmentation):
            value = getattr(augmentation, setting.name)
            if isinstance(value, tuple):
                parts.append(f"{setting.name} {value[0]:g} to {value[1]:g}")
            elif setting.name != "probability":
                parts.append(f"{setting.name} {value}")
            elif value != 1:
                parts.append(f"with probability {value:g}")
        lines.append(f"{item.name}: {', '.join(parts)}" if parts else item.name)
    return lines
