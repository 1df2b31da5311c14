"""A classifier's head before training: a logistic regression on what its encoder gives then.

Fine-tuned together with a random head, a pretrained encoder is first changed by what that head asks of it, and worse on
sound from elsewhere for it; a head that fits from the first step on asks for little (Kumar et al. 2022, Fine-tuning can
distort pretrained features and underperform out-of-distribution).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tymbal.errors import StoreError
from tymbal.evaluation.linear import Fitted, fit_logistic
from tymbal.features.normalisation import Normalisation
from tymbal.models.classifier import SpectrogramClassifier
from tymbal.progress import Progress
from tymbal.store.base import SpectrogramSource
from tymbal.store.dataset import normalised_batches

__all__ = ["fit_head"]

_MOST = 5_000
"""Clips that are embedded at most: enough for a start."""

_ABSENT = -10.0
"""Bias of a class without examples."""


def fit_head(
    model: SpectrogramClassifier,
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
) -> tuple[Fitted, int]:
    """Puts a logistic regression on the training clips in the place of a classifier's linear layer.

    Args:
        model: The classifier; it is moved to the device.
        store: The store of the spectrograms.
        rows: The training clips, [clips]; of many, some are drawn.
        truth: Which of them has which label, [clips, labels].
        normalisation: How spectrograms are normalised for the encoder.
        multilabel: Whether a clip may have several labels, or none.
        groups: The group of each clip; regularisation is chosen by clips of other groups.
        seed: Seed of what is drawn and of the inner split.
        batch_size: Clips a batch.
        device: The device to compute on.
        dtype: Arithmetic, bfloat16 or float16; `None` is float32.

    Returns:
        The regression, and on how many clips.

    Raises:
        StoreError: None of the clips can be read.
    """
    if len(rows) > _MOST:
        drawn = _drawn(truth, seed=seed)
        rows, truth = rows[drawn], truth[drawn]
        groups = None if groups is None else [groups[place] for place in drawn]
    model = model.to(device)
    readable, features = _features(model, store, rows, normalisation, batch_size=batch_size, dtype=dtype)
    groups = None if groups is None else [group for group, is_read in zip(groups, readable, strict=True) if is_read]
    fitted = fit_logistic(features, truth[readable], multilabel=multilabel, groups=groups, seed=seed)
    with torch.no_grad():
        model.head.weight.copy_(torch.from_numpy(fitted.weight.T))
        model.head.bias.copy_(torch.from_numpy(np.maximum(fitted.bias, _ABSENT)))
    return fitted, len(features)


def _drawn(truth: NDArray[np.bool_], *, seed: int) -> NDArray[np.int64]:
    """Places of `_MOST` clips [clips, labels], drawn, with one of every label that occurs among them."""
    order = np.random.default_rng(seed).permutation(len(truth))
    first = np.unique(truth[order].argmax(axis=0)[truth.any(axis=0)])[:_MOST]
    rest = np.delete(order, first)[: _MOST - len(first)]
    return np.sort(np.concatenate([order[first], rest]))


def _features(
    model: SpectrogramClassifier,
    store: SpectrogramSource,
    rows: NDArray[np.int64],
    normalisation: Normalisation,
    *,
    batch_size: int,
    dtype: torch.dtype | None,
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Which rows can be read, bool [rows], and the inputs of the linear layer for those, [clips, pooled width].

    Raises:
        StoreError: None of them can be read.
    """
    collected: list[Tensor] = []
    read: list[NDArray[np.int64]] = []

    def look(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        collected.append(inputs[0].double().cpu())

    device, training = model.head.weight.device, model.training
    model.eval()
    hook = model.head.register_forward_pre_hook(look)
    try:
        with (
            Progress(len(rows), "Fitting the head", unit="clips") as progress,
            torch.inference_mode(),
            torch.autocast(device.type, dtype=dtype, enabled=dtype is not None),
        ):
            for batch in normalised_batches(
                store, rows, normalisation=normalisation, batch_size=batch_size, device=device, progress=progress
            ):
                model(batch.x, frames=batch.frames)
                read.append(batch.rows)
    finally:
        hook.remove()
        model.train(training)
    if not collected:
        raise StoreError("not one of the clips to fit the head on can be read any more", path=store.path)
    return np.isin(rows, np.concatenate(read)), torch.cat(collected).numpy()
