"""Draws the augmentations of a view and their strengths: a function of seed, clip, version and view alone.

So one core, eight cores and a cluster draw the same, in any order, and so does a run that was stopped
(`tymbal.randomness`). Every augmentation has its own numbers, whether it is drawn or not: adding one to a
configuration does not change what the others do where they are still drawn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tymbal.randomness import fold, uniform
from tymbal.settings.augmentation import SPECTROGRAM, WAVEFORM, AugmentationSettings

__all__ = ["VIEWS", "Draws", "clip_key", "describe_changes", "describe_strategies", "draw", "view_keys"]

VIEWS = 2
"""Views of a version of a clip."""

_STREAM = 40
_NUMBERS = 6  # of an augmentation: its rank in the draw, whether it happens, and four for what it needs
_KINDS = {"waveform": WAVEFORM, "spectrogram": SPECTROGRAM}
_NAMES = WAVEFORM + SPECTROGRAM
_PLACES = {name: place for place, name in enumerate(_NAMES)}
_NEUTRAL = {
    ("background", "snr"): (0, 200.0),
    ("noise", "snr"): (0, 200.0),
    ("speed", "rate"): (0, 1.0),
    ("pitch_shift", "semitones"): (0, 0.0),
    ("time_stretch", "rate"): (0, 1.0),
    ("shift", "fraction"): (0, 0.0),
    ("high_pass", "cutoff"): (0, 1e-3),
    ("low_pass", "cutoff"): (0, 1e9),
    ("band_pass", "cutoff"): (0, 1.0),
    ("band_pass", "octaves"): (1, 100.0),
    ("reverberation", "seconds"): (0, 1.0),
    ("reverberation", "db"): (1, -200.0),
    ("gain", "db"): (0, 0.0),
    ("mixup", "share"): (0, 0.0),
    ("random_resized_crop", "scale"): (0, 1.0),
    ("random_resized_crop", "scale 2"): (1, 1.0),
    ("roll", "fraction"): (0, 0.0),
    ("frequency_mask", "width"): (0, 0.0),
    ("time_mask", "width"): (0, 0.0),
}
"""Which uniform number a setting is drawn from, and the value that does nothing."""

_VALUES = {key: column for column, key in enumerate(_NEUTRAL)}


@dataclass(frozen=True)
class Draws:
    """The drawn augmentations of some views.

    Attributes:
        active: Which augmentations a view gets, bool [views, augmentations], on the CPU.
        numbers: Uniform numbers from 0 to below 1, float32 [views, augmentations, 4], on the CPU.
        values: What they are in the ranges of the settings, and what does nothing where a view does not get the
            augmentation, float32 [views, values], on the CPU.
        keys: The key of each view, int64 [views], on the CPU.
    """

    active: Tensor
    numbers: Tensor
    values: Tensor
    keys: Tensor

    def __len__(self) -> int:
        return len(self.active)

    def part(self, start: int, stop: int) -> Draws:
        """The draws of the views from `start` to before `stop`."""
        some = slice(start, stop)
        return Draws(self.active[some], self.numbers[some], self.values[some], self.keys[some])

    def at(self, views: Tensor) -> Draws:
        """The draws of some views, by number."""
        return Draws(self.active[views], self.numbers[views], self.values[views], self.keys[views])

    def views(self, *names: str) -> Tensor:
        """Numbers of the views that get one of these augmentations, ascending, int64 [n], on the CPU."""
        return torch.from_numpy(np.flatnonzero(self.have(*names)))

    def have(self, *names: str) -> npt.NDArray[np.bool_]:
        """Which views have one of these augmentations, bool [views]."""
        mask = sum(1 << _PLACES[name] for name in names)
        has_any: npt.NDArray[np.bool_] = (self._bits & mask) != 0
        return has_any

    @cached_property
    def _bits(self) -> npt.NDArray[np.int64]:
        """The active augmentations of each view as the bits of a number, [views]."""
        bits: npt.NDArray[np.int64] = self.active.numpy() @ (1 << np.arange(len(_NAMES)))
        return bits

    def uniform(self, name: str, column: int) -> Tensor:
        """One of the random numbers of an augmentation, float32 [views]."""
        return self.numbers[:, _PLACES[name], column]

    def value(self, name: str, setting: str) -> Tensor:
        """A number from the range of a setting, or what does nothing: float32 [views]."""
        return self.values[:, _VALUES[name, setting]]

    def values_of(self, name: str, view: int) -> list[float]:
        """All numbers of an augmentation of one view, for display."""
        return [float(self.values[view, column]) for key, column in _VALUES.items() if key[0] == name]


def clip_key(name: str) -> int:
    """A whole number below 2^63 that stands for the id of a clip."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") >> 1


