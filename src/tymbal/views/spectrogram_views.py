"""Views of a clip that are drawn from its spectrogram alone, so that any store will do; batched, on its device.

A view is the clip with its pitch and tempo changed a little (one affine warp of frequency and of time), another
colour of sound (a smooth random equaliser and a gain), and some of another clip laid over it. Frequency is warped by an
interpolation matrix, time by a gather of frames: each touches one axis, at a fraction of what a general resampling of
images costs. What lies behind a clip's end moves with the end, so that padding never becomes sound.

Every number that is drawn is a function of a key (seed, epoch, row, view): the same on every device, in every process
and in a resumed run. Spectrograms are normalised before, so strengths are the same for loud and for quiet recordings.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tymbal.randomness import uniform
from tymbal.settings.augmentation import SpectrogramViews
from tymbal.views.own_views import own_views

__all__ = ["spectrogram_views", "view_lengths"]

_WARP, _COLOUR, _MIX = 60, 61, 62  # streams of random numbers


def spectrogram_views(
    spectrogram: Tensor,
    frames: Tensor,
    keys: Tensor,
    settings: SpectrogramViews,
    *,
    padding: float,
    scale: float | None,
    others: tuple[Tensor, Tensor] | None = None,
    first: int = 0,
    shown: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Draws views of each clip.

    Args:
        spectrogram: Normalised log-mel, float32 [batch, frames, mels].
        frames: Frames of sound in each clip, int64 [batch]; the rest is padding.
        keys: A key a view, int64 [views x batch], see `tymbal.randomness.fold`: first those of all clips' first view.
        settings: What is drawn, and how strongly.
        padding: The normalised value of padding.
        scale: Natural logarithm of energy in one normalised unit, for adding energies of clips that are laid over
            others; None averages their levels.
        others: Clips that may be laid over these, of which these are a part, and their frames of sound; None is these.
        first: Place of the first of these clips among them.
        shown: Numbers of the frames of each view that are drawn, side by side, int64 [views x batch, shown]; None is
            all. What is not shown costs little. Functions of the user's own need all.

    Returns:
        Views, [views x batch, frames or shown, mels], and the frames of sound in the whole views, int64 [views x
        batch].
    """
    length, times = spectrogram.shape[1], len(keys) // max(len(spectrogram), 1)
    views, frames = spectrogram.repeat(times, 1, 1), frames.repeat(times)
    others = (spectrogram, frames[: len(spectrogram)]) if others is None else others
    if settings.mix > 0 and len(others[0]) > 1:
        place = (first + torch.arange(len(spectrogram), device=keys.device)).repeat(times)
        views = _mixed(views, frames, keys, most=settings.mix, scale=scale, others=others, place=place)
    warp = _warps(keys)
    tempo, late = _time_of(warp, frames, settings)
    number = torch.arange(length, device=keys.device).expand(len(keys), -1) if shown is None else shown
    views = _warped_time(views, frames, number, tempo=tempo, late=late)
    ends = view_lengths(frames, keys, settings, most=length)
    views = _warped_frequency(
        views,
        pitch=(warp[:, 0] * math.log1p(settings.pitch)).exp(),
        shift=warp[:, 1] * settings.frequency_shift,
        colour=_colour(keys, views.shape[2], settings) + warp[:, 3, None] * settings.gain,
    )
    if settings.functions:
        views = own_views(settings.functions).spectrograms(views, keys)
    # A product and a sum: on a CPU a mask that is broadcast costs many times as much.
    heard = (number < ends[:, None]).unsqueeze(2).float()
    return views.mul_(heard).add_((1 - heard) * padding), ends


def view_lengths(frames: Tensor, keys: Tensor, settings: SpectrogramViews, *, most: int) -> Tensor:
    """Frames of sound in the views that `spectrogram_views` draws by these keys.

    Args:
        frames: Frames of sound in the clip of each view, int64 [views x batch].
        keys: A key a view, int64 [views x batch].
        settings: What is drawn.
        most: Frames of a view.

    Returns:
        int64 [views x batch].
    """
    tempo, late = _time_of(_warps(keys), frames, settings)
    return (frames * tempo + late).round().long().clamp(1, most)


