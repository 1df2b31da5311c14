"""Views of a clip that are drawn from its spectrogram alone, so that any store will do; batched, on its device.

A view is the clip with its pitch and tempo changed a little (one affine warp of frequency and of time), another
colour of sound (a smooth random equaliser and a gain), and some of another clip laid over it. What lies behind a clip's
end moves with the end, so that padding never becomes sound.

A frame of a view is a weighted sum of two neighbouring frames of its clip (four, with another clip's), and a mel bin of
two neighbouring bins: rows of a table, added up in one pass (`_weighted`), at a fraction of what a general resampling
of images costs. Where an encoder sees some patches of a view alone, these alone are drawn.

Every number that is drawn is a function of a key (seed, epoch, row, view): the same on every device, in every process
and in a resumed run. Spectrograms are normalised before, so strengths are the same for loud and for quiet recordings.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tymbal.randomness import uniform
from tymbal.settings.augmentation import SpectrogramViews
from tymbal.views.own_views import own_views

__all__ = ["Patches", "Warps", "drawn_warps", "spectrogram_views"]

_WARP, _COLOUR, _MIX = 60, 61, 62  # streams of random numbers


class Warps(NamedTuple):
    """How views are warped; each [views x batch].

    Attributes:
        pitch: Factor of frequency, about the middle.
        shift: Along frequency, in heights of the spectrogram.
        gain: In normalised units.
        tempo: Factor of the length.
        late: Frames by which the sound begins later.
        ends: Frames of sound, int64.
    """

    pitch: Tensor
    shift: Tensor
    gain: Tensor
    tempo: Tensor
    late: Tensor
    ends: Tensor


class Patches(NamedTuple):
    """Patches of views that are to be drawn alone, side by side without overlap in the grid of a spectrogram.

    Attributes:
        size: Mel bins and frames of a patch.
        grid: Rows and columns of patches in a whole view.
        numbers: Numbers of the patches of each view, `row * columns + column`, int64 [views x batch, patches].
    """

    size: tuple[int, int]
    grid: tuple[int, int]
    numbers: Tensor


def drawn_warps(frames: Tensor, keys: Tensor, settings: SpectrogramViews, *, most: int) -> Warps:
    """Draws how views are warped.

    Args:
        frames: Frames of sound in each clip, int64 [batch].
        keys: A key a view, int64 [views x batch], see `tymbal.randomness.fold`: first those of all clips' first view.
        settings: What is drawn, and how strongly.
        most: Frames of a view.

    Returns:
        The warps.
    """
    frames = frames.repeat(len(keys) // max(len(frames), 1))
    pitch, shift, tempo, gain, late = (2 * uniform(keys, 5, stream=_WARP) - 1).unbind(1)
    tempo, late = (tempo * math.log1p(settings.tempo)).exp(), (late + 1) / 2 * settings.time_shift * frames
    return Warps(
        pitch=(pitch * math.log1p(settings.pitch)).exp(),
        shift=shift * settings.frequency_shift,
        gain=gain * settings.gain,
        tempo=tempo,
        late=late,
        ends=(frames * tempo + late).round().long().clamp(1, most),
    )


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
    warps: Warps | None = None,
    patches: Patches | None = None,
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
        warps: What `drawn_warps` draws by these keys, where it is known; None draws it.
        patches: What is drawn of each view; None is all, which functions of the user's own need.

    Returns:
        Views, [views x batch, frames, mels], or their patches, [views x batch, patches, mels x frames of a patch] with
        mel bins before frames; and the frames of sound in the whole views, int64 [views x batch].
    """
    batch, length, mels = spectrogram.shape
    times = len(keys) // max(batch, 1)
    warps = drawn_warps(frames, keys, settings, most=length) if warps is None else warps
    others = (spectrogram, frames) if others is None else others
    place = (first + torch.arange(batch, device=keys.device)).repeat(times)
    frames = frames.repeat(times)
    mix = _mix_of(keys, settings.mix, place, len(others[0])) if settings.mix > 0 and len(others[0]) > 1 else None
    table, laid = others, mix
    if mix is not None and scale is not None:  # energies do not add up to a sum of levels: whole views, before
        table, laid = (_with_energies(place, frames, mix, others, scale), frames), None
        place = torch.arange(len(keys), device=keys.device)
    number = _frames_of(patches, length, len(keys), keys.device)
    drawn = _timed(table, _Own(place, frames), number, warps, laid)
    heard = number < warps.ends[:, None]
    colour = _colour(keys, mels, settings) + warps.gain[:, None]
    bins = low, weight = _bins(warps, mels)
    if patches is None:
        # Both bins of each as one product: [views, from, to].
        matrix = torch.zeros(len(keys), mels, mels, device=keys.device)
        matrix.scatter_(1, low[:, None], 1 - weight[:, None])
        matrix.scatter_add_(1, (low + 1).clamp(max=mels - 1)[:, None], weight[:, None])
        drawn = torch.baddbmm(colour.unsqueeze(1), drawn, matrix)
        if settings.functions:
            drawn = own_views(settings.functions).spectrograms(drawn, keys)
        sound = heard.unsqueeze(2).float()
    else:
        drawn, sound = _cut(drawn, heard, bins, colour, patches)
    # A product and a sum: on a CPU a mask that is broadcast costs many times as much.
    drawn = drawn.mul_(sound).add_((1 - sound) * padding)
    return drawn if patches is None else drawn.flatten(2), warps.ends


