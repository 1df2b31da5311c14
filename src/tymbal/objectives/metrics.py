"""Figures of merit of a classifier, from sums over batches whose size does not depend on the number of clips.

An evaluation of a million clips must not keep a million rows of scores. Accuracy, balanced accuracy and F1 need only a
confusion matrix. Average precision and the area under the ROC curve need the order of the scores, which a histogram
keeps: `BINS` bins over the log-odds, positives and negatives apart, as narrow as 1e-4 around even odds and 0.3 % of the
score far from them. Scores in one bin count as tied, as scikit-learn counts equal scores: the figures are exact for the
rounded scores, and within a few thousandths of those for the unrounded ones, unless a model gives nearly all clips the
same score, as one does before it has learned anything.

A metric such as accuracy is a ratio of two sums. An objective returns the sums of each batch as small tensors; they are
added where they are, and the host asks for them once: when a figure is logged, or at the end of an evaluation. So no
step waits for the host, no output of the model is kept, and the batches may differ in size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "BINS",
    "LIMIT",
    "RunningSums",
    "average_precision",
    "averaged",
    "bins_of",
    "by_class",
    "confusion_counts",
    "each_average_precision",
    "each_roc_auc",
    "log_odds",
    "middle_precision_recall",
    "multilabel_counts",
    "multilabel_figures",
    "prevalence",
    "roc_auc",
    "score_histogram",
    "single_label_counts",
    "single_label_figures",
]

BINS = 4096
LIMIT = 16.0
"""Log-odds beyond it fall into the outermost bins."""

_FINE = 32.0


def log_odds(logits: Tensor) -> Tensor:
    """Log-odds of each class against all others under a softmax: its order is that of the probabilities.

    Args:
        logits: [batch, classes], two classes or more.

    Returns:
        [batch, classes], finite also where a probability rounds to 1.
    """
    logits = logits.float()
    best = logits.argmax(dim=1, keepdim=True)
    rest = logits.scatter(1, best, -torch.inf).logsumexp(dim=1, keepdim=True)
    # 1 - p is exact for every class but the best, whose p may round to 1.
    log_p = logits.log_softmax(dim=1)
    odds = log_p - torch.log1p(-log_p.exp().clamp(max=0.5))
    return odds.scatter(1, best, logits.gather(1, best) - rest)


def confusion_counts(predicted: Tensor, truth: Tensor, classes: int) -> Tensor:
    """Confusion matrix [classes, classes] of class indices [batch]: rows are the truth, columns the prediction."""
    flat = torch.zeros(classes * classes, dtype=torch.int64, device=truth.device)
    flat.index_add_(0, truth * classes + predicted, torch.ones_like(truth))
    return flat.view(classes, classes)


def multilabel_counts(predicted: Tensor, truth: Tensor) -> Tensor:
    """True positives, false positives, false negatives and true negatives a class, [4, classes], of bools."""
    cells = (predicted & truth, predicted & ~truth, ~predicted & truth, ~predicted & ~truth)
    return torch.stack([cell.sum(dim=0) for cell in cells])


def bins_of(scores: Tensor) -> Tensor:
    """The bin of each log-odd, int64 from 0 to BINS - 1: linear around 0, logarithmic far from it."""
    reach = math.asinh(LIMIT * _FINE)
    place = (torch.asinh(scores.float().nan_to_num() * _FINE) + reach) * (BINS / (2 * reach))
    return place.clamp(0, BINS - 1).long()


def score_histogram(scores: Tensor, truth: Tensor) -> Tensor:
    """Counts of scores a class, negatives and positives apart.

    Args:
        scores: Log-odds, [batch, classes].
        truth: Whether the clip has the label, bool [batch, classes].

    Returns:
        int64 [2, classes, BINS], bins from low to high scores; negatives first.
    """
    classes = scores.shape[1]
    place = bins_of(scores)
    place += torch.arange(classes, device=scores.device) * BINS
    place += truth.long() * (classes * BINS)
    flat = torch.zeros(2 * classes * BINS, dtype=torch.int64, device=scores.device)
    flat.index_add_(0, place.flatten(), torch.ones_like(place).flatten())
    return flat.view(2, classes, BINS)


def average_precision(histogram: NDArray[Any]) -> float:
    """Mean over the classes that occur of the average precision (the mAP of AudioSet); NaN where none occurs.

    Args:
        histogram: [2, classes, bins] as from `score_histogram`, summed over the batches.
    """
    return _mean(each_average_precision(histogram))


def each_average_precision(histogram: NDArray[Any]) -> NDArray[np.float64]:
    """Average precision of each class, [classes]; NaN for those that do not occur."""
    negatives, positives = (np.cumsum(part[:, ::-1], axis=1, dtype=np.float64) for part in histogram)
    total = positives[:, -1]
    precision = positives / np.maximum(positives + negatives, 1)
    gained = np.diff(positives, axis=1, prepend=0)
    return _ratio((precision * gained).sum(axis=1), total)


def roc_auc(histogram: NDArray[Any]) -> float:
    """Mean area under the ROC curve over the classes with positives and negatives; NaN without such a class."""
    return _mean(each_roc_auc(histogram))


def each_roc_auc(histogram: NDArray[Any]) -> NDArray[np.float64]:
    """Area under the ROC curve of each class, [classes]; NaN for those without positives or without negatives."""
    negatives, positives = histogram.astype(np.float64)
    below = np.cumsum(negatives, axis=1) - negatives
    won = (positives * (below + negatives / 2)).sum(axis=1)
    pairs = positives.sum(axis=1) * negatives.sum(axis=1)
    return _ratio(won, pairs)


def _ratio(top: NDArray[np.float64], bottom: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(bottom > 0, top / np.maximum(bottom, 1), np.nan)


def _mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def middle_precision_recall(histogram: NDArray[Any]) -> tuple[float, float]:
    """Mean precision and recall over the classes that occur, at the middle of the thresholds at which they change.

    SSAST and AST report these two; they depend on the number of different scores, and are only good for comparing
    with them.
    """
    pairs = []
    for negatives, positives in zip(*histogram, strict=True):
        bins = np.flatnonzero(negatives + positives)
        if positives.sum() == 0:
            continue
        threshold = bins[len(bins) // 2]
        hits, alarms = positives[threshold:].sum(), negatives[threshold:].sum()
        pairs.append((hits / max(hits + alarms, 1), hits / positives.sum()))
    if not pairs:
        return float("nan"), float("nan")
    precision, recall = np.mean(pairs, axis=0)
    return float(precision), float(recall)


def single_label_figures(confusion: NDArray[Any]) -> dict[str, float]:
    """Accuracy, balanced accuracy, precision, recall and F1 of a confusion matrix [truth, prediction].

    Balanced accuracy is the mean recall over the classes that occur (scikit-learn's convention).
    """
    matrix = confusion.astype(np.float64)
    hit, truth = np.diag(matrix), matrix.sum(axis=1)
    occurs = truth > 0
    return {
        "accuracy": float(hit.sum() / matrix.sum()) if occurs.any() else float("nan"),
        "balanced_accuracy": float((hit[occurs] / truth[occurs]).mean()) if occurs.any() else float("nan"),
        **averaged(*single_label_counts(confusion)),
    }


def multilabel_figures(counts: NDArray[Any]) -> dict[str, float]:
    """Accuracy (of single decisions), balanced accuracy, precision, recall and F1 from `multilabel_counts`, summed.

    Balanced accuracy is the mean of sensitivity and specificity over the classes that have both kinds of clips.
    """
    hit, false_alarm, miss, rejection = counts.astype(np.float64)
    both = (hit + miss > 0) & (false_alarm + rejection > 0)
    sensitivity = hit[both] / (hit + miss)[both]
    specificity = rejection[both] / (false_alarm + rejection)[both]
    return {
        "accuracy": float((hit + rejection).sum() / counts.sum()) if counts.sum() else float("nan"),
        "balanced_accuracy": float((sensitivity + specificity).mean() / 2) if both.any() else float("nan"),
        **averaged(hit, hit + miss, hit + false_alarm),
    }


def prevalence(counts: NDArray[Any]) -> float:
    """Mean share of the clips that have a label, over the labels that occur: the mAP of scores that tell nothing.

    Args:
        counts: [4, classes] as from `multilabel_counts`, summed.
    """
    clips = counts[0] + counts[2]
    shares = clips / np.maximum(counts.sum(axis=0), 1)
    return _mean(np.where(clips > 0, shares, np.nan))


def single_label_counts(confusion: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Hits, clips and predictions of each class, from a confusion matrix [truth, prediction]."""
    return np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)


