"""Operations on energies of views: filters and rooms by frequency, masks, crops and mixing in mel bins; batched."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tymbal.features.normalisation import ENERGY_FLOOR, LOG_FLOOR
from tymbal.views.draw import Draws

__all__ = [
    "FILTERS",
    "ROOM_DECAY",
    "change_spectrograms",
    "lowest_edge",
    "masked_cells",
    "moved_spectrograms",
    "power_response",
    "room",
]

FILTERS = ("high_pass", "low_pass", "band_pass")

_LEAST = 0.1  # Hz

ROOM_DECAY = math.log(1e6)
"""Energy falls by 60 dB in the seconds that a reverberation is given."""


def power_response(draws: Draws, frequencies: Tensor) -> Tensor:
    """Power gain of the filters of each view.

    Args:
        draws: The drawn augmentations of the views.
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
    """The lowest edge in Hz of all filters of the views; infinite without filters."""
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


def change_spectrograms(mel: Tensor, partners: Tensor, draws: Draws) -> Tensor:
    """Mixes, crops, rolls and masks.

    Args:
        mel: Energies of the views in mel bins, [views, mels, frames].
        partners: Energies of the clip that each view may be mixed with, [views, mels, frames].
        draws: The drawn augmentations of the views.

    Returns:
        Log-mel, float32 [views, frames, mels].
    """
    share = draws.value("mixup", "share").to(mel.device)[:, None, None]
    x = torch.lerp(mel, partners, share) if len(draws.views("mixup")) else mel
    x = moved_spectrograms(x.clamp(min=ENERGY_FLOOR).log_(), draws)
    hidden = masked_cells(draws, mels=x.shape[1], frames=x.shape[2])
    return x.masked_fill_(hidden.to(x.device), LOG_FLOOR).transpose(1, 2)


def moved_spectrograms(x: Tensor, draws: Draws) -> Tensor:
    """Crops and rolls: [views, mels, frames] to the same."""
    return _rolled(_cropped(x, draws), draws)


def masked_cells(draws: Draws, *, mels: int, frames: int) -> Tensor:
    """What is masked, bands of mel bins and stretches of time: bool [views, mels, frames], on the CPU."""
    return _stretch(draws, "frequency_mask", mels).unsqueeze(2) | _stretch(draws, "time_mask", frames).unsqueeze(1)


def _cropped(x: Tensor, draws: Draws) -> Tensor:
    views = draws.views("random_resized_crop")
    if not len(views):
        return x
    name = "random_resized_crop"
    # From a grid of -1 to 1: a part of it, somewhere inside.
    height, width = (draws.value(name, setting)[views] for setting in ("scale", "scale 2"))
    top, left = ((2 * draws.uniform(name, 2 + i)[views] - 1) * (1 - size) for i, size in enumerate((height, width)))
    place = views.to(x.device)
    part = x.index_select(0, place).unsqueeze(1)
    lines, columns = (
        (middle[:, None] + extent[:, None] * torch.linspace(-1, 1, count)).to(x.device)
        for middle, extent, count in ((top, height, x.shape[1]), (left, width, x.shape[2]))
    )
    shape = (len(views), x.shape[1], x.shape[2])
    grid = torch.stack([columns[:, None, :].expand(shape), lines[:, :, None].expand(shape)], dim=3)
    x[place] = F.grid_sample(part, grid, padding_mode="border", align_corners=True).squeeze(1)
    return x


def _rolled(x: Tensor, draws: Draws) -> Tensor:
    views = draws.views("roll")
    if not len(views):
        return x
    shift = (draws.value("roll", "fraction")[views] * x.shape[2]).round().long().to(x.device)
    source = (torch.arange(x.shape[2], device=x.device) - shift[:, None]) % x.shape[2]
    place = views.to(x.device)
    part = x.index_select(0, place)
    x[place] = part.gather(2, source.unsqueeze(1).expand_as(part))
    return x


def _stretch(draws: Draws, name: str, size: int) -> Tensor:
    """A stretch of places to hide, bool [views, size]; none where the view does not get this mask."""
    width = (draws.value(name, "width") * size).round()
    first = (draws.uniform(name, 1) * (size - width + 1)).floor()[:, None]
    place = torch.arange(size)
    return (place >= first) & (place < first + width[:, None])