def _warps(keys: Tensor) -> Tensor:
    """Pitch, shift along frequency, tempo, gain and shift in time of each view, from -1 to 1: [views, 5]."""
    return 2 * uniform(keys, 5, stream=_WARP) - 1


def _time_of(warp: Tensor, frames: Tensor, settings: SpectrogramViews) -> tuple[Tensor, Tensor]:
    """By how much each view is stretched, and how many frames later its sound begins: [views] each."""
    return (warp[:, 2] * math.log1p(settings.tempo)).exp(), (warp[:, 4] + 1) / 2 * settings.time_shift * frames


def _colour(keys: Tensor, mels: int, settings: SpectrogramViews) -> Tensor:
    """A smooth random equaliser: [views, mels]."""
    knots = 2 * uniform(keys, settings.knots, stream=_COLOUR) - 1
    return F.interpolate(knots[:, None], size=mels, mode="linear", align_corners=True)[:, 0] * settings.equaliser


def _mixed(
    x: Tensor,
    frames: Tensor,
    keys: Tensor,
    *,
    most: float,
    scale: float | None,
    others: tuple[Tensor, Tensor],
    place: Tensor,
) -> Tensor:
    """Replaces a share of each clip's energy, or level, by that of another one, where both have sound.

    `place` is that of each view's own clip among the others, which is never its own partner.
    """
    clips, lengths = others
    drawn = uniform(keys, 2, stream=_MIX)
    other = (place + 1 + (drawn[:, 0] * (len(clips) - 1)).long()) % len(clips)
    share = (drawn[:, 1] * most).view(-1, 1, 1)
    both = (torch.arange(x.shape[1], device=x.device) < torch.minimum(frames, lengths[other])[:, None]).float()
    if scale is None:
        return torch.addcmul(x, clips[other].sub_(x).mul_(share), both.unsqueeze(2))
    # log((1 - a) e^x + a e^y) = x + log(1 - a) + softplus(y - x + log(a / (1 - a)))
    odds = (share / (1 - share)).clamp(min=1e-12).log()
    change = F.softplus(clips[other].sub_(x).mul_(scale).add_(odds)).add_(torch.log1p(-share)).div_(scale)
    return torch.addcmul(x, change, both.unsqueeze(2))


def _warped_time(x: Tensor, frames: Tensor, number: Tensor, *, tempo: Tensor, late: Tensor) -> Tensor:
    """Stretches time by `tempo` and lets the sound begin `late` frames later, its first frame held till then.

    Gives the frames of these numbers, [batch, shown, mels] for [batch, shown].
    """
    batch, length, mels = x.shape
    place = (number + 0.5 - late[:, None]) / tempo[:, None] - 0.5
    last = (frames - 1)[:, None]
    place = torch.minimum(place.clamp(min=0), last.float())
    low = place.floor().long()
    first = torch.arange(batch, device=x.device)[:, None] * length
    flat = x.reshape(batch * length, mels)
    below, above = (first + low).flatten(), (first + torch.minimum(low + 1, last)).flatten()
    weight = (place - low).view(-1, 1)
    return torch.lerp(flat[below], flat[above], weight).view(batch, -1, mels)


def _warped_frequency(x: Tensor, *, pitch: Tensor, shift: Tensor, colour: Tensor) -> Tensor:
    """Scales frequency about the middle by `pitch`, moves it by `shift` of the height and adds `colour` [batch, mels].

    Border values repeat. It is one product with an interpolation matrix.
    """
    mels = x.shape[2]
    bins = torch.arange(mels, device=x.device)
    centre = (mels - 1) / 2
    source = (centre + (bins - centre) / pitch[:, None] - shift[:, None] * mels).clamp(0, mels - 1)
    # In place: fresh memory costs more than what is done to it.
    matrix = (bins[None, :, None] - source[:, None, :]).abs_().neg_().add_(1).clamp_(min=0)  # [batch, from, to]
    return torch.baddbmm(colour.unsqueeze(1), x, matrix)
