"""Logistic and ridge regression and nearest neighbours on fixed features: how much of the labels lies open in them.

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

__all__ = [
    "PENALTIES",
    "STRENGTHS",
    "Fitted",
    "fit_logistic",
    "fit_ridge",
    "grouped_folds",
    "neighbour_scores",
    "quality",
    "ridge_marks",
]

Floats = NDArray[Any]
Bools = NDArray[np.bool_]

STRENGTHS: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
"""Inverse regularisation strengths (scikit-learn's C) that are tried, from strong to weak."""

PENALTIES: tuple[float, ...] = tuple(10.0 ** (power / 2) for power in range(4, -9, -1))
"""Penalties of the ridge regression that are tried, in units of the features' mean eigenvalue, from strong to weak."""

_FOLDS = 4
_ITERATIONS = 300
_TEMPERATURE = 0.07


@dataclass(frozen=True)
class Fitted:
    """A linear reader of standardised features.

    Attributes:
        weight: [dimensions, classes], on the features as they come.
        bias: [classes].
        strength: The chosen C of a logistic regression, or penalty of a ridge regression.
    """

    weight: Floats
    bias: Floats
    strength: float

    def scores(self, features: Floats) -> Floats:
        """Scores, [clips, classes].

        Of a logistic regression log-odds (several labels) or unnormalised log-probabilities (one label); of a ridge
        regression the targets 0 and 1 as it rebuilds them.
        """
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
    centre, scale = _standard(features)
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


def fit_ridge(
    features: Floats,
    truth: Bools,
    *,
    multilabel: bool = False,
    groups: Sequence[str] | None = None,
    penalties: Sequence[float] = PENALTIES,
    seed: int = 42,
) -> Fitted:
    """Fits a ridge regression of the labels as 0 and 1 in closed form: all penalties from one decomposition.

    It reads about as well as the logistic regression, and takes a tenth of the time or less where features are long.

    Args:
        features: [clips, dimensions].
        truth: Which clip has which label, [clips, classes].
        multilabel: Whether a clip may have several labels, or none.
        groups: The group of each clip; clips of a group stay together in the inner split.
        penalties: What the penalty is chosen from; 1 where there are too few clips for folds.
        seed: Seed of the inner split.
    """
    folds = list(grouped_folds(truth, multilabel=multilabel, groups=groups, seed=seed))
    penalty = ridge_marks(features, truth, folds, multilabel=multilabel, penalties=penalties)[0] if folds else 1.0
    return _Ridge(features, truth).fitted(penalty)


def ridge_marks(
    features: Floats,
    truth: Bools,
    folds: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]],
    *,
    multilabel: bool,
    penalties: Sequence[float] = PENALTIES,
) -> tuple[float, Floats]:
    """How ridge regressions read clips that they have not learned from, at the penalty that reads them best.

    Features are standardised anew by the clips inside of each fold: statistics of all clips would tell how a speaker
    or recorder outside sounds on average, which for few groups flatters every reader and misleads the choice.

    Args:
        features: [clips, dimensions].
        truth: Which clip has which label, [clips, classes].
        folds: Places of the clips inside and outside, of `grouped_folds`; at least one.
        multilabel: Whether a clip may have several labels, or none.
        penalties: What is tried.

    Returns:
        The penalty, and the marks: whether each clip, in the order of the folds, is read right, [clips outside]; with
        several labels the mAP of each fold, [folds].
    """
    marks: list[list[Floats]] = [[] for _ in penalties]
    for inside, outside in folds:
        ridge = _Ridge(features[inside], truth[inside])
        projected = ridge.project(features[outside])
        for place, penalty in enumerate(penalties):
            scores = ridge.read(projected, penalty)
            if multilabel:
                marks[place].append(np.array([quality(scores, truth[outside], multilabel=True)["mAP"]]))
            else:
                marks[place].append((scores.argmax(axis=1) == truth[outside].argmax(axis=1)).astype(np.float64))
    joined = [np.concatenate(of_penalty) for of_penalty in marks]
    best = int(np.argmax([np.nan_to_num(values).mean() for values in joined]))
    return penalties[best], joined[best]


class _Ridge:
    """Ridge regressions of all penalties on standardised features, by the eigenvectors of the smaller Gram matrix.

    Args:
        features: [clips, dimensions].
        truth: [clips, classes]; a class that no clip has is never read.
    """

    def __init__(self, features: Floats, truth: Bools) -> None:
        self._centre, self._scale = _standard(features)
        scaled = self._scaled(features)
        clips, dimensions = scaled.shape
        targets = truth.astype(np.float64)
        self._mean = targets.mean(axis=0)
        self._absent = ~truth.any(axis=0)
        if clips < dimensions:
            values, vectors = np.linalg.eigh(scaled @ scaled.T)
            self._basis, self._targets = scaled.T @ vectors, vectors.T @ (targets - self._mean)
        else:
            values, self._basis = np.linalg.eigh(scaled.T @ scaled)
            self._targets = self._basis.T @ (scaled.T @ (targets - self._mean))
        self._values = np.maximum(values, 0.0)
        self._unit = max(float(self._values.sum()) / clips, 1e-12)

    def project(self, features: Floats) -> Floats:
        """Features [clips, dimensions] along the eigenvectors, for `read`."""
        return np.asarray(self._scaled(features) @ self._basis)

    def read(self, projected: Floats, penalty: float) -> Floats:
        """Scores [clips, classes] at a penalty."""
        scores = projected @ self._weights(penalty) + self._mean
        scores[:, self._absent] = -1e9
        return np.asarray(scores)

    def fitted(self, penalty: float) -> Fitted:
        """The regression with a penalty, on features as they come."""
        weight = self._basis @ self._weights(penalty) / self._scale[:, None]
        bias = np.where(self._absent, -1e9, self._mean - self._centre @ weight)
        return Fitted(weight, bias, penalty)

    def _weights(self, penalty: float) -> Floats:
        return np.asarray(self._targets / (self._values + penalty * self._unit)[:, None])

    def _scaled(self, features: Floats) -> Floats:
        return np.asarray((features.astype(np.float64) - self._centre) / self._scale)


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
    centre, scale = _standard(features)
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


def _standard(features: Floats) -> tuple[Floats, Floats]:
    """Mean and standard deviation of features [clips, dimensions]; a deviation of 1 for those that do not vary."""
    centre, scale = features.mean(axis=0), features.std(axis=0)
    return centre, np.where(scale > 1e-6 * (1 + np.abs(centre)), scale, 1.0)


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