def _weighted(table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of rows of a table: [rows, width] by [n, k] and [n, k] to [n, width]."""
    if table.device.type in ("cpu", "cuda"):
        return F.embedding_bag(rows, table, mode="sum", per_sample_weights=weights)
    return _weighted_apart(table, rows, weights)


def _weighted_apart(table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """The same where embedding bags are not computed."""
    return (table[rows] * weights.unsqueeze(2)).sum(1)


class _Own(NamedTuple):
    """The `place` of each view's own clip among all, and its `frames` of sound; [views] each."""

    place: Tensor
    frames: Tensor


class _Mix(NamedTuple):
    """What is laid over each view: the number of the `other` clip, and its `share`; [views] each."""

    other: Tensor
    share: Tensor


def _mix_of(keys: Tensor, most: float, place: Tensor, count: int) -> _Mix:
    """`place` is that of each view's own clip among `count`, which is never its own partner."""
    drawn = uniform(keys, 2, stream=_MIX)
    return _Mix((place + 1 + (drawn[:, 0] * (count - 1)).long()) % count, drawn[:, 1] * most)


def _with_energies(place: Tensor, frames: Tensor, mix: _Mix, others: tuple[Tensor, Tensor], scale: float) -> Tensor:
    """Views with another clip's energy added in their shares where both have sound: [views, frames, mels]."""
    clips, lengths = others
    share = mix.share.view(-1, 1, 1)
    both = (
        torch.arange(clips.shape[1], device=place.device) < torch.minimum(frames, lengths[mix.other])[:, None]
    ).float()
    # log((1 - a) e^x + a e^y) = x + log(1 - a) + softplus(y - x + log(a / (1 - a)))
    odds = (share / (1 - share)).clamp(min=1e-12).log()
    x = clips.index_select(0, place)
    change = F.softplus(clips.index_select(0, mix.other).sub_(x).mul_(scale).add_(odds))
    return torch.addcmul(x, change.add_(torch.log1p(-share)).div_(scale), both.unsqueeze(2))


def _frames_of(patches: Patches | None, length: int, views: int, device: torch.device) -> Tensor:
    """Numbers of the frames that are drawn of each view: all, or those of the columns that are asked for."""
    if patches is None:
        return torch.arange(length, device=device).expand(views, -1)
    (_, wide), (rows, columns) = patches.size, patches.grid
    if rows > 1:
        return torch.arange(columns * wide, device=device).expand(views, -1)
    return (patches.numbers.unsqueeze(2) * wide + torch.arange(wide, device=device)).flatten(1)


def _timed(table: tuple[Tensor, Tensor], own: _Own, number: Tensor, warps: Warps, mix: _Mix | None) -> Tensor:
    """Stretches time and lets the sound begin later, its first frame held till then.

    Args:
        table: Clips, [clips, frames, mels], and their frames of sound.
        own: The clip of each view.
        number: Frames that are wanted, by number, [views, wanted].
        warps: Tempo and delay of each view.
        mix: What is laid over it in levels.

    Returns:
        [views, wanted, mels].
    """
    clips, lengths = table
    place, frames = own
    source = (number + 0.5 - warps.late[:, None]) / warps.tempo[:, None] - 0.5
    last = (frames - 1)[:, None]
    source = torch.minimum(source.clamp(min=0), last.float())
    below = source.floor().long()
    above = torch.minimum(below + 1, last)
    upper = source - below
    begin = (place * clips.shape[1])[:, None]
    rows, weights = [begin + below, begin + above], [1 - upper, upper]
    if mix is not None:
        until = torch.minimum(frames, lengths[mix.other])[:, None]
        shares = [(frame < until) * mix.share[:, None] for frame in (below, above)]
        begin = (mix.other * clips.shape[1])[:, None]
        rows += [begin + below, begin + above]
        weights = [w * (1 - s) for w, s in zip(weights, shares, strict=True)] + [
            w * s for w, s in zip(weights, shares, strict=True)
        ]
    flat = clips.reshape(-1, clips.shape[2])
    drawn = _weighted(flat, torch.stack(rows, 2).flatten(0, 1), torch.stack(weights, 2).flatten(0, 1))
    return drawn.view(*number.shape, -1)


def _bins(warps: Warps, mels: int) -> tuple[Tensor, Tensor]:
    """The lower of the two mel bins that each bin of a view lies between, and the weight of the upper: [views, mels].

    Border values repeat.
    """
    bins = torch.arange(mels, device=warps.pitch.device)
    centre = (mels - 1) / 2
    source = centre + (bins - centre) / warps.pitch[:, None] - warps.shift[:, None] * mels
    source = source.clamp(0, mels - 1)
    low = source.long().clamp(max=max(mels - 2, 0))
    return low, source - low


def _cut(
    drawn: Tensor, heard: Tensor, bins: tuple[Tensor, Tensor], colour: Tensor, patches: Patches
) -> tuple[Tensor, Tensor]:
    """Cuts patches out of frames of views, their bins warped and coloured.

    Args:
        drawn: What `_frames_of` names, [views, frames, mels].
        heard: Which of these frames hold sound.
        bins: As of `_bins`.
        colour: What is added to each bin.
        patches: Which patches.

    Returns:
        Patches [views, patches, mels, frames of a patch], and 1 where they hold sound, [views, patches, 1, frames].
    """
    (tall, wide), (rows, columns) = patches.size, patches.grid
    views, _, mels = drawn.shape
    count = patches.numbers.shape[1]
    # Bins become rows of a table, each as long as a patch is wide.
    table = drawn.view(views, -1, wide, mels).transpose(2, 3).contiguous()
    if rows == 1:
        column = torch.arange(count, device=drawn.device).expand(views, -1)
        row = torch.zeros_like(column)
    else:
        row, column = patches.numbers // columns, patches.numbers % columns
    wanted = (row.unsqueeze(2) * tall + torch.arange(tall, device=drawn.device)).flatten(1)
    low, weight = (each.gather(1, wanted) for each in bins)
    begin = torch.arange(views, device=drawn.device)[:, None] * table.shape[1] + column
    lower = (begin.unsqueeze(2) * mels + low.view(views, count, tall)).flatten()
    pairs = torch.stack([lower, lower + (low < mels - 1).flatten()], 1)
    weights = torch.stack([1 - weight, weight], 2).view(-1, 2)
    cut = _weighted(table.view(-1, wide), pairs, weights).view(views, count, tall, wide)
    cut += colour.gather(1, wanted).view(views, count, tall, 1)
    sound = heard.view(views, -1, wide).gather(1, column.unsqueeze(2).expand(-1, -1, wide))
    return cut, sound.unsqueeze(2).float()


def _colour(keys: Tensor, mels: int, settings: SpectrogramViews) -> Tensor:
    """A smooth random equaliser: [views, mels]."""
    knots = 2 * uniform(keys, settings.knots, stream=_COLOUR) - 1
    return F.interpolate(knots[:, None], size=mels, mode="linear", align_corners=True)[:, 0] * settings.equaliser
