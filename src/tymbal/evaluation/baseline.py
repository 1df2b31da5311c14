"""Plain lines that any encoder must beat: what spectrograms tell without anything learned before the reader.

The `baseline` is the mean over time of each mel bin, its standard deviation and that of the differences of neighbouring
frames, over the frames of real sound only. It knows no order in time, and how loud a clip is, which models are not told
where they normalise each clip. The `plain` line is fairer: of several such descriptions, some of which keep order in
time and take out loudness, the one that reads best inside the training clips (`tymbal.evaluation.selection`).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from tymbal.features.normalisation import Normalisation, time_parts
from tymbal.models.classifier import GRIDS
from tymbal.store.base import SpectrogramSource
from tymbal.store.dataset import readable_batches

__all__ = [
    "MOMENTS",
    "PARTS",
    "PREFERRED",
    "baseline_features",
    "coarser",
    "plain_features",
    "spectrogram_moments",
]

PARTS = (1, *GRIDS.values())
"""Numbers of equal parts of a clip's time, each of which is the half of the next."""

MOMENTS = "raw:moments"
"""The plain line that is the baseline."""

PREFERRED = "clip:4"
"""The plain line that is taken unless another reads more than a standard error better: of few speakers each other one
is now and then the best by chance."""

_COEFFICIENTS = 20
_CLIP = Normalisation(mean=0.0, std=0.5, padding=0.0, by="clip")


def spectrogram_moments(spectrograms: NDArray[np.floating], real_frames: NDArray[np.integer]) -> NDArray[np.float32]:
    """Moments over time of each mel bin.

    Args:
        spectrograms: Log-mel, [clips, frames, mels].
        real_frames: Frames of sound in each; what follows is padding. [clips], at least 1.

    Returns:
        Mean, standard deviation and standard deviation of differences, [clips, 3 * mels].
    """
    values = spectrograms.astype(np.float32)
    frames = values.shape[1]
    real = (np.arange(frames) < real_frames[:, None])[..., None]
    steps, real_steps = np.diff(values, axis=1), real[:, 1:]
    mean, spread = _moments(values, real)
    return np.concatenate([mean, spread, _moments(steps, real_steps)[1]], axis=1)


def baseline_features(
    store: SpectrogramSource, rows: NDArray[np.int64], *, batch: int = 256
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """`spectrogram_moments` of rows of a store.

    Returns:
        The rows that could be read, [clips], and their features, [clips, 3 * mels].
    """
    read, parts = [rows[:0]], [np.empty((0, 3 * store.mels), np.float32)]
    for part, spectrograms in readable_batches(store, rows, batch_size=batch):
        read.append(part)
        parts.append(spectrogram_moments(spectrograms, store.real_frames[part]))
    return np.concatenate(read), np.concatenate(parts)


def plain_features(
    store: SpectrogramSource, rows: NDArray[np.int64], *, batch: int = 256
) -> tuple[NDArray[np.int64], dict[str, NDArray[np.float32]]]:
    """All plain lines of rows of a store.

    Of `raw` log-mel values, and of those less the mean of the clip's sound over twice its deviation (`clip`), as models
    see them: `moments`, see `spectrogram_moments`; `1`, `2`, `4` and `8`, the means of so many equal parts of the
    time, in order, with the standard deviation; and `mfcc`: mean, standard deviation, and standard deviation of
    differences of 20 cepstral coefficients (the DCT of each frame).

    Returns:
        The rows that could be read, [clips], and by name the features, [clips, dimensions]; `raw:moments`, which
        `baseline_features` are, comes first.
    """
    read: list[NDArray[np.int64]] = [rows[:0]]
    empty = np.empty((0, 1, store.mels), np.float32)
    found = {name: [values] for name, values in _plain(empty, np.ones(0, np.int64)).items()}
    for part, spectrograms in readable_batches(store, rows, batch_size=batch):
        read.append(part)
        for name, values in _plain(spectrograms, store.real_frames[part]).items():
            found[name].append(values)
    return np.concatenate(read), {name: np.concatenate(values) for name, values in found.items()}


def coarser(cells: NDArray[np.float32], parts: int) -> NDArray[np.float32]:
    """Means over fewer parts of the time, from those over a multiple of them.

    Args:
        cells: [clips, rows, parts, dimensions].
        parts: Parts afterwards.

    Returns:
        Side by side, [clips, rows * parts * dimensions].
    """
    clips, rows, fine, width = cells.shape
    joined = cells.reshape(clips, rows, parts, fine // parts, width).mean(axis=3)
    return np.asarray(joined.reshape(clips, rows * parts * width))


def _plain(spectrograms: NDArray[np.floating], real_frames: NDArray[np.integer]) -> dict[str, NDArray[np.float32]]:
    raw = spectrograms.astype(np.float32)
    clip = _CLIP(torch.from_numpy(raw), torch.from_numpy(real_frames.astype(np.int64))).numpy()
    mels = raw.shape[2]
    order = np.arange(min(_COEFFICIENTS, mels))[:, None]
    basis = np.cos(np.pi * order * (np.arange(mels) + 0.5) / mels).T.astype(np.float32)
    lines: dict[str, NDArray[np.float32]] = {}
    for name, values in (("raw", raw), ("clip", clip)):
        moments = spectrogram_moments(values, real_frames)
        lines[f"{name}:moments"] = moments
        finest = time_parts(values, real_frames, PARTS[-1])[:, None]
        for parts in PARTS:
            spread = moments[:, mels : 2 * mels]
            lines[f"{name}:{parts}"] = np.concatenate([coarser(finest, parts), spread], axis=1)
        lines[f"{name}:mfcc"] = spectrogram_moments(values @ basis, real_frames)
    return lines


def _moments(values: NDArray[np.float32], real: NDArray[np.bool_]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    count = np.maximum(real.sum(axis=1), 1)
    mean = np.where(real, values, 0).sum(axis=1) / count
    squares = np.where(real, np.square(values - mean[:, None]), 0).sum(axis=1)
    return mean, np.sqrt(squares / count)