def view_keys(seed: int, clips: Tensor, versions: Tensor) -> Tensor:
    """Keys of both views of versions of clips.

    Args:
        seed: The seed.
        clips: `clip_key` of the clips, int64 [n].
        versions: Numbers of the versions, int64 [n].

    Returns:
        int64 [n * 2]: the views of a version follow each other.
    """
    views = torch.arange(VIEWS).repeat(len(clips))
    return fold(seed, clips.repeat_interleave(VIEWS), versions.repeat_interleave(VIEWS), views)


def draw(settings: AugmentationSettings, keys: Tensor, versions: Sequence[int]) -> Draws:
    """Draws what happens to views.

    Args:
        settings: The augmentations.
        keys: A key a view, int64 [views], on the CPU.
        versions: The version of each view, for its strategy.
    """
    numbers = uniform(keys, len(_NAMES) * _NUMBERS, stream=_STREAM).view(len(keys), len(_NAMES), _NUMBERS)
    probability, eligible, count = _tables(settings)
    strategy = torch.tensor(versions) % len(eligible)
    rank = torch.where(eligible[strategy], numbers[:, :, 0], 2.0)
    chosen = torch.empty_like(rank, dtype=torch.bool)
    start = 0
    for place, names in enumerate(_KINDS.values()):
        part = slice(start, start + len(names))
        order = rank[:, part].argsort(dim=1).argsort(dim=1)
        chosen[:, part] = order < count[strategy, place, None]
        start += len(names)
    active = chosen & (numbers[:, :, 1] < probability)
    return Draws(active, numbers[:, :, 2:], _values(settings, active, numbers[:, :, 2:]), keys)


def _values(settings: AugmentationSettings, active: Tensor, numbers: Tensor) -> Tensor:
    """A column a setting with a range, [views, values]."""
    low, high, neutral, places, columns = [], [], [], [], []
    for (name, setting), (column, nothing) in _NEUTRAL.items():
        place = _PLACES[name]
        augmentation: Any = getattr(getattr(settings, "waveform" if place < len(WAVEFORM) else "spectrogram"), name)
        bounds = (0.0, 0.0) if augmentation is None else getattr(augmentation, setting.split()[0])
        low.append(bounds[0])
        high.append(bounds[1])
        neutral.append(nothing)
        places.append(place)
        columns.append(column)
    lowest, highest = torch.tensor(low), torch.tensor(high)
    drawn = lowest + (highest - lowest) * numbers[:, places, columns]
    return torch.where(active[:, places], drawn, torch.tensor(neutral))


def _tables(settings: AugmentationSettings) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities [augmentations]; by strategy what may be drawn [strategies, augmentations] and how much of it."""
    augmentations = [getattr(getattr(settings, kind), name) for kind, names in _KINDS.items() for name in names]
    probability = torch.tensor([0.0 if each is None else each.probability for each in augmentations])
    strategies = [settings.of_version(version) for version in range(max(len(settings.strategies), 1))]
    allowed = [{name for kind in _KINDS for name in settings.names(kind, strategy)} for strategy in strategies]
    eligible = torch.tensor([[name in names for name in _NAMES] for names in allowed])
    count = torch.tensor([[settings.count(kind, strategy) for kind in _KINDS] for strategy in strategies])
    return probability, eligible, count


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


def describe_changes(draws: Draws, view: int) -> tuple[str, ...]:
    """Names the augmentations of a view with their values, in the order in which they are applied."""
    active = zip(WAVEFORM + SPECTROGRAM, draws.active[view].tolist(), strict=True)
    return tuple(_WORDS[name].format(*draws.values_of(name, view)) for name, is_on in active if is_on)


def describe_strategies(settings: AugmentationSettings, kind: str) -> list[str]:
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
