"""Which description of clips to read, or which mix of layers, found inside the clips learned from, and verdicts.

How many parts of the time an embedding keeps, or which plain line is the best, is chosen by ridge regressions inside
the clips to learn from, whole groups (recordings, speakers) on one side; the clips that are asked have no part in it.
The largest of several such figures is often the largest by chance: where one description is expected to be right (an
objective knows how many parts it compared), another is taken only where it reads more than a standard error better.

The model's line is not picked by the figure that it reaches on the clips that are asked: it is read by the first
reader, by the grid where there is one, from both layers or their learned mix where these were read, or else the last
one. Random weights are read in the same way; the plain line was chosen inside the clips to learn from. Which of these
two it is compared with, and by which linear reader, is picked by the figure, to the model's disadvantage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from tymbal.evaluation.linear import centre_and_scale, grouped_folds, quality, ridge_marks
from tymbal.evaluation.probe_tasks import ProbeRow

__all__ = [
    "Choice",
    "Margin",
    "Verdict",
    "choose",
    "judge",
    "margin_of_figures",
    "margin_of_marks",
    "margin_of_scores",
    "mix_layers",
]

_MOST = 1500
"""Clips that a choice is made by, drawn where there are more."""

_FEWEST_GROUPS = 5
"""Groups from which on a margin is of groups: of fewer no spread can be estimated."""

_RESAMPLES = 200

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Attributes:
        name: Name of the description.
        figures: Accuracy or mAP of each inside the clips to learn from; empty where there was nothing to choose from,
            or too few clips for folds.
    """

    name: str
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Margin:
    """How sure a difference of two figures is.

    Attributes:
        half: Half the width of the 95 % interval.
        groups: Groups whose spread it is; None where it is that of the clips (or of folds).
    """

    half: float
    groups: int | None


def choose(
    candidates: Mapping[str, Floats],
    truth: NDArray[np.bool_],
    *,
    multilabel: bool,
    groups: Sequence[str] | None,
    preferred: str | None = None,
    seed: int = 42,
) -> Choice:
    """Chooses one of several descriptions of the clips to learn from.

    Args:
        candidates: Features by name, [clips, dimensions].
        truth: Which clip has which label, [clips, classes].
        multilabel: Whether a clip may have several labels, or none.
        groups: The group of each clip, where they have them.
        preferred: The description to keep unless another is more than a standard error better, by clips paired and
            by groups; None takes the best.
        seed: Seed of the folds, and of the clips that are drawn where there are many.

    Returns:
        The choice; the preferred or else the first one where there are too few clips or groups for folds.
    """
    otherwise = next(iter(candidates)) if preferred is None else preferred
    if len(candidates) == 1:
        return Choice(otherwise, {})
    drawn = np.arange(len(truth))
    if len(drawn) > _MOST:
        drawn = np.sort(np.random.default_rng(seed).permutation(drawn)[:_MOST])
    truth = truth[drawn]
    groups = None if groups is None else [groups[place] for place in drawn.tolist()]
    folds = list(grouped_folds(truth, multilabel=multilabel, groups=groups, seed=seed))
    if not folds:
        return Choice(otherwise, {})
    marks = {
        name: ridge_marks(features[drawn], truth, folds, multilabel=multilabel)[1]
        for name, features in candidates.items()
    }
    figures = {name: float(np.nan_to_num(values).mean()) for name, values in marks.items()}
    eligible = list(figures)
    if preferred is not None:
        asked = np.concatenate([outside for _, outside in folds])
        clusters = None if groups is None or multilabel else [groups[place] for place in asked.tolist()]
        differences = {name: np.nan_to_num(values) - np.nan_to_num(marks[preferred]) for name, values in marks.items()}
        better = [name for name, values in differences.items() if values.mean() > _error(values, clusters)]
        eligible = better or [preferred]
    best = max(eligible, key=lambda name: figures[name])
    return Choice(best, figures)


