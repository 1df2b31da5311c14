"""Logistic regression and nearest neighbours on fixed features: how much of the labels lies open in them.

Both answer with scores [clips, classes] from features [clips, dimensions], for labels given as bools [clips, classes],
so that clips with one label and with several go the same way. Features are standardised with the statistics of the
training clips; the strength of the regularisation is chosen by cross-validation inside the training clips, whole groups
(recordings, speakers) on one side, and never sees the clips that are scored.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

__all__ = ["STRENGTHS", "Fitted", "fit_logistic", "grouped_folds", "neighbour_scores", "quality"]

Floats = NDArray[Any]
Bools = NDArray[np.bool_]

STRENGTHS: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
"""Inverse regularisation strengths (scikit-learn's C) that are tried, from strong to weak."""

_FOLDS = 4
_ITERATIONS = 300
_TEMPERATURE = 0.07


@dataclass(frozen=True)
class Fitted:
    """A logistic regression on standardised features.

    Attributes:
        weight: [dimensions, classes], on the features as they come.
        bias: [classes].
        strength: The chosen C.
    """

    weight: Floats
    bias: Floats
    strength: float

    def scores(self, features: Floats) -> Floats:
        """Log-odds (several labels) or unnormalised log-probabilities (one label), [clips, classes]."""
        return np.asarray(features @ self.weight + self.bias)


def fit_logistic(
    features: Floats,
    truth: Bools,
    *,
    multilabel: bool = False,
    groups: Sequence[str] | None = None,
    strengths: Sequence[float] = STRENGTHS,
    seed: int = 42,
) -> Fitted:
    """Fits a logistic regression: multinomial for one label a clip, one a class for several.

    Args:
        features: [clips, dimensions].
        truth: Which clip has which label, [clips, classes].
        multilabel: Whether a clip may have several labels, or none.
        groups: The group of each clip; clips of a group stay together in the inner split.
        strengths: Candidates for C, from strong to weak; a single one is used as it is.
        seed: Seed of the inner split.
    """
    centre, scale = features.mean(axis=0), features.std(axis=0)
    scale = np.where(scale > 1e-6 * (1 + np.abs(centre)), scale, 1.0)
    scaled = (features - centre) / scale
    # The products of an iteration are small: threads would mostly wait for each other.
    with threadpool_limits(1):
        inner, basis = _rotated(scaled)
        strength = strengths[0]
        if len(strengths) > 1:
            strength = _choose(inner, truth, multilabel=multilabel, groups=groups, strengths=strengths, seed=seed)
        weight, bias = _fit(inner, truth, strength, multilabel=multilabel)
    weight = (weight if basis is None else basis @ weight) / scale[:, None]
    return Fitted(weight, bias - centre @ weight, strength)


def neighbour_scores(features: Floats, truth: Bools, queries: Floats, *, neighbours: int = 10) -> Floats:
    """Votes of the nearest training clips by cosine of the standardised features, weighted as in Wu et al. 2018.

    Args:
        features: Features of the training clips, [clips, dimensions].
        truth: Their labels, [clips, classes].
        queries: Features of the clips to be scored, [queries, dimensions].
        neighbours: How many vote.

    Returns:
        Share of the votes for each class, [queries, classes].
    """
    centre, scale = features.mean(axis=0), features.std(axis=0)
    scale = np.where(scale > 1e-6 * (1 + np.abs(centre)), scale, 1.0)
    known, unknown = (_unit((side - centre) / scale) for side in (features, queries))
    count = min(neighbours, len(known))
    votes = np.empty((len(unknown), truth.shape[1]))
    for start in range(0, len(unknown), 1024):
        part = slice(start, start + 1024)
        likeness = unknown[part] @ known.T
        nearest = np.argpartition(-likeness, count - 1, axis=1)[:, :count]
        weight = np.exp((np.take_along_axis(likeness, nearest, axis=1) - 1) / _TEMPERATURE)
        votes[part] = np.einsum("qk,qkc->qc", weight / weight.sum(axis=1, keepdims=True), truth[nearest])
    return votes


def quality(scores: Floats, truth: Bools, *, multilabel: bool) -> dict[str, float]:
    """Figures of merit of scores [clips, classes]: accuracy for one label, mAP and ROC AUC for several.

    A class that no clip has is left out of the means over classes.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    from tymbal.objectives.metrics import single_label_figures

    if not multilabel:
        classes = truth.shape[1]
        confusion = np.zeros((classes, classes), np.int64)
        np.add.at(confusion, (truth.argmax(axis=1), scores.argmax(axis=1)), 1)
        return single_label_figures(confusion)
    present = truth.any(axis=0) & ~truth.all(axis=0)
    if not present.any():
        return {"mAP": float("nan"), "roc_auc": float("nan")}
    known, given = truth[:, present], scores[:, present]
    return {
        "mAP": float(average_precision_score(known, given, average="macro")),
        "roc_auc": float(roc_auc_score(known, given, average="macro")),
    }


def _rotated(scaled: Floats) -> tuple[Floats, Floats | None]:
    """Rotates features of more dimensions than clips into as many: [clips, clips], and the basis [dimensions, clips].

    The penalty is the length of the weights, which no rotation changes, and what lies outside the span of the clips
    gets no weight: so the same regression is solved, in less.
    """
    if scaled.shape[1] <= scaled.shape[0]:
        return scaled, None
    basis = np.linalg.svd(scaled, full_matrices=False)[2].T
    return scaled @ basis, basis


def _choose(
    scaled: Floats,
    truth: Bools,
    *,
    multilabel: bool,
    groups: Sequence[str] | None,
    strengths: Sequence[float],
    seed: int,
) -> float:
    """The strength with the best mean figure over the inner folds; 1 with too few clips for folds."""
    folds = list(grouped_folds(truth, multilabel=multilabel, groups=groups, seed=seed))
    if not folds:
        return 1.0
    figure = "mAP" if multilabel else "accuracy"
    reached: list[float] = []
    for strength in strengths:
        marks = []
        for inside, outside in folds:
            weight, bias = _fit(scaled[inside], truth[inside], strength, multilabel=multilabel)
            marks.append(quality(scaled[outside] @ weight + bias, truth[outside], multilabel=multilabel)[figure])
        reached.append(float(np.mean(marks)))
    return strengths[int(np.argmax(reached))]


def grouped_folds(
    truth: Bools, *, multilabel: bool, groups: Sequence[str] | None, seed: int, most: int = _FOLDS
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Folds over clips [clips, classes], whole groups on one side, classes in proportion where clips have one.

    Args:
        truth: Which clip has which label.
        multilabel: Whether a clip may have several labels.
        groups: The group of each clip; None or a single one is none.
        seed: Seed of the split.
        most: Number of folds, or as many as the rarest class has clips, or as there are groups, if these are fewer.

    Yields:
        Indices of the clips inside and outside of each fold; nothing with too few clips for two folds.
    """
    from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

    kinds = len(set(groups)) if groups is not None else 0
    smallest = int(truth.sum(axis=0)[truth.any(axis=0)].min(initial=len(truth)))
    parts = min(most, len(truth), len(truth) if multilabel else smallest, kinds if kinds > 1 else most)
    if parts < 2:
        return
    splitter: Any
    if kinds > 1:
        splitter = GroupKFold if multilabel else StratifiedGroupKFold
    else:
        splitter = KFold if multilabel else StratifiedKFold
    codes = truth.argmax(axis=1)
    split = splitter(n_splits=parts, shuffle=True, random_state=seed).split(
        truth, None if multilabel else codes, groups if kinds > 1 else None
    )
    for inside, outside in split:
        if len(inside) and len(outside) and (multilabel or len(np.unique(codes[inside])) > 1):
            yield inside, outside


def _fit(scaled: Floats, truth: Bools, strength: float, *, multilabel: bool) -> tuple[Floats, Floats]:
    """Weight [dimensions, classes] and bias [classes]; a class without examples gets a score below all others."""
    weight = np.zeros((scaled.shape[1], truth.shape[1]))
    bias = np.full(truth.shape[1], -1e9)
    if multilabel:
        for index in range(truth.shape[1]):
            if truth[:, index].any() and not truth[:, index].all():
                coefficients, intercept = _solve(scaled, truth[:, index], strength)
                weight[:, index], bias[index] = coefficients[0], intercept[0]
        return weight, bias
    codes = truth.argmax(axis=1)
    present = np.unique(codes)
    if len(present) == 1:
        bias[present] = 0.0
        return weight, bias
    coefficients, intercept = _solve(scaled, codes, strength)
    if len(present) == 2:
        weight[:, present[1]], bias[present] = coefficients[0], [0.0, intercept[0]]
    else:
        weight[:, present], bias[present] = coefficients.T, intercept
    return weight, bias


def _solve(scaled: Floats, codes: NDArray[Any], strength: float) -> tuple[Floats, Floats]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        # Weakly regularised and separable, the weights grow without end; the ranking is stable long before.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(C=strength, max_iter=_ITERATIONS).fit(scaled, codes)
    return model.coef_, model.intercept_


def _unit(vectors: Floats) -> Floats:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-12))
