"""Logistic and ridge regression and nearest neighbours on fixed features: how much of the labels lies open in them.

Both answer with scores [clips, classes] from features [clips, dimensions], for labels given as bools [clips, classes],
so that clips with one label and with several go the same way. Features are standardised with the statistics of the
training clips; the strength of the regularisation is chosen by cross-validation inside the training clips, whole groups
(recordings, speakers) on one side, and never sees the clips that are scored. Inside each fold features are standardised
anew: with the statistics of all clips, what a speaker outside sounds like on average would be known already.
"""

from __future__ import annotations

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
    "centre_and_scale",
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
_SLACK = {"choice": 1e-3, "fit": 2e-5}
"""How steep a loss may be at the end: what reads best shows long before the optimum, what is used lies at it."""
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
    standardise: bool = True,
    seed: int = 42,
) -> Fitted:
    """Fits a logistic regression: multinomial for one label a clip, one a class for several.

    Args:
        features: [clips, dimensions].
        truth: Which clip has which label, [clips, classes].
        multilabel: Whether a clip may have several labels, or none.
        groups: The group of each clip; clips of a group stay together in the inner split.
        strengths: Candidates for C, from strong to weak; a single one is used as it is.
        standardise: Whether features are standardised by these clips. Without, as where they are scaled by many more
            clips already and a head is fitted after every few labels, there is a single strength, and the fit is as
            exact as that of a choice.
        seed: Seed of the inner split.
    """
    strength = strengths[0]
    # The products of an iteration are small: threads would mostly wait for each other.
    with threadpool_limits(1):
        if len(strengths) > 1:
            folds = grouped_folds(truth, multilabel=multilabel, groups=groups, seed=seed)
            strength = _choose(features, truth, list(folds), multilabel=multilabel, strengths=strengths)
        known = _Components(features, standardise=standardise)
        slack = _SLACK["fit" if standardise else "choice"]
        coefficients, bias = next(_logistic_path(known, truth, [strength], multilabel=multilabel, slack=slack))
    weight = known.weight(coefficients)
    return Fitted(weight, bias - known.centre @ weight, strength)


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


class _Components:
    """Features of the clips to learn from, standardised, along their principal directions.

    What no clip varies in is left out: a penalty on the length of weights gives it none.

    Args:
        features: [clips, dimensions]; of float32 the long products are in float32 too, in half the time.
        standardise: Whether they are standardised, and not only centred.

    Attributes:
        centre: Mean of each feature, [dimensions].
        values: Sum of squares along each direction, from small to large, [directions].
        known: The clips along the directions, [clips, directions].
    """

    def __init__(self, features: Floats, *, standardise: bool = True) -> None:
        self.centre, self._scale = centre_and_scale(features)
        if not standardise:
            self._scale = np.ones_like(self._scale)
        scaled = self._scaled(features)
        clips, dimensions = scaled.shape
        is_wide = clips < dimensions
        gram = scaled @ scaled.T if is_wide else scaled.T @ scaled
        values, vectors = np.linalg.eigh(gram.astype(np.float64))
        kept = values > max(float(values[-1]), 1e-12) * (1e-6 if scaled.dtype == np.float32 else 1e-10)
        self.values, vectors = values[kept], vectors[:, kept]
        self._basis = scaled.T @ (vectors / np.sqrt(self.values)) if is_wide else vectors
        self.known = vectors * np.sqrt(self.values) if is_wide else scaled @ vectors

    def project(self, features: Floats) -> Floats:
        """Other clips [clips, dimensions] along the directions, [clips, directions]."""
        return np.asarray(self._scaled(features) @ self._basis)

    def weight(self, coefficients: Floats) -> Floats:
        """Coefficients [directions, classes] as weights of the features as they come, [dimensions, classes]."""
        return np.asarray(self._basis @ coefficients / self._scale[:, None])

    def _scaled(self, features: Floats) -> Floats:
        return np.asarray((features - self.centre) / self._scale)