def mix_layers(
    layers: Sequence[Floats], truth: NDArray[np.bool_], known: int, *, multilabel: bool, strength: float = 0.1
) -> tuple[Floats, tuple[float, ...]]:
    """A weighted sum of layers, each standardised; the weights are a softmax, learned with a linear reader.

    As ELMo's (Peters et al. 2018) and SUPERB's (Yang et al. 2021) weighted sums, on frozen and pooled features. Only
    the clips to learn from tell the weights, and how each layer is standardised.

    Args:
        layers: Features of each layer, those to learn from first, [clips, dimensions] alike.
        truth: Labels of the clips to learn from, [known, classes].
        known: How many these are.
        multilabel: Whether a clip may have several labels.
        strength: C of the reader that the weights are learned with; who reads the sum chooses one anew.

    Returns:
        The sum, float32 [clips, dimensions], and the weights.
    """
    from scipy.optimize import minimize
    from scipy.special import expit, log_softmax, softmax

    scaled: list[NDArray[np.float32]] = []
    for values in layers:
        centre, scale = centre_and_scale(values[:known])
        scaled.append(np.asarray((values - centre) / scale, np.float32))
    inside = [values[:known] for values in scaled]
    targets = truth.astype(np.float32)
    classes, width, count = truth.shape[1], layers[0].shape[1], len(layers)

    def loss(flat: Floats) -> tuple[float, Floats]:
        logits, bias = flat[:count], flat[count : count + classes].astype(np.float32)
        weight = flat[count + classes :].reshape(width, classes).astype(np.float32)
        share = softmax(logits)
        read = [values @ weight for values in inside]
        scores = sum(part * one for part, one in zip(share.astype(np.float32), read, strict=True)) + bias
        if multilabel:
            value = float((np.logaddexp(0, scores) - targets * scores).sum())
            error = np.asarray(expit(scores) - targets)
        else:
            logs = log_softmax(scores, axis=1)
            value, error = -float((targets * logs).sum()), np.exp(logs) - targets
        by_layer = np.array([float((one * error).sum()) for one in read])
        slope = sum(part * (values.T @ error) for part, values in zip(share.astype(np.float32), inside, strict=True))
        gradient = [share * (by_layer - share @ by_layer), error.sum(axis=0), np.ravel(slope + weight / strength)]
        return value + float(np.square(weight).sum()) / (2 * strength), np.concatenate(gradient).astype(np.float64)

    with threadpool_limits(1):
        start = np.zeros(count + classes + width * classes)
        solved = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 100, "ftol": 1e-5}).x
    share = softmax(solved[:count])
    mixed = sum(part * values for part, values in zip(share.astype(np.float32), scaled, strict=True))
    return np.asarray(mixed), tuple(float(part) for part in share)


def margin_of_marks(difference: Floats, groups: Sequence[str] | None) -> Margin:
    """The margin of a mean difference of marks.

    Args:
        difference: Whether one reader was right less whether the other was, [clips].
        groups: The group of each clip. With five or more, it is that of the groups, by Student's t; else that of the
            clips, taken as independent of each other.
    """
    from scipy.stats import t

    kinds = 0 if groups is None else len(set(groups))
    if kinds < _FEWEST_GROUPS:
        return Margin(1.96 * _error(difference, None), None)
    return Margin(float(t.ppf(0.975, kinds - 1)) * _error(difference, groups), kinds)


def margin_of_figures(difference: Floats) -> Margin:
    """The margin of a mean difference [folds] of two or more folds, by Student's t."""
    from scipy.stats import t

    return Margin(float(t.ppf(0.975, len(difference) - 1)) * _error(difference, None), None)


def margin_of_scores(
    one: Floats, other: Floats, truth: NDArray[np.bool_], groups: Sequence[str] | None, *, seed: int = 42
) -> Margin:
    """The margin of a difference in mAP, by drawing the clips (or groups, where there are five or more) anew.

    Args:
        one: Scores of one reader, [clips, classes].
        other: Those of the other one.
        truth: Which clip has which label, [clips, classes].
        groups: The group of each clip.
        seed: Seed of the draws.
    """
    kinds = 0 if groups is None else len(set(groups))
    is_grouped = groups is not None and kinds >= _FEWEST_GROUPS
    codes = np.unique(np.asarray(groups), return_inverse=True)[1] if is_grouped else np.arange(len(truth))
    members = [np.flatnonzero(codes == code) for code in range(int(codes.max(initial=-1)) + 1)]
    generator = np.random.default_rng(seed)
    differences: list[float] = []
    for _ in range(_RESAMPLES):
        drawn = np.concatenate([members[unit] for unit in generator.integers(len(members), size=len(members))])
        figures = [quality(scores[drawn], truth[drawn], multilabel=True)["mAP"] for scores in (one, other)]
        differences.append(figures[0] - figures[1])
    low, high = np.nanquantile(differences, [0.025, 0.975])
    return Margin(float(high - low) / 2, kinds if is_grouped else None)


