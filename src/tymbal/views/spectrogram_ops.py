"""What is done to the energies in mel bins of views, and from there to their log-mel spectrograms; batched."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tymbal.features.statistics import ENERGY_FLOOR, LOG_FLOOR
from tymbal.views.draw import Draws

__all__ = ["change_spectrograms"]


def change_spectrograms(mel: Tensor, partners: Tensor, draws: Draws) -> Tensor:
    """Mixes, crops, rolls and masks.

    Args:
        mel: Energies of the views in mel bins, [views, mels, frames].
        partners: Energies of the clip that each view may be mixed with, [views, mels, frames].
        draws: What happens to the views.

    Returns:
        Log-mel, float32 [views, frames, mels].
    """
    share = draws.value("mixup", "share").to(mel.device)[:, None, None]
    x = torch.lerp(mel, partners, share) if len(draws.views("mixup")) else mel
    x = x.clamp(min=ENERGY_FLOOR).log_()
    x = _cropped(x, draws)
    x = _rolled(x, draws)
    hidden = _stretch(draws, "frequency_mask", x.shape[1]).unsqueeze(2) | _stretch(
        draws, "time_mask", x.shape[2]
    ).unsqueeze(1)
    return x.masked_fill_(hidden.to(x.device), LOG_FLOOR).transpose(1, 2)


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
