"""What a filter does to each frequency, and a room to the energy that follows a sound: the same for both modes."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from tymbal.views.draw import Draws

__all__ = ["FILTERS", "ROOM_DECAY", "lowest_edge", "power_response", "room"]

FILTERS = ("high_pass", "low_pass", "band_pass")

_LEAST = 0.1  # Hz

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
    # Not quite 0 Hz, where a filter that does nothing would be infinity times nothing.
    fourth = frequencies.clamp(min=_LEAST).square().square()
    inverse = fourth.reciprocal()
    loss = torch.ones(len(draws), frequencies.shape[-1], device=frequencies.device)
    for name, is_high, edge in _edges(draws):
        if draws.have(name).any():
            scale = edge.pow(4 if is_high else -4).to(frequencies.device)[:, None]
            loss.addcmul_(loss, (inverse if is_high else fourth) * scale)
    return loss.reciprocal_()


def lowest_edge(draws: Draws) -> float:
    """The lowest edge in Hz of all filters of the views; infinite where there are none."""
    edges = (edge[draws.views(name)] for name, _, edge in _edges(draws) if draws.have(name).any())
    return min((float(edge.min()) for edge in edges), default=math.inf)


def _edges(draws: Draws) -> Iterator[tuple[str, bool, Tensor]]:
    """Augmentation, whether it takes what lies below its edge, and the edge in Hz of each view, [views]."""
    centre, half = draws.value("band_pass", "cutoff"), 2 ** (draws.value("band_pass", "octaves") / 2)
    yield "high_pass", True, draws.value("high_pass", "cutoff")
    yield "low_pass", False, draws.value("low_pass", "cutoff")
    yield "band_pass", True, centre / half
    yield "band_pass", False, centre * half


def room(draws: Draws) -> tuple[Tensor, Tensor]:
    """Decay of the energy a second, and energy of the tail as a part of the sound's: [views] each."""
    decay = ROOM_DECAY / draws.value("reverberation", "seconds")
    energy = 10 ** (draws.value("reverberation", "db") / 10)
    return decay, energy
