"""A classifier's head before training: how it pools, and a logistic regression on what its encoder gives then.

Fine-tuned together with a random head, a pretrained encoder is first changed by what that head asks of it, and worse on
sound from elsewhere for it; a head that fits from the first step on asks for little (Kumar et al. 2022, Fine-tuning can
distort pretrained features and underperform out-of-distribution).

A regression that hardly had to be held back has large weights, and scores that a small change of the encoder throws
about: the first steps then undo what was learned. So its scores are made smaller until they spread by no more than a
head of a few steps' training has; which label is the likeliest stays the same.

A head can also grow: rows of further labels are learned from their clips alone, while those that are there stay as they
are. What they learned from is not there; embeddings stand for it that are drawn from the mean and the deviation of a
head that standardises, and the scores that the old rows give them are to win. So is what clips of one label hold out
against the rows of the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from tymbal.errors import StoreError
from tymbal.evaluation.baseline import coarser
from tymbal.evaluation.linear import Fitted, fit_logistic
from tymbal.evaluation.selection import choose
from tymbal.features.normalisation import Normalisation
from tymbal.inference.encoding import FrozenEncoder
from tymbal.models.classifier import GRIDS, SpectrogramClassifier, Standardisation, pooled_width
from tymbal.models.encoder import SpectrogramEncoder
from tymbal.progress import Progress
from tymbal.settings import MergeSettings
from tymbal.store.base import SpectrogramSource
from tymbal.store.dataset import normalised_batches

__all__ = ["NewRow", "choose_pooling", "fit_head", "fit_rows"]

_MOST = 5_000
"""Clips that are embedded at most: enough for a start."""

_MOST_COMPARED = 1_500
"""Clips by which a pooling is chosen at most."""

_MOST_VALUES = 200_000_000
"""Numbers that are held at once to choose a pooling by."""

_MOST_FOLDS = 5
"""Into how many parts clips of a further label are split, each of which is held out once."""

_LEEWAY = 0.999
"""Of the margin of the last clip that is to be recognised, so that it is."""

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


@dataclass(frozen=True)
class NewRow:
    """The row of a further label.

    Attributes:
        weight: float64 [pooled width].
        bias: Its bias.
        clips: Clips that it was learned from.
        recognised: How many of them it recognises when they are held out; None where there are too few to hold out.
    """

    weight: NDArray[np.float64]
    bias: float
    clips: int
    recognised: int | None


def fit_rows(
    model: SpectrogramClassifier,
    store: SpectrogramSource,
    rows: NDArray[np.int64],
    truth: NDArray[np.bool_],
    *,
    normalisation: Normalisation,
    competes: bool,
    groups: Sequence[str] | None,
    settings: MergeSettings,
    device: torch.device,
) -> list[NewRow]:
    """Learns rows of further labels for a classifier that stays as it is, from clips of these labels alone.

    A row is a logistic regression against the scores that the classifier gives already: against the sum of all in a
    softmax, against even odds where a clip may have several labels. Its bias is then lowered as far as the held-out
    clips allow.

    Args:
        model: The classifier, whose head standardises; it is moved to the device.
        store: The store of the clips.
        rows: The clips, [clips].
        truth: Which of them has which further label, bool [clips, labels]; a clip may have none.
        normalisation: How spectrograms are normalised for the encoder.
        competes: Whether the labels exclude each other.
        groups: The group of each clip; whole groups are held out together.
        settings: How many embeddings stand for other sound, how far weights are held back, what is still recognised.
        device: The device to compute on.

    Returns:
        A row a label.

    Raises:
        StoreError: None of the clips can be read.
    """
    model = model.to(device).eval()
    readable, features = _features(model, store, rows, normalisation, batch_size=settings.batch_size, dtype=None)
    with torch.no_grad():
        clips = model.head_norm(features.to(device)).double().cpu()
        weight, bias = (value.detach().double().cpu() for value in (model.head.weight, model.head.bias))
    generator = torch.Generator().manual_seed(settings.seed)
    drawn = torch.randn(
        len(weight) * settings.pseudo, clips.shape[1], generator=generator, dtype=torch.float64
    )  # of a head that standardises, each number of an embedding has mean 0 and deviation 1
    known = torch.from_numpy(truth[readable])
    names = np.array(groups if groups is not None else [str(place) for place in range(len(rows))])[readable]

    def side(values: Tensor) -> _Side:
        scores = values @ weight.T + bias
        none = torch.zeros(len(values), dtype=torch.float64)
        return _Side(values, scores.logsumexp(1), scores.amax(1)) if competes else _Side(values, none, none)

    found = []
    for place in range(known.shape[1]):
        own, others = clips[known[:, place]], torch.cat([drawn, clips[~known[:, place]]])
        held_out = _folds(names[known[:, place].numpy()])
        found.append(_row_of(side(own), side(others), held_out, settings))
    return found


@dataclass(frozen=True)
class _Side:
    """Embeddings, and what the score of a new row is up against there.

    Attributes:
        values: float64 [clips, width].
        odds: In learning: of a softmax the sum of the scores, as a logarithm; else 0: even odds. [clips].
        best: In deciding: the largest of the scores, or 0. [clips].
    """

    values: Tensor
    odds: Tensor
    best: Tensor

    def part(self, which: Tensor) -> _Side:
        """Some of the clips, bool [clips]."""
        return _Side(self.values[which], self.odds[which], self.best[which])


def _row_of(own: _Side, rest: _Side, fold: Tensor | None, settings: MergeSettings) -> NewRow:
    """The row of one label, of its clips and of all else.

    Args:
        own: Clips of the label.
        rest: All else.
        fold: In which turn each clip is held out, int64 [clips]; None where none is.
        settings: How far weights are held back, and what is still to be recognised.
    """
    weight, bias = _row_against(own, rest, strength=settings.strength)
    recognised = None
    if fold is not None:
        margins = torch.empty(len(own.values), dtype=torch.float64)
        for number in range(int(fold.max()) + 1):
            out = fold == number
            learned, level = _row_against(own.part(~out), rest, strength=settings.strength)
            margins[out] = own.values[out] @ learned + level - own.best[out]
        # At most so many clips, of those that are held out, may fall below the score that it is up against.
        lost = int((1 - settings.recall) * len(own.values) + 1e-9)
        lower = max(0.0, float(margins.sort().values[lost]) * _LEEWAY)
        bias = bias - lower
        recognised = int((margins > lower).sum())
    return NewRow(weight.numpy(), float(bias), len(own.values), recognised)


def _folds(groups: NDArray[np.str_]) -> Tensor | None:
    """In which turn each clip is held out, whole groups together, int64 [clips]; None where there is one group."""
    different, number = np.unique(groups, return_inverse=True)
    return torch.from_numpy(number % _MOST_FOLDS) if len(different) > 1 else None


def _row_against(own: _Side, rest: _Side, *, strength: float) -> tuple[Tensor, Tensor]:
    """A logistic regression of clips of a label against the rest, both sides with equal weight, against given log-odds.

    Args:
        own: Clips of the label.
        rest: All else.
        strength: L2 penalty.

    Returns:
        Weights [width] and bias.
    """
    weight = torch.zeros(own.values.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        hits = functional.softplus(own.odds - own.values @ weight - bias).mean()
        alarms = functional.softplus(rest.values @ weight + bias - rest.odds).mean()
        value: Tensor = (hits + alarms + strength * weight @ weight) / 2
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()


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
