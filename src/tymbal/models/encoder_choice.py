"""Which patch and which size a new encoder has, where nobody says it: chosen from the sound that it will learn from.

No patch is best for all sound. A word or a call is one event that unfolds over its clip, and clips differ in how:
patches as high as the spectrogram and a few frames long keep that order. Rain, a wing or an engine goes on as it is,
and clips differ in their spectra: square patches keep frequencies apart. Two label-free figures tell the two kinds from
each other; `docs/objectives.md` has what they are for the sets that they were found on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from tymbal.features.normalisation import Normalisation, time_parts
from tymbal.settings import FeatureSettings, parse_patch
from tymbal.store.base import SpectrogramSource
from tymbal.store.dataset import normalised_batches

Size = Literal["mini", "tiny", "small"]

__all__ = ["TimeStructure", "is_filled", "is_full_height", "patch_for", "size_for", "time_structure"]

_PARTS = 8
_CLIPS = 400
_BATCH = 100
_SLOW, _OVER_SPECTRUM, _STEADY = 0.5, 1.0, 0.25
_SQUARE, _COLUMN = 16, 4
_FILLED = 0.9
_HOURS: dict[Size, float] = {"mini": 50.0, "tiny": 500.0}
"""Most hours of sound that encoders of a size are taken for; beyond the last it is `small`."""


@dataclass(frozen=True)
class TimeStructure:
    """How much of a sound lies in its course, and how much in its spectrum.

    Attributes:
        slow: Share of a clip's change over time that is slow: the variance of the means of its 8 equal parts over the
            variance of its frames, each summed over mel bins; median over clips. Near 1 a clip is one event.
        over_spectrum: Variance between clips of those means without the clip's mean spectrum, over the variance between
            clips of mean spectra. Above 1 clips differ more in their course than in their spectrum.
    """

    slow: float
    over_spectrum: float

    @property
    def unfolds(self) -> bool:
        """Whether clips are told apart by how they unfold in time."""
        return self.slow >= _SLOW and self.over_spectrum >= _OVER_SPECTRUM

    @property
    def steady(self) -> bool:
        """Whether clips differ in their spectra alone, hardly in how they unfold."""
        return self.over_spectrum < _STEADY


def time_structure(store: SpectrogramSource, rows: npt.NDArray[np.int64]) -> TimeStructure:
    """Measures the time structure of clips, each normalised by itself, on up to 400 of them.

    Args:
        store: Single spectrograms, pairs of views or waveforms.
        rows: Rows of the store to measure, int64 [clips].
    """
    normalisation = Normalisation(mean=store.mean, std=store.std, padding=store.padding, by="clip")
    single = store.singles()
    clips = rows if single is store else np.unique(store.clip_numbers()[rows])  # of pairs a single each, by its number
    chosen = np.sort(np.random.default_rng(0).permutation(clips)[:_CLIPS])
    parts: list[npt.NDArray[np.float32]] = []
    slow: list[npt.NDArray[np.float32]] = []
    for batch in normalised_batches(single, chosen, normalisation=normalisation, batch_size=_BATCH):
        x, frames = batch.x.numpy(), batch.frames.numpy()
        parts.append(time_parts(x, frames, _PARTS))
        slow.append(parts[-1].var(axis=1).sum(axis=1) / np.maximum(_frame_variance(x, frames), 1e-12))
    if not parts:
        return TimeStructure(0.0, 0.0)
    means = np.concatenate(parts)
    spectra = means.mean(axis=1)
    between = float(spectra.var(axis=0).sum())
    course = float((means - spectra[:, None]).var(axis=0).mean(axis=0).sum())
    return TimeStructure(float(np.median(np.concatenate(slow))), course / between if between > 0 else 0.0)


def _frame_variance(x: npt.NDArray[np.float32], frames: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Variance over the real frames of each clip, summed over mel bins, [clips]."""
    heard = ((np.arange(x.shape[1]) < frames[:, None]) / frames[:, None]).astype(np.float32)
    mean = np.einsum("bf,bfm->bm", heard, x)
    return np.asarray(np.einsum("bf,bfm->b", heard, np.square(x - mean[:, None])))


def patch_for(structure: TimeStructure, *, mels: int, frames: int) -> tuple[str, str]:
    """The patch for sound of this structure.

    Args:
        structure: That of the sound.
        mels: Mel bins of the spectrograms.
        frames: Their frames.

    Returns:
        The patch, as `128x4`, and the reason in words.
    """
    figures = f"{structure.slow:.2f} of the change within a clip is slow, and clips differ "
    figures += f"{structure.over_spectrum:.1f} times as much in their course as in their spectrum"
    if structure.unfolds or mels < _SQUARE or frames < _SQUARE:
        why = "clips unfold in time" if structure.unfolds else "spectrograms are small"
        return f"{mels}x{min(_COLUMN, frames)}", f"{why}: {figures}"
    return f"{_SQUARE}x{_SQUARE}", f"clips are told apart by their spectra: {figures}"


def size_for(store: SpectrogramSource, rows: npt.NDArray[np.int64]) -> tuple[Size, str]:
    """The size of an encoder for these rows of a store, and the reason in words."""
    features = store.features or FeatureSettings(mel_bins=store.mels)
    hours = float(store.real_frames[rows].sum()) * features.shift_samples / features.sample_rate / 3600
    size: Size = next((name for name, most in _HOURS.items() if hours <= most), "small")
    return size, f"{hours:,.1f} hours of sound" if hours >= 1 else f"{hours * 60:,.0f} minutes of sound"


def is_filled(store: SpectrogramSource) -> bool:
    """Whether clips fill their window to nine tenths or more on average, so that hardly anything is padding."""
    return float(store.real_frames.mean()) >= _FILLED * store.frames


def is_full_height(patch: str, mels: int) -> bool:
    """Whether patches are as high as the spectrogram, so that tokens follow each other in time alone."""
    return mels // parse_patch(patch)[0] == 1
