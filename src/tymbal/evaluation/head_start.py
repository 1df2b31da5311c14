"""A classifier's head before training: how it pools, and a logistic regression on what its encoder gives then.

Fine-tuned together with a random head, a pretrained encoder is first changed by what that head asks of it, and worse on
sound from elsewhere for it; a head that fits from the first step on asks for little (Kumar et al. 2022, Fine-tuning can
distort pretrained features and underperform out-of-distribution).

A regression that hardly had to be held back has large weights, and scores that a small change of the encoder throws
about: the first steps then undo what was learned. So its scores are made smaller until they spread by no more than a
head of a few steps' training has; which label is the likeliest stays the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tymbal.errors import StoreError
from tymbal.evaluation.baseline import coarser
from tymbal.evaluation.linear import Fitted, fit_logistic
from tymbal.evaluation.selection import choose
from tymbal.features.normalisation import Normalisation
from tymbal.inference.encoding import FrozenEncoder
from tymbal.models.classifier import GRIDS, SpectrogramClassifier, Standardisation, pooled_width
from tymbal.models.encoder import SpectrogramEncoder
from tymbal.progress import Progress
from tymbal.store.base import SpectrogramSource
from tymbal.store.dataset import normalised_batches

__all__ = ["choose_pooling", "fit_head"]

_MOST = 5_000
"""Clips that are embedded at most: enough for a start."""

_MOST_COMPARED = 1_500
"""Clips by which a pooling is chosen at most."""

_MOST_VALUES = 200_000_000
"""Numbers that are held at once to choose a pooling by."""

_SURE = 10.0
"""Size of the bias of a label that no clip has, or every one of several: a score that training can still move."""


def choose_pooling(
    encoder: SpectrogramEncoder,
    store: SpectrogramSource,
    rows: NDArray[np.int64],
    truth: NDArray[np.bool_],
    *,
    normalisation: Normalisation,
    multilabel: bool = False,
    groups: Sequence[str] | None = None,
    seed: int = 42,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> str:
    """Chooses how many equal parts of the time a head sees, by ridge regressions inside the training clips.

    Args:
        encoder: The encoder; it is moved to the device.
        store: The store of the spectrograms.
        rows: The training clips, [clips]; of many, some are drawn.
        truth: Which of them has which label, [clips, labels].
        normalisation: How spectrograms are normalised for the encoder.
        multilabel: Whether a clip may have several labels, or none.
        groups: The group of each clip; whole groups are asked that were not learned from.
        seed: Seed of what is drawn and of the folds.
        batch_size: Clips a batch.
        device: The device to compute on.
        dtype: Arithmetic, bfloat16 or float16; `None` is float32.

    Returns:
        `rows`, for time as one part, `grid2`, `grid4` or `grid8`.

    Raises:
        StoreError: None of the clips can be read.
    """
    drawn = _drawn(truth, seed=seed, most=_MOST_COMPARED)
    config, training = encoder.config, encoder.training
    grids = {"rows": 1, **GRIDS}
    fitting = [how for how in grids if pooled_width(how, config) * len(drawn) <= _MOST_VALUES] or ["rows"]
    frozen = FrozenEncoder(encoder, normalisation, batch_size=batch_size, device=device, dtype=dtype)
    with Progress(len(drawn), "Choosing the pooling", unit="clips") as progress:
        found = frozen.embed(store, rows[drawn], poolings=fitting[-1:], progress=progress)
    encoder.train(training)
    if not len(found.rows):
        raise StoreError("not one of the clips to choose a pooling by can be read any more", path=store.path)
    kept = drawn[np.isin(rows[drawn], found.rows)]
    finest = grids[fitting[-1]]
    cells = found.values[fitting[-1], None].reshape(len(kept), config.grid[0], finest, config.width)
    candidates = {how: coarser(cells, grids[how]) for how in fitting}
    among = None if groups is None else [groups[place] for place in kept.tolist()]
    return choose(candidates, truth[kept], multilabel=multilabel, groups=among, seed=seed).name


def fit_head(
    model: SpectrogramClassifier,
    store: SpectrogramSource,
    rows: NDArray[np.int64],
    truth: NDArray[np.bool_],
    *,
    normalisation: Normalisation,
    multilabel: bool = False,
    groups: Sequence[str] | None = None,
    scale: float = 0.0,
    regression: bool = True,
    seed: int = 42,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> tuple[Fitted | None, int]:
    """Puts a logistic regression on the training clips in the place of a classifier's linear layer.

    A head that standardises takes mean and deviation from the same clips.

    Args:
        model: The classifier; it is moved to the device.
        store: The store of the spectrograms.
        rows: The training clips, [clips]; of many, some are drawn.
        truth: Which of them has which label, [clips, labels].
        normalisation: How spectrograms are normalised for the encoder.
        multilabel: Whether a clip may have several labels, or none.
        groups: The group of each clip; regularisation is chosen by clips of other groups.
        scale: Largest standard deviation of the scores over clips, on average over labels; 0 leaves them.
        regression: Whether the linear layer is fitted; else only mean and deviation are taken.
        seed: Seed of what is drawn and of the inner split.
        batch_size: Clips a batch.
        device: The device to compute on.
        dtype: Arithmetic, bfloat16 or float16; `None` is float32.

    Returns:
        The regression, if any, and the number of clips.

    Raises:
        StoreError: None of the clips can be read.
    """
    if len(rows) > _MOST:
        drawn = _drawn(truth, seed=seed, most=_MOST)
        rows, truth = rows[drawn], truth[drawn]
        groups = None if groups is None else [groups[place] for place in drawn]
    model = model.to(device)
    readable, features = _features(model, store, rows, normalisation, batch_size=batch_size, dtype=dtype)
    norm = model.head_norm
    if isinstance(norm, Standardisation):
        norm.begin(features)
    if not regression:
        return None, len(features)
    groups = None if groups is None else [group for group, is_read in zip(groups, readable, strict=True) if is_read]
    values = features.cpu().numpy()
    fitted = fit_logistic(values, truth[readable], multilabel=multilabel, groups=groups, seed=seed)
    weight, bias = fitted.weight, fitted.bias
    if scale:
        spread = float(np.std(fitted.scores(values)[:, weight.any(axis=0)], axis=0).mean()) if weight.any() else 0.0
        factor = min(1.0, scale / max(spread, 1e-12))
        weight, bias = factor * weight, factor * bias
    if isinstance(norm, Standardisation):
        bias = bias + norm.mean.double().cpu().numpy() @ weight
        weight = norm.deviation.double().cpu().numpy()[:, None] * weight
    bias = np.where(truth[readable].any(axis=0), bias, -_SURE)
    if multilabel:
        bias = np.where(truth[readable].all(axis=0), _SURE, bias)
    with torch.no_grad():
        model.head.weight.copy_(torch.from_numpy(weight.T))
        model.head.bias.copy_(torch.from_numpy(bias))
    return fitted, len(features)


def _drawn(truth: NDArray[np.bool_], *, seed: int, most: int) -> NDArray[np.int64]:
    """Places of at most `most` clips [clips, labels], drawn, with one of every label that occurs among them."""
    order = np.random.default_rng(seed).permutation(len(truth))
    first = np.unique(truth[order].argmax(axis=0)[truth.any(axis=0)])[:most]
    rest = np.delete(order, first)[: most - len(first)]
    return np.sort(np.concatenate([order[first], rest]))


def _features(
    model: SpectrogramClassifier,
    store: SpectrogramSource,
    rows: NDArray[np.int64],
    normalisation: Normalisation,
    *,
    batch_size: int,
    dtype: torch.dtype | None,
) -> tuple[NDArray[np.bool_], Tensor]:
    """Which rows can be read, bool [rows], and what a regression learns from of those, float64 [clips, pooled width].

    That is the input of the linear layer, before standardisation where the head has one.

    Raises:
        StoreError: None of them can be read.
    """
    collected: list[Tensor] = []
    read: list[NDArray[np.int64]] = []
    device, training = model.head.weight.device, model.training
    model.eval()
    with (
        Progress(len(rows), "Fitting the head", unit="clips") as progress,
        torch.inference_mode(),
        torch.autocast(device.type, dtype=dtype, enabled=dtype is not None),
    ):
        for batch in normalised_batches(
            store, rows, normalisation=normalisation, batch_size=batch_size, device=device, progress=progress
        ):
            pooled = model.embed(batch.x, frames=batch.frames)
            if not isinstance(model.head_norm, Standardisation):
                pooled = model.head_norm(pooled)
            collected.append(pooled.double().cpu())
            read.append(batch.rows)
    model.train(training)
    if not collected:
        raise StoreError("not one of the clips to fit the head on can be read any more", path=store.path)
    return np.isin(rows, np.concatenate(read)), torch.cat(collected)