def _error(values: Floats, clusters: Sequence[str] | None) -> float:
    """Standard error of a mean; sums over clusters vary, where there are two or more."""
    deviations = values - values.mean()
    if clusters is not None and len(set(clusters)) > 1:
        codes = np.unique(np.asarray(clusters), return_inverse=True)[1]
        deviations = np.bincount(codes, weights=deviations)
    count = len(deviations)
    return float(np.sqrt(np.square(deviations).sum() * count / max(count - 1, 1))) / max(len(values), 1)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The model beside the best of plain line and random weights.

    Attributes:
        figure: Name of the figure, `accuracy` or `mAP`.
        reader: What reads the model.
        pooling: How the model was pooled.
        model: Its figure.
        against: What it is compared with: `plain` or `random`.
        against_pooling: How that was pooled.
        against_reader: What reads that; empty is what reads the model.
        best: Figure of that.
        margin: Half the width of the 95 % interval of the difference.
        groups: Groups whose spread the margin is; None where it takes clips (or folds) as independent.
    """

    figure: str
    reader: str
    pooling: str
    model: float
    against: str
    against_pooling: str
    best: float
    margin: float
    groups: int | None
    against_reader: str = ""

    @property
    def pays(self) -> bool:
        """Whether the model is above the other beyond the margin."""
        return self.model - self.best > self.margin

    def text(self) -> str:
        """The verdict as a sentence."""
        difference = self.model - self.best
        said = "Pretraining pays here"
        if not self.pays:
            said = "Pretraining does not pay here" if difference < -self.margin else "No clear gain by pretraining here"
        other = "random weights" if self.against == "random" else "the plain line"
        against = ", ".join(filter(None, (self.against_pooling, self.against_reader)))
        kind = "clips as independent" if self.groups is None else f"{self.groups} groups"
        return (
            f"{said}: the model reads {100 * self.model:.1f} % ({self.pooling}, {self.reader}), the best of plain line "
            f"and random weights {100 * self.best:.1f} % ({other}, {against}): {100 * difference:+.1f} "
            f"points, 95 % margin ± {100 * self.margin:.1f} ({kind})."
        )

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**asdict(self), "pays": self.pays, "text": self.text()}


_LINEAR = ("ridge", "logistic")


def judge(
    rows: Sequence[ProbeRow], *, groups: Sequence[str] | None, multilabel: bool, readers: Sequence[str]
) -> Verdict | None:
    """Compares the lines of a probe.

    The model is read by the first reader; of plain line and random weights the best counts, by whichever linear reader.

    Args:
        rows: The lines.
        groups: The group of each clip of the probe, by the places in `ProbeRow.asked`.
        multilabel: Whether clips have several labels.
        readers: All readers, in the order in which they are preferred.

    Returns:
        The verdict; None where there is nothing to compare the model with, or no clip that both were asked about.
    """
    for reader in readers:
        model = _line(rows, "model", reader)
        if model is None:
            continue
        alike = [reader, *(other for other in _LINEAR if reader in _LINEAR and other != reader)]
        others = [_line(rows, name, each) for each in alike for name in ("plain", "random")]
        known = [row for row in others if row is not None]
        if not known:
            return None
        figure = "mAP" if multilabel else "accuracy"
        best = max(known, key=lambda row: row.figures[figure])
        margin = _margin(model, best, groups)
        if margin is None:
            return None
        return Verdict(
            figure=figure,
            reader=reader,
            pooling=model.pooling,
            model=model.figures[figure],
            against=best.features,
            against_pooling=best.pooling,
            best=best.figures[figure],
            margin=margin.half,
            groups=margin.groups,
            against_reader=best.reader if best.reader != reader else "",
        )
    return None


def _line(rows: Sequence[ProbeRow], features: str, reader: str) -> ProbeRow | None:
    """The line of features that stands for them, without a look at its figure."""
    among = [row for row in rows if row.features == features and row.reader == reader and row.shots is None]
    return max(among, key=lambda row: (row.is_grid, row.layer in ("both", "mix"), row.layer is None), default=None)


def _margin(model: ProbeRow, other: ProbeRow, groups: Sequence[str] | None) -> Margin | None:
    if model.asked is None or other.asked is None:
        return None
    common, here, there = np.intersect1d(model.asked, other.asked, return_indices=True)
    if not len(common):
        return None
    asked = None if groups is None else [groups[place] for place in common.tolist()]
    if model.marks is not None and other.marks is not None:
        return margin_of_marks(model.marks[here] - other.marks[there], asked)
    if model.scores is not None and other.scores is not None and model.truth is not None:
        return margin_of_scores(model.scores[here], other.scores[there], model.truth[here], asked)
    if len(model.each) > 1 and len(model.each) == len(other.each):
        return margin_of_figures(np.array(model.each) - np.array(other.each))
    return None
