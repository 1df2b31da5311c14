"""Augmentation of a classifier's training batches: mixing, masks, noise and shifts, all on the device.

SpecAugment (Park et al. 2019) hides one band of mel bins and one stretch of frames; mixup (Zhang et al. 2018) mixes two
clips and their labels, with shares from Beta(10, 10) as AST and SSAST do; noise and shift are SSAST's. What is drawn
for a clip is a function of its key alone (seed, epoch, row). Only its partner in mixing depends on its batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tymbal.features.kaldi import LOG_FLOOR
from tymbal.randomness import uniform

__all__ = ["Augmentation", "mixing_shares", "spec_augment", "spec_mask"]

_SPEC, _WHETHER, _SHARE, _HEIGHT, _NOISE, _ROLL = range(20, 26)  # streams of random numbers
_BETA = 10


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Kinds and strengths of augmentation; 0 is none.

    Attributes:
        frequency_mask: Widest frequency mask in mel bins.
        time_mask: Widest time mask in frames.
        mixup: Fraction of clips that are mixed with another.
        mixup_of: `log-mel` mixes the values; `energy` what they are the logarithms of, each by the square of its share:
            the expectation of mixing waveforms; `waveform` mixes those.
        noise: Most height of noise on the normalised spectrogram; a clip's is uniform up to it.
        roll: Most frames that a clip is shifted by.
    """

    frequency_mask: int = 0
    time_mask: int = 0
    mixup: float = 0.0
    mixup_of: str = "log-mel"
    noise: float = 0.0
    roll: int = 0

    def mix(
        self,
        spectrogram: Tensor,
        frames: Tensor,
        target: Tensor,
        keys: Tensor,
        *,
        waveform: Tensor | None = None,
        fbank: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mixes clips with their neighbours in the batch, whose order is random.

        Args:
            spectrogram: Log-mel, [batch, frames, mels].
            frames: Frames of real sound, [batch].
            target: Labels, float [batch, classes].
            keys: Keys of the random numbers, int64 [batch].
            waveform: Samples, [batch, samples], where waveforms are mixed.
            fbank: The filter bank that turns them into log-mel spectrograms.

        Returns:
            Mixed log-mel, its frames of real sound, and labels by share.
        """
        if not self.mixup:
            return spectrogram, frames, target
        share = torch.where(uniform(keys, 1, stream=_WHETHER)[:, 0] < self.mixup, mixing_shares(keys), 1.0)
        own, other = spectrogram.float(), spectrogram.float().roll(1, dims=0)
        longer = torch.where(share < 1, torch.maximum(frames, frames.roll(1)), frames)
        part = share[:, None, None]
        if waveform is not None and fbank is not None:
            sound = waveform - waveform.mean(1, keepdim=True)
            mixed = own.clone()
            remade = fbank(share[:, None] * sound + (1 - share[:, None]) * sound.roll(1, dims=0))
            mixed[:, : remade.shape[1]] = remade[:, : own.shape[1]]
        elif self.mixup_of == "energy":
            energy = part.square() * _energy(own, frames) + (1 - part).square() * _energy(other, frames.roll(1))
            mixed = energy.log().clamp(min=LOG_FLOOR)
        else:
            mixed = part * own + (1 - part) * other
        spectrogram = torch.where(part < 1, mixed, own)
        return spectrogram, longer, share[:, None] * target + (1 - share[:, None]) * target.roll(1, dims=0)

    def disturb(self, x: Tensor, frames: Tensor, keys: Tensor) -> Tensor:
        """Hides, adds noise, and shifts.

        Args:
            x: Normalised spectrograms, [batch, frames, mels].
            frames: Frames of real sound, [batch].
            keys: Keys of the random numbers, int64 [batch].

        Returns:
            [batch, frames, mels].
        """
        if self.frequency_mask or self.time_mask:
            x = spec_augment(x, keys, frames, frequency_mask=self.frequency_mask, time_mask=self.time_mask)
        if self.noise:
            height = self.noise * uniform(keys, 1, stream=_HEIGHT)
            x = x + (height * uniform(keys, x[0].numel(), stream=_NOISE)).view_as(x)
        if self.roll:
            shift = (uniform(keys, 1, stream=_ROLL) * (2 * self.roll + 1)).long() - self.roll
            place = (torch.arange(x.shape[1], device=x.device) - shift) % x.shape[1]
            x = x.gather(1, place.unsqueeze(2).expand_as(x))
        return x


def mixing_shares(keys: Tensor) -> Tensor:
    """Shares from Beta(10, 10), float32 [batch]: of 19 uniform numbers the 10th smallest is distributed like that."""
    return uniform(keys, 2 * _BETA - 1, stream=_SHARE).sort(dim=1).values[:, _BETA - 1]


def _energy(log_mel: Tensor, frames: Tensor) -> Tensor:
    """Energies of log-mel values; 0 in the frames behind the end of the sound, whatever their values."""
    behind = torch.arange(log_mel.shape[1], device=log_mel.device) >= frames[:, None]
    return log_mel.exp().masked_fill(behind.unsqueeze(2), 0.0)


def spec_augment(x: Tensor, keys: Tensor, frames: Tensor, *, frequency_mask: int, time_mask: int) -> Tensor:
    """Hides one band of mel bins and one stretch of frames of each clip behind the mean of the data.

    Args:
        x: Normalised spectrograms, [batch, frames, mels].
        keys: Keys of the random numbers, int64 [batch].
        frames: Frames of real sound, [batch]: the stretch lies within them.
        frequency_mask: Widest band in mel bins; widths are uniform from 0 on.
        time_mask: Widest stretch in frames, at most the whole clip.

    Returns:
        [batch, frames, mels]; the mean of normalised data is 0.
    """
    shape = (x.shape[1], x.shape[2])
    return x.masked_fill(spec_mask(shape, keys, frames, frequency_mask=frequency_mask, time_mask=time_mask), 0.0)


def spec_mask(
    shape: tuple[int, int],
    keys: Tensor,
    frames: Tensor,
    *,
    frequency_mask: int,
    time_mask: int,
    frequency_masks: int = 1,
    time_masks: int = 1,
) -> Tensor:
    """Draws what SpecAugment hides: bands of mel bins and stretches of frames, which may overlap.

    Args:
        shape: Frames and mel bins of the spectrograms.
        keys: Keys of the random numbers, int64 [batch].
        frames: Frames of real sound, [batch]: stretches lie within them.
        frequency_mask: Widest band in mel bins; widths are uniform from 0 on.
        time_mask: Widest stretch in frames, at most the whole clip.
        frequency_masks: Number of bands.
        time_masks: Number of stretches.

    Returns:
        bool [batch, frames, mels]; a band goes through all frames, also those behind the end of the sound.
    """
    length, mels = shape
    draws = uniform(keys, 2 * (frequency_masks + time_masks), stream=_SPEC)
    bins = torch.full_like(frames, mels)
    hidden = torch.zeros(len(keys), length, mels, dtype=torch.bool, device=keys.device)
    for n in range(0, 2 * frequency_masks, 2):
        hidden = hidden | _stretch(draws[:, n], draws[:, n + 1], frequency_mask, bins, mels)[:, None, :]
    for n in range(2 * frequency_masks, draws.shape[1], 2):
        hidden = hidden | _stretch(draws[:, n], draws[:, n + 1], time_mask, frames, length)[:, :, None]
    return hidden


def _stretch(width_draw: Tensor, place_draw: Tensor, widest: int, extent: Tensor, size: int) -> Tensor:
    """A random stretch within the first `extent` of `size` places, as bools [batch, size]."""
    width = torch.minimum((width_draw * (widest + 1)).long(), extent)
    first = (place_draw * (extent - width + 1)).long()
    place = torch.arange(size, device=extent.device)
    return (place >= first[:, None]) & (place < (first + width)[:, None])
