"""What a filter does to each frequency, and a room to the energy that follows a sound: the same for both modes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tymbal.views.draw import Draws

__all__ = ["FILTERS", "ROOM_DECAY", "power_response", "room"]

FILTERS = ("high_pass", "low_pass", "band_pass")

ROOM_DECAY = math.log(1e6)
"""Energy falls by 60 dB in the seconds that a reverberation is given."""


def power_response(draws: Draws, frequencies: Tensor) -> Tensor:
    """Power gain of the filters of each view.

    Args:
        draws: What happens to the views.
        frequencies: In Hz, [bins], or of each view [views, bins].

    Returns:
        float32 [views, bins], on the device of the frequencies.
    """
    high = draws.value("high_pass", "cutoff")
    low = draws.value("low_pass", "cutoff")
    centre = draws.value("band_pass", "cutoff")
    half = 2 ** (draws.value("band_pass", "octaves") / 2)
    edges = torch.stack([high, centre / half, low, centre * half], dim=1).to(frequencies.device)
    result = torch.ones(len(draws), frequencies.shape[-1], device=frequencies.device)
    for edge in edges[:, 2:].T:
        result = result / (1 + (frequencies / edge[:, None]).square().square())
    for edge in edges[:, :2].T:
        ratio = (frequencies / edge[:, None]).clamp(max=1e8).square().square()
        result = result * (ratio / (1 + ratio))
    return result


def room(draws: Draws) -> tuple[Tensor, Tensor]:
    """Decay of the energy a second, and energy of the tail as a part of the sound's: [views] each."""
    decay = ROOM_DECAY / draws.value("reverberation", "seconds")
    energy = 10 ** (draws.value("reverberation", "db") / 10)
    return decay, energy
