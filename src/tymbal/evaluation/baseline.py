"""The plain baseline that any encoder must beat: what mean and spread of the spectrogram alone tell.

For each mel bin the mean over time, the standard deviation over time and the standard deviation of the differences of
neighbouring frames, over the frames of real sound only. Nothing is learned before the logistic regression.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tymbal.store.base import SpectrogramSource
from tymbal.store.dataset import readable_batches

__all__ = ["baseline_features", "spectrogram_moments"]


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


def _moments(values: NDArray[np.float32], real: NDArray[np.bool_]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    count = np.maximum(real.sum(axis=1), 1)
    mean = np.where(real, values, 0).sum(axis=1) / count
    squares = np.where(real, np.square(values - mean[:, None]), 0).sum(axis=1)
    return mean, np.sqrt(squares / count)