class _Ridge:
    """Ridge regressions of all penalties.

    Args:
        features: [clips, dimensions].
        truth: [clips, classes]; a class that no clip has is never read.
    """

    def __init__(self, features: Floats, truth: Bools) -> None:
        self._components = _Components(features)
        targets = truth.astype(np.float64)
        self._mean = targets.mean(axis=0)
        self._absent = ~truth.any(axis=0)
        self._targets = self._components.known.T @ (targets - self._mean)
        self._unit = max(float(self._components.values.sum()) / len(features), 1e-12)

    def project(self, features: Floats) -> Floats:
        """Features [clips, dimensions] along the principal directions, for `read`."""
        return self._components.project(features)

    def read(self, projected: Floats, penalty: float) -> Floats:
        """Scores [clips, classes] at a penalty."""
        scores = projected @ self._coefficients(penalty) + self._mean
        scores[:, self._absent] = -1e9
        return np.asarray(scores)

    def fitted(self, penalty: float) -> Fitted:
        """The regression with a penalty, on features as they come."""
        weight = self._components.weight(self._coefficients(penalty))
        bias = np.where(self._absent, -1e9, self._mean - self._components.centre @ weight)
        return Fitted(weight, bias, penalty)

    def _coefficients(self, penalty: float) -> Floats:
        return np.asarray(self._targets / (self._components.values + penalty * self._unit)[:, None])


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
    centre, scale = centre_and_scale(features)
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
    """Figures of merit of scores [clips, classes]: accuracy for one label, mAP, ROC AUC and T1 accuracy for several.

    A class that no clip has is left out of the means over classes. T1 accuracy is BirdSet's: of the clips with labels,
    the share whose highest score is one of theirs.
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
        return dict.fromkeys(("mAP", "roc_auc", "t1_accuracy"), float("nan"))
    known, given = truth[:, present], scores[:, present]
    return {
        "mAP": float(average_precision_score(known, given, average="macro")),
        "roc_auc": float(roc_auc_score(known, given, average="macro")),
        "t1_accuracy": float(np.take_along_axis(truth, scores.argmax(1)[:, None], 1)[truth.any(1)].mean()),
    }


def centre_and_scale(features: Floats) -> tuple[Floats, Floats]:
    """Mean and standard deviation of features [clips, dimensions]; a deviation of 1 for those that do not vary."""
    centre, scale = features.mean(axis=0), features.std(axis=0)
    return centre, np.where(scale > 1e-6 * (1 + np.abs(centre)), scale, 1.0)


def _choose(
    features: Floats,
    truth: Bools,
    folds: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]],
    *,
    multilabel: bool,
    strengths: Sequence[float],
) -> float:
    """The strength with the best mean figure over the inner folds, as in `ridge_marks`; 1 where there are none."""
    if not folds:
        return 1.0
    paths = [
        _marks(features[inside], truth[inside], features[outside], truth[outside], strengths, multilabel=multilabel)
        for inside, outside in folds
    ]
    reached = [float(np.mean(marks)) for marks in zip(*paths, strict=True)]
    return strengths[int(np.argmax(reached))]


def _marks(
    features: Floats, truth: Bools, asked: Floats, right: Bools, strengths: Sequence[float], *, multilabel: bool
) -> Iterator[float]:
    """The leading figure of `asked` clips at each strength, of which the true labels are `right`."""
    known = _Components(features)
    projected = known.project(asked)
    figure = "mAP" if multilabel else "accuracy"
    for weight, bias in _logistic_path(known, truth, strengths, multilabel=multilabel, slack=_SLACK["choice"]):
        yield quality(projected @ weight + bias, right, multilabel=multilabel)[figure]


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


def _logistic_path(
    known: _Components, truth: Bools, strengths: Sequence[float], *, multilabel: bool, slack: float
) -> Iterator[tuple[Floats, Floats]]:
    """Logistic regressions of all strengths, each begun where the one before ended.

    Args:
        known: The clips to learn from.
        truth: Which of them has which label, [clips, classes]; a class without examples gets a score below all others.
        strengths: From strong to weak.
        multilabel: Whether a clip may have several labels.
        slack: As in `_logistic`.

    Yields:
        Coefficients [directions, classes] and bias [classes], for each strength.
    """
    classes = truth.shape[1]
    used = np.flatnonzero(truth.any(axis=0) & (~truth.all(axis=0) if multilabel else True))
    # Of two classes one is read: whether it is the second.
    learned = used[1:] if not multilabel and len(used) == 2 else used
    is_softmax = not multilabel and len(used) > 2
    start = np.zeros((known.known.shape[1] + 1, len(learned)))
    for strength in strengths:
        weight, bias = np.zeros((known.known.shape[1], classes)), np.full(classes, -1e9)
        if not multilabel and len(used) < 3:
            bias[used] = 0.0
        if multilabel or len(used) > 1:
            targets = truth[:, learned].astype(np.float64)
            start = _logistic(known, targets, strength, start=start, is_softmax=is_softmax, slack=slack)
            weight[:, learned], bias[learned] = start[:-1], start[-1]
        yield weight, bias


def _logistic(
    known: _Components, targets: Floats, strength: float, *, start: Floats, is_softmax: bool, slack: float
) -> Floats:
    """The logistic regression of one strength, by L-BFGS.

    Along principal directions the curvature is nearly diagonal: measured by its root all directions are about equally
    steep, and tens of iterations do what takes thousands otherwise.

    Args:
        known: The clips to learn from.
        targets: 0 or 1, [clips, learned classes].
        strength: C.
        start: Where to begin, [directions + 1, learned classes]; the last row is the bias.
        is_softmax: One label a clip; else each class is read by itself.
        slack: How steep it may still be at the end, by the root of the clips.

    Returns:
        As `start`.
    """
    from scipy.optimize import minimize
    from scipy.special import expit, log_softmax

    clips = len(targets)
    held = np.append(np.full(len(known.values), 1 / strength), 0.0)[:, None]

    def explained(coefficients: Floats) -> tuple[float, Floats]:
        """The loss of the clips, and the probabilities."""
        scores = known.known @ coefficients[:-1] + coefficients[-1]
        if is_softmax:
            logs = log_softmax(scores, axis=1)
            return -float((targets * logs).sum()), np.exp(logs)
        return float((np.logaddexp(0, scores) - targets * scores).sum()), np.asarray(expit(scores))

    spread = explained(start)[1]
    steep = float((spread * (1 - spread)).mean())
    root = np.sqrt(steep * np.append(known.values, clips)[:, None] + held + 1e-9 * clips)

    def loss(flat: Floats) -> tuple[float, Floats]:
        coefficients = flat.reshape(start.shape) / root
        value, probabilities = explained(coefficients)
        error = probabilities - targets
        gradient = np.concatenate([known.known.T @ error, error.sum(axis=0)[None]]) + held * coefficients
        return value + float((held * np.square(coefficients)).sum()) / 2, np.ravel(gradient / root)

    # Weakly regularised and separable, the weights grow without end; the ranking is stable long before.
    options = {"maxiter": _ITERATIONS, "maxcor": 20, "ftol": 1e-9, "gtol": slack * np.sqrt(clips)}
    solved = minimize(loss, np.ravel(start * root), jac=True, method="L-BFGS-B", options=options)
    return np.asarray(solved.x.reshape(start.shape) / root)


def _unit(vectors: Floats) -> Floats:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-12))
