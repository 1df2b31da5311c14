"""What is known about the values of spectrograms, and the one rule by which they become what an encoder takes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["ENERGY_FLOOR", "LOG_FLOOR", "Moments", "Normalisation", "NormalizeBy", "loudest", "time_parts"]

NormalizeBy = Literal["dataset", "clip"]

_FLATTEST = 0.1
"""Least standard deviation, in log-mel units, that a clip is divided by: silence stays silence."""


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """How a model normalises spectrograms: `(log-mel - mean) / (2 * std)`, as AST and SSAST do.

    Attributes:
        mean: Mean of the log-mel values of the data set.
        std: Their standard deviation.
        padding: Log-mel value that the model knows behind the end of the sound.
        by: Whose mean and standard deviation are taken: those of the `dataset`; or of each `clip`'s own sound, which
            takes out how loud it is and how it was recorded. Padding always has the data set's.
    """

    mean: float
    std: float
    padding: float
    by: NormalizeBy = "dataset"

    def __call__(self, spectrogram: Tensor, frames: Tensor) -> Tensor:
        """Normalises a batch.

        Args:
            spectrogram: Log-mel, any floating point, [batch, frames, mels].
            frames: Frames of real sound, int64 [batch]; what lies behind them is replaced by padding.

        Returns:
            float32 [batch, frames, mels].
        """
        return self.without(spectrogram, torch.arange(spectrogram.shape[1], device=frames.device) >= frames[:, None])

    def without(self, spectrogram: Tensor, padding: Tensor, *, masked: Tensor | None = None) -> Tensor:
        """Normalises a batch whose padding may lie anywhere.

        Args:
            spectrogram: Log-mel, any floating point, [batch, frames, mels].
            padding: Frames that are no sound, bool [batch, frames]; they are replaced by padding.
            masked: Cells that are hidden, bool [batch, frames, mels]: they do not enter the clip's mean and deviation
                and are replaced by padding, too, so that they say nothing of the clip. None is none.

        Returns:
            float32 [batch, frames, mels].
        """
        x = spectrogram.float()
        behind = padding.unsqueeze(2) if masked is None else padding.unsqueeze(2) | masked
        if self.by == "dataset":
            return (x.masked_fill(behind, self.padding) - self.mean) / (2 * self.std)
        cells = (~padding).sum(1).clamp(min=1) * x.shape[2] if masked is None else (~behind).sum((1, 2)).clamp(min=1)
        count = cells.view(-1, 1, 1)
        # Few passes: on a CPU a fill by a mask that is broadcast costs more than the sums.
        # Bits have no gradient, and ONNX has no word for them.
        plain = x.requires_grad or torch.compiler.is_compiling()
        sound = x.masked_fill(behind, 0.0) if plain else _silenced(x, ~behind)
        heard = (~behind).float()
        centred = (sound - sound.sum((1, 2), keepdim=True) / count).mul_(heard)
        variance = centred.square().sum((1, 2), keepdim=True) / count
        normal = centred / (2 * variance.sqrt().clamp(min=_FLATTEST))
        return normal.add_((1 - heard) * self.normal_padding)

    @property
    def normal_padding(self) -> float:
        """What padding is after normalising, by clip as well as by data set."""
        return (self.padding - self.mean) / (2 * self.std)


def _silenced(x: Tensor, heard: Tensor) -> Tensor:
    """Float32 numbers where `heard`, else zeros, whatever is there (NaN, too): ten times as fast as a fill on a CPU."""
    return (x.view(torch.int32) & -heard.int()).view(torch.float32)


def loudest(spectrogram: Tensor, frames: Tensor) -> Tensor:
    """The largest log-mel value of each spectrogram, which background noise has far below what it lies behind.

    Args:
        spectrogram: Log-mel, [batch, frames, mels].
        frames: Frames of real sound, int64 [batch], at least 1.

    Returns:
        float32 [batch].
    """
    behind = torch.arange(spectrogram.shape[1], device=frames.device) >= frames[:, None]
    return spectrogram.float().masked_fill(behind.unsqueeze(2), -torch.inf).amax(dim=(1, 2))


@dataclass(frozen=True)
class Moments:
    """Running count, mean and squared deviation of values.

    Attributes:
        count: Number of values.
        mean: Their mean.
        m2: Sum of their squared distances from the mean.
    """

    count: int = 0
    mean: float = 0.0
    m2: float = 0.0

    @classmethod
    def of(cls, values: npt.NDArray[np.floating]) -> Moments:
        """The moments of one array, computed in float64. Pass real frames only: padding would count as sound."""
        if values.size == 0:
            return cls()
        distances = values.astype(np.float64).ravel()
        mean = float(distances.mean())
        distances -= mean
        # No dot product: numpy gives it to a BLAS, whose threads then spin for milliseconds.
        np.multiply(distances, distances, out=distances)
        return cls(count=distances.size, mean=mean, m2=float(distances.sum()))

    def merge(self, other: Moments) -> Moments:
        """The moments of both sets together."""
        count = self.count + other.count
        if count == 0:
            return self
        delta = other.mean - self.mean
        return Moments(
            count=count,
            mean=self.mean + delta * other.count / count,
            m2=self.m2 + other.m2 + delta * delta * self.count * other.count / count,
        )

    @property
    def std(self) -> float:
        """Standard deviation of the values (of the population); 0 without values."""
        return math.sqrt(self.m2 / self.count) if self.count else 0.0


def time_parts(
    spectrograms: npt.NDArray[np.floating], real_frames: npt.NDArray[np.integer], parts: int
) -> npt.NDArray[np.float32]:
    """Means of each mel bin over equal parts of the real frames; a frame on a border counts for both by its share.

    Args:
        spectrograms: Log-mel, [clips, frames, mels].
        real_frames: Frames of sound in each, at least 1, [clips].
        parts: How many.

    Returns:
        [clips, parts, mels].
    """
    frame = np.arange(spectrograms.shape[1])
    length = (real_frames / parts)[:, None, None]
    begin = np.arange(parts)[:, None] * length
    share = np.clip(np.minimum(begin + length, frame + 1) - np.maximum(begin, frame), 0, None) / length
    return np.asarray(share.astype(np.float32) @ spectrograms.astype(np.float32))


ENERGY_FLOOR = 1.1920928955078125e-07
"""The smallest energy before the logarithm (float32's epsilon, as in Kaldi)."""

LOG_FLOOR = math.log(ENERGY_FLOOR)
"""Log-mel value of digital silence."""