def by_class(hit: NDArray[Any], truth: NDArray[Any], predicted: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
    """Precision, recall and F1 of each class; 0 where the denominator is 0 (scikit-learn's convention).

    Args:
        hit: Clips of the class that were taken for it, [classes].
        truth: Clips of the class.
        predicted: Clips that were taken for it.
    """
    parts = {"precision": (hit, predicted), "recall": (hit, truth), "f1": (2 * hit, truth + predicted)}
    return {name: top / np.maximum(bottom, 1) for name, (top, bottom) in parts.items()}


def averaged(hit: NDArray[Any], truth: NDArray[Any], predicted: NDArray[Any]) -> dict[str, float]:
    """Precision, recall and F1, each as the mean over the classes that occur or are predicted and as `weighted_…`.

    The second is the mean over the clips' classes: each class weighs as much as it has clips (scikit-learn's `weighted`
    average). NaN where nothing occurs. The arguments are those of `by_class`.
    """
    occurs, clips = truth + predicted > 0, truth.sum()
    figures: dict[str, float] = {}
    for name, values in by_class(hit, truth, predicted).items():
        figures[name] = float(values[occurs].mean()) if clips else float("nan")
        figures[f"weighted_{name}"] = float(values @ truth / clips) if clips else float("nan")
    return figures


class RunningSums:
    """Named sums that live on the device."""

    def __init__(self) -> None:
        self._totals: dict[str, Tensor] = {}

    def add(self, sums: Mapping[str, Tensor]) -> None:
        """Adds the sums of one batch: tensors of any shape, the same for a name every time."""
        for name, value in sums.items():
            if name in self._totals:
                self._totals[name] += value.detach()
            else:
                self._totals[name] = value.detach().to(_wide(value), copy=True)

    def take(self) -> dict[str, Tensor]:
        """The sums since the last call, of all processes, on the CPU; starts again from nothing.

        Waits for the device. With several processes each of them has to call this, also one that added nothing.
        """
        totals = {name: value.cpu() for name, value in self._totals.items()}
        self._totals = {}
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return totals
        parts: list[dict[str, Tensor]] = [{} for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather_object(parts, totals)
        everywhere: dict[str, Tensor] = {}
        for part in parts:
            for name, value in part.items():
                everywhere[name] = everywhere[name] + value if name in everywhere else value
        return everywhere


def _wide(value: Tensor) -> torch.dtype:
    """A dtype in which a sum over a million batches stays exact to the last digit that is shown."""
    if not value.is_floating_point():
        return torch.int64
    return torch.float32 if value.device.type == "mps" else torch.float64  # MPS has no float64
