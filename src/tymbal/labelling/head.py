"""A head on frozen embeddings, fitted anew after a few answers: what the labelled windows tell about all others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, softmax

from tymbal.evaluation.linear import fit_logistic
from tymbal.labelling.windows import Windows

__all__ = ["Examples", "Head", "together"]

_STRENGTH = 50.0
_MEMBERS = 5
_DECIDED = 0.5


@dataclass(frozen=True)
class Head:
    """A linear reader of vectors.

    Attributes:
        labels: Names of the labels.
        weight: [width, labels].
        bias: [labels].
        several: Whether a window may have several labels, or none: then each label is decided for itself.
    """

    labels: tuple[str, ...]
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    several: bool

    def logits(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits [windows, labels] of vectors [windows, width]."""
        return np.asarray(vectors @ self.weight + self.bias, np.float32)

    def probabilities(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Probabilities [windows, labels] of vectors [windows, width]."""
        return self._probable(self.logits(vectors))

    def _probable(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(expit(logits) if self.several else softmax(logits, axis=1), np.float32)

    def decisions(self, vectors: NDArray[np.float32], among: Sequence[str]) -> NDArray[np.bool_]:
        """Which of some labels windows have, bool [windows, among]; one that the head does not know, none has."""
        probabilities = self.probabilities(vectors)
        decided = probabilities >= _DECIDED if self.several else probabilities == probabilities.max(1, keepdims=True)
        result = np.zeros((len(vectors), len(among)), bool)
        for column, name in enumerate(among):
            if name in self.labels:
                result[:, column] = decided[:, self.labels.index(name)]
        return result


def together(heads: Sequence[Head], vectors: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """What each head says of vectors [windows, width], as `Head.probabilities`, in one product: they are read once."""
    if not heads:
        return []
    logits = vectors @ np.concatenate([head.weight for head in heads], axis=1)
    ends = np.cumsum([len(head.labels) for head in heads])[:-1]
    return [head._probable(part + head.bias) for head, part in zip(heads, np.split(logits, ends, axis=1), strict=True)]


@dataclass(frozen=True)
class Examples:
    """Labelled windows to learn from.

    Attributes:
        places: Their places among the windows, in the order of the answers, [examples].
        truth: Which has which label, bool [examples, labels].
        labels: Names of the labels.
        several: Whether a window may have several labels, or none.
    """

    places: NDArray[np.int64]
    truth: NDArray[np.bool_]
    labels: tuple[str, ...]
    several: bool

    def __len__(self) -> int:
        return len(self.places)

    def some(self, which: slice | NDArray[np.int64]) -> Examples:
        """Some of the examples."""
        return replace(self, places=self.places[which], truth=self.truth[which])

    def head(self, windows: Windows) -> Head | None:
        """Fits a head; None where there is nothing to tell apart."""
        seen = self.truth.any(axis=0)
        told = np.asarray(seen & ~self.truth.all(axis=0) if self.several else seen)
        if told.sum() < (1 if self.several else 2):
            return None
        kept = self if self.several else self.some(np.flatnonzero(self.truth.any(axis=1)))
        vectors = windows.vectors[kept.places].astype(np.float64)
        fitted = fit_logistic(
            vectors, kept.truth[:, told], multilabel=self.several, strengths=(_STRENGTH,), standardise=False
        )
        names = tuple(self.labels[place] for place in np.flatnonzero(told))
        return Head(names, fitted.weight.astype(np.float32), fitted.bias.astype(np.float32), self.several)

    def committee(self, windows: Windows, *, seed: int) -> list[Head]:
        """Heads of examples drawn with replacement (query by committee, Seung et al. 1992, by bagging)."""
        rng = np.random.default_rng(seed)
        draws = (self.some(rng.integers(0, len(self), len(self))) for _ in range(_MEMBERS))
        return [head for drawn in draws if (head := drawn.head(windows)) is not None]
